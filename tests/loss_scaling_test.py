"""Loss scaling in float16: what vanishes otherwise survives, what overflows is skipped, and a skipped step counts."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, make_model, make_optimizer, train
from simclr_tf.checkpoint import training_state
from simclr_tf.loss_scaling import LossScaling
from simclr_tf.step import train_step
from simclr_tf.strategy import mirrored


@pytest.fixture
def optimizer():
    variable = keras.Variable(np.ones(2, np.float32))
    optimizer = LossScaling(keras.optimizers.SGD(0.5), initial_scale=4.0, dynamic_growth_steps=2)
    optimizer.build([variable])
    return optimizer, variable


def test_gradients_are_unscaled_and_the_scale_grows(optimizer):
    optimizer, variable = optimizer
    for _ in range(2):
        optimizer.apply_gradients([(tf.constant([4.0, 8.0]), variable)])
    np.testing.assert_allclose(variable, [1 - 2 * 0.5, 1 - 2 * 1.0])
    assert float(optimizer.dynamic_scale) == 8 and int(optimizer.iterations) == 2


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_overflow_changes_nothing_but_counts(optimizer, bad):
    optimizer, variable = optimizer
    optimizer.apply_gradients([(tf.constant([bad, 1.0]), variable)])
    np.testing.assert_array_equal(variable, [1, 1])
    assert float(optimizer.dynamic_scale) == 2 and int(optimizer.iterations) == 1


def test_an_overflow_on_the_second_replica_is_skipped_on_both():
    strategy = mirrored(("CPU:0", "CPU:1"))
    with strategy.scope():
        variable = keras.Variable(np.ones(2, np.float32))
        optimizer = LossScaling(keras.optimizers.SGD(0.5), initial_scale=4.0)
        optimizer.build([variable])
    gradients = [tf.constant([4.0, 4.0]), tf.constant([4.0, 4.0])]

    def updated(gradients):
        mine = strategy.experimental_distribute_values_from_function(
            lambda context: gradients[context.replica_id_in_sync_group]
        )
        tf.function(lambda g: strategy.run(lambda g: optimizer.apply_gradients([(g, variable)]), (g,)),
                    autograph=False)(mine)
        return [v.numpy() for v in strategy.experimental_local_results(variable.value)]

    for copy in updated(gradients):
        np.testing.assert_array_equal(copy, [0, 0])  # two replicas' gradients, added up and unscaled: 2, times 0.5
    gradients[1] = tf.constant([np.inf, 4.0])
    for copy in updated(gradients):
        np.testing.assert_array_equal(copy, [0, 0])
    assert optimizer.dynamic_scale.numpy() == 2 and optimizer.iterations.numpy() == 2


def test_a_step_in_float16_is_near_that_in_float32():
    config = Config(image_size=8, resnet_depth=18, width_multiplier=0.125, train_batch_size=8, warmup_epochs=0,
                    proj_out_dim=8, num_proj_layers=1, lineareval_while_pretraining=False, temperature=0.5)
    images = np.random.default_rng(0).random((8, 8, 8, 6), np.float32)
    moves = {}
    for precision in ("float32", "mixed_float16"):
        config = dataclasses.replace(config, precision=precision)
        model = make_model(config, None)
        before = model.resnet.layers[0].kernel.numpy()
        optimizer = make_optimizer(config, model, 100)
        for _ in range(8):  # the first scales are too large, and their steps are skipped
            terms = train_step(model, optimizer, images, None, config)
            move = model.resnet.layers[0].kernel.numpy() - before
            if move.any():
                break
        assert terms["total"].dtype == tf.float32
        moves[precision] = move, float(terms["total"])
        assert ("optimizer/loss_scale" in training_state(model, optimizer)) == (precision == "mixed_float16")
    (exact, loss), (half, half_loss) = moves.values()
    assert half_loss == pytest.approx(loss, rel=0.02)
    cosine = (exact * half).sum() / np.linalg.norm(exact) / np.linalg.norm(half)
    assert cosine > 0.95


def test_a_run_in_float16_goes_on_where_it_stopped(tiny, tmp_path):
    flags = [*tiny, "--precision=mixed_float16", f"--model_dir={tmp_path}", "--train_epochs=1"]
    train(Config.from_flags([*flags, "--train_steps=1"]))
    model = train(Config.from_flags([*flags, "--train_steps=2"]))
    assert all(np.isfinite(w.numpy()).all() for w in model.weights)
