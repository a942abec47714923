"""Worker: the training step, input pipeline or loss of a checkout of google-research/simclr (its TF2 code).

Runs in an environment of its own, with a TensorFlow that the checkout works on.
"""

import json
import os
import resource
import sys
import time

SETTINGS = json.loads(sys.argv[1])
sys.path.insert(0, os.path.join(SETTINGS["checkout"], "tf2"))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import flags  # noqa: E402

import run as reference  # noqa: E402  (defines the flags that the others read)

FLAGS = flags.FLAGS
size, batch = SETTINGS.get("image_size", 32), SETTINGS.get("train_batch_size", 64)
FLAGS(["run.py", f"--image_size={size}", f"--train_batch_size={batch}", "--use_blur=False", "--warmup_epochs=0",
       f"--resnet_depth={SETTINGS.get('resnet_depth', 18)}", "--lineareval_while_pretraining=False"])


def answer_on_demand(work, items, info=None):
    print(json.dumps({"ready": True, **(info or {})}), flush=True)
    for line in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            work()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(dict(seconds=seconds, cpu_seconds=cpu, items=items * int(line), peak_bytes=peak)), flush=True)


def step():
    model = reference.model_lib.Model(10)
    rate = reference.model_lib.WarmUpAndCosineDecay(FLAGS.learning_rate, 50_000)
    optimizer = reference.model_lib.build_optimizer(rate)
    images = tf.constant(np.random.default_rng(0).random((batch, size, size, 6), np.float32))

    @tf.function
    def update():
        with tf.GradientTape() as tape:
            z, _ = model(images, training=True)
            total, _, _ = reference.obj_lib.add_contrastive_loss(
                z, hidden_norm=FLAGS.hidden_norm, temperature=FLAGS.temperature, strategy=None
            )
            total += reference.model_lib.add_weight_decay(model, adjust_per_optimizer=True)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(total, variables), variables, strict=True))
        return total

    float(update())
    answer_on_demand(lambda: float(update()), batch)


def pipeline():
    builder = reference.tfds.builder(SETTINGS["dataset"], data_dir=SETTINGS["data_dir"])
    strategy = tf.distribute.get_strategy()
    dataset = reference.data_lib.build_distributed_dataset(builder, batch, True, strategy, None)
    iterator = iter(dataset)
    next(iterator)
    answer_on_demand(lambda: next(iterator), batch)


def loss():
    z = tf.constant(np.random.default_rng(0).standard_normal((2 * SETTINGS["pairs"], 128)).astype(np.float32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @tf.function
    def run(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value, _, _ = reference.obj_lib.add_contrastive_loss(z, temperature=0.1)
        return value, tape.gradient(value, z)

    def work():
        value, gradient = run(z)
        float(value), float(gradient[0, 0])

    work()
    answer_on_demand(work, SETTINGS["pairs"], dict(before_bytes=before))


{"step": step, "pipeline": pipeline, "loss": loss}[SETTINGS["what"]]()
