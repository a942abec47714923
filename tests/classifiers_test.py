"""The probes' classifiers against scikit-learn's, and the metrics against scikit-learn's and plain loops."""

import math

import numpy as np
import pytest
import sklearn.metrics
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from simclr_tf import classifiers, metrics


@pytest.fixture(scope="module")
def noisy():
    """Vectors of five overlapping classes: x, labels, x of 400 others, their labels."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=[5, 12])
    labels = rng.integers(0, 5, 900)
    x = (centres[labels] + 1.5 * rng.normal(size=[900, 12])) * rng.uniform(0.2, 3, 12) + 1
    return x[:500].astype(np.float32), labels[:500], x[500:].astype(np.float32), labels[500:]


@pytest.mark.parametrize("l2", [100.0, 1.0, 0.01])
def test_logistic_regression_is_scikit_learns(noisy, l2):
    x, y, more, _ = noisy
    ours = classifiers.logistic_regression(x, y, 5, l2)
    theirs = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=10_000).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(ours.probabilities(more), theirs.predict_proba(more), atol=2e-4)
    np.testing.assert_allclose(ours.kernel, theirs.coef_.T, atol=2e-3)


def test_it_does_not_depend_on_where_it_starts_or_on_the_chunks(noisy, monkeypatch):
    x, y, more, _ = noisy
    plain = classifiers.logistic_regression(x, y, 5, 1.0)
    start = classifiers.logistic_regression(x, y, 5, 1000.0)
    monkeypatch.setattr(classifiers, "CHUNK", 77)
    again = classifiers.logistic_regression(x, y, 5, 1.0, start)
    np.testing.assert_allclose(again.probabilities(more), plain.probabilities(more), atol=2e-4)


def test_sgd_to_convergence_is_logistic_regression(noisy):
    x, y, more, _ = noisy
    x, more = (StandardScaler().fit(x).transform(v) for v in (x, more))
    decay = 0.01
    ours = classifiers.linear_by_sgd(
        [x], y, 5, learning_rate=0.3, epochs=150, batch_size=64, weight_decay=decay, seed=0)
    theirs = LogisticRegression(C=1 / (500 * decay), tol=1e-8, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(ours.probabilities(more), theirs.predict_proba(more), atol=0.02)


def test_a_step_of_sgd_is_kerass(noisy):
    """One batch of everything, so that the order of the examples plays no part; four steps, falling rate."""
    import keras

    x, y, *_ = noisy
    x = x / 10
    ours = classifiers.linear_by_sgd([x], y, 5, learning_rate=0.4, epochs=4, batch_size=9999, weight_decay=0.0, seed=0)
    layer = keras.layers.Dense(5, kernel_initializer="zeros")
    schedule = keras.optimizers.schedules.CosineDecay(0.4 * 500 / 256, 4)
    model = keras.Sequential([layer])
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=500, epochs=4, shuffle=False, verbose=0)
    np.testing.assert_allclose(ours.kernel, layer.kernel.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours.bias, layer.bias.numpy(), rtol=1e-4, atol=1e-6)


def test_views_are_taken_in_turn(noisy):
    x, y, *_ = noisy
    common = dict(learning_rate=0.1, batch_size=9999, weight_decay=0.0, seed=0)
    both = classifiers.linear_by_sgd([x, x + 1], y, 5, epochs=2, **common)
    one = classifiers.linear_by_sgd([x], y, 5, epochs=2, **common)
    assert not np.allclose(both.kernel, one.kernel)
    same = classifiers.linear_by_sgd([x, x], y, 5, epochs=2, **common)
    np.testing.assert_array_equal(same.kernel, one.kernel)


@pytest.mark.parametrize("k", [1, 7, 60])
def test_weighted_neighbours_are_scikit_learns(noisy, k):
    x, y, more, _ = noisy
    theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute",
                                  weights=lambda distance: np.exp((1 - distance) / 0.07)).fit(x, y)
    ours = classifiers.knn_probabilities(more, x, y, 5, (k,), 0.07)[k]
    np.testing.assert_allclose(ours, theirs.predict_proba(more), atol=1e-3)


def test_more_neighbours_than_there_are_is_all_of_them(noisy):
    x, y, more, _ = noisy
    shares = classifiers.knn_probabilities(more, x[:30], y[:30], 5, (30, 1000), 0.07)
    np.testing.assert_array_equal(shares[1000], shares[30])


def test_the_smallest_temperature_follows_the_nearest(noisy):
    x, y, more, _ = noisy
    shares = classifiers.knn_probabilities(more, x, y, 5, (50, 1), 1e-6)
    np.testing.assert_array_equal(shares[50].argmax(1), shares[1].argmax(1))


def test_default_sweep_is_the_papers():
    values = classifiers.default_l2()
    assert len(values) == 45 and values[0] == pytest.approx(1e-6) and values[-1] == pytest.approx(1e5)
    np.testing.assert_allclose(np.diff(np.log10(values)), 11 / 44)


def test_scaler_leaves_constant_features_alone():
    x = np.array([[1.0, 5], [3, 5]])
    np.testing.assert_allclose(classifiers.Scaler.of(x)(x), [[-1, 0], [1, 0]])


def test_metrics_are_scikit_learns(noisy):
    _, _, _, labels = noisy
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(5), 400).astype(np.float32)
    guesses = p.argmax(1)
    np.testing.assert_array_equal(metrics.confusion(labels, guesses, 5),
                                  sklearn.metrics.confusion_matrix(labels, guesses))
    np.testing.assert_allclose(metrics.recall(labels, guesses, 5),
                               sklearn.metrics.recall_score(labels, guesses, average=None))
    assert metrics.log_loss(labels, p) == pytest.approx(sklearn.metrics.log_loss(labels, p), rel=1e-5)
    found = metrics.details(labels, metrics.top_k(p, 3), p.max(1), list("abcde"))
    assert found["top_1"] == pytest.approx(sklearn.metrics.accuracy_score(labels, guesses))
    assert found["top_5"] == pytest.approx(sklearn.metrics.top_k_accuracy_score(labels, p, k=3))
    assert found["mean_per_class"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, guesses))
    assert sum(count for *_, count in found["confusion"]) == 400


def test_calibration_is_the_written_out_sum():
    confidence = np.array([0.05, 0.5, 0.52, 0.6, 1.0, 1.0, 0.9])
    correct = np.array([False, True, False, True, True, False, True])
    error, bins = metrics.calibration(confidence, correct)
    expected, members = 0.0, {}
    for c, right in zip(confidence, correct, strict=True):
        members.setdefault(math.ceil(c * 15), []).append((c, right))
    for values in members.values():
        c, right = np.array(values).T
        expected += len(values) / 7 * abs(right.mean() - c.mean())
    assert error == pytest.approx(expected)
    assert sum(b["images"] for b in bins) == 7


def test_classes_without_images_do_not_count():
    shares = metrics.recall(np.array([0, 0, 2]), np.array([0, 1, 2]), 4)
    np.testing.assert_array_equal(shares, [0.5, np.nan, 1, np.nan])
    found = metrics.details(np.array([0, 0, 2]), np.array([[0], [1], [2]]), np.ones(3), list("abcd"))
    assert found["mean_per_class"] == 0.75 and found["per_class"][1]["top_1"] is None
