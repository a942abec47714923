"""LARS: the trust ratio where norms vanish, exclusion by identity, serialisation. Recorded numbers are in golden/."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import LARS, Config, make_model, make_optimizer
from simclr_tf.model import named_variables


def stepped(value, gradient, steps=1, **kwargs):
    """A variable after `steps` steps of LARS, rate 0.5."""
    variable = keras.Variable(np.asarray(value, np.float32))
    optimizer = LARS(0.5, **kwargs)
    for _ in range(steps):
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
    return variable.numpy()


def test_step_is_a_fraction_of_the_weights():
    """Without momentum and decay the step is learning rate * eeta * |w| long, whatever the gradient's length."""
    w = np.array([3.0, 4.0])
    for length in (1e-3, 1.0, 1e3):
        moved = stepped(w, [length, 0.0], momentum=0.0, eeta=0.1) - w
        np.testing.assert_allclose(moved, [-0.5 * 0.1 * 5, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classic", [True, False])
def test_zero_weights_or_gradients(classic):
    """Zero weights step as in plain SGD, so that they can leave zero; a zero gradient changes nothing."""
    kwargs = dict(momentum=0.0, classic_momentum=classic)
    np.testing.assert_allclose(stepped([0.0, 0.0], [1.0, -2.0], **kwargs), [-0.5, 1.0])
    np.testing.assert_array_equal(stepped([1.0, 2.0], [0.0, 0.0], **kwargs), [1.0, 2.0])
    np.testing.assert_array_equal(stepped([0.0, 0.0], [0.0, 0.0], **kwargs), [0.0, 0.0])


def test_excluded_variables_are_plain_momentum_sgd():
    found = stepped([1.0, 2.0], [1.0, 0.0], steps=2, momentum=0.9, weight_decay=0.1, exclude=lambda variable: True)
    np.testing.assert_allclose(found, [1 - 0.5 - 0.5 * 1.9, 2.0], rtol=1e-6)


def test_decay_is_lars_own_and_not_keras_decoupled_decay():
    """Keras decays by itself whatever has an attribute `weight_decay`: zero gradients would show it."""
    optimizer = LARS(0.5, weight_decay=0.1)
    assert optimizer.weight_decay is None
    excluded = stepped([1.0, 2.0], [0.0, 0.0], weight_decay=0.1, exclude=lambda variable: True)
    np.testing.assert_array_equal(excluded, [1.0, 2.0])
    adapted = stepped([3.0, 4.0], [0.0, 0.0], weight_decay=0.1, eeta=0.1)
    np.testing.assert_allclose(adapted, [3 * (1 - 0.05), 4 * (1 - 0.05)], rtol=1e-6)


def test_survives_serialisation():
    optimizer = LARS(0.5, momentum=0.8, weight_decay=0.01, nesterov=True, classic_momentum=False, eeta=0.01)
    config = optimizer.get_config()
    again = LARS.from_config(config)
    assert again.get_config() == config
    assert (again.momentum, again.l2_decay, again.nesterov, again.classic_momentum, again.eeta) == (
        0.8, 0.01, True, False, 0.01
    )


def test_eager_and_compiled_agree():
    w, g = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    variable = keras.Variable(w)
    optimizer = LARS(0.5, weight_decay=0.01, nesterov=True)
    optimizer.build([variable])
    step = tf.function(lambda gradient: optimizer.apply_gradients([(gradient, variable)]))
    for _ in range(3):
        step(tf.constant(g))
    expected = stepped(w, g, steps=3, weight_decay=0.01, nesterov=True)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6)
    assert int(optimizer.iterations) == 3


def test_of_a_model_excludes_norms_biases_and_the_supervised_head():
    config = Config(resnet_depth=18, width_multiplier=0.25, image_size=32, se_ratio=0.25, train_batch_size=16)
    model = make_model(config, num_classes=3)
    optimizer = make_optimizer(config, model, num_examples=64)
    adapted = {
        item.name for item in named_variables(model)
        if item.variable.trainable and optimizer._adapted[optimizer._get_variable_index(item.variable)]
    }
    expected = {
        item.name for item in named_variables(model)
        if item.name.endswith("/kernel") and not item.name.startswith("head_supervised")
    }
    assert adapted == expected
    assert len(adapted) == 21 + 2 * 8 + 3  # convolutions, squeeze-excitation, projection head


def test_the_trust_ratio_is_taken_after_the_decay():
    """One step on paper, with a decay large enough to tell: u = g + decay w, w - lr * eeta |w| / |u| * u."""
    w, g = np.array([3.0, -4.0]), np.array([1.0, 2.0])
    variable = keras.Variable(w)
    optimizer = LARS(0.5, momentum=0.0, weight_decay=0.8)
    optimizer.build([variable])
    optimizer.apply([keras.ops.convert_to_tensor(g, "float32")], [variable])
    u = g + 0.8 * w
    expected = w - 0.5 * 0.001 * np.linalg.norm(w) / np.linalg.norm(u) * u
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6)
