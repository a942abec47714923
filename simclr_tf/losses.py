"""NT-Xent, the contrastive loss of SimCLR (arXiv 2002.05709, section 2.1), and the supervised loss."""

from __future__ import annotations

import keras
from keras import ops

from simclr_tf.tiled_ntxent import TILED_ABOVE, tiled_nt_xent

MASKED = 1e9  # subtracted from an example's similarity with itself, as in the reference

if keras.config.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None


def nt_xent(z, temperature=0.1, normalize=True):
    """Normalised temperature-scaled cross entropy with all other views of the global batch as negatives.

    Args:
      z: [2N, d]; rows 0..N-1 are view 1 of N images, rows N..2N-1 their view 2. In a replica context, the replica's
        own rows: the others' are gathered.
      temperature: above 0.
      normalize: whether to scale rows to unit length first.

    Returns:
      Scalar float32: the mean over pairs of the losses of both views (so twice the paper's mean over views).
      For identical z it is 2 log(2N - 1). Large batches are computed in tiles, without matrices of all pairs.
    """
    if _tiled(z):
        return _tiled_loss(z, temperature, normalize, metrics=False)[0]
    loss, _ = nt_xent_and_logits(z, temperature, normalize)
    return loss


def nt_xent_and_metrics(z, temperature=0.1, normalize=True):
    """`nt_xent`, and accuracy and entropy as in `contrastive_metrics`: three scalars."""
    if _tiled(z):
        return _tiled_loss(z, temperature, normalize, metrics=True)
    loss, logits_ab = nt_xent_and_logits(z, temperature, normalize)
    return loss, *contrastive_metrics(logits_ab)


def _tiled(z):
    """Whether `z` is large enough for tiles, and its size known."""
    return z.shape[0] is not None and z.shape[0] % 2 == 0 and (z.shape[0] // 2) ** 2 * _replicas() >= TILED_ABOVE


def _tiled_loss(z, temperature, normalize, metrics):
    z = ops.cast(z, "float32")
    if normalize:
        z = l2_normalize(z)
    a, b = ops.split(z, 2, axis=0)

    def loss_of_rows(a, b, all_a, all_b, first):
        return tiled_nt_xent(a, b, all_a, all_b, first, temperature, metrics)

    if keras.config.backend() == "jax":
        from simclr_tf import jax_devices

        return jax_devices.mean_over_devices(loss_of_rows, a, b)
    return loss_of_rows(a, b, *_gather(a, b))


def nt_xent_and_logits(z, temperature=0.1, normalize=True):
    """`nt_xent` and the logits [N, N of all replicas] of view 1 against view 2, whose argmax the accuracy reads."""
    z = ops.cast(z, "float32")
    if z.shape[0] is not None and z.shape[0] % 2:
        raise ValueError(f"z must hold two views of each image: an even number of rows. Received shape {z.shape}")
    if normalize:
        z = l2_normalize(z)
    a, b = ops.split(z, 2, axis=0)  # [N, d] each
    n = ops.shape(a)[0]
    all_a, all_b, first = _gather(a, b)  # [M, d] each, and the row where this replica's part begins
    positives = ops.arange(n) + first
    own = ops.one_hot(positives, ops.shape(all_a)[0], dtype="float32") * MASKED  # [N, M]

    def similarity(x, y):
        return _products(x, y) / temperature

    # [N, M] each. The order is the reference's: gradients are added up in it, and in float32 the order tells.
    logits_aa = similarity(a, all_a) - own
    logits_bb = similarity(b, all_b) - own
    logits_ab = similarity(a, all_b)
    logits_a = ops.concatenate([logits_ab, logits_aa], axis=1)  # [N, 2M]
    logits_b = ops.concatenate([similarity(b, all_a), logits_bb], axis=1)
    return ops.mean(_cross_entropy(positives, logits_a) + _cross_entropy(positives, logits_b)), logits_ab


def contrastive_metrics(logits_ab):
    """Accuracy and entropy of finding view 2 of an image from its view 1, as the reference reports them.

    Only view-2 candidates count, not the other images' view 1: easier than the task the loss trains.
    """
    n = ops.shape(logits_ab)[0]
    positives = ops.arange(n) + _first_row(n)
    hits = ops.equal(ops.argmax(logits_ab, axis=1), ops.cast(positives, "int32"))
    p = ops.softmax(logits_ab)
    entropy = -ops.mean(ops.sum(p * ops.log(p + 1e-8), axis=-1))
    return ops.mean(ops.cast(hits, "float32")), entropy


def supervised_loss(labels, logits):
    """Mean softmax cross entropy of `logits` [n, classes] against integer `labels` [n]."""
    return ops.mean(_cross_entropy(labels, ops.cast(logits, "float32")))


def partly_supervised_loss(labels, logits):
    """The sum of `supervised_loss` over the rows that have a label (not -1), divided by the number of all rows."""
    known = ops.cast(labels >= 0, "float32")
    return ops.mean(known * _cross_entropy(ops.maximum(labels, 0), ops.cast(logits, "float32")))


def distillation_loss(teacher_logits, logits, temperature=1.0):
    """Mean cross entropy of a student's class probabilities against its teacher's (arXiv 2006.10029, equation 2).

    Args:
      teacher_logits, logits: [n, classes] of the teacher and the student.
      temperature: divides the logits of both. The loss is not multiplied by its square, as the paper's is not.
    """
    p = ops.softmax(ops.cast(teacher_logits, "float32") / temperature)
    return -ops.mean(ops.sum(p * ops.log_softmax(ops.cast(logits, "float32") / temperature), axis=-1))


def l2_normalize(z):
    """Rows of `z` scaled to unit length; the bound keeps a zero row finite."""
    return z * ops.rsqrt(ops.maximum(ops.sum(ops.square(z), axis=-1, keepdims=True), 1e-12))


def _cross_entropy(labels, logits):
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def _products(x, y):
    """`x @ y.T`. TensorFlow's own form, where there is one: its gradient is rounded as the reference's."""
    return ops.matmul(x, ops.transpose(y)) if tf is None else tf.matmul(x, y, transpose_b=True)


# --- TensorFlow's replicas; other backends see the global batch as one array ----------------------------------------


def _replicas():
    return 1 if tf is None else tf.distribute.get_strategy().num_replicas_in_sync


def _first_row(n):
    if _replicas() == 1:
        return 0
    return tf.distribute.get_replica_context().replica_id_in_sync_group * n


def _gather(a, b):
    """All replicas' rows of `a` and `b`, and where this replica's begin."""
    if _replicas() == 1:
        return a, b, 0
    # A sum of each replica's rows in their own place rather than `ReplicaContext.all_gather`: the same values and
    # gradients, with shapes that XLA knows beforehand.
    context = tf.distribute.get_replica_context()
    both = tf.stack([a, b])  # [2, N, d]
    place = tf.one_hot(context.replica_id_in_sync_group, _replicas())  # [R]
    everyone = context.all_reduce(tf.distribute.ReduceOp.SUM, place[:, None, None, None] * both)  # [R, 2, N, d]
    d = ops.shape(a)[-1]
    return tf.reshape(everyone[:, 0], [-1, d]), tf.reshape(everyone[:, 1], [-1, d]), _first_row(ops.shape(a)[0])
