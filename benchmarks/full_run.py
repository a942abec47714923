"""What pipeline, metrics, summaries and checkpoints cost: the rate of a whole `run.py` beside the bare step's.

  python -m benchmarks.full_run [--data_dir=$DATA_DIR]

ResNet-18 at 32 px, batch 64, bfloat16, on the digits, or CIFAR-10 where there is a data_dir. A summary every 10 steps
and a checkpoint every 20. The bare step, on images that lie ready, is timed before and after the run; both leave out
the first steps, which compile.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.alternating import ROOT, Worker, arguments, goal

EVERY, STEPS, BATCH = 10, 60, 64


def main(argv=None) -> list[dict]:
    args = arguments(argparse.ArgumentParser(description=__doc__), argv)
    shape = dict(what="step", resnet_depth=18, image_size=32, train_batch_size=BATCH, precision="mixed_bfloat16")
    worker = Worker("step", "ours.py", shape)
    kept, bare_rates, full_rates = [], [], []
    for _ in range(max(1, args.rounds // 2)):
        before = worker.measure(STEPS // 4)
        rate = full_rate(args.data_dir)
        after = worker.measure(STEPS // 4)
        bare = (before["items"] + after["items"]) / (before["seconds"] + after["seconds"])
        kept.append(rate / bare)
        bare_rates.append(bare)
        full_rates.append(rate)
    worker.close()
    print("\n| | images/s |\n|---|---|")
    print(f"| bare step | {statistics.median(bare_rates):.1f} |\n| run.py | {statistics.median(full_rates):.1f} |\n")
    return [goal("Full run: share of the bare step's rate at least 0.95", statistics.median(kept), 0.95)]


def full_rate(data_dir) -> float:
    """Images per second of a run, from its first progress line to its last, checkpoints included."""
    with tempfile.TemporaryDirectory() as model_dir:
        data = [f"--data_dir={data_dir}", "--dataset=cifar10"] if data_dir else ["--dataset=digits"]
        command = [
            sys.executable, "run.py", "--mode=train", "--train_mode=pretrain", *data, "--image_size=32",
            "--resnet_depth=18", f"--train_batch_size={BATCH}", "--precision=mixed_bfloat16", "--warmup_epochs=0",
            "--lineareval_while_pretraining=False", f"--train_steps={STEPS}", f"--train_summary_steps={EVERY}",
            f"--checkpoint_steps={2 * EVERY}", f"--model_dir={model_dir}",
        ]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        seen = {}
        for line in process.stderr:
            if match := re.match(r"step (\d+)/", line):
                seen[int(match[1])] = time.perf_counter()
        if process.wait():
            raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}.")
    first, last = min(seen), max(seen)
    return (last - first) * BATCH / (seen[last] - seen[first])


if __name__ == "__main__":
    main()
