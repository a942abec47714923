"""NT-Xent and the supervised loss against a written-out loop, closed forms and symmetry."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclr_tf.losses import contrastive_metrics, nt_xent, nt_xent_and_logits, supervised_loss


def views(pairs, dim=8, seed=0):
    return np.random.default_rng(seed).standard_normal((2 * pairs, dim)).astype(np.float32)


def by_loops(z, temperature, normalize):
    """Equation 1 of arXiv 2002.05709 for both views of each pair, in Python floats."""
    rows = [[float(value) for value in row] for row in z]
    if normalize:
        rows = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows]
    n = len(rows) // 2

    def similarity(i, j):
        return sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / temperature

    total = 0.0
    for i in range(2 * n):
        others = [similarity(i, k) for k in range(2 * n) if k != i]
        largest = max(others)
        log_sum = largest + math.log(sum(math.exp(s - largest) for s in others))
        total += log_sum - similarity(i, (i + n) % (2 * n))
    return total / n


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("pairs", "temperature"), [(1, 0.1), (2, 1.0), (5, 0.1), (7, 0.5)])
def test_equals_the_loop(pairs, temperature, normalize):
    z = views(pairs, seed=pairs)
    assert float(nt_xent(z, temperature, normalize)) == pytest.approx(by_loops(z, temperature, normalize), rel=1e-5)


def test_swapping_the_views_changes_nothing():
    z = views(6)
    swapped = np.concatenate([z[6:], z[:6]])
    assert float(nt_xent(swapped)) == pytest.approx(float(nt_xent(z)), rel=1e-6)
    order = np.random.default_rng(1).permutation(6)
    assert float(nt_xent(np.concatenate([z[:6][order], z[6:][order]]))) == pytest.approx(float(nt_xent(z)), rel=1e-6)
    mixed = np.concatenate([z[:6][order], z[6:]])  # other pairs
    assert abs(float(nt_xent(mixed)) - float(nt_xent(z))) > 0.1


@pytest.mark.parametrize("pairs", [1, 4, 32])
def test_identical_rows_cannot_be_told_apart(pairs):
    z = np.tile(views(1)[:1], (2 * pairs, 1))
    assert float(nt_xent(z)) == pytest.approx(2 * math.log(2 * pairs - 1), abs=1e-5)


def test_perfect_pairs_at_low_temperature_cost_nothing():
    z = np.concatenate([np.eye(4), np.eye(4)]).astype(np.float32)
    assert float(nt_xent(z, temperature=0.01)) == pytest.approx(0, abs=1e-6)


def test_a_single_row_of_zeros_stays_finite():
    z = views(3)
    z[0] = 0
    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = nt_xent(z)
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, z)).all()


def test_an_odd_number_of_rows_is_an_error():
    with pytest.raises(ValueError, match=r"even number of rows.*\(5, 3\)"):
        nt_xent(np.zeros((5, 3), np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    """In float16 the mask of 1e9 would be infinite."""
    z = keras.ops.cast(views(6), dtype)
    loss, logits = nt_xent_and_logits(z)
    assert loss.dtype == logits.dtype == tf.float32
    assert float(loss) == pytest.approx(by_loops(np.asarray(keras.ops.cast(z, "float32")), 0.1, True), rel=1e-5)


def test_gradient_is_the_slope():
    z = tf.constant(views(3), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = nt_xent(z, 0.5)
    slopes = tape.gradient(loss, z).numpy()
    for i, j in ((0, 0), (2, 5), (4, 7)):
        step = np.zeros(z.shape, np.float32)
        step[i, j] = 1e-2
        slope = (by_loops(z.numpy() + step, 0.5, True) - by_loops(z.numpy() - step, 0.5, True)) / 2e-2
        assert slopes[i, j] == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_metrics_count_view_2_candidates_only():
    logits = np.array([[9, 0, 0], [0, 0, 9], [0, 0, 9]], np.float32)  # the middle row prefers another image
    accuracy, entropy = contrastive_metrics(logits)
    assert float(accuracy) == pytest.approx(2 / 3)
    p = np.exp([9, 0, 0]) / np.exp([9, 0, 0]).sum()
    assert float(entropy) == pytest.approx(-(p * np.log(p)).sum(), rel=1e-4)


def test_supervised_loss_is_the_mean_cross_entropy():
    logits = views(2, 5)
    labels = np.array([0, 4, 2, 2], np.int32)
    p = np.exp(logits.astype(np.float64))
    expected = -np.log(p[np.arange(4), labels] / p.sum(1)).mean()
    assert float(supervised_loss(labels, logits)) == pytest.approx(expected, rel=1e-6)
    assert supervised_loss(labels, keras.ops.cast(logits, "bfloat16")).dtype == tf.float32
