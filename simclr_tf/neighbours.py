"""Nearest neighbours by cosine similarity, block by block, so that neither side has to fit memory."""

from __future__ import annotations

import numpy as np

BLOCK_BYTES = 64 << 20  # of the similarities held at a time
CORPUS_ROWS = 16_384  # read at a time


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 [n, d] of length one; a vector of zeros stays one."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def nearest(
    queries: np.ndarray, corpus: np.ndarray, k: int, *, own: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `corpus` most similar to each query.

    Args:
      queries: [m, d], need not be normalised; may be a memory map, as may `corpus`.
      corpus: [n, d].
      k: how many; at most n (less one with `own`) are returned.
      own: int [m], the row of each query in the corpus, which is no neighbour of itself.

    Returns:
      int64 [m, k] rows of the corpus, the most similar first and of equals the lower row first, and float32 [m, k]
      cosine similarities.
    """
    m, n = len(queries), len(corpus)
    k = min(k, n - (own is not None))
    if k < 1:
        return np.zeros([m, 0], np.int64), np.zeros([m, 0], np.float32)
    columns = min(CORPUS_ROWS, n)
    rows = max(1, BLOCK_BYTES // (4 * (columns + 2 * k)))
    indices, similarities = np.zeros([m, k], np.int64), np.full([m, k], -np.inf, np.float32)
    for start in range(0, n, columns):
        part = unit(corpus[start : start + columns]).T
        for first in range(0, m, rows):
            these = slice(first, first + rows)
            found = unit(queries[these]) @ part  # [rows, columns]
            if own is not None:
                inside = np.flatnonzero((own[these] >= start) & (own[these] < start + part.shape[1]))
                found[inside, own[these][inside] - start] = -np.inf
            numbers = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
            # Those found before come first: a stable sort then prefers the lower row among equals.
            values = np.concatenate([similarities[these], found], 1)
            numbers = np.concatenate([indices[these], numbers], 1)
            best = _largest(values, k)
            similarities[these] = np.take_along_axis(values, best, 1)
            indices[these] = np.take_along_axis(numbers, best, 1)
    return indices, similarities


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k largest values of each row, in falling order, of equals the earlier column first."""
    if k < values.shape[1]:
        bound = np.partition(values, -k, axis=1)[:, -k][:, None]  # the k-th largest
        # Of those equal to the bound the earlier columns are taken, so that blocks of another size change nothing.
        above = values > bound
        room = k - above.sum(1, keepdims=True)
        equal = values == bound
        chosen = above | (equal & (np.cumsum(equal, 1) <= room))
        columns = np.nonzero(chosen)[1].reshape(len(values), k)
    else:
        columns = np.broadcast_to(np.arange(k), values.shape)
    order = np.argsort(-np.take_along_axis(values, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)
