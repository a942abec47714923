"""One training update: losses, gradients, optimizer. Pure functions of a model, an optimizer and a batch."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops

from simclr_tf import losses
from simclr_tf.config import Config
from simclr_tf.lars import LARS
from simclr_tf.loss_scaling import LossScaling
from simclr_tf.model import NamedVariable, SimCLR, named_variables
from simclr_tf.schedule import WarmupCosine


def make_schedule(config: Config, num_examples: int) -> WarmupCosine:
    """The learning-rate schedule of a run on `num_examples` training images."""
    return WarmupCosine(
        config.learning_rate, config.learning_rate_scaling, config.train_batch_size,
        config.warmup_steps(num_examples), config.total_steps(num_examples),
    )


def make_optimizer(config: Config, model: SimCLR, num_examples: int) -> keras.optimizers.Optimizer:
    """The optimizer of a run, built for the model's trainable variables.

    LARS leaves batch norm, biases and the supervised head without decay and trust ratio, as the reference does.
    """
    schedule = make_schedule(config, num_examples)
    trained = trainable(model)
    if config.optimizer == "lars":
        excluded = {id(item.variable) for item in trained if excluded_from_lars(item)}
        optimizer = LARS(
            schedule, momentum=config.momentum, weight_decay=config.weight_decay,
            exclude=lambda variable: id(variable) in excluded,
        )
    elif config.optimizer == "momentum":
        optimizer = keras.optimizers.SGD(schedule, momentum=config.momentum, nesterov=True)
    else:
        optimizer = keras.optimizers.Adam(schedule)
    if config.precision == "mixed_float16":
        optimizer = LossScaling(optimizer)
    optimizer.build([item.variable for item in trained])
    return optimizer


def trainable(model: SimCLR) -> list[NamedVariable]:
    """The variables that training changes by gradient."""
    return [item for item in named_variables(model) if item.variable.trainable]


def excluded_from_lars(item: NamedVariable) -> bool:
    """Whether LARS gives `item` neither weight decay nor a trust ratio."""
    return item.is_norm or item.is_bias or item.in_supervised_head


def decayed_in_loss(item: NamedVariable, config: Config) -> bool:
    """Whether weight decay of `item` is a term of the loss. LARS decays inside, except the supervised head."""
    if config.optimizer == "lars":
        return item.in_supervised_head and not item.is_bias
    return not item.is_norm


def train_step(model: SimCLR, optimizer: keras.optimizers.Optimizer, images, labels, config: Config,
               teacher=None) -> dict:
    """One update of `model`. Works eagerly, in a `tf.function`, and under `strategy.run`.

    Args:
      images: float32 in [0, 1], [n, H, W, 6] in pretraining (two views along the channels), [n, H, W, 3] in
        fine-tuning and distillation. In a replica context, the replica's part of the batch.
      labels: int [n], -1 for none (in distillation), or None in pretraining without linear evaluation.
      teacher: in distillation, a function images -> logits.

    Returns:
      Scalars `contrastive`, `supervised`, `weight_decay`, in distillation also `distillation`, and `total`, their sum
      (0 where a term does not apply), of this replica, before the update.
    """
    terms, _ = update(model, optimizer, images, labels, config, teacher)
    return {name: term for name, term in terms.items() if name != "distillation" or config.train_mode == "distill"}


def update(model, optimizer, images, labels, config, teacher=None) -> tuple[dict, dict]:
    """`train_step`, returning the metrics of the step as well."""
    if keras.config.backend() == "jax":
        from simclr_tf import jax_step

        return jax_step.update(model, optimizer, images, labels, config, teacher)
    gradients, terms, metrics = compute_gradients(model, optimizer, images, labels, config, teacher)
    apply_gradients(model, optimizer, gradients)
    return terms, metrics


def compute_gradients(model, optimizer, images, labels, config, teacher=None) -> tuple[dict, dict, dict]:
    """Gradients of this replica's part of the loss by the variables' names, the loss terms and the metrics.

    Layers that do not take part (a projection head that fine-tuning leaves out) have no gradient.
    """
    trained = trainable(model)
    if config.micro_batch_size:
        from simclr_tf.gradient_caching import pretraining_gradients as gradients_of
    else:
        gradients_of = _gradients
    values = [item.variable.value for item in trained]
    gradients, terms, metrics = gradients_of(model, optimizer, values, images, labels, config, teacher)
    named = {item.name: g for item, g in zip(trained, gradients, strict=True) if g is not None}
    return named, terms, metrics


def apply_gradients(model: SimCLR, optimizer: keras.optimizers.Optimizer, gradients: dict) -> None:
    """One update of the variables that have a gradient."""
    pairs = [(gradients[item.name], item.variable) for item in trainable(model) if item.name in gradients]
    optimizer.apply_gradients(pairs)


def all_finite(optimizer, terms: dict, gradients: dict) -> tf.Tensor:
    """bool []: neither the loss nor a gradient is infinite or NaN.

    Where float16's loss is scaled, gradients overflow now and then: the optimizer leaves out such steps by itself.
    """
    looked_at = [terms["total"], *(() if isinstance(optimizer, LossScaling) else gradients.values())]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in looked_at])


def moving_statistics(model: SimCLR) -> dict[str, keras.Variable]:
    """The variables that the forward pass of training changes, by name."""
    return {item.name: item.variable for item in named_variables(model) if item.is_norm and not item.variable.trainable}


def _gradients(model, optimizer, values, images, labels, config, teacher):
    """Gradients of this replica's part of the loss by `values`, the loss terms and the metrics."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        # Only what is trained is watched, so that nothing is differentiated below frozen layers.
        for value in values:
            tape.watch(value)
        terms, metrics = forward(model, images, labels, config, teacher)
        # Gradients are summed over replicas when they are applied.
        loss = optimizer.scale_loss(terms["total"] / tf.distribute.get_strategy().num_replicas_in_sync)
    return tape.gradient(loss, values), terms, metrics


