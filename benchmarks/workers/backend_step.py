"""Worker: a training step of simclr_tf on the backend that KERAS_BACKEND names, through the loop of a run."""

import json
import sys

import numpy as np
import tensorflow as tf

from benchmarks.alternating import serve
from simclr_tf import Config, make_model, make_optimizer
from simclr_tf.strategy import describe, distribute, make_strategy
from simclr_tf.training import make_loop

config = Config(dataset="digits", lineareval_while_pretraining=False, warmup_epochs=0, **json.loads(sys.argv[1]))
strategy = make_strategy(config)
with strategy.scope():
    model = make_model(config, None)
    optimizer = make_optimizer(config, model, 50_000)
n, size = config.train_batch_size, config.image_size
batch = {
    "images": np.random.default_rng(0).random((n, size, size, 6), np.float32), "labels": np.zeros(n, np.int32),
    "index": np.arange(n),
}
iterator = iter(distribute(strategy, n, lambda worker, workers: tf.data.Dataset.from_tensors(batch).repeat()))
run_steps, _ = make_loop(model, optimizer, config, strategy)
run_steps(iterator, 1)
serve(lambda: run_steps(iterator, 1), n, {"devices": describe(strategy, config)})
