"""The command: parses the flags, dispatches to a mode, and turns errors into exit codes (see `errors.py`)."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import logging
import os
import sys
import traceback

from simclr_tf import options
from simclr_tf.config import Config
from simclr_tf.errors import ConfigError, DeviceError, SimclrError, StorageError

# mode -> (module, function), imported when asked for: TensorFlow takes seconds to import and --help does not need it.
MODES = {
    "train": ("simclr_tf.training", "train"),
    "train_then_eval": ("simclr_tf.training", "train_then_eval"),
    "eval": ("simclr_tf.evaluation", "evaluate"),
    "demo": ("simclr_tf.demo", "demo"),
    "study": ("simclr_tf.study", "study"),
    "probe": ("simclr_tf.probe", "probe"),
    "embed": ("simclr_tf.embedding_files", "write"),
    "compare": ("simclr_tf.report.compare", "compare"),
    "predict": ("simclr_tf.prediction", "predict"),
    "export": ("simclr_tf.exports", "export_checkpoint"),
}
BASELINE = ("simclr_tf.baseline", "train_then_eval")  # a frozen network of Keras's has a training of its own
BACKENDS = ("tensorflow", "jax")  # of Keras; the choice is the environment variable KERAS_BACKEND
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)  # whoever wrote last
# Modes that end with a report.html; the study and the demo write their own.
REPORTED = ("train", "train_then_eval", "eval", "probe", "embed")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's) and returns the exit code. Never raises."""
    argv = sys.argv[1:] if argv is None else argv
    if any(argument in options.HELP_FLAGS for argument in argv):
        print(options.help_text())
        return 0
    try:
        config = options.parse(argv)
        _prepare_process()
        _run(config)
        return 0
    except SimclrError as error:
        print(f"simclr-tf: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("simclr-tf: interrupted before training began; nothing was lost", file=sys.stderr)
        return 130
    except Exception as error:
        if lost := _lost_worker(error):
            print(f"simclr-tf: {lost}", file=sys.stderr)
            return lost.exit_code
        explained = _explain(error)
        if explained:
            print(f"simclr-tf: {explained}", file=sys.stderr)
            return explained.exit_code
        traceback.print_exc()
        print("simclr-tf: this is a bug in simclr_tf; please report it with the lines above", file=sys.stderr)
        return 1


def _run(config: Config) -> None:
    if config.dry_run:
        from simclr_tf.dry_run import dry_run

        print(dry_run(config))
        return
    if config.mode == "list_checkpoints":
        from simclr_tf import catalog

        print(catalog.table_text())
        return
    if config.mode == "doctor":
        from simclr_tf.doctor import doctor

        return doctor(config)
    if config.model_dir is None:
        raise ConfigError(f"--mode={config.mode} needs a folder for the run. Add --model_dir=runs/<name>.")
    config = dataclasses.replace(config, model_dir=os.path.expanduser(config.model_dir))
    module, function = BASELINE if config.train_mode == "baseline" else MODES[config.mode]
    getattr(importlib.import_module(module), function)(config)
    if config.mode in REPORTED:
        from simclr_tf import strategy

        if strategy.is_chief(config):
            _report(config)
        strategy.part(config)


def _report(config: Config) -> None:
    """Writes the run's `report.html`, with the settings that the run resolved to."""
    from simclr_tf import report, representation, restore

    resolved = os.path.join(config.model_dir, "flags.flags")
    if os.path.exists(resolved):
        now = [f"--model_dir={config.model_dir}", f"--report_images={config.report_images}"]
        config = options.parse([f"--flagfile={resolved}", *now])
    elif config.checkpoint:
        config = restore.follow_checkpoint(config, config.checkpoint, restore.TO_EVALUATE)
    representation.record(config)
    logging.info("Report: %s", report.write_report(config))


def _prepare_process() -> None:
    """Settings that must be made before TensorFlow is imported, and the import itself, with a clear error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # kernels' chatter; errors still reach us as exceptions
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend not in BACKENDS:
        raise ConfigError(
            f"The environment variable KERAS_BACKEND must be {' or '.join(BACKENDS)}. Received: "
            f"KERAS_BACKEND={backend}."
        )
    try:
        with _quiet_stderr():
            import tensorflow as tf

            if backend == "jax":
                import jax
    except ModuleNotFoundError as error:
        if error.name == "jax":
            raise ConfigError("KERAS_BACKEND=jax needs JAX. Run: pip install 'simclr_tf[jax]'.") from None
        if error.name != "tensorflow":
            raise
        raise ConfigError(
            "TensorFlow is not installed. Run: pip install 'simclr_tf[cpu]' (or [cuda], [tpu], [jax])."
        ) from None
    tf.get_logger().setLevel(logging.ERROR)
    logging.getLogger("jax").setLevel(logging.WARNING)  # not for every kind of device that is not here
    if backend == "jax":
        tf.config.set_visible_devices([], "GPU")  # TensorFlow reads data and files only; the memory is JAX's
        # float32 is to mean float32: accelerators otherwise round the factors of its products to fewer bits.
        jax.config.update("jax_default_matmul_precision", "float32")


@contextlib.contextmanager
def _quiet_stderr():
    """Keeps the C++ notices that TensorFlow prints while it loads, whatever its log level, off the screen."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _lost_worker(error: Exception) -> SimclrError | None:
    """The error to report in place of `error`, if that is what another worker's end looks like from here."""
    workers = sys.modules.get("simclr_tf.workers")
    return workers.lost_worker(error) if workers else None


def _explain(error: Exception) -> SimclrError | None:
    """What a user can do about `error`, or None if it is a bug of ours."""
    text = str(error).splitlines()[0] if str(error) else "an allocation failed"
    if getattr(error, "errno", None) in NOT_WRITABLE or any(os.strerror(code) in text for code in NOT_WRITABLE):
        return StorageError(f"storage: {text}. Make room, or use a folder that can be written.")
    if type(error).__name__ == "ResourceExhaustedError" or isinstance(error, MemoryError):
        return DeviceError(
            f"out of memory: {text}. Lower --train_batch_size or --eval_batch_size, --image_size, --width_multiplier "
            "or --resnet_depth, or use --precision=mixed_bfloat16."
        )
    if type(error).__name__ == "UnimplementedError" and "eterministic" in text:
        return DeviceError(f"no deterministic kernel: {text}. Drop --deterministic.")
    return None
