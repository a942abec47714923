"""Worker: simclr_tf's training step, input pipeline, loss, or matrix products."""

import json
import resource
import sys

import keras
import numpy as np
import tensorflow as tf

from benchmarks.alternating import serve
from simclr_tf import Config, data, losses, make_model, make_optimizer
from simclr_tf.step import update

SETTINGS = json.loads(sys.argv[1])


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def config(**more):
    names = ("image_size", "resnet_depth", "train_batch_size", "micro_batch_size", "precision", "dataset", "data_dir",
             "use_blur", "width_multiplier", "fused_bn")
    given = {k: SETTINGS[k] for k in names if k in SETTINGS}
    return Config(**given, lineareval_while_pretraining=False, warmup_epochs=0, **more)


def step():
    c = config(dataset="digits")
    n, size = c.train_batch_size, c.image_size
    model = make_model(c, None)
    optimizer = make_optimizer(c, model, 50_000)
    images = tf.constant(np.random.default_rng(0).random((n, size, size, 6), np.float32))
    run = tf.function(lambda: update(model, optimizer, images, None, c)[0]["total"], autograph=False)
    started_with = peak_bytes()
    if SETTINGS.get("warm", True):
        run()
    else:
        run.get_concrete_function()
    info = dict(flops_per_image=flops_per_image(model, size), before_bytes=started_with)

    def work():
        float(run())

    serve_with_memory(work, n, info)


def flops_per_image(model, size):
    """Of the convolutions: two views; forward, and backward to weights and inputs except the images."""
    convolutions = [layer for layer in model.resnet.layers if isinstance(layer, keras.layers.Conv2D)]
    outputs = keras.Model(model.encoder.inputs, [layer.output for layer in convolutions])(tf.zeros([1, size, size, 3]))
    pairs = zip(convolutions, outputs, strict=True)
    products = [float(np.prod(layer.kernel.shape) * np.prod(output.shape[1:3])) for layer, output in pairs]
    return 2 * 2 * (3 * sum(products) - products[0])


def serve_with_memory(work, items, info=None):
    """As `serve`, with the process's highest memory so far."""
    import time

    print(json.dumps({"ready": True, **(info or {})}), flush=True)
    for line in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            work()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        answer = dict(seconds=seconds, cpu_seconds=cpu, items=items * int(line), peak_bytes=peak_bytes())
        print(json.dumps(answer), flush=True)


def pipeline():
    c = config(train_mode="pretrain")
    source = data.open_source(c, "train")
    iterator = iter(data.Feed.training(source, c).batches())
    next(iterator)
    serve(lambda: next(iterator), c.train_batch_size)


def loss():
    z = tf.constant(np.random.default_rng(0).standard_normal((2 * SETTINGS["pairs"], 128)).astype(np.float32))
    before = peak_bytes()

    @tf.function
    def run(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = losses.nt_xent(z, 0.1)
        return value, tape.gradient(value, z)

    if SETTINGS.get("warm", True):
        run(z)

    def work():
        value, gradient = run(z)
        float(value), float(gradient[0, 0])

    serve_with_memory(work, SETTINGS["pairs"], dict(before_bytes=before))


def products():
    """Large matrix products, the machine's peak."""
    n = 2048
    a = tf.cast(tf.random.normal([n, n]), SETTINGS["dtype"])
    run = tf.function(lambda: tf.reduce_sum(tf.cast(tf.matmul(a, a)[:1, :1], tf.float32)))
    float(run())
    serve(lambda: float(run()), 2 * n**3)


{"step": step, "pipeline": pipeline, "loss": loss, "products": products}[SETTINGS["what"]]()
