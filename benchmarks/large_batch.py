"""Gradient caching: memory and time per image of a large batch in pieces, beside a small batch at once.

  python -m benchmarks.large_batch [--large=4096] [--small=128]

ResNet-18 at 32 px in bfloat16, each batch in a process of its own; the large one in pieces of the small one's size.
Memory is the process's highest resident size, TensorFlow and the images included. The small batch is timed before and
after the large one.
"""

import argparse

from benchmarks.alternating import Worker, arguments, goal

GB = 1e9


def main(argv=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", type=int, default=4096)
    parser.add_argument("--small", type=int, default=128)
    parser.add_argument("--precision", default="mixed_bfloat16")
    args = arguments(parser, argv)
    case = dict(what="step", resnet_depth=18, image_size=32, precision=args.precision)
    small = Worker("small", "ours.py", case | dict(train_batch_size=args.small))
    sizes = dict(train_batch_size=args.large, micro_batch_size=args.small, warm=False)
    large = Worker("large", "ours.py", case | sizes)
    count = max(1, args.large // args.small // 4)
    before = small.measure(count)
    answer = large.measure(1)
    after = small.measure(count)
    small.close()
    large.close()
    per_image = (before["seconds"] + after["seconds"]) / (before["items"] + after["items"])
    large_per_image = answer["seconds"] / answer["items"]
    print("\n| Batch | milliseconds per image | highest memory |\n|---|---|---|")
    print(f"| {args.small} | {1e3 * per_image:.1f} | {after['peak_bytes'] / GB:.2f} GB |")
    pieces = f"{args.large} in pieces of {args.small}"
    print(f"| {pieces} | {1e3 * large_per_image:.1f} | {answer['peak_bytes'] / GB:.2f} GB |\n")
    return [
        goal(f"Batch {args.large} in pieces: memory at most 1.5 times that of batch {args.small}",
             answer["peak_bytes"] / after["peak_bytes"], 1.5, True),
        goal(f"Batch {args.large} in pieces: time per image at most 1.45 times that of batch {args.small}",
             large_per_image / per_image, 1.45, True),
    ]


if __name__ == "__main__":
    main()
