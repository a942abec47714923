"""Exports compute what the model computes, where this package is not: SavedModel, Keras alone, torch."""

import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, SimCLR, export, exports, set_from_tf1
from simclr_tf.errors import CheckpointError, ConfigError, StorageError
from simclr_tf.saved_model import export_step
from tests.golden.fill import fill

DOCS = pathlib.Path(__file__).parent.parent / "docs" / "exports.md"
ARCHITECTURES = {
    "plain18": dict(depth=18, proj_head_mode="linear"), "cifar18": dict(depth=18, cifar_stem=True),
    "stem_d18": dict(depth=18, sk_ratio=0.0625, proj_head_mode="none", num_classes=None), "plain50": dict(depth=50),
    "sk_se50": dict(depth=50, sk_ratio=0.0625, se_ratio=0.25, ft_proj_selector=1),
}


def filled(name):
    model = SimCLR(**dict(width=0.25, num_classes=3, proj_out_dim=16) | ARCHITECTURES[name], initialize=False)
    set_from_tf1(model, fill)
    return model


def images(n=4, size=16):
    return np.random.default_rng(0).uniform(size=(n, size, size, 3)).astype(np.float32)


def assert_close(found, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# --- SavedModel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return filled("cifar18")


@pytest.fixture(scope="module")
def loaded(model, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("export") / "model")
    assert export(model, path) < 1e-5
    return tf.saved_model.load(path)


@pytest.mark.parametrize("size", [16, 24])
def test_the_saved_model_computes_the_same_endpoints(model, loaded, size):
    x = images(size=size)
    expected, found = model(x), loaded(x, trainable=False)
    assert set(found) == set(expected)
    for name in expected:
        assert_close(found[name], expected[name])


def test_the_fine_tuning_of_the_reference_runs_on_it(loaded):
    """A new linear layer on `final_avg_pool`, then everything with it; the network is a part of the user's model."""

    class Model(keras.Model):
        def __init__(self, everything):
            super().__init__()
            self.saved_model = loaded
            self.everything = everything
            self.dense_layer = keras.layers.Dense(units=2, name="head_supervised_new")
            self.optimizer = keras.optimizers.SGD(0.05)

        def call(self, x):
            with tf.GradientTape() as tape:
                outputs = self.saved_model(x["image"], trainable=self.everything)
                logits = self.dense_layer(outputs["final_avg_pool"])
                loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(tf.one_hot(x["label"], 2), logits))
            weights = self.dense_layer.trainable_weights
            others = list(self.saved_model.trainable_variables_list) if self.everything else []
            gradients = tape.gradient(loss, weights + others, unconnected_gradients="zero")
            self.optimizer.apply_gradients(zip(gradients, weights, strict=False))
            for variable, gradient in zip(others, gradients[len(weights):], strict=True):
                variable.assign_sub(1e-4 * gradient)
            return loss

    batch = {"image": tf.constant(images(8)), "label": tf.constant(np.arange(8) % 2)}
    kernel = next(v for v in loaded.trainable_variables_list if v.shape == (3, 3, 3, 16))
    for everything in (False, True):
        model, before = Model(everything), kernel.numpy()
        model.dense_layer.build((None, 128))
        model.optimizer.build(model.dense_layer.trainable_weights)
        losses = [float(tf.function(model)(batch)) for _ in range(4)]
        assert losses[-1] < losses[0]
        assert np.array_equal(kernel.numpy(), before) != everything


