"""The bootstrap against distributions known in closed form, and against SciPy's."""

import numpy as np
import pytest
import scipy.stats

from simclr_tf import bootstrap


@pytest.mark.parametrize(("hits", "n"), [(6, 100), (400, 6531), (0, 50), (50, 50)])
def test_means_of_zeros_and_ones_are_binomial(hits, n):
    """Drawing n of n with replacement gives a binomial number of ones."""
    values = np.arange(n) < hits
    means = bootstrap.resampled_means(values, seed=0)
    exact = scipy.stats.binom(n, hits / n)
    counts = np.rint(means * n)
    for q in (0.005, 0.025, 0.5, 0.975, 0.995):
        k = exact.ppf(q)
        # The share of resamples up to the exact quantile, within 5 standard errors of its probability.
        p = exact.cdf(k)
        assert abs((counts <= k).mean() - p) <= 5 * np.sqrt(p * (1 - p) / len(means)) + 1e-12
    low, high = bootstrap.interval(values, seed=0)
    spread = exact.std() / n
    assert abs(low - exact.ppf(0.025) / n) <= 0.1 * spread + 1 / n
    assert abs(high - exact.ppf(0.975) / n) <= 0.1 * spread + 1 / n


def test_interval_is_scipys_percentile_interval():
    values = np.random.default_rng(1).choice([0, 1 / 3, 2 / 3, 1], 300, p=[0.6, 0.2, 0.1, 0.1])
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=0.95, n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    spread = values.std() / np.sqrt(len(values))
    np.testing.assert_allclose(bootstrap.interval(values, seed=3), theirs, atol=0.06 * spread)


def test_a_comparison_is_paired():
    """Two systems that are right on nearly the same images differ surely; by their accuracies alone they would not."""
    rng = np.random.default_rng(0)
    b = rng.random(2000) < 0.3
    a = b.copy()
    a[np.flatnonzero(~b)[:40]] = True
    found = bootstrap.compare(a, b, seed=0)
    assert found.difference == 0.02
    # 40 images of 2000 on one side, none on the other: binomial.
    exact = scipy.stats.binom(2000, 0.02)
    np.testing.assert_allclose((found.low, found.high), exact.ppf([0.005, 0.995]) / 2000, atol=1.01 / 2000)
    assert found.p == pytest.approx(2 / (bootstrap.RESAMPLES + 1))
    unpaired = bootstrap.resampled_means(a, 1) - bootstrap.resampled_means(b, 2)
    assert np.quantile(unpaired, 0.005) < 0


def test_p_is_that_of_the_normal_approximation():
    d = np.repeat([1, -1, 0], [260, 215, 3000])  # mean 0.01295, far from both 0 and certainty
    found = bootstrap.compare(d, np.zeros(len(d)), seed=5)
    # Sums are whole numbers, and a sum of 0 counts as no difference: the continuity correction.
    expected = 2 * scipy.stats.norm.sf((d.sum() - 0.5) / (d.std() * np.sqrt(len(d))))
    assert 0.01 < expected < 0.2
    assert found.p == pytest.approx(expected, rel=0.12)


def test_no_difference_is_certain_to_be_none():
    same = np.array([True, False] * 50)
    found = bootstrap.compare(same, same, seed=0)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_ratio_keeps_the_pairs():
    a, b = np.repeat([1, 1, 0], [100, 100, 800]), np.repeat([1, 0, 0], [100, 100, 800])
    low, high = bootstrap.ratio_interval(a, b, seed=0)
    # Delta method: relative variance of the ratio of nested shares is (1/a - 1/b...) over the pairs.
    relative = np.sqrt(np.var(a / a.mean() - b / b.mean()) / len(a))
    np.testing.assert_allclose(np.log([low / 2, high / 2]), [-1.96 * relative, 1.96 * relative], rtol=0.1)


def test_the_same_seed_gives_the_same_interval():
    values = np.arange(100) < 30
    assert bootstrap.interval(values, 7) == bootstrap.interval(values, 7)
    assert (bootstrap.resampled_means(values, 7) != bootstrap.resampled_means(values, 8)).any()
