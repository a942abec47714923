"""Two workers on this machine that talk over loopback, as a scheduler starts them on two; and the runs they make.

    python -m tests.distributed.job '[["--train_steps=3", ...], ...]'     # runs the commands in turn, in one process
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 400.0  # seconds for what takes one on a machine that is not busy

# A recipe that does not amplify rounding: a learning rate of 0.02 * 16 / 256 at its peak.
GENTLE = (
    "--dataset=digits", "--image_size=16", "--resnet_depth=18", "--width_multiplier=0.25", "--train_batch_size=16",
    "--eval_split=test[:40]", "--eval_batch_size=16", "--warmup_epochs=0", "--use_blur=False", "--proj_out_dim=16",
    "--num_proj_layers=2", "--train_summary_steps=1", "--keep_hub_module_max=-1", "--learning_rate=0.02",
    "--checkpoint_steps=1", "--keep_checkpoint_max=0", "--train_steps=10", "--mode=train_then_eval",
    "--temperature=0.5",  # at 0.1 rounding grows a thousandfold within ten steps
)


def cases(pretrained: str) -> dict[str, list[str]]:
    """The flags of each kind of run that has to come out the same however it is shared out."""
    return {
        "pretrain": [*GENTLE],
        "finetune": [*GENTLE, "--train_mode=finetune", f"--checkpoint={pretrained}", "--optimizer=momentum",
                     "--weight_decay=1e-4"],
        PIECES: [*GENTLE, "--micro_batch_size=8", "--train_steps=3"],
    }

# Gradient caching: batch norm's statistics are those of a piece, whose images depend on how many replicas there are.
PIECES = "pretrain in pieces"


class Job:
    """Workers 0 and 1 of one run: `python <program>` with TF_CONFIG of two.

    Args:
      folder: for their logs, `worker<k>.<try>.log`.
      program: arguments after `python`.
      restarts: how often a worker that ended badly is started again, as Kubernetes does.
    """

    def __init__(self, folder: pathlib.Path, program: list[str], restarts: int = 0):
        self._folder, self._program, self._restarts = folder, program, restarts
        folder.mkdir(parents=True, exist_ok=True)
        self._addresses = [f"127.0.0.1:{port}" for port in _free_ports(2)]
        self.processes: list[subprocess.Popen | None] = [None, None]
        self.codes: list[list[int]] = [[], []]  # of every try

    def __enter__(self) -> "Job":
        for worker in (0, 1):
            self._start(worker)
        return self

    def __exit__(self, *exc):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _start(self, worker: int) -> None:
        task = {"cluster": {"worker": self._addresses}, "task": {"type": "worker", "index": worker}}
        environment = os.environ | {
            "TF_CONFIG": json.dumps(task), "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow",
        }
        with open(self.log(worker, len(self.codes[worker])), "w") as log:
            self.processes[worker] = subprocess.Popen(
                [sys.executable, *self._program], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def log(self, worker: int, attempt: int = 0) -> pathlib.Path:
        return self._folder / f"worker{worker}.{attempt}.log"

    def until(self, condition) -> None:
        """Waits, looking after the workers meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.story()
            self._look_after()
            assert condition() or any(p.poll() is None for p in self.processes), self.story()
            time.sleep(0.05)

    def end(self) -> list[int]:
        """Waits until both have ended for good; their exit codes."""
        self.until(lambda: self._look_after() or all(p.poll() is not None for p in self.processes))
        return [p.returncode for p in self.processes]

    def kill(self, worker: int, number: int) -> None:
        self.processes[worker].send_signal(number)

    def _look_after(self) -> None:
        for worker, process in enumerate(self.processes):
            if process.poll() not in (None, 0) and len(self.codes[worker]) < self._restarts:
                self.codes[worker].append(process.returncode)
                self._start(worker)

    def story(self) -> str:
        """The ends of all logs, for a failed test."""
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self._folder.glob("*.log")))


def steps_saved(model_dir) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(int(p.stem.removeprefix("ckpt-")) for p in pathlib.Path(model_dir).glob("ckpt-*.index"))


def variables(model_dir, step: int, part: str = "model/") -> dict[str, np.ndarray]:
    """The variables of a checkpoint whose names begin with `part`."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(os.path.join(model_dir, f"ckpt-{step}"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if name.startswith(part)}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


if __name__ == "__main__":
    from simclr_tf import cli

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(next((code for flags in json.loads(sys.argv[1]) if (code := cli.main(flags))), 0))
