"""The SavedModel keeps the reference's contract."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import SimCLR
from simclr_tf.exports import export_saved_model, export_step


@pytest.fixture(scope="module")
def model():
    return SimCLR(depth=18, width=0.25, cifar_stem=True, num_classes=3, proj_out_dim=16, seed=0)


@pytest.fixture(scope="module")
def loaded(model, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("export") / "model")
    export_saved_model(model, path)
    return tf.saved_model.load(path)


def images(n=4, size=16):
    return np.random.default_rng(0).uniform(size=(n, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("size", [16, 24])
def test_it_computes_the_same_endpoints(model, loaded, size):
    x = images(size=size)
    expected, found = model(x), loaded(x, trainable=False)
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_the_fine_tuning_snippet_of_the_reference_runs_on_it(loaded):
    """A new linear layer on `final_avg_pool`, and then everything, learn two classes of noise."""
    dense = keras.layers.Dense(2, name="head_supervised_new")
    x, y = images(8), np.eye(2)[np.arange(8) % 2]

    def step(everything):
        with tf.GradientTape() as tape:
            outputs = loaded(x, trainable=everything)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(y, dense(outputs["final_avg_pool"])))
        variables = [v.value for v in dense.trainable_weights]
        if everything:
            variables += list(loaded.trainable_variables_list)
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(0.05 * gradient)
        return float(loss)

    first = step(everything=False)
    for _ in range(5):
        last = step(everything=True)
    assert last < first


def test_it_is_deterministic_in_training_too(loaded):
    a, b = (loaded(images(), trainable=True)["proj_head_output"] for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_the_newest_are_kept(model, tmp_path):
    for step in (9, 10, 11):
        export_step(model, str(tmp_path), step, keep=2)
    assert sorted(p.name for p in (tmp_path / "saved_model").iterdir()) == ["10", "11"]
    export_step(model, str(tmp_path / "none"), 1, keep=-1)
    assert not (tmp_path / "none").exists()