def encode_at_once(model: SimCLR, images, config: Config) -> list:
    """The projection head's hidden vectors of a training batch; in pretraining [2n, width], view 1 first."""
    pretraining = config.train_mode == "pretrain"
    if pretraining:
        images = ops.concatenate(ops.split(images, 2, axis=-1), 0)  # [n, H, W, 6] -> [2n, H, W, 3], view 1 first
    # Fine-tuning the classifier alone leaves the network below it as it is, its moving statistics too.
    training = pretraining or config.fine_tune_after_block < 4
    h = model.encoder(images, training=training)
    return model.projection_head(h, training=training)


def forward(
    model: SimCLR, images, labels, config: Config, teacher=None, encode: Callable = encode_at_once,
) -> tuple[dict, dict]:
    """Loss terms and metrics of a training batch; see `train_step` for the arguments.

    Args:
      encode: what makes the hidden vectors of the images.
    """
    zero = ops.zeros([])
    terms = dict(contrastive=zero, supervised=zero, distillation=zero)
    metrics = {}
    pretraining = config.train_mode == "pretrain"
    hiddens = encode(model, images, config)
    if pretraining:
        terms["contrastive"], metrics["contrast_acc"], metrics["contrast_entropy"] = losses.nt_xent_and_metrics(
            hiddens[-1], config.temperature, config.hidden_norm
        )
    if config.train_mode == "distill":
        logits, taught = model.supervised_head(hiddens[model.ft_proj_selector]), teacher(images)
        weight = config.distill_weight
        terms["distillation"] = weight * losses.distillation_loss(taught, logits, config.distill_temperature)
        terms["supervised"] = (1 - weight) * losses.partly_supervised_loss(labels, logits)
        metrics["teacher_agreement"] = _share_equal(ops.argmax(logits, 1), ops.argmax(taught, 1))
    elif model.supervised_head is not None and labels is not None:
        hidden = hiddens[model.ft_proj_selector]
        if pretraining:
            hidden = ops.stop_gradient(hidden)  # the classifier watches; it must not teach
            labels = ops.concatenate([labels, labels], 0)
        logits = model.supervised_head(hidden)
        terms["supervised"] = losses.supervised_loss(labels, logits)
        metrics["supervised_acc"] = _share_equal(ops.argmax(logits, 1), labels)
    terms["weight_decay"] = weight_decay_loss(model, config)
    terms["total"] = terms["contrastive"] + terms["supervised"] + terms["weight_decay"]
    if config.train_mode == "distill":
        terms["total"] += terms["distillation"]
    return terms, metrics


def _share_equal(a, b):
    """The share of rows in which the class numbers `a` and `b`, [n] each, are the same."""
    return ops.mean(ops.cast(ops.equal(ops.cast(a, "int32"), ops.cast(b, "int32")), "float32"))


def weight_decay_loss(model: SimCLR, config: Config):
    """The weight-decay term of the loss, scalar float32."""
    decayed = [item.variable.value for item in trainable(model) if decayed_in_loss(item, config)]
    if not decayed:
        return ops.zeros([])
    if keras.config.backend() == "tensorflow":  # rounded as the reference's
        return config.weight_decay * tf.add_n([tf.nn.l2_loss(v) for v in decayed])
    return config.weight_decay * sum(ops.sum(ops.square(v)) / 2 for v in decayed)
