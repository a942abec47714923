"""NT-Xent in tiles: the same numbers as `losses.nt_xent` without matrices of all pairs.

The plain loss keeps several [N, M] matrices of similarities for the gradient: 3.8 GB at 8,192 pairs. Here a few rows
are compared with everything at a time, and since their softmax is then complete, their part of the gradient is added
up in the same pass and the tile forgotten. So memory grows with N, not with its square, and no similarity is computed
twice. The price: the gradient is computed even where nobody asks for it.
"""

from __future__ import annotations

import math

import keras
from keras import ops

if keras.config.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None

TILED_ABOVE = 1024 * 1024  # similarities of one view with another, from where on `losses` chooses the tiles
TILE_BYTES = 16 << 20  # of one [rows, 2M] matrix of float32; a handful of them is alive at a time
MASKED = 1e9  # subtracted from an example's similarity with itself, as in the reference
TINY = 1e-8  # added to probabilities before their logarithm, as in the reference's entropy


def tiled_nt_xent(a, b, all_a, all_b, first, temperature, metrics=False, rows=None):
    """NT-Xent of view 1 and view 2 against everything, its gradient ready.

    Args:
      a, b: [N, d] float32, views 1 and 2 of N images, normalised if they are to be. N must be known.
      all_a, all_b: [M, d], the views of all images, those of `a` and `b` from row `first` on.
      first: int, 0 to M - N.
      temperature: above 0.
      metrics: whether accuracy and entropy are wanted as well (see `losses.contrastive_metrics`), which costs a
        logarithm of N M numbers.
      rows: of a tile; by default as many as make `TILE_BYTES`.

    Returns:
      loss, accuracy, entropy: scalars; the latter two 0 unless asked for. Only the loss has a gradient.
    """
    n, d = a.shape
    everything = ops.concatenate([all_b, all_a], axis=0)  # [2M, d]; view 2 first, as in the plain loss for view 1
    m = all_a.shape[0]
    rows = rows or max(8, min(n, TILE_BYTES // (4 * 2 * m)))
    tiles = math.ceil(n / rows)

    def cut(x):
        """[N, d] -> [tiles, rows, d], filled up with zeros."""
        return ops.reshape(ops.pad(x, [[0, tiles * rows - n], [0, 0]]), (tiles, rows, d))

    @ops.custom_gradient
    def loss_of(a, b, everything):
        columns = ops.arange(2 * m, dtype="int32")[None]

        def one_view(own, other, self_row, other_row, known):
            """Losses [rows], what they ask of `own` (gradient) [rows, d] and of `everything` [2M, d]."""
            logits = _products(own / temperature, everything)  # [rows, 2M]
            logits = ops.where(columns == self_row[:, None], logits - MASKED, logits)
            highest = ops.max(logits, axis=1, keepdims=True)
            weights = ops.exp(logits - highest)
            total = ops.sum(weights, axis=1, keepdims=True)  # [rows, 1]
            positive = ops.sum(own * other, axis=1) / temperature
            losses = known * (ops.log(total) + highest)[:, 0] - known * positive
            # Of the cross entropy's gradient, p - 1 at the positive, the 1 is left to the end.
            share = known[:, None] / (total * (n * temperature))  # weights * share is p / (N temperature)
            to_own = ops.matmul(weights, everything) * share
            to_everything = _transposed_product(weights, own * share)
            return losses, to_own, to_everything, logits, weights

        def tile(sums, part):
            number, a, b = part
            loss, hits, entropy, to_everything = sums
            row = number * rows + ops.arange(rows, dtype="int32")
            known = ops.cast(row < n, "float32")  # not the filling
            row = row + first
            losses, to_a, more, logits, weights = one_view(a, b, m + row, row, known)
            to_everything = to_everything + more
            loss = loss + ops.sum(losses)
            if metrics:  # of view 1 among the view-2 candidates
                best = ops.cast(ops.argmax(logits[:, :m], axis=1), "int32")
                hits = hits + ops.sum(known * ops.cast(best == row, "float32"))
                p = weights[:, :m]
                p = p / ops.sum(p, axis=1, keepdims=True)
                entropy = entropy - ops.sum(known * ops.sum(p * ops.log(p + TINY), axis=1))
            losses, to_b, more, *_ = one_view(b, a, row, m + row, known)
            return (loss + ops.sum(losses), hits, entropy, to_everything + more), (to_a, to_b)

        zero = ops.zeros((), "float32")
        start = (zero, zero, zero, ops.zeros((2 * m, d), "float32"))
        parts = (ops.arange(tiles, dtype="int32"), cut(a), cut(b))
        (loss, hits, entropy, to_everything), (to_a, to_b) = _scan(tile, start, parts)
        pull = 1 / (n * temperature)  # between the views of a pair: only `a` and `b` take it, for both of their roles
        to_a = ops.reshape(to_a, (-1, d))[:n] - 2 * pull * b
        to_b = ops.reshape(to_b, (-1, d))[:n] - 2 * pull * a

        def gradient(*upstream, **_):
            # JAX hands the three gradients over as one tuple.
            up = upstream[0][0] if isinstance(upstream[0], (tuple, list)) else upstream[0]
            return up * to_a, up * to_b, up * to_everything

        return (loss / n, hits / n, entropy / n), gradient

    return loss_of(a, b, everything)


def _products(x, y):
    """`x @ y.T`."""
    return ops.matmul(x, ops.transpose(y)) if tf is None else tf.matmul(x, y, transpose_b=True)


def _transposed_product(x, y):
    """`x.T @ y`."""
    return ops.matmul(ops.transpose(x), y) if tf is None else tf.matmul(x, y, transpose_a=True)


def _scan(step, start, parts):
    """`ops.scan`; on TensorFlow one tile after the other, where it would begin ten at a time and hold their memory."""
    if tf is None:
        return ops.scan(step, start, parts)
    count = parts[0].shape[0]
    shapes = [part.shape[1:] for part in parts[1:]]

    def body(i, sums, arrays):
        sums, outputs = step(sums, [part[i] for part in parts])
        return i + 1, sums, tuple(array.write(i, out) for array, out in zip(arrays, outputs, strict=True))

    arrays = tuple(tf.TensorArray(tf.float32, count, element_shape=shape) for shape in shapes)
    _, sums, arrays = tf.while_loop(
        lambda i, *_: i < count, body, (0, tuple(start), arrays), parallel_iterations=1,
    )
    return sums, tuple(array.stack() for array in arrays)
