"""Lets google-research/simclr write its checkpoints with random weights, and compares what is read from them here.

Where the reference runs (TensorFlow 2.15, `pip install tensorflow==2.15.1 tensorflow-hub tensorflow-datasets`):

    python benchmarks/reference_checkpoints.py write <checkout of simclr> tf1|tf2 <sk_ratio> <folder>

and then here:

    python -m benchmarks.reference_checkpoints compare <folder> ...

A folder gets `outputs.npz` (images and what the reference computes for them) and what it was computed with: `train/`
(TF1 or TF2 checkpoint, with optimizer slots), and `hub/` (TF1 hub module) or `saved_model/` (TF2 SavedModel).
"""

import os
import sys

import numpy as np

CLASSES = 1000
STEP = 7
ENDPOINTS = ("initial_conv", "initial_max_pool", "block_group1", "block_group2", "block_group3", "block_group4",
             "final_avg_pool")


def write(simclr: str, version: str, sk_ratio: str, folder: str) -> None:
    sys.path.insert(0, os.path.join(simclr, "tf2") if version == "tf2" else simclr)
    from absl import flags

    import run  # the reference's: its flags are defined by it

    flags.FLAGS(["run.py", f"--sk_ratio={sk_ratio}", "--resnet_depth=50", f"--model_dir={folder}", "--image_size=64",
                 "--train_batch_size=16", "--use_tpu=False", "--use_blur=False"])
    os.makedirs(folder, exist_ok=True)
    images = np.random.default_rng(1).uniform(size=(2, 64, 64, 3)).astype(np.float32)
    outputs = {"tf1": _write_tf1, "tf2": _write_tf2}[version](run, images, folder)
    np.savez(os.path.join(folder, "outputs.npz"), images=images, **outputs)


def _write_tf2(run, images, folder):
    import model as reference
    import tensorflow as tf

    model, optimizer = reference.Model(CLASSES), reference.build_optimizer(0.1)
    model(tf.constant(images), training=False)
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in model.trainable_variables])
    rng = np.random.default_rng(5)
    for variable in model.variables:
        variable.assign(_random(variable.name, variable.shape, rng))
    state = tf.train.Checkpoint(model=model, global_step=tf.Variable(STEP, dtype=tf.int64), optimizer=optimizer)
    tf.train.CheckpointManager(state, os.path.join(folder, "train"), max_to_keep=5).save(STEP)
    module = run.build_saved_model(model)
    tf.saved_model.save(module, os.path.join(folder, "saved_model"))
    return {name: value.numpy() for name, value in module(tf.constant(images), trainable=False).items()}


def _write_tf1(run, images, folder):
    import lars_optimizer
    import model_util
    import resnet
    import tensorflow.compat.v1 as tf

    tf.disable_v2_behavior()
    network = resnet.resnet_v1(resnet_depth=50, width_multiplier=1, cifar_stem=False)
    with tf.Graph().as_default() as graph, tf.Session() as session:
        inputs = tf.placeholder(tf.float32, [None, None, None, 3])
        step = tf.train.get_or_create_global_step()
        with tf.variable_scope("base_model"):
            h = network(inputs, is_training=False)
        outputs = {name: graph.get_tensor_by_name(f"base_model/{name}:0") for name in ENDPOINTS}
        outputs["proj_head_output"] = model_util.projection_head(h, False)
        outputs["logits_sup"] = model_util.supervised_head(h, CLASSES, False)
        optimizer = lars_optimizer.LARSOptimizer(0.1)
        optimizer.apply_gradients([(tf.zeros_like(v), v) for v in tf.trainable_variables()], global_step=step)
        session.run(tf.global_variables_initializer())
        rng = np.random.default_rng(5)
        for variable in tf.global_variables():
            name = variable.op.name
            if name != "global_step" and not name.endswith("Momentum"):
                variable.load(_random(name, variable.shape.as_list(), rng), session)
        session.run(step.assign(STEP))
        path = tf.train.Saver().save(session, os.path.join(folder, "train", "model.ckpt"), global_step=STEP)
        values = session.run(outputs, {inputs: images})
    run.build_hub_module(network, CLASSES, STEP, path)
    return values


def _random(name: str, shape, rng) -> np.ndarray:
    if "gamma" in name:
        value = rng.uniform(0.5, 1.5, shape)
    elif "variance" in name:
        value = rng.uniform(0.5, 2, shape)
    elif "kernel" in name:
        value = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
    else:
        value = rng.normal(size=shape) * 0.1
    return value.astype(np.float32)


def compare(*folders: str) -> None:
    from simclr_tf import released

    for folder in folders:
        expected = dict(np.load(os.path.join(folder, "outputs.npz")))
        images = expected.pop("images")
        for part in ("train", "hub", "saved_model"):
            path = os.path.join(folder, part)
            if os.path.isdir(path):
                found = released.load(path)(images)
                errors = {name: float(np.abs(found[name] - value).max() / np.abs(value).max())
                          for name, value in expected.items() if name in found}
                worst = max(errors, key=errors.get)
                print(f"{path}: {len(errors)} outputs, largest difference {errors[worst]:.1e} of the output's largest "
                      f"value, in {worst}", flush=True)


if __name__ == "__main__":
    {"write": write, "compare": compare}[sys.argv[1]](*sys.argv[2:])
