"""Signs of health against closed forms and written-out loops."""

import math

import numpy as np
import pytest

from simclr_tf import health


def test_alignment_is_the_squared_distance_on_the_sphere():
    first, second = np.array([[2.0, 0], [0, 3], [1, 0]]), np.array([[5.0, 0], [1, 0], [-1, 0]])
    assert health.alignment(first, second) == pytest.approx((0 + 2 + 4) / 3)


def test_uniformity_is_the_written_out_mean_over_pairs():
    x = np.random.default_rng(0).normal(size=[7, 3])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [math.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(7) for j in range(i)]
    assert health.uniformity(x) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    assert health.uniformity(np.ones([5, 4])) == pytest.approx(0, abs=1e-6)
    # Random directions in d dimensions: E exp(-4 + 4 c) with c of variance 1 / d.
    assert health.uniformity(np.random.default_rng(1).normal(size=[800, 512])) == pytest.approx(-4 + 8 / 512, abs=0.01)


def test_effective_rank_counts_equal_directions():
    corners = np.concatenate([np.eye(6), -np.eye(6)])  # centred, six equal singular values
    assert health.effective_rank(corners) == pytest.approx(6)
    assert health.effective_rank(corners * [1, 1, 1, 0, 0, 0] + 7) == pytest.approx(3)
    assert health.effective_rank(np.outer(np.arange(5.0), np.ones(3))) == pytest.approx(1)
    assert health.effective_rank(np.full([9, 4], 3.3)) == 0
    # Roy and Vetterli's definition, with singular values 3 and 1.
    two = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert health.effective_rank(two) == pytest.approx(expected)


def test_mean_similarity_is_over_different_images():
    x = np.random.default_rng(0).normal(size=[6, 3])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = [unit[i] @ unit[j] for i in range(6) for j in range(6) if i != j]
    assert health.mean_similarity(x) == pytest.approx(np.mean(values), abs=1e-6)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda rng: rng.normal(size=[200, 16]), None),
        (lambda rng: np.ones([200, 16]) + 1e-4 * rng.normal(size=[200, 16]), "Collapse"),
        (lambda rng: np.ones([200, 16]), "Collapse"),
        (lambda rng: rng.normal(size=[200, 1]) * np.ones(16) + 1e-3 * rng.normal(size=[200, 16]), "Dimensional"),
    ],
)
def test_collapse_is_noticed(make, word):
    z = make(np.random.default_rng(0))
    h = np.random.default_rng(1).normal(size=[200, 32])
    found = health.warnings(health.measure(h, z, z[:50], z[:50]))
    assert [text.split()[0].rstrip(":") for text in found] == ([word] if word else [])


def test_nothing_is_said_of_a_handful():
    z = np.ones([3, 4])
    assert health.warnings(health.measure(z, z, z, z)) == []
