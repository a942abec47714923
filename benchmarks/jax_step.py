"""One pretraining step on Keras's JAX backend against the same on TensorFlow, as a ratio.

  python -m benchmarks.jax_step [--shape=18,32,64 ...] [--precision=float32 ...] [--rounds=5]

A shape is ResNet depth, image size and batch size. Random images; no linear evaluation; LARS; the loop of a run with
its metrics, without a pipeline and checkpoints. An image is two views. On the devices that each backend finds.
"""

import argparse
import os
import statistics

from benchmarks.alternating import Worker, alternate, rates, ratio

BACKENDS = ("tensorflow", "jax")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="default 18,32,64 and 50,224,8")
    parser.add_argument("--precision", action="append", help="default float32 and mixed_bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of each backend in a round")
    args = parser.parse_args(argv)
    print("| | TensorFlow, images/s | JAX, images/s | JAX / TensorFlow |\n|---|---|---|---|", flush=True)
    for shape in args.shape or ("18,32,64", "50,224,8"):
        depth, size, batch = map(int, shape.split(","))
        for precision in args.precision or ("float32", "mixed_bfloat16"):
            settings = dict(resnet_depth=depth, image_size=size, train_batch_size=batch, precision=precision)
            speed = compare(settings, args.rounds, args.steps)
            figures = " | ".join(f"{statistics.median(speed[backend]):.2f}" for backend in BACKENDS)
            print(f"| ResNet-{depth}, {size} px, batch {batch}, {precision} | {figures} | "
                  f"{ratio(speed['jax'], speed['tensorflow']):.2f} |", flush=True)


def compare(settings: dict, rounds: int, steps: int) -> dict[str, list[float]]:
    """Images per second of each backend, round by round."""
    devices = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
    workers = [
        Worker(backend, "backend_step.py", settings, more=devices | {"KERAS_BACKEND": backend})
        for backend in BACKENDS
    ]
    answers = alternate(workers, rounds, steps)
    for worker in workers:
        worker.close()
    return {name: rates(measured) for name, measured in answers.items()}


if __name__ == "__main__":
    main()
