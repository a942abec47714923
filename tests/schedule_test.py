"""The learning rate: warm-up, cosine, end points. Recorded numbers are in golden/schedule_golden_test.py."""

import math

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, WarmupCosine
from simclr_tf.step import make_schedule


def test_rises_linearly_then_falls_along_a_half_cosine():
    schedule = WarmupCosine(0.3, "linear", 512, warmup_steps=10, total_steps=110)
    rates = np.array([float(schedule(step)) for step in range(111)])
    peak = 0.3 * 512 / 256
    np.testing.assert_allclose(rates[:11], peak * np.arange(11) / 10, rtol=1e-6)
    expected = [peak * (1 + math.cos(math.pi * k / 100)) / 2 for k in range(101)]
    np.testing.assert_allclose(rates[10:], expected, rtol=1e-5, atol=1e-7)
    assert rates[60] == pytest.approx(peak / 2, rel=1e-5)


def test_stays_at_zero_after_the_end():
    schedule = WarmupCosine(0.3, "linear", 256, warmup_steps=0, total_steps=10)
    assert float(schedule(0)) == pytest.approx(0.3)
    assert [float(schedule(step)) for step in (10, 11, 100)] == pytest.approx([0, 0, 0], abs=1e-7)


def test_sqrt_scaling():
    assert float(WarmupCosine(0.075, "sqrt", 4096, 0, 10)(0)) == pytest.approx(0.075 * 64)


def test_unknown_scaling_is_an_error():
    with pytest.raises(ValueError, match="scaling must be"):
        WarmupCosine(0.3, "cubic", 256, 0, 10)


def test_warm_up_longer_than_training_never_reaches_the_peak():
    schedule = WarmupCosine(0.3, "linear", 256, warmup_steps=20, total_steps=10)
    assert float(schedule(9)) == pytest.approx(0.3 * 9 / 20)


@pytest.mark.parametrize(("epochs", "examples", "batch", "steps"), [
    (10, 50_000, 512, 976),  # 976.56: rounded down
    (2.5, 12_000, 256, 117),  # 117.19
    (0.05, 640, 16, 2),
    (0, 640, 16, 0),
])
def test_warm_up_counts_whole_steps_as_the_reference(epochs, examples, batch, steps):
    assert Config(warmup_epochs=epochs, train_batch_size=batch).warmup_steps(examples) == steps


def test_total_steps_as_the_reference():
    assert Config(train_epochs=100, train_batch_size=512).total_steps(50_000) == 9766
    assert Config(train_epochs=0, train_steps=500).total_steps(50_000) == 500


@pytest.mark.parametrize("dtype", [tf.int64, tf.int32, tf.float32])
def test_takes_a_step_of_any_type_compiled(dtype):
    schedule = make_schedule(Config(warmup_epochs=1, train_batch_size=64, optimizer="momentum"), 640)
    compiled = tf.function(schedule)
    assert float(compiled(tf.cast(5, dtype))) == pytest.approx(float(schedule(5)))


def test_survives_serialisation():
    schedule = WarmupCosine(0.3, "sqrt", 128, 5, 50)
    again = WarmupCosine.from_config(schedule.get_config())
    assert float(again(7)) == float(schedule(7))
