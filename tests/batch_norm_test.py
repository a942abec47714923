"""Batch norm against numpy, on the paths that the number of replicas chooses between."""

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf.batch_norm import EPSILON, BatchNorm


def layer_for(x, **kwargs):
    layer = BatchNorm(decay=0.8, **kwargs)
    layer.build(x.shape)
    rng = np.random.default_rng(1)
    for variable in layer.variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return layer


def expected(x, layer):
    """Output and moving statistics by the textbook, in float64."""
    x = x.astype(np.float64)
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes), x.var(axes)  # numpy's is the biased variance
    y = (x - mean) / np.sqrt(variance + EPSILON) * layer.gamma.numpy()
    if layer.center:
        y += layer.beta.numpy()
    moving = [0.8 * old.numpy() + 0.2 * new for old, new in
              ((layer.moving_mean, mean), (layer.moving_variance, variance))]
    return y, *moving


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 3, 5), (1, 1, 1, 5)])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_training_matches_numpy_with_biased_moving_variance(shape, center, fused):
    x = np.random.default_rng(0).normal(2, 3, shape).astype(np.float32)
    layer = layer_for(x, center=center)
    layer.fused = fused
    y, mean, variance = expected(x, layer)
    np.testing.assert_allclose(layer(x, training=True), y, atol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)


def test_inference_uses_the_moving_statistics_and_leaves_them():
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    layer = layer_for(x)
    before = [v.numpy() for v in layer.variables]
    gamma, beta, mean, variance = (v.astype(np.float64) for v in before)
    np.testing.assert_allclose(
        layer(x, training=False), (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta, rtol=1e-4, atol=1e-5
    )
    for old, variable in zip(before, layer.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_frozen_parameters_do_not_freeze_the_moving_statistics():
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    layer = layer_for(x)
    layer.trainable = False
    before = layer.moving_mean.numpy()
    layer(x, training=True)
    assert not np.allclose(before, layer.moving_mean.numpy())


def test_bfloat16_activations_keep_float32_statistics():
    x = np.random.default_rng(0).normal(100, 1, (8, 4, 4, 5)).astype(np.float32)
    layer = layer_for(x, dtype="mixed_bfloat16")
    half = tf.cast(x, tf.bfloat16)
    assert layer(half, training=True).dtype == tf.bfloat16
    _, mean, variance = expected(half.numpy().astype(np.float32), layer_for(x))
    # bfloat16 arithmetic would leave three digits.
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-4)


def test_gradient_agrees_with_finite_differences():
    x = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    layer = layer_for(x)
    with tf.GradientTape() as tape:
        t = tf.constant(x)
        tape.watch(t)
        loss = tf.reduce_sum(layer(t, training=True) * weight)
    gradient = tape.gradient(loss, t).numpy()

    def value(z):
        return (expected(z, layer)[0] * weight).sum()

    for place in [(0, 0, 0, 0), (1, 1, 0, 2), (3, 1, 1, 1)]:
        step = np.zeros(x.shape)
        step[place] = 1e-4
        numeric = (value(x.astype(np.float64) + step) - value(x.astype(np.float64) - step)) / 2e-4
        assert gradient[place] == pytest.approx(numeric, rel=1e-3, abs=1e-4)
