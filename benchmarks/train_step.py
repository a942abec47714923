"""One pretraining step: ours in float32 and bfloat16, the reference and PyTorch if given; and the roofline.

  python -m benchmarks.train_step --reference=<checkout> --reference_python=<interpreter> --torch_python=<interpreter>

Random images that are there already; no blur (the reference blurs in the step, simclr_tf in the pipeline), no linear
evaluation; LARS, PyTorch with SGD, which is cheaper. An image is two views.
"""

import argparse
import statistics

from benchmarks.alternating import Worker, alternate, arguments, goal, rates, ratio

SHAPES = (dict(resnet_depth=18, image_size=32, train_batch_size=64), dict(resnet_depth=50, image_size=224,
                                                                           train_batch_size=8))


def main(argv=None) -> list[dict]:
    args = arguments(argparse.ArgumentParser(description=__doc__), argv)
    goals = []
    for shape in SHAPES:
        goals += one_shape(shape, args)
    return goals


def one_shape(shape: dict, args) -> list[dict]:
    name = f"ResNet-{shape['resnet_depth']}, {shape['image_size']} px, batch {shape['train_batch_size']}"
    step = shape | dict(what="step")
    workers = [Worker("ours bfloat16", "ours.py", step | dict(precision="mixed_bfloat16"))]
    workers += [Worker("ours float32", "ours.py", step | dict(precision="float32"))]
    workers += [Worker("ours float32 fused", "ours.py", step | dict(precision="float32", fused_bn=True))]
    if args.reference:
        workers.append(Worker("reference", "reference.py", step | dict(checkout=args.reference), args.reference_python))
    if args.torch_python:
        for precision in ("float32", "mixed_bfloat16"):
            title = f"PyTorch {precision.removeprefix('mixed_')}"
            workers.append(Worker(title, "torch_step.py", step | dict(precision=precision), args.torch_python))
    peaks = [Worker(f"peak {t}", "ours.py", dict(what="products", dtype=t)) for t in ("float32", "bfloat16")]
    fast = 4 if shape["resnet_depth"] == 18 else 1
    counts = {worker.name: fast for worker in workers} | {worker.name: 20 for worker in peaks}
    answers = alternate([*workers, *peaks], args.rounds, counts)
    speed = {key: rates(value) for key, value in answers.items()}
    flops = workers[0].info["flops_per_image"]
    for worker in [*workers, *peaks]:
        worker.close()
    print(f"\n{name}: {flops / 1e9:.2f} GFLOP per image\n")
    print("| | images/s | share of the matrix-product peak |\n|---|---|---|")
    shares = {}
    for worker in workers:
        peak = speed["peak bfloat16" if "bfloat16" in worker.name else "peak float32"]
        shares[worker.name] = ratio([r * flops for r in speed[worker.name]], peak)
        print(f"| {worker.name} | {statistics.median(speed[worker.name]):.2f} | {shares[worker.name]:.0%} |")
    for peak in peaks:
        print(f"| {peak.name} | {statistics.median(speed[peak.name]) / 1e9:.0f} GFLOP/s | |")
    print()
    goals = []
    if args.reference:
        goals.append(goal(f"{name}: bfloat16 at least 1.8 times the reference",
                          ratio(speed["ours bfloat16"], speed["reference"]), 1.8))
        goals.append(goal(f"{name}: float32, fused batch norm, at least 1.1 times the reference",
                          ratio(speed["ours float32 fused"], speed["reference"]), 1.1))
        goals.append(goal(f"{name}: float32 as by default (the reference's rounding), times the reference",
                          ratio(speed["ours float32"], speed["reference"]), 1.0))
    if args.torch_python:
        goals.append(goal(f"{name}: bfloat16 at least 0.93 times PyTorch",
                          ratio(speed["ours bfloat16"], speed["PyTorch bfloat16"]), 0.93))
    if shape["resnet_depth"] == 18:
        goals.append(goal(f"{name}: share of the bfloat16 peak at least 0.8", shares["ours bfloat16"], 0.8))
    return goals


if __name__ == "__main__":
    main()
