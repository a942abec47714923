"""The input pipeline of pretraining, alone: images (two views each) per CPU-second, ours and the reference's.

  python -m benchmarks.input_pipeline --data_dir=$DATA_DIR --reference=<checkout> --reference_python=<interpreter>

At 32 px from CIFAR-10 and at 224 px from JPEG photos (stanford_dogs). Without blur, which the reference does in the
training step; ours is shown with blur as well.
"""

import argparse
import statistics

from benchmarks.alternating import Worker, alternate, arguments, goal, rates, ratio

CASES = (dict(dataset="cifar10", image_size=32, train_batch_size=256),
         dict(dataset="stanford_dogs", image_size=224, train_batch_size=64))
GOALS = {32: 3.0, 224: 2.0}
# Batches of a measurement. What is in the buffers when it begins was computed before it: it has to be long beside them.
BATCHES = {32: 140, 224: 60}


def main(argv=None) -> list[dict]:
    args = arguments(argparse.ArgumentParser(description=__doc__), argv)
    if not args.data_dir:
        raise SystemExit("Give --data_dir=<where the TFDS data sets cifar10 and stanford_dogs are>.")
    return [line for case in CASES for line in one_case(case, args)]


def one_case(case: dict, args) -> list[dict]:
    case = case | dict(what="pipeline", data_dir=args.data_dir)
    workers = [Worker("ours", "ours.py", case | dict(use_blur=False)), Worker("ours with blur", "ours.py", case)]
    if args.reference:
        settings = case | dict(checkout=args.reference)
        workers.append(Worker("reference", "reference.py", settings, args.reference_python))
    for worker in workers:
        worker.measure(8)  # buffers that were filled while nobody looked
    answers = alternate(workers, args.rounds, BATCHES[case["image_size"]])
    speed = {key: rates(value, "cpu_seconds") for key, value in answers.items()}
    for worker in workers:
        worker.close()
    print(f"\nInput pipeline, {case['image_size']} px, {case['dataset']}\n\n| | images per CPU-second |\n|---|---|")
    for name, values in speed.items():
        print(f"| {name} | {statistics.median(values):.0f} |")
    print()
    if not args.reference:
        return []
    wanted = GOALS[case["image_size"]]
    text = f"Input pipeline at {case['image_size']} px: images per CPU-second, at least {wanted:g} times the reference"
    return [goal(text, ratio(speed["ours"], speed["reference"]), wanted)]


if __name__ == "__main__":
    main()
