"""Where the time of a pretraining step goes, by kind of TensorFlow's operations.

  python -m benchmarks.step_profile [--resnet_depth=18 --image_size=32 --train_batch_size=64 --precision=mixed_bfloat16]

Random images that are there already; three steps after the first. An operation's time is that of its kernel, on all the
threads it uses; kernels that run beside each other both count, so that the sum may exceed the step.
"""

import argparse
import collections
import os
import pathlib
import tempfile
import time

ROWS = 12


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resnet_depth", type=int, default=18)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--train_batch_size", type=int, default=64)
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--steps", type=int, default=3)
    args = vars(parser.parse_args(argv))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    steps = args.pop("steps")
    spent, seconds = profile(args, steps)
    total = sum(spent.values())
    print(f"{seconds / steps:.3f} s a step\n\n| Operation | milliseconds a step | share |\n|---|---|---|")
    for kind, microseconds in spent.most_common(ROWS):
        print(f"| {kind} | {microseconds / steps / 1e3:.1f} | {microseconds / total:.0%} |")
    rest = total - sum(value for _, value in spent.most_common(ROWS))
    print(f"| the rest | {rest / steps / 1e3:.1f} | {rest / total:.0%} |")


def profile(settings: dict, steps: int) -> tuple[collections.Counter, float]:
    """Microseconds by kind of operation over `steps` steps, and the seconds these took."""
    import numpy as np
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    from simclr_tf import Config, make_model, make_optimizer
    from simclr_tf.step import update

    config = Config(**settings, dataset="digits", lineareval_while_pretraining=False, warmup_epochs=0)
    size = config.image_size
    model = make_model(config, None)
    optimizer = make_optimizer(config, model, 50_000)
    images = tf.constant(np.random.default_rng(0).random((config.train_batch_size, size, size, 6), np.float32))
    run = tf.function(lambda: update(model, optimizer, images, None, config)[0]["total"], autograph=False)
    float(run())
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder, tf.profiler.experimental.ProfilerOptions(host_tracer_level=3))
        started = time.perf_counter()
        for _ in range(steps):
            float(run())
        seconds = time.perf_counter() - started
        tf.profiler.experimental.stop()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    spent = collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                # "<name of the node>:<kind>"; the runtime's own are "<class>::<method>". A call holds what it calls.
                name, colon, kind = plane.event_metadata[event.metadata_id].name.partition("#")[0].rpartition(":")
                if colon and not name.endswith(":") and kind.isidentifier() and "PartitionedCall" not in kind:
                    spent[kind.removeprefix("_")] += event.duration_ps / 1e6
    return spent, seconds


if __name__ == "__main__":
    main()
