"""Time to quality: how long our recipe takes beside the reference's, to features that are at least as good.

  python -m benchmarks.time_to_quality --data_dir=$DATA_DIR --reference=<checkout> --reference_python=<interpreter>

Ours is `flags/stanford_dogs/fast.flags`, a whole `run.py` from start to end for each seed, then `benchmarks.probe` on
its last checkpoint: the best of the probe's strengths counts, for the reference's features too. The reference's is
15 epochs of ResNet-18 at 64 px, batch 128, LARS, learning rate 1.0, temperature 0.2, one epoch of warm-up. Its time is
that of its bare steps, measured before and after each of our runs on the same machine: its own pipeline and checkpoints
are not counted, in its favour. Its accuracy is `--reference_accuracy`, or that of `--reference_checkpoint`.

With --precisions=mixed_bfloat16,float32 every seed is run in both, to compare where they end.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.alternating import ROOT, Worker, arguments, goal, rates

TRAINING_IMAGES, REFERENCE_EPOCHS = 12_000, 15


def main(argv=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--precisions", default="mixed_bfloat16")
    parser.add_argument("--reference_accuracy", type=float, default=0.0458)
    parser.add_argument("--reference_checkpoint")
    parser.add_argument("--reference_seconds", type=float, help="if its steps are not to be measured")
    parser.add_argument("--train_epochs", type=int, help="another length than the preset's")
    args = arguments(parser, argv)
    if not args.data_dir:
        raise SystemExit("Give --data_dir=<where the TFDS data set stanford_dogs is>.")
    from benchmarks.probe import probe

    wanted = args.reference_accuracy
    if args.reference_checkpoint:
        wanted = max(probe(args.reference_checkpoint, args.data_dir).values())
    reference = None
    if args.reference:
        shape = dict(what="step", image_size=64, resnet_depth=18, train_batch_size=128, checkout=args.reference)
        reference = Worker("reference", "reference.py", shape, args.reference_python)
    print("| Precision | Seed | Seconds | CPU-seconds | Reference, seconds | Ratio | Top-1 of the probe |")
    print("|---|---|---|---|---|---|---|")
    ratios, accuracies = [], []
    for seed in args.seeds.split(","):
        for precision in args.precisions.split(","):
            speeds = rates([reference.measure(4)]) if reference else []
            with tempfile.TemporaryDirectory() as model_dir:
                seconds, cpu_seconds = run(seed, precision, model_dir, args)
                found = probe(model_dir, args.data_dir)
            speeds += rates([reference.measure(4)]) if reference else []
            theirs = args.reference_seconds
            if speeds:
                theirs = TRAINING_IMAGES * REFERENCE_EPOCHS / statistics.mean(speeds)
            share = seconds / theirs if theirs else float("nan")
            if precision == args.precisions.split(",")[0]:
                ratios.append(share)
                accuracies.append(max(found.values()))
            each = ", ".join(f"C={c}: {a:.2%}" for c, a in found.items())
            print(f"| {precision} | {seed} | {seconds:.0f} | {cpu_seconds:.0f} | {theirs or 0:.0f} | {share:.2f} | "
                  f"{max(found.values()):.2%} ({each}) |", flush=True)
    if reference:
        reference.close()
    print()
    return [
        goal(f"Time to quality: accuracy of the worst seed, at least {wanted:.2%}", min(accuracies), wanted),
        goal("Time to quality: share of the reference's time, slowest seed, at most 0.4", max(ratios), 0.4, True),
    ]


def run(seed: str, precision: str, model_dir: str, args) -> tuple[float, float]:
    """Wall and CPU seconds of one pretraining."""
    command = [sys.executable, "run.py", "--flagfile=flags/stanford_dogs/fast.flags", f"--data_dir={args.data_dir}",
               f"--model_dir={model_dir}", f"--seed={seed}", f"--precision={precision}"]
    if args.train_epochs:
        command.append(f"--train_epochs={args.train_epochs}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {finished.returncode}:\n{finished.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
