"""Classifiers of fixed vectors: nearest neighbours, logistic regression to convergence, a linear layer by SGD."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from simclr_tf import neighbours

MAX_ITERATIONS = 3000
TOLERANCE = 1e-6  # largest entry of the gradient of the mean loss
MOMENTUM = 0.9
CHUNK = 65_536  # rows at a time


@dataclasses.dataclass(frozen=True)
class Scaler:
    """x -> (x - mean) / deviation, for each feature."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Scaler:
        """From the training vectors [n, d]. A feature that does not vary is left as it is, less its mean."""
        mean, deviation = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
        return cls(mean, np.where(deviation > 1e-12, deviation, 1.0))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.mean) / self.deviation).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Class scores x @ kernel + bias; kernel [d, classes], bias [classes]."""

    kernel: np.ndarray
    bias: np.ndarray

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """float32 [n, classes]."""
        return np.concatenate([
            _softmax(x[i : i + CHUNK] @ self.kernel + self.bias) for i in range(0, len(x), CHUNK)
        ]).astype(np.float32)


def knn_probabilities(
    queries: np.ndarray, corpus: np.ndarray, labels: np.ndarray, num_classes: int, ks: tuple[int, ...],
    temperature: float,
) -> dict[int, np.ndarray]:
    """For each k the shares of the votes, float32 [m, classes].

    The k vectors of `corpus` nearest by cosine vote for their classes; a vote weighs exp(similarity / temperature)
    (Wu et al. 2018, arXiv 1805.01978). Where k exceeds their number all of them vote.
    """
    rows, similarities = neighbours.nearest(queries, corpus, max(ks))
    # Less the largest, so that small temperatures do not overflow; shares stay the same.
    weights = np.exp((similarities - similarities[:, :1]).astype(np.float64) / temperature)
    votes, at = labels[rows], np.arange(len(queries))[:, None] * num_classes
    shares = {}
    for k in ks:
        flat = (at + votes[:, :k]).ravel()
        sums = np.bincount(flat, weights[:, :k].ravel(), len(queries) * num_classes)
        sums = sums.reshape(len(queries), num_classes)
        shares[k] = (sums / sums.sum(1, keepdims=True)).astype(np.float32)
    return shares


def logistic_regression(
    x: np.ndarray, labels: np.ndarray, num_classes: int, l2: float, start: Linear | None = None
) -> Linear:
    """Multinomial logistic regression by L-BFGS, to convergence.

    Minimises the sum over examples of the cross-entropy plus l2 / 2 times the squared norm of the kernel, not of the
    bias: scikit-learn's C is 1 / l2.

    Args:
      x: float [n, d].
      start: where to begin, for a sweep.
    """
    from scipy import optimize

    n, d = x.shape
    x = np.asarray(x, np.float64 if x.size < 1 << 27 else np.float32)

    def loss_and_gradient(flat):
        parameters = flat.reshape(d + 1, num_classes)
        kernel = parameters[:-1].astype(x.dtype)
        loss, gradient = 0.0, np.zeros_like(parameters)
        for i in range(0, n, CHUNK):
            part, y = x[i : i + CHUNK], labels[i : i + CHUNK]
            p, at = _softmax(part @ kernel + parameters[-1].astype(x.dtype)), np.arange(len(part))
            loss -= np.log(np.maximum(p[at, y], 1e-300 if p.dtype == np.float64 else 1e-37)).sum(dtype=np.float64)
            p[at, y] -= 1
            gradient[:-1] += part.T @ p
            gradient[-1] += p.sum(0)
        loss += 0.5 * l2 * np.square(parameters[:-1]).sum()
        gradient[:-1] += l2 * parameters[:-1]
        return loss / n, gradient.ravel() / n

    begin = np.zeros([d + 1, num_classes]) if start is None else np.vstack([start.kernel, start.bias])
    found = optimize.minimize(
        loss_and_gradient, begin.ravel(), jac=True, method="L-BFGS-B",
        options=dict(maxiter=MAX_ITERATIONS, maxfun=2 * MAX_ITERATIONS, gtol=TOLERANCE, ftol=1e-14, maxcor=20),
    )
    parameters = found.x.reshape(d + 1, num_classes)
    return Linear(parameters[:-1], parameters[-1])


def linear_by_sgd(
    views: list[np.ndarray], labels: np.ndarray, num_classes: int, *, learning_rate: float, epochs: int,
    batch_size: int, weight_decay: float, seed: int,
) -> Linear:
    """A linear layer by SGD with Nesterov momentum 0.9 from zero, the learning rate falling to 0 by half a cosine.

    Args:
      views: one or more float32 [n, d]; epoch e sees views[e % len(views)].
      learning_rate: per 256 examples of a batch.
      batch_size: of more than n examples, n; what does not fill a batch is left out of its epoch.
      weight_decay: of the kernel, w / 2 times its squared norm beside the mean cross-entropy.
    """
    n, d = views[0].shape
    batch = min(batch_size, n)
    steps = n // batch
    with tf.device("CPU:0" if not tf.config.list_logical_devices("GPU") else "GPU:0"):
        kernel, bias = tf.Variable(tf.zeros([d, num_classes])), tf.Variable(tf.zeros([num_classes]))
        slots = [tf.Variable(tf.zeros_like(v)) for v in (kernel, bias)]
        y = tf.constant(labels, tf.int32)
        held = [tf.constant(view, tf.float32) for view in views]
        rng = np.random.Generator(np.random.PCG64([seed, 5]))
        rate = learning_rate * batch / 256
        run = _sgd_epoch()
        for epoch in range(epochs):
            order = tf.constant(rng.permutation(n)[: steps * batch].reshape(steps, batch))
            at = np.arange(epoch * steps, (epoch + 1) * steps) / (epochs * steps)
            rates = tf.constant(rate * 0.5 * (1 + np.cos(np.pi * at)), tf.float32)
            run(held[epoch % len(held)], y, order, rates, tf.constant(weight_decay, tf.float32), kernel, bias, *slots)
    return Linear(kernel.numpy(), bias.numpy())


def _sgd_epoch():
    @tf.function(reduce_retracing=True)
    def run(x, y, order, rates, weight_decay, kernel, bias, kernel_slot, bias_slot):
        for i in tf.range(tf.shape(order)[0]):
            rows = tf.gather(x, order[i])
            p = tf.nn.softmax(tf.matmul(rows, kernel) + bias)
            error = (p - tf.one_hot(tf.gather(y, order[i]), tf.shape(bias)[0])) / tf.cast(tf.shape(rows)[0], tf.float32)
            gradients = (tf.matmul(rows, error, transpose_a=True) + weight_decay * kernel, tf.reduce_sum(error, 0))
            for variable, slot, gradient in zip((kernel, bias), (kernel_slot, bias_slot), gradients, strict=True):
                slot.assign(MOMENTUM * slot - rates[i] * gradient)
                variable.assign_add(MOMENTUM * slot - rates[i] * gradient)

    return run


@functools.cache
def default_l2() -> tuple[float, ...]:
    """45 values from 1e-6 to 1e5, evenly in the logarithm (SimCLR, appendix B.8.1)."""
    return tuple(float(v) for v in np.logspace(-6, 5, 45))


def _softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.max(1, keepdims=True)
    np.exp(scores, out=scores)
    return scores / scores.sum(1, keepdims=True)
