"""The network's shapes, names, endpoints, errors and freezing."""

import keras
import numpy as np
import pytest

from simclr_tf import Config, SimCLR, make_model, set_from_tf1
from simclr_tf.model import freeze, named_variables

SMALL = dict(depth=18, width=0.25, cifar_stem=True, num_classes=7, proj_out_dim=16, seed=0)
ENDPOINTS = {
    "initial_conv", "initial_max_pool", "block_group1", "block_group2", "block_group3", "block_group4",
    "final_avg_pool", "proj_head_input", "proj_head_output", "logits_sup",
}


@pytest.fixture(scope="module")
def model():
    return SimCLR(**SMALL)


def images(n=2, size=16):
    return np.random.default_rng(0).uniform(size=(n, size, size, 3)).astype(np.float32)


def test_all_variables_exist_before_the_first_call():
    fresh = SimCLR(**SMALL)
    assert len(fresh.variables) == len(named_variables(fresh)) == 121


def test_endpoints_and_shapes(model):
    out = model(images())
    assert set(out) == ENDPOINTS
    shapes = {name: tuple(value.shape) for name, value in out.items()}
    assert shapes["initial_conv"] == (2, 16, 16, 16)
    assert shapes["block_group4"] == (2, 2, 2, 128)
    assert shapes["final_avg_pool"] == shapes["proj_head_input"] == (2, 128)
    assert shapes["proj_head_output"] == (2, 16)
    assert shapes["logits_sup"] == (2, 7)
    assert set(SimCLR(**SMALL | dict(num_classes=None))(images())) == ENDPOINTS - {"logits_sup"}


@pytest.mark.parametrize("kwargs", [
    dict(depth=50, sk_ratio=0.0625), dict(depth=50, se_ratio=0.25), dict(depth=18, cifar_stem=False),
    dict(proj_head_mode="linear"), dict(proj_head_mode="none"), dict(num_proj_layers=1), dict(ft_proj_selector=-1),
])
def test_variants_run_forward_and_backward(kwargs):
    variant = SimCLR(**SMALL | dict(num_proj_layers=2) | kwargs)
    out = variant(images(2, 32), training=True)
    assert all(np.isfinite(np.asarray(v, np.float32)).all() for v in out.values())


def test_the_same_seed_gives_the_same_weights_and_another_others(model):
    same, other = SimCLR(**SMALL), SimCLR(**SMALL | dict(seed=1))
    kernels = [
        [v.variable.numpy() for v in named_variables(m) if v.name.endswith("kernel")] for m in (model, same, other)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(kernels[0], kernels[1], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(kernels[0], kernels[2], strict=True))
    # Two layers of one shape must not start equal either.
    assert not np.array_equal(kernels[0][2], kernels[0][3])


def test_a_new_model_starts_as_the_reference_does(model):
    """Residual branches end in a zero scale; kernels have variance 1/fan_in; heads 0.01."""
    by_name = {v.name: v.variable.numpy() for v in named_variables(model)}
    assert not by_name["base_model/batch_normalization_3/gamma"].any()
    assert by_name["base_model/batch_normalization_2/gamma"].all()
    kernel = by_name["base_model/conv2d_20/kernel"]
    assert kernel.std() * np.sqrt(np.prod(kernel.shape[:3])) == pytest.approx(1, rel=0.05)
    assert by_name["head_supervised/linear_layer/dense/kernel"].std() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("bad", [
    np.full((1, 16, 16, 3), 255.0, np.float32), -np.ones((1, 16, 16, 3), np.float32),
    np.full((1, 16, 16, 3), np.nan, np.float32), np.zeros((1, 16, 16, 3), np.uint8),
])
def test_images_in_another_range_are_an_error(model, bad):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        model(bad)


@pytest.mark.parametrize(("kwargs", "word"), [
    (dict(depth=20), "depth"), (dict(width=0.3), "width"), (dict(proj_head_mode="deep"), "mode"),
    (dict(ft_proj_selector=9), "ft_proj_selector"),
])
def test_bad_arguments_are_value_errors(kwargs, word):
    with pytest.raises(ValueError, match=word):
        SimCLR(**SMALL | kwargs)


def test_the_encoder_is_a_plain_keras_model_that_fits():
    encoder = SimCLR(**SMALL).encoder
    classifier = keras.Sequential([encoder, keras.layers.Dense(2)])
    classifier.compile(optimizer="sgd", loss="mse")
    history = classifier.fit(images(4), np.zeros((4, 2)), epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]


def test_set_from_tf1_fills_by_name_and_checks_shapes(model):
    fresh = SimCLR(**SMALL)
    source = {v.name: v.variable.numpy() for v in named_variables(model)}
    set_from_tf1(fresh, lambda name, shape: source[name])
    x = images()
    np.testing.assert_array_equal(model(x)["logits_sup"], fresh(x)["logits_sup"])
    with pytest.raises(ValueError, match="base_model/conv2d/kernel must have shape"):
        set_from_tf1(fresh, lambda name, shape: np.zeros((1, *shape)))


@pytest.mark.parametrize(("after", "first_trained"), [
    (-1, "base_model/conv2d/kernel"), (0, "base_model/conv2d_1/kernel"), (1, "base_model/conv2d_6/kernel"),
    (2, "base_model/conv2d_11/kernel"), (3, "base_model/conv2d_16/kernel"),
    (4, "head_supervised/linear_layer/dense/kernel"),
])
def test_freezing_keeps_what_lies_after_the_block(model, after, first_trained):
    freeze(model, after)
    trained = [v.name for v in named_variables(model) if v.variable.trainable]
    freeze(model, -1)
    assert trained[0] == first_trained
    assert trained[-1] == "head_supervised/linear_layer/dense/bias"
    assert len(trained) == {-1: 73, 4: 2}.get(after, len(trained))  # 21 convolutions, their norms, 8 + 2 in the heads


def test_mixed_precision_keeps_weights_and_outputs_that_losses_read_in_float32():
    mixed = make_model(Config(resnet_depth=18, width_multiplier=0.25, image_size=16, precision="mixed_bfloat16"), 3)
    out = mixed(images(), training=True)
    assert keras.backend.standardize_dtype(out["block_group2"].dtype) == "bfloat16"
    for name in ("final_avg_pool", "proj_head_output", "logits_sup"):
        assert keras.backend.standardize_dtype(out[name].dtype) == "float32"
    assert all(v.dtype == "float32" for v in mixed.variables)
