"""Start-up: from the command to the first step, ours and the reference's, on CIFAR-10; and `--help`.

  python -m benchmarks.startup --data_dir=$DATA_DIR --reference=<checkout> --reference_python=<interpreter>

ResNet-18, batch 64. The first step counts as done when it is reported: both save a checkpoint before they do.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.alternating import ROOT, arguments, goal

SHARED = ("--mode=train", "--train_mode=pretrain", "--dataset=cifar10", "--image_size=32", "--resnet_depth=18",
          "--train_batch_size=64", "--warmup_epochs=0", "--train_steps=1", "--checkpoint_steps=1")


def main(argv=None) -> list[dict]:
    args = arguments(argparse.ArgumentParser(description=__doc__), argv)
    helps, ours, reference = [], [], []
    for _ in range(min(args.rounds, 2)):
        helps.append(until([sys.executable, "run.py", "--help"], ROOT, r"\Z"))
        if args.data_dir:
            ours.append(first_step([sys.executable, "run.py"], ROOT, args.data_dir, r"^step 1/1"))
            if args.reference:
                folder = os.path.join(args.reference, "tf2")
                command = [args.reference_python, "run.py", "--eval_split=test", "--use_tpu=False"]
                reference.append(first_step(command, folder, args.data_dir, r"Completed: 1 / 1 steps"))
    print("\n| | seconds |\n|---|---|")
    for name, values in (("--help", helps), ("first step, ours", ours), ("first step, reference", reference)):
        if values:
            print(f"| {name} | {statistics.median(values):.1f} |")
    print()
    goals = [goal("--help: seconds, below 2", statistics.median(helps), 2.0, True, " s")]
    if reference:
        slower = statistics.median(a / b for a, b in zip(ours, reference, strict=True))
        goals.append(goal("First step: time at most 1.5 times the reference's", slower, 1.5, True))
    return goals


def first_step(command, folder, data_dir, pattern) -> float:
    with tempfile.TemporaryDirectory() as model_dir:
        flags = [*SHARED, f"--data_dir={data_dir}", f"--model_dir={model_dir}"]
        return until([*command, *flags], folder, pattern)


def until(command, folder, pattern) -> float:
    """Seconds until a line of the command's output matches; `\\Z` waits for its end."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    started, seen = time.perf_counter(), []
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True)
    matched = None
    for line in process.stdout:
        seen.append(line)
        if matched is None and pattern != r"\Z" and re.search(pattern, line):
            matched = time.perf_counter() - started
    code = process.wait()
    if pattern == r"\Z":
        matched = time.perf_counter() - started
    if matched is None:
        raise SystemExit(f"{' '.join(command)} ended with exit code {code}:\n{''.join(seen[-20:])}")
    return matched


if __name__ == "__main__":
    main()
