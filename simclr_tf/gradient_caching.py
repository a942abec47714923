"""Large batches in little memory: gradient caching (Gao et al. 2021, arXiv 2101.06983), `--micro_batch_size`.

NT-Xent needs the projections z of the whole batch, but its gradient with respect to z is small. So the batch is
encoded in pieces without keeping activations; the loss and its gradient dL/dz are computed over the whole batch; then
each piece is encoded again, and dL/dz is sent back through it. The gradient is that of the whole batch, exactly, at
the price of a second forward pass.

What does change is batch norm: its statistics are those of a piece, not of the whole batch. The moving statistics move
once per update, by the mean over the pieces. What is random in the network is drawn again from where it began, so
that both passes see the same.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf import losses, step
from simclr_tf.batch_norm import BatchNorm, collected_statistics


def pretraining_gradients(model, optimizer, values, images, labels, config, _=None):
    """Gradients of this replica's part of the loss, loss terms and metrics, `config.micro_batch_size` images at a time.

    Args:
      model: a `SimCLR`.
      optimizer: scales the loss in float16.
      values: the variables to differentiate by.
      images: float32 [n, H, W, 6], the two views along the channels; in a replica context, the replica's part.
      labels: int [n] or None.

    Returns:
      Gradients, terms and metrics as those of the whole batch in `step.forward`.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    pieces = config.train_batch_size // config.micro_batch_size
    if images.shape[0] is None:  # of several workers' distributed batches, whose size is always the same
        images = tf.ensure_shape(images, [config.train_batch_size // replicas, *images.shape[1:]])
    n = images.shape[0]
    if n % pieces:
        raise ValueError(f"images must hold {pieces} pieces of the same size. Received shape {images.shape}")
    m = n // pieces
    random_states = _random_states(model)
    before = [tf.identity(state) for state in random_states]

    def hiddens_of(k):
        """Hidden vectors [2m, ...] of piece k, view 1 first."""
        piece = tf.slice(images, [k * m, 0, 0, 0], [m, *images.shape[1:]])  # [m, H, W, 6], a shape that XLA can know
        views = tf.concat(tf.split(piece, 2, axis=-1), 0)  # [2m, H, W, 3]
        return model.projection_head(model.encoder(views, training=True), training=True)

    norms = [layer for layer in (*model.resnet.layers, *model.projection_head.norm_layers)
             if isinstance(layer, BatchNorm)]
    loop = _unrolled if _needs_unrolling(norms, replicas) else _loop

    def encode(k):
        with collected_statistics() as statistics:
            z = tf.cast(hiddens_of(k)[-1], tf.float32)
        return [value / pieces for layer in norms for value in statistics[layer]], [z]

    d = model.projection_head.out_dim if model.projection_head.num_layers else model.encoder.output_shape[-1]
    sums, (z,) = loop(encode, pieces, [v.shape for layer in norms for v in layer.moving], [(2 * m, d)])
    for i, layer in enumerate(norms):
        layer.move(sums[2 * i], sums[2 * i + 1])
    z = tf.reshape(tf.transpose(tf.reshape(z, [pieces, 2, m, d]), [1, 0, 2, 3]), [2 * n, d])
    with tf.GradientTape() as tape:
        tape.watch(z)
        contrastive, accuracy, entropy = losses.nt_xent_and_metrics(z, config.temperature, config.hidden_norm)
        loss = optimizer.scale_loss(contrastive / replicas)
    dz = tape.gradient(loss, z)
    dz = tf.reshape(tf.transpose(tf.reshape(dz, [2, pieces, m, d]), [1, 0, 2, 3]), [pieces, 2 * m, d])
    for state, value in zip(random_states, before, strict=True):
        state.assign(value)

    supervised = model.supervised_head is not None and labels is not None

    def replay(k):
        with tf.GradientTape(watch_accessed_variables=False) as tape, collected_statistics():
            for value in values:
                tape.watch(value)
            hiddens = hiddens_of(k)
            loss = tf.reduce_sum(tf.cast(hiddens[-1], tf.float32) * dz[k])  # its gradient is dL/dz's way back
            watched = [tf.zeros([])] * 2
            if supervised:
                classes = tf.tile(tf.slice(labels, [k * m], [m]), [2])
                logits = model.supervised_head(tf.stop_gradient(hiddens[model.ft_proj_selector]))
                hits = tf.equal(tf.argmax(logits, 1, tf.int32), tf.cast(classes, tf.int32))
                watched = [losses.supervised_loss(classes, logits), tf.reduce_mean(tf.cast(hits, tf.float32))]
                loss += optimizer.scale_loss(watched[0] / (pieces * replicas))
        gradients = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [*gradients, *[value / pieces for value in watched]], []

    sums, _ = loop(replay, pieces, [*[v.shape for v in values], (), ()], [])
    *gradients, supervised_loss, supervised_acc = sums
    with tf.GradientTape() as tape:
        decay = step.weight_decay_loss(model, config)
        loss = optimizer.scale_loss(decay / replicas)
    of_decay = tape.gradient(loss, values)
    gradients = [g if more is None else g + more for g, more in zip(gradients, of_decay, strict=True)]
    terms = dict(contrastive=contrastive, supervised=supervised_loss, distillation=tf.zeros([]), weight_decay=decay)
    terms["total"] = contrastive + supervised_loss + decay
    metrics = dict(contrast_acc=accuracy, contrast_entropy=entropy)
    if supervised:
        metrics["supervised_acc"] = supervised_acc
    return gradients, terms, metrics


def _random_states(model) -> list:
    """The states of the random generators of layers such as Dropout."""
    return [v.value for v in model.variables if "seed_generator" in v.path]


def _needs_unrolling(norms, replicas: int) -> bool:
    """Whether pieces cannot be a loop: replicas of a mirrored strategy cannot meet, for batch norm, inside of one."""
    tpu = isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)
    return replicas > 1 and not tpu and any(layer.synchronized for layer in norms)


def _loop(body, count, sum_shapes, stack_shapes):
    """Runs `body(k) -> (to add up, to stack)`, float32, for k = 0..count - 1, one after the other; sums and stacks."""

    def one(k, sums, arrays):
        more, outputs = body(k)
        sums = tuple(s + m for s, m in zip(sums, more, strict=True))
        return k + 1, sums, tuple(array.write(k, out) for array, out in zip(arrays, outputs, strict=True))

    zeros = tuple(tf.zeros(shape) for shape in sum_shapes)
    arrays = tuple(tf.TensorArray(tf.float32, count, element_shape=shape) for shape in stack_shapes)
    _, sums, arrays = tf.while_loop(
        lambda k, *_: k < count, one, (tf.constant(0), zeros, arrays), parallel_iterations=1,
    )
    return list(sums), [array.stack() for array in arrays]


def _unrolled(body, count, *_):
    """`_loop` written out: each piece waits for the one before, or all would lie in memory at once."""
    sums, stacks, done = None, [], []
    for k in range(count):
        with tf.control_dependencies(done):
            more, outputs = body(k)
        sums = more if sums is None else [s + m for s, m in zip(sums, more, strict=True)]
        stacks.append(outputs)
        done = [*sums, *outputs]
    return sums, [tf.stack(parts) for parts in zip(*stacks, strict=True)]