def test_it_is_deterministic_in_training_too(loaded):
    a, b = (loaded(images(), trainable=True)["proj_head_output"] for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_the_newest_are_kept(model, tmp_path):
    for step in (9, 10):
        export_step(model, str(tmp_path), step, keep=1)
    assert [p.name for p in (tmp_path / "saved_model").iterdir()] == ["10"]
    export_step(model, str(tmp_path / "none"), 1, keep=-1)
    assert not (tmp_path / "none").exists()


def test_what_is_no_saved_model_is_not_replaced(model, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(StorageError, match="no SavedModel"):
        export(model, tmp_path)
    assert os.listdir(tmp_path) == ["photo.jpg"]


# --- Keras -----------------------------------------------------------------------------------------------------------

ELSEWHERE = """
import sys
sys.modules["simclr_tf"] = None  # importing it is an error
import keras
import numpy as np
given = np.load("given.npz")
for name in sorted({key.split("/")[0] for key in given.files}):
    model = keras.saving.load_model(f"{name}.keras", safe_mode=True)
    outputs = model.predict(given[f"{name}/images"], verbose=0)
    assert set(outputs) == {k.split("/")[1] for k in given.files if k.startswith(name + "/")} - {"images"}, outputs
    for output, value in outputs.items():
        error = np.abs(value - given[f"{name}/{output}"]).max() / np.abs(given[f"{name}/{output}"]).max()
        assert error < 1e-5, (name, output, error)
    custom = {type(layer).__module__.split(".")[0] for layer in model.layers} - {"keras"}
    operations = [layer for layer in model.operations if not isinstance(layer, keras.layers.Layer)]
    assert not custom and not operations, (custom, operations)
    print(name, "fits")
"""


def test_a_keras_file_opens_in_a_process_without_this_package(tmp_path):
    given = {}
    for name in ARCHITECTURES:
        model = filled(name)
        assert export(model, tmp_path / f"{name}.keras", "keras") < 1e-5
        given[f"{name}/images"] = images(2, 48)
        for output, value in model(images(2, 48)).items():
            if output in ("final_avg_pool", "proj_head_output", "logits_sup"):
                given[f"{name}/{output}"] = value
    np.savez(tmp_path / "given.npz", **given)
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [word for name in sorted(ARCHITECTURES) for word in (name, "fits")], done.stderr


def test_a_bfloat16_model_is_exported_in_float32(tmp_path):
    model = SimCLR(depth=18, width=0.25, cifar_stem=True, dtype="mixed_bfloat16")
    assert export(model, tmp_path / "m.keras", "keras") < 1e-5
    assert keras.saving.load_model(tmp_path / "m.keras").layers[1].compute_dtype == "float32"


# --- torch -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_page():
    """What the page's code for torch defines."""
    pytest.importorskip("torch")
    code = next(block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "torch" in block)
    defined = {}
    exec(code, defined)  # our own page
    return defined


@pytest.mark.parametrize(("name", "kwargs"), [
    ("cifar18", dict(cifar_stem=True)), ("plain18", dict(proj_layers=1)), ("plain50", {}),
])
def test_a_plain_torch_resnet_loads_the_weights(tmp_path, torch_page, name, kwargs):
    import torch

    model = filled(name)
    assert export(model, tmp_path / "model.safetensors", "safetensors") == 0
    x = images(2, 64)
    expected = model(x)
    theirs = torch_page["load"](
        str(tmp_path / "model.safetensors"), depth=model.architecture["depth"], width=0.25, num_classes=3, proj_dim=16,
        **kwargs)
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2)
    with torch.no_grad():
        for found, output in zip(theirs(pixels), ("final_avg_pool", "proj_head_output", "logits_sup"), strict=True):
            assert_close(found, expected[output])
        if name == "plain50":  # the adapter is needed
            theirs.maxpool = torch.nn.MaxPool2d(3, 2, padding=1)
            difference = np.abs(theirs(pixels)[0] - expected["final_avg_pool"]).max()
            assert difference > 1e-2 * np.abs(expected["final_avg_pool"]).max()


@pytest.mark.parametrize("name", ["sk_se50", "stem_d18"])
def test_weights_of_every_architecture_are_in_the_torch_file(tmp_path, name):
    from safetensors.numpy import load_file

    model = filled(name)
    export(model, tmp_path / "model.safetensors", "safetensors")
    arrays = load_file(tmp_path / "model.safetensors")
    extra = 1 if model.projection_head.norm_layers else 0  # the zero bias of the last batch norm
    assert sum(a.size for a in arrays.values()) == model.count_params() + extra * 16
    kernel = fill("base_model/conv2d/kernel", model.resnet.layers[0].kernel.shape)
    np.testing.assert_array_equal(arrays["stem.conv1.weight"], kernel.transpose(3, 2, 0, 1))


# --- Errors, and the mode ---------------------------------------------------------------------------------------------


def test_a_wrong_name_or_format_is_an_error(model, tmp_path):
    with pytest.raises(ConfigError, match="onnx"):
        export(model, tmp_path / "x", "onnx")
    with pytest.raises(ConfigError, match=r"\.keras"):
        export(model, tmp_path / "x.h5", "keras")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        export(model, tmp_path / "file" / "x.safetensors", "safetensors")


@pytest.mark.parametrize(("format", "suffix"), [("keras", ".keras"), ("safetensors", ".safetensors")])
def test_an_export_that_computes_something_else_is_not_kept(model, tmp_path, monkeypatch, format, suffix):
    """What is read back is another model: one weight of it was changed after writing."""
    path = tmp_path / f"m{suffix}"
    path.write_text("the one before")
    other = filled("cifar18")
    other.projection_head.dense_layers[0].kernel.assign_add(np.ones((128, 128)))
    if format == "keras":
        monkeypatch.setattr(exports, "stock_model", lambda model, make=exports.stock_model: make(other))
    else:
        monkeypatch.setattr(exports.torch_file, "read_into", lambda *args: None)
    with pytest.raises(CheckpointError, match="differs"):
        export(model, path, format)
    assert path.read_text() == "the one before" and os.listdir(tmp_path) == [path.name]


def test_mode_export_of_a_run(pretrained, tmp_path, capsys):
    config = Config.from_flags(
        ["--mode=export", "--export_format=safetensors", f"--checkpoint={pretrained}", f"--model_dir={tmp_path}"])
    path = exports.export_checkpoint(config)
    assert "read back and run" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "export")) == ["classes.txt", "model.safetensors"]
    assert (tmp_path / "export" / "classes.txt").read_text().split() == [str(i) for i in range(10)]
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["architecture"])["depth"] == 18 and metadata["format"] == "pt"
