"""NT-Xent in tiles against the plain loss, which is tested against loops and the reference; alone and over replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from simclr_tf import losses
from simclr_tf.tiled_ntxent import tiled_nt_xent


def z_of(pairs, dim=16, seed=0):
    return np.random.default_rng(seed).standard_normal((2 * pairs, dim)).astype(np.float32)


def value_and_gradient(loss_of, z):
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss, accuracy, entropy = loss_of(z)
    return [float(v) for v in (loss, accuracy, entropy)], tape.gradient(loss, z).numpy()


def plain(z, temperature, normalize):
    loss, logits = losses.nt_xent_and_logits(z, temperature, normalize)
    return loss, *losses.contrastive_metrics(logits)


def in_tiles(z, temperature, normalize, rows):
    if normalize:
        z = losses.l2_normalize(z)
    a, b = ops.split(z, 2)
    return tiled_nt_xent(a, b, a, b, 0, temperature, metrics=True, rows=rows)


@pytest.mark.parametrize(("pairs", "rows"), [(2, 1), (6, 6), (6, 4), (7, 3), (64, 8), (100, 64)])
@pytest.mark.parametrize(("temperature", "normalize"), [(0.1, True), (0.01, True), (1.0, False)])
def test_equals_the_plain_loss(pairs, rows, temperature, normalize):
    z = tf.constant(z_of(pairs, seed=pairs))
    expected, slope = value_and_gradient(lambda z: plain(z, temperature, normalize), z)
    got, tiled_slope = value_and_gradient(lambda z: in_tiles(z, temperature, normalize, rows), z)
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(tiled_slope, slope, rtol=0, atol=1e-5 * np.abs(slope).max() + 1e-9)


def test_in_float64_the_gradient_is_the_slope():
    """A check that knows nothing of either implementation: finite differences of numpy's log-sum-exp."""
    z = z_of(5, 4, seed=3)

    def by_numpy(z):
        z = z.astype(np.float64)
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        s = z @ z.T / 0.5
        np.fill_diagonal(s, -np.inf)
        positives = s[np.arange(10), np.roll(np.arange(10), 5)]
        return (np.log(np.exp(s).sum(1)) - positives).sum() / 5

    (loss, *_), slope = value_and_gradient(lambda z: in_tiles(z, 0.5, True, 2), tf.constant(z))
    assert loss == pytest.approx(by_numpy(z), rel=1e-5)
    for i, j in ((0, 0), (4, 3), (5, 1), (9, 2)):
        step = np.zeros(z.shape)
        step[i, j] = 1e-5
        assert slope[i, j] == pytest.approx((by_numpy(z + step) - by_numpy(z - step)) / 2e-5, rel=1e-3, abs=1e-6)


def test_large_batches_are_tiled_and_small_ones_are_not(monkeypatch):
    calls = []

    def spy(*args, **kwargs):
        calls.append(1)
        return tiled_nt_xent(*args, **kwargs)

    monkeypatch.setattr(losses, "tiled_nt_xent", spy)
    small, large = tf.constant(z_of(16)), tf.constant(z_of(1024, 8))
    losses.nt_xent(small)
    assert not calls
    loss = float(losses.nt_xent(large))
    assert calls
    assert loss == pytest.approx(float(plain(large, 0.1, True)[0]), rel=1e-5)
    with_metrics = [float(v) for v in losses.nt_xent_and_metrics(large)]
    assert with_metrics == pytest.approx([float(v) for v in plain(large, 0.1, True)], rel=1e-5)


def test_no_matrix_of_all_pairs_is_made():
    """Of the arrays in the compiled graph none is as large as the similarities of one view with another."""
    pairs = 1024

    @tf.function
    def slope(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = in_tiles(z, 0.1, True, rows=64)[0]
        return tape.gradient(loss, z)

    graph = slope.get_concrete_function(tf.TensorSpec([2 * pairs, 16]))
    bodies = [graph.graph, *[f.graph for f in graph.graph._functions.values() if hasattr(f, "graph")]]
    sizes = [t.shape.num_elements() or 0 for g in bodies for op in g.get_operations() for t in op.outputs
             if t.shape.is_fully_defined()]
    assert len(bodies) > 1 and max(sizes) < pairs * pairs / 4


@pytest.mark.parametrize("replicas", [2, 4])
def test_over_replicas_it_equals_the_plain_loss(replicas, monkeypatch):
    """Each replica compares its rows with everyone's; loss and gradient add up to those of one replica."""
    from simclr_tf.strategy import mirrored

    pairs = 8
    z = z_of(pairs, seed=9)
    expected, slope = value_and_gradient(lambda z: plain(z, 0.2, True), tf.constant(z))
    a, b = np.split(z, 2)
    per = pairs // replicas
    parts = [np.concatenate([a[r * per : (r + 1) * per], b[r * per : (r + 1) * per]]) for r in range(replicas)]
    monkeypatch.setattr(losses, "TILED_ABOVE", 0)
    strategy = mirrored(tuple(f"CPU:{r}" for r in range(replicas)))
    mine = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )

    @tf.function
    def run(mine):
        def one(z):
            with tf.GradientTape() as tape:
                tape.watch(z)
                loss, accuracy, entropy = losses.nt_xent_and_metrics(z, 0.2)
                scaled = loss / replicas
            return loss, accuracy, entropy, tape.gradient(scaled, z)

        return strategy.run(one, (mine,))

    loss, accuracy, entropy, gradient = (strategy.experimental_local_results(v) for v in run(mine))
    assert np.mean(loss) == pytest.approx(expected[0], rel=1e-5)
    assert np.mean(accuracy) == pytest.approx(expected[1])
    assert np.mean(entropy) == pytest.approx(expected[2], rel=1e-5)
    together = np.concatenate([g[:per] for g in gradient] + [g[per:] for g in gradient])
    np.testing.assert_allclose(together, slope, rtol=0, atol=1e-5 * np.abs(slope).max())


def test_it_compiles_with_xla():
    z = tf.constant(z_of(32))
    eager, _ = value_and_gradient(lambda z: in_tiles(z, 0.1, True, 8), z)
    compiled = tf.function(lambda z: in_tiles(z, 0.1, True, 8)[0], jit_compile=True)
    assert float(compiled(z)) == pytest.approx(eager[0], rel=1e-5)
    assert keras.backend.backend() == "tensorflow"
