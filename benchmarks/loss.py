"""NT-Xent and its gradient: time at 8,192 pairs beside the reference's, memory at 32,768 pairs.

  python -m benchmarks.loss --reference=<checkout> --reference_python=<interpreter>
"""

import argparse
import statistics

from benchmarks.alternating import Worker, alternate, arguments, goal

GB = 1e9


def main(argv=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--large_pairs", type=int, default=32768)
    args = arguments(parser, argv)
    case = dict(what="loss", pairs=args.pairs)
    workers = [Worker("ours", "ours.py", case)]
    if args.reference:
        workers.append(Worker("reference", "reference.py", case | dict(checkout=args.reference), args.reference_python))
    answers = alternate(workers, args.rounds, 1)
    seconds = {name: [a["seconds"] for a in rounds] for name, rounds in answers.items()}
    extra = {w.name: answers[w.name][-1]["peak_bytes"] - w.info["before_bytes"] for w in workers}
    for worker in workers:
        worker.close()
    large = Worker("large", "ours.py", dict(what="loss", pairs=args.large_pairs, warm=False))
    answer = large.measure(1)
    large.close()
    large_extra = answer["peak_bytes"] - large.info["before_bytes"]
    print(f"\nNT-Xent of {args.pairs:,} pairs, 128-d, and its gradient\n\n| | seconds | extra memory |\n|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.2f} | {extra[name] / GB:.2f} GB |")
    print(f"| ours, {args.large_pairs:,} pairs | {answer['seconds']:.1f} | {large_extra / GB:.2f} GB |\n")
    text = f"NT-Xent of {args.large_pairs:,} pairs: extra memory below 1 GB"
    goals = [goal(text, large_extra / GB, 1.0, True, " GB")]
    if args.reference:
        slower = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["reference"], strict=True))
        goals.append(goal(f"NT-Xent of {args.pairs:,} pairs: time at most the reference's", slower, 1.0, True))
    return goals


if __name__ == "__main__":
    main()
