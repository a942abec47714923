"""Nearest neighbours against scikit-learn's and against a plain sort, in blocks of any size."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from simclr_tf import neighbours


@pytest.mark.parametrize("block", [16, 7, 1000])
def test_they_are_scikit_learns(monkeypatch, block):
    monkeypatch.setattr(neighbours, "CORPUS_ROWS", block)
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 4 * block * 5)
    rng = np.random.default_rng(0)
    queries, corpus = rng.normal(size=[23, 8]), rng.normal(size=[61, 8]) * rng.uniform(0.1, 9, [61, 1])
    theirs = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(corpus).kneighbors(queries)
    rows, similarities = neighbours.nearest(queries, corpus, 5)
    np.testing.assert_array_equal(rows, theirs[1])
    np.testing.assert_allclose(similarities, 1 - theirs[0], atol=1e-5)


def test_a_query_is_no_neighbour_of_itself_and_no_more_are_returned_than_there_are():
    vectors = np.eye(4) + 0.1
    rows, _ = neighbours.nearest(vectors, vectors, 10, own=np.arange(4))
    assert rows.shape == (4, 3)
    assert all(i not in row for i, row in enumerate(rows))


@pytest.mark.parametrize("block", [1, 2, 3, 10])
def test_equals_come_in_the_order_of_rows_whatever_the_blocks(monkeypatch, block):
    monkeypatch.setattr(neighbours, "CORPUS_ROWS", block)
    corpus = np.array([[1.0, 0], [0, 1], [2, 0], [1, 0], [0, 3], [5, 0]])
    rows, similarities = neighbours.nearest(np.array([[1.0, 0]]), corpus, 3)
    np.testing.assert_array_equal(rows, [[0, 2, 3]])
    np.testing.assert_array_equal(similarities, [[1, 1, 1]])


def test_a_vector_of_zeros_is_similar_to_nothing():
    _, similarities = neighbours.nearest(np.zeros([1, 3]), np.ones([2, 3]), 2)
    np.testing.assert_array_equal(similarities, [[0, 0]])
