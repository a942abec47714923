"""Checkpoints in each format that SimCLR's weights come in reproduce every recorded endpoint.

Written here under the names that were recorded from the reference: TF1's (tf1_variables.json.gz), and TF2's with the
key of each variable in its training checkpoint and its SavedModel (tf2_variables.json.gz). Values are made from the
TF1 names by a rule, so a weight that lands in another's place shows.
"""

import re
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from simclr_tf import Config, SimCLR, checkpoint, make_optimizer, released, set_from_tf1
from tests.golden.fill import fill, image_batch
from tests.golden.forward_test import assert_recorded
from tests.golden.recorded import read
from tests.golden.variables_test import settings

ARCHITECTURES = ["r18_1x_sk0_32px", "r50_1x_sk1", "r101_1x_sk0"]


def write(prefix, arrays):
    """A bare tensor bundle of name -> array."""
    names = list(arrays)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names),
                      tensors=[tf.constant(arrays[name]) for name in names])


def tf1_weights(name, projection=True):
    return {n: fill(n, shape) for n, shape in read("tf1_variables.json.gz")[name]
            if projection or not n.startswith("head_contrastive")}


def write_tf1(folder, name, weights):
    """As the authors' are: optimizer slots, moving averages (here of other weights) and the step beside the weights."""
    extra = {"global_step": np.int64(250228)}
    for n, value in weights.items():
        if not n.startswith("head_supervised"):
            extra[f"ema_model/{n}"] = value + 1
        if not n.endswith(("moving_mean", "moving_variance")):
            extra[f"{n}/Momentum"] = np.zeros_like(value)
    write(folder / "model.ckpt-250228", weights | extra)
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-250228"\n')
    return folder


def write_hub_module(folder, name, weights):
    write(folder / "variables" / "variables", weights)
    (folder / "saved_model.pb").write_bytes(b"")
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return folder


def write_v1_zip(folder, name, weights):
    write(folder / "model.ckpt-225206", {n: value for n, value in weights.items() if "contrastive" not in n} | {
        "global_step": np.int64(225206)})
    with zipfile.ZipFile(folder / "ResNet50_1x.zip", "w") as archive:
        for path in sorted(folder.glob("model.ckpt*")):
            archive.write(path, f"ResNet50_1x/{path.name}")
    return folder / "ResNet50_1x.zip"


def write_own(folder, name, weights):
    model = SimCLR(**settings(name), initialize=False)
    set_from_tf1(model, lambda n, shape: weights[n])
    config = Config()
    checkpoint.save(str(folder), 3, checkpoint.training_state(model, make_optimizer(config, model, 1000)), config, None)
    return folder


def tf1_name(full_name):
    """Of a variable that TF2 calls `full_name`, by the rule that the numbers' documentation states; None for others."""
    leaf = full_name.rpartition("/")[2]
    if match := re.match(r"resnet/.*(conv2d|batch_normalization)(_\d+)?/(kernel|gamma|beta|moving_\w+)$", full_name):
        return f"base_model/{match[1]}{match[2] or ''}/{leaf}"
    if match := re.match(r"projection_head/(nl_\d)/", full_name):
        return f"head_contrastive/{match[1]}/{'dense' if leaf == 'kernel' else 'batch_normalization'}/{leaf}"
    return f"head_supervised/linear_layer/dense/{leaf}" if full_name.startswith("head_supervised/") else None


def write_tf2(prefix, entries, weights):
    """Entries are [key, full name, shape]."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    arrays = {}
    for key, full_name, shape in entries:
        graph.nodes.add().attributes.add(name="VARIABLE_VALUE", full_name=full_name, checkpoint_key=key)
        known = tf1_name(full_name)
        arrays[key] = weights[known] if known else np.zeros(shape, np.float32)
    assert {tf1_name(full_name) for _, full_name, _ in entries} - {None} == set(weights)
    write(prefix, arrays | {"_CHECKPOINTABLE_OBJECT_GRAPH": graph.SerializeToString()})


def write_saved_model(folder, name, weights):
    write_tf2(folder / "variables" / "variables", read("tf2_variables.json.gz")[name]["saved_model"], weights)
    (folder / "saved_model.pb").write_bytes(b"\x08\x01")
    return folder


def write_training_checkpoint(folder, name, weights):
    write_tf2(folder / "ckpt-7", read("tf2_variables.json.gz")[name]["training"], weights)
    return folder


FORMATS = {
    "TF1 checkpoint": write_tf1, "TF1 hub module": write_hub_module, "TF1 checkpoint in a zip": write_v1_zip,
    "TF2 SavedModel": write_saved_model, "TF2 training checkpoint": write_training_checkpoint,
    "simclr_tf checkpoint": write_own,
}


@pytest.fixture(scope="module")
def weights():
    return {}  # of one architecture at a time


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_endpoint_of_every_format(tmp_path, weights, caplog, name, form):
    if name not in weights:
        weights.clear()
        weights[name] = tf1_weights(name)
    path = FORMATS[form](tmp_path, name, weights[name])
    with caplog.at_level("INFO"):
        model = released.load(path)
    expected = len([n for n in weights[name] if form != "TF1 checkpoint in a zip" or "contrastive" not in n])
    assert f"({form.removesuffix(' in a zip')}): {expected} of {expected} variables" in caplog.text
    assert assert_recorded(model, name, image_batch(2, 32 if "32px" in name else 64, seed=1)) >= 14
