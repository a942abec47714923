"""Weak scaling: images/s per core of two workers with a core each, against one process with one core.

    python -m benchmarks.weak_scaling --batch=64 -- --resnet_depth=18 --image_size=32

`--batch` images per worker and step, so twice as many over two. What follows `--` are run.py's flags; the images are
the embedded digits, decoded and augmented as in a run. Two workers share batch norm's statistics, the negatives and the
gradients over loopback. `taskset` gives each process its core; one process and the two take turns, the others waiting,
and the ratio is the median over the turns.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

CORES = (0, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images per worker and step")
    parser.add_argument("--steps", type=int, default=3, help="steps to a turn")
    parser.add_argument("--turns", type=int, default=5, help="turns of one process and of two")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="of run.py")
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    jobs = {1: [start(CORES[0])], 2: start_two()}
    for job in jobs.values():
        seconds(job)  # compiles
    rates = {workers: [] for workers in jobs}
    for turn in range(arguments.turns):
        for workers in (1, 2) if turn % 2 else (2, 1):
            images = arguments.batch * workers * arguments.steps
            rates[workers].append(images / turn_of(jobs[workers]) / workers)
    for workers, job in jobs.items():
        for process in job:
            process.stdin.close()
            process.wait()
        found = rates[workers]
        print(f"{workers} x 1 core: images/s per core: median {statistics.median(found):.2f}, {min(found):.2f} to "
              f"{max(found):.2f}")
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    print(f"Weak scaling, 2 x 1 core / 1 x 1 core, images/s per core: {statistics.median(ratios):.3f} "
          f"({min(ratios):.3f} to {max(ratios):.3f})")


def start(core, tf_config=None):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment |= {"TF_CONFIG": json.dumps(tf_config)} if tf_config else {}
    return subprocess.Popen(
        ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.weak_scaling", "--worker", *sys.argv[1:]],
        env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )


def start_two():
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in CORES]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return [
        start(core, {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
        for index, core in enumerate(CORES)
    ]


def turn_of(job):
    for process in job:
        process.stdin.write("go\n")
        process.stdin.flush()
    return seconds(job)


def seconds(job):
    """What the slowest of the job's processes needed."""
    lines = [process.stdout.readline() for process in job]
    if not all(lines):
        raise SystemExit("a worker ended early; what it printed is above")
    return max(map(float, lines))


def work(arguments):
    """Prints the seconds of a first step, then those of `--steps` steps for each line on stdin."""
    from simclr_tf import Config, data
    from simclr_tf.model import make_model
    from simclr_tf.step import make_optimizer
    from simclr_tf.strategy import distribute, make_strategy
    from simclr_tf.training import make_loop

    workers = 2 if os.environ.get("TF_CONFIG") else 1
    total = arguments.batch * workers
    config = Config.from_flags([
        "--dataset=digits", f"--train_batch_size={total}", f"--eval_batch_size={total}", "--learning_rate=0.01",
        *arguments.flags,
    ])
    strategy = make_strategy(config)
    source = data.open_training_source(config)
    with strategy.scope():
        model = make_model(config, source.num_classes)
        optimizer = make_optimizer(config, model, source.num_examples)
    run_steps, _ = make_loop(model, optimizer, config, strategy)
    feed = data.Feed.training(source, config)
    iterator = iter(distribute(strategy, total, lambda worker, of: feed.batches(0, worker, of)))

    def timed(steps):
        started = time.perf_counter()
        run_steps(iterator, steps)
        print(time.perf_counter() - started, flush=True)

    timed(1)
    for _ in sys.stdin:
        timed(arguments.steps)


if __name__ == "__main__":
    main()
