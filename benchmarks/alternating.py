"""Workers that are measured in turn, and how their figures are printed.

A worker is a process that sets something up, says `ready`, and then waits. Told a number of repetitions it does the
work that often and says how long that took. While one works the others wait, and every round asks each of them once:
so a machine that is slow for a while is slow for all, and ratios hold where absolute figures don't. What is reported
is the median over rounds, of rates and of ratios within a round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


class Worker:
    """A process that measures on demand.

    Args:
      name: for tables.
      script: file in `benchmarks/workers`.
      settings: what it is to measure; given to it as JSON.
      python: its interpreter.
      more: environment variables to add to this process's.
    """

    def __init__(self, name: str, script: str, settings: dict, python: str = sys.executable, more: dict | None = None):
        self.name = name
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ROOT, "CUDA_VISIBLE_DEVICES": ""}
        environment |= more or {}
        self._process = subprocess.Popen(
            [python, os.path.join(HERE, "workers", script), json.dumps(settings)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=environment,
        )
        self.info = self._answer()

    def measure(self, repetitions: int) -> dict:
        """`seconds`, `cpu_seconds` and `items` of so many repetitions, and what else the worker knows."""
        self._process.stdin.write(f"{repetitions}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process, which has nothing to save."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended with exit code {self._process.wait()}; its messages are above.")


def serve(work, items: int, info: dict | None = None) -> None:
    """The worker's side: `work()` handles `items` items; it has been called once before, so that all is compiled."""
    print(json.dumps({"ready": True, **(info or {})}), flush=True)
    for line in sys.stdin:
        repetitions = int(line)
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(repetitions):
            work()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "items": items * repetitions}), flush=True)


def alternate(workers: list[Worker], rounds: int, repetitions: dict[str, int] | int) -> dict[str, list[dict]]:
    """Every worker's answers, round by round; the order is turned round each time."""
    answers: dict[str, list[dict]] = {worker.name: [] for worker in workers}
    for i in range(rounds):
        for worker in workers if i % 2 == 0 else workers[::-1]:
            count = repetitions if isinstance(repetitions, int) else repetitions[worker.name]
            answers[worker.name].append(worker.measure(count))
    return answers


def rates(answers: list[dict], per: str = "seconds") -> list[float]:
    """Items per second (or per CPU-second) of each round."""
    return [a["items"] / a[per] for a in answers]


def ratio(a: list[float], b: list[float]) -> float:
    """The median over rounds of a / b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def goal(text: str, measured: float, wanted: float, at_most: bool = False, unit: str = "") -> dict:
    """A line of the table of goals; printed at once."""
    reached = measured <= wanted if at_most else measured >= wanted
    line = dict(goal=text, measured=f"{measured:.3g}{unit}", reached=reached)
    print(row(line), flush=True)
    return line


def row(line: dict) -> str:
    return f"| {line['goal']} | {line['measured']} | {'yes' if line['reached'] else 'NO'} |"


HEADER = "| Goal | Measured | Reached |\n|---|---|---|"


def arguments(parser, argv=None):
    """The flags all benchmarks share."""
    parser.add_argument("--reference", help="checkout of google-research/simclr to compare with")
    parser.add_argument("--reference_python", default=sys.executable, help="an interpreter that can run it")
    parser.add_argument("--torch_python", help="an interpreter with PyTorch to compare with")
    parser.add_argument("--data_dir", help="where TFDS data sets are stored; cifar10 and stanford_dogs are used")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(argv)
