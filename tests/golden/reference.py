"""Drives google-research/simclr, its TF2 code, in an environment of its own: TensorFlow 2.15.1, its last home.

Not a test. `reference_spread.py` and `beyond_recorded.py` use it; the path of its `tf2` folder is in $SIMCLR_REFERENCE.
"""

import os
import re
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.environ["SIMCLR_REFERENCE"])

import model as model_lib
import numpy as np
import objective
import tensorflow as tf
from absl import flags

import run
from tests.golden.fill import fill
from tests.golden.recorded import training_batch

FLAGS = flags.FLAGS
TERMS = ("contrastive", "supervised", "weight_decay")

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def set_flags(arguments):
    """The reference's flags, all others at their defaults."""
    FLAGS(["reference"])
    for flag in FLAGS.flags_by_module_dict()[run.__name__]:
        flag.value = flag.default
    FLAGS(["reference", *arguments])


def tf1_name(variable):
    """Name of a variable of the TF2 code in the authors' TF1 checkpoints."""
    name = variable.name.split(":")[0]
    leaf = name.rpartition("/")[2]
    if layer := re.search(r"\bnl_\d+\b", name):
        return f"head_contrastive/{layer[0]}/{'dense' if leaf == 'kernel' else 'batch_normalization'}/{leaf}"
    if "head_supervised" in name:
        return f"head_supervised/linear_layer/dense/{leaf}"
    kind = re.search(r"/(?:sync_)?((?:batch_normalization|conv2d)(?:_\d+)?)/[^/]*$", name)[1]
    return f"base_model/{kind}/{leaf}"


def build(arguments, num_classes, strategy):
    """A model of these flags, filled by the rule, and its variables by TF1 names."""
    set_flags(arguments)
    tf.keras.backend.clear_session()  # restarts the numbering of layers
    with strategy.scope():
        model = model_lib.Model(num_classes)
        views = 2 if FLAGS.train_mode == "pretrain" else 1
        model(tf.zeros([2, FLAGS.image_size, FLAGS.image_size, 3 * views]), training=False)
    variables = {tf1_name(v): v for v in model.variables}
    for name, variable in variables.items():
        variable.assign(fill(name, tuple(variable.shape)))
    return model, variables


def trajectories(case, draws):
    """For each of `draws`, values before, values after and the loss terms of each step of a case.

    Draw 0 starts from the filled weights. In the others the last bit of half of them, chosen by the draw, is changed.
    """
    replicas = case["replicas"]
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    model, variables = build(case["flags"], case["num_classes"], strategy)
    pretraining = FLAGS.train_mode == "pretrain"
    with strategy.scope():
        optimizer = model_lib.build_optimizer(model_lib.WarmUpAndCosineDecay(FLAGS.learning_rate, case["num_examples"]))

    def one_replica(images, labels):
        contrastive = supervised = tf.zeros([])
        with tf.GradientTape() as tape:
            z, logits = model(images, training=True)
            if z is not None:
                contrastive, _, _ = objective.add_contrastive_loss(z, FLAGS.hidden_norm, FLAGS.temperature, strategy)
            if logits is not None:
                twice = tf.concat([labels, labels], 0) if pretraining else labels
                supervised = objective.add_supervised_loss(twice, logits)
            decay = tf.convert_to_tensor(model_lib.add_weight_decay(model), tf.float32)
            total = (contrastive + supervised + decay) / replicas
        gradients = tape.gradient(total, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return dict(zip(TERMS, (contrastive, supervised, decay), strict=True))

    @tf.function
    def step(images, labels):
        labels = tf.one_hot(labels, case["num_classes"])
        if replicas == 1:
            return one_replica(images, labels)

        def part():
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            n = FLAGS.train_batch_size // replicas
            return one_replica(images[index * n : (index + 1) * n], labels[index * n : (index + 1) * n])

        return {name: strategy.reduce("MEAN", value, axis=None) for name, value in strategy.run(part).items()}

    for draw in draws:
        rng = np.random.default_rng(draw)
        for name, variable in variables.items():
            value = fill(name, tuple(variable.shape))
            if draw:
                away = np.where(rng.random(value.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
                value = np.where(rng.random(value.shape) < 0.5, value, np.nextafter(value, away))
            variable.assign(value)
        for slot in optimizer.variables() if callable(optimizer.variables) else optimizer.variables:
            if "learning_rate" not in slot.name:
                slot.assign(tf.zeros_like(slot))
        before = {name: v.numpy() for name, v in variables.items()}
        losses = []
        for k in range(case["steps"]):
            images, labels = training_batch(k, FLAGS.train_batch_size, FLAGS.image_size, pretraining)
            losses.append({t: float(v) for t, v in step(tf.constant(images), tf.constant(labels)).items()})
        yield before, {name: v.numpy() for name, v in variables.items()}, losses
