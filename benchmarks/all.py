"""All goals of docs/performance.md in one table.

  python -m benchmarks.all --data_dir=$DATA_DIR --reference=<checkout> --reference_python=<interpreter> \\
      --torch_python=<interpreter>

A quarter of an hour on 2 cores. Without the reference, PyTorch or data the goals that need them are left out. A
benchmark that fails is named, and the others go on.
"""

import argparse
import sys
import time
import traceback

from benchmarks import full_run, input_pipeline, large_batch, loss, startup, train_step
from benchmarks.alternating import HEADER, arguments, row

BENCHMARKS = (train_step, input_pipeline, loss, full_run, startup, large_batch)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="names of benchmarks, separated by commas")
    args = arguments(parser)
    chosen = args.only.split(",") if args.only else None
    shared = [f"--{name}={value}" for name, value in vars(args).items() if name != "only" and value is not None]
    lines, failed = [], []
    for benchmark in BENCHMARKS:
        name = benchmark.__name__.rpartition(".")[2]
        if (chosen and name not in chosen) or (benchmark is input_pipeline and not args.data_dir):
            continue
        started = time.perf_counter()
        print(f"\n## {name}\n", flush=True)
        try:
            lines += benchmark.main(shared)
        except (Exception, SystemExit):
            traceback.print_exc()
            failed.append(name)
        print(f"\n({name}: {time.perf_counter() - started:.0f} s)", flush=True)
    print("\n".join(["\n## Goals\n", HEADER, *map(row, lines)]))
    if failed:
        print(f"\nFailed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
