"""How fast a training step is on Keras's JAX backend, as a ratio to the same step on TensorFlow.

    python -m benchmarks.jax_step --batch=64 -- --resnet_depth=18 --image_size=32 --precision=mixed_bfloat16

What follows `--` are run.py's flags; the batch is made of noise and stays on the host, as in a run. Each backend has a
process of its own; they take turns, one waiting while the other works, and the ratio is the median over the turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

BACKENDS = ("tensorflow", "jax")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--steps", type=int, default=5, help="steps to a turn")
    parser.add_argument("--turns", type=int, default=5, help="turns of each backend")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="of run.py")
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    workers = {backend: start(backend) for backend in BACKENDS}
    first = {backend: read(worker) for backend, worker in workers.items()}
    rates = {backend: [] for backend in BACKENDS}
    for turn in range(arguments.turns):
        for backend in BACKENDS[:: 1 if turn % 2 else -1]:
            workers[backend].stdin.write("go\n")
            workers[backend].stdin.flush()
            rates[backend].append(arguments.batch * arguments.steps / read(workers[backend]))
    for backend, worker in workers.items():
        worker.stdin.close()
        worker.wait()
        print(f"{backend:10}  first step after {first[backend]:5.1f} s  images/s: median "
              f"{statistics.median(rates[backend]):.1f}, {min(rates[backend]):.1f} to {max(rates[backend]):.1f}")
    ratios = [j / t for t, j in zip(rates["tensorflow"], rates["jax"], strict=True)]
    print(f"JAX / TensorFlow: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def start(backend):
    # Before the libraries are imported, which read these.
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.jax_step", "--worker", *sys.argv[1:]], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )


def read(worker):
    line = worker.stdout.readline()
    if not line:
        raise SystemExit("a worker ended early; what it printed is above")
    return float(line)


def work(arguments):
    """Prints the seconds until the first step is done, and those of a turn for each line of the input."""
    import numpy as np
    import tensorflow as tf

    from simclr_tf import Config, make_model, make_optimizer
    from simclr_tf.strategy import distribute, make_strategy
    from simclr_tf.training import make_loop

    config = Config.from_flags([f"--train_batch_size={arguments.batch}", *arguments.flags])
    strategy = make_strategy(config)
    with strategy.scope():
        model = make_model(config, 10)
        optimizer = make_optimizer(config, model, 50_000)
    channels = 6 if config.train_mode == "pretrain" else 3
    noise = np.random.default_rng(0)
    images = noise.uniform(size=(arguments.batch, config.image_size, config.image_size, channels))
    batch = {"images": images.astype("float32"), "labels": noise.integers(0, 10, arguments.batch).astype("int32")}
    run_steps, _ = make_loop(model, optimizer, config, strategy)
    iterator = iter(distribute(
        strategy, arguments.batch, lambda worker, workers: tf.data.Dataset.from_tensors(batch).repeat()
    ))
    begin = time.perf_counter()
    run_steps(iterator, 1)
    print(time.perf_counter() - begin, flush=True)
    run_steps(iterator, 2)
    for _ in sys.stdin:
        begin = time.perf_counter()
        run_steps(iterator, arguments.steps)
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
