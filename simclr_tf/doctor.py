"""`--mode=doctor`: what a run would need, looked at one by one: versions, devices, memory, disk, data, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from simclr_tf import checkpoint, data, lock, released, restore
from simclr_tf.config import Config
from simclr_tf.errors import ConfigError, DataError, SimclrError, StorageError
from simclr_tf.strategy import describe, make_strategy

OLDEST = {"tensorflow": (2, 18), "keras": (3, 10)}  # as setup.py asks for
LITTLE = 1 << 30  # bytes of memory or disk
LOOKED_AT = 16  # images that are decoded, spread over the split
GPU_FILE = "/dev/nvidia0"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A line of the report. state: ok, warning or problem; a problem ends the command with its error's exit code."""

    subject: str
    state: str
    text: str
    error: SimclrError | None = None

    def __str__(self) -> str:
        return f"{self.state:<8}{self.subject}: {self.text}"


def doctor(config: Config) -> None:
    """Prints the findings, a line each, or with `--json` one JSON object.

    Raises:
      SimclrError: the first problem's.
    """
    findings = examine(config)
    if config.json:
        lines = [{"subject": f.subject, "state": f.state, "text": f.text} for f in findings]
        print(json.dumps({"healthy": not any(f.error for f in findings), "findings": lines}, indent=1))
    else:
        print("\n".join(map(str, findings)))
    problems = [f for f in findings if f.error]
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems, the first"
        raise type(problems[0].error)(f"doctor found {count}: {problems[0].subject}: {problems[0].text}")


def examine(config: Config) -> list[Finding]:
    """All findings, in the order of the report. Changes and downloads nothing."""
    config = dataclasses.replace(config, dry_run=True)
    findings = []
    for subject, look in _SUBJECTS.items():
        try:
            findings += [Finding(subject, state, text) for state, text in look(config)]
        except SimclrError as error:
            findings.append(Finding(subject, "problem", " ".join(str(error).split()), error))
    return findings


def _versions(config: Config) -> Iterator[tuple[str, str]]:
    versions = {package.__name__: package.__version__ for package in (tf, keras, tfds, np)}
    for name, oldest in OLDEST.items():
        if tuple(map(int, versions[name].split(".")[:2])) < oldest:
            wanted = ".".join(map(str, oldest))
            raise ConfigError(f"{name} {versions[name]} is older than {wanted}. Run: pip install -U {name}")
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield "ok", f"Python {platform.python_version()}, {listed}; Keras runs on {keras.config.backend()}"


def _devices(config: Config) -> Iterator[tuple[str, str]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if os.path.exists(GPU_FILE) and not tf.config.list_physical_devices("GPU"):
        yield "warning", "this machine has a GPU that TensorFlow does not see. Run: pip install 'simclr_tf[cuda]'"
    if (os.environ.get("TF_CONFIG") or "").strip():
        yield "ok", f"{cores} CPU cores; TF_CONFIG is set: the strategy is made when all workers are there"
        return
    yield "ok", f"{describe(make_strategy(config), config)}; {cores} CPU cores"


def _memory(config: Config) -> Iterator[tuple[str, str]]:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in file)}
        total, free = kib["MemTotal"] << 10, kib["MemAvailable"] << 10
    except (OSError, ValueError, KeyError):
        yield "ok", "not known on this system"
        return
    text = f"{_gib(free)} free of {_gib(total)}"
    if free < LITTLE:
        yield "warning", f"{text}: little. Lower --train_batch_size if the run ends with 'out of memory'"
    else:
        yield "ok", text


def _disk(config: Config) -> Iterator[tuple[str, str]]:
    folder = config.model_dir or "."
    if "://" in folder:
        yield "ok", f"{folder} is remote: not looked at"
        return
    there = os.path.abspath(os.path.expanduser(folder))
    while not os.path.exists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise ConfigError(f"--model_dir must be a folder. Received: --model_dir={folder}, and {there} is a file.")
    if not os.access(there, os.W_OK):
        raise StorageError(f"{there} cannot be written. Use another --model_dir.")
    free = shutil.disk_usage(there).free
    text = f"{_gib(free)} free at {there}"
    yield ("ok", text) if free >= LITTLE else ("warning", f"{text}: little for checkpoints")


def _dataset(config: Config, split: str = "train_split") -> Iterator[tuple[str, str]]:
    if "dataset" not in config.given:
        yield "ok", "not looked at: add --dataset"
        return
    source = data.open_source(config, getattr(config, split))
    chosen = {i * (source.num_examples - 1) // max(1, LOOKED_AT - 1) for i in range(LOOKED_AT)}
    bad = source.find_bad(chosen)
    if bad:
        _, name, reason = bad[0]
        raise DataError(
            f"{source.name}, split {source.split}: {len(bad)} of {len(chosen)} images looked at cannot be read, "
            f"{name}: {reason}. Mend them, or skip them with --max_bad_images."
        )
    yield "ok", f"{source.describe()}; {len(chosen)} images looked at can be read"


def _evaluation_data(config: Config) -> Iterator[tuple[str, str]]:
    try:
        yield from _dataset(config, "eval_split")
    except DataError as error:
        if "eval_split" in config.given:
            raise
        yield "warning", f"--eval_split is not given, and its default does not serve: {error}"


def _run(config: Config) -> Iterator[tuple[str, str]]:
    if config.model_dir is None:
        yield "ok", "not looked at: add --model_dir"
        return
    found = checkpoint.checkpoints(config.model_dir)
    if not found:
        yield "ok", f"none in {config.model_dir}: a run would start at step 0"
    else:
        for prefix in found[:-1]:
            try:
                checkpoint.verify(prefix)
            except SimclrError as error:
                yield "warning", str(error)
        newest = checkpoint.latest(config.model_dir)  # raises where all are damaged
        if newest != found[-1]:
            yield "warning", f"the newest one, {found[-1]}, is damaged"
        best = checkpoint.best(config.model_dir)
        kept = f"; the best one evaluated is of step {checkpoint.step_of(best)}" if best else ""
        yield "ok", f"{len(found)} in {config.model_dir}; a run would go on at step {checkpoint.step_of(newest)}{kept}"
    if holder := lock.holder(config.model_dir):
        yield "warning", f"{holder} is training in {config.model_dir}"


def _starting_point(config: Config) -> Iterator[tuple[str, str]]:
    if config.checkpoint is None:
        return
    if config.checkpoint.startswith(("simclrv1/", "simclrv2/", "http")) and not os.path.exists(config.checkpoint):
        yield "ok", f"{config.checkpoint} is downloaded when it is used, unless it is here already"
        return
    restore.follow_checkpoint(config, config.checkpoint)
    arch, _ = released.inspect(config.checkpoint)
    yield "ok", f"{config.checkpoint}: {arch}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


_SUBJECTS: dict[str, Callable[[Config], Iterator[tuple[str, str]]]] = {
    "versions": _versions,
    "devices": _devices,
    "memory": _memory,
    "disk": _disk,
    "training data": _dataset,
    "evaluation data": _evaluation_data,
    "checkpoints": _run,
    "--checkpoint": _starting_point,
}
