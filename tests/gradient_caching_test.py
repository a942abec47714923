"""Gradient caching equals one pass over the whole batch with batch norm by pieces, which is written out here."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, losses, make_model, make_optimizer, train
from simclr_tf.batch_norm import BatchNorm, collected_statistics
from simclr_tf.errors import ConfigError
from simclr_tf.heads import ProjectionHead
from simclr_tf.model import named_variables
from simclr_tf.step import train_step, trainable
from simclr_tf.strategy import mirrored

BATCH, PIECE = 8, 4


@pytest.fixture(scope="module")
def config():
    return Config(
        dataset="digits", image_size=8, resnet_depth=18, width_multiplier=0.125, train_batch_size=BATCH,
        micro_batch_size=PIECE, proj_out_dim=8, num_proj_layers=2, temperature=0.2, weight_decay=1e-2, warmup_epochs=0,
        learning_rate=0.5, optimizer="momentum",
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return rng.random((BATCH, 8, 8, 6), np.float32), np.arange(BATCH, dtype=np.int32) % 3


def values(model):
    return {item.name: item.variable.numpy() for item in named_variables(model)}


def updated(config, batch, step=train_step):
    model = make_model(config, 3)
    optimizer = make_optimizer(config, model, 100)
    terms = step(model, optimizer, *batch, config)
    return {k: float(v) for k, v in terms.items()}, values(model)


def by_hand(model, optimizer, images, labels, config):
    """One tape over all pieces: no caching, nothing of `gradient_caching`."""
    statistics = []
    with tf.GradientTape() as tape:
        zs, hs = [], []
        for k in range(BATCH // PIECE):
            piece = images[k * PIECE : (k + 1) * PIECE]
            with collected_statistics() as of_piece:
                hiddens = model.projection_head(
                    model.encoder(np.concatenate([piece[..., :3], piece[..., 3:]]), training=True), training=True
                )
            statistics.append(of_piece)
            zs.append(hiddens[-1])
            hs.append(hiddens[0])
        a, b = (tf.concat([z[s] for z in zs], 0) for s in (slice(None, PIECE), slice(PIECE, None)))
        h = [tf.concat([h[s] for h in hs], 0) for s in (slice(None, PIECE), slice(PIECE, None))]
        contrastive, *_ = losses.nt_xent_and_metrics(tf.concat([a, b], 0), config.temperature)
        logits = model.supervised_head(tf.stop_gradient(tf.concat(h, 0)))
        supervised = losses.supervised_loss(np.tile(labels, 2), logits)
        decayed = [i.variable.value for i in trainable(model) if not i.is_norm]
        decay = config.weight_decay * sum(tf.reduce_sum(v**2) / 2 for v in decayed)
        total = contrastive + supervised + decay
    variables = [i.variable for i in trainable(model)]
    gradients = tape.gradient(total, [v.value for v in variables])
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    for layer in statistics[0]:
        for k, moving in enumerate(layer.moving):
            mean = np.mean([of_piece[layer][k] for of_piece in statistics], axis=0)
            moving.assign(moving * layer.decay + mean * (1 - layer.decay))
    return dict(contrastive=contrastive, supervised=supervised, weight_decay=decay, total=total)


def assert_close(got, expected, tolerance=2e-5):
    for name, value in expected.items():
        scale = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(got[name], value, rtol=0, atol=tolerance * scale, err_msg=name)


def test_equals_the_batch_at_once_with_statistics_by_pieces(config, batch):
    terms, weights = updated(config, batch)
    expected_terms, expected = updated(config, batch, by_hand)
    assert {k: terms[k] for k in expected_terms} == pytest.approx(expected_terms, rel=1e-5)
    assert_close(weights, expected)
    _, unsplit = updated(dataclasses.replace(config, micro_batch_size=0), batch)
    assert any(np.abs(unsplit[k] - v).max() > 1e-3 for k, v in expected.items())  # pieces do make a difference


def test_one_piece_is_the_plain_step(config, batch):
    terms, weights = updated(dataclasses.replace(config, micro_batch_size=BATCH), batch)
    expected_terms, expected = updated(dataclasses.replace(config, micro_batch_size=0), batch)
    assert terms == pytest.approx(expected_terms, rel=1e-5)
    assert_close(weights, expected)


@pytest.mark.parametrize("global_bn", [True, pytest.param(False, marks=pytest.mark.long)])
def test_replicas_compute_the_same(config, batch, global_bn):
    """With statistics over replicas two replicas at piece 4 are one replica whose pieces hold the same rows."""
    config = dataclasses.replace(config, global_bn=global_bn)
    images, labels = batch
    strategy = mirrored(("CPU:0", "CPU:1"))
    half = BATCH // 2
    with strategy.scope():
        model = make_model(config, 3)
        optimizer = make_optimizer(config, model, 100)
    mine = strategy.experimental_distribute_values_from_function(lambda context: (
        tf.constant(images[context.replica_id_in_sync_group * half :][:half]),
        tf.constant(labels[context.replica_id_in_sync_group * half :][:half]),
    ))
    step = tf.function(
        lambda mine: strategy.run(lambda pair: train_step(model, optimizer, *pair, config), (mine,)), autograph=False,
    )
    terms = step(mine)
    loss = np.mean([float(v) for v in strategy.experimental_local_results(terms["contrastive"])])
    # Piece k holds rows 2k, 2k + 1 of each replica; with a replica's own statistics it is two pieces.
    order = [0, 1, 4, 5, 2, 3, 6, 7]
    piece = PIECE if global_bn else PIECE // 2
    alone = dataclasses.replace(config, micro_batch_size=piece)
    expected_terms, expected = updated(alone, (images[order], labels[order]))
    assert loss == pytest.approx(expected_terms["contrastive"], rel=1e-5)
    assert_close(values(model), expected, 1e-4)


class DropoutHead(ProjectionHead):
    """The projection head of a network that is partly random."""

    def build(self, input_shape):
        super().build(input_shape)
        self.dropout = keras.layers.Dropout(0.5, seed=7)

    def call(self, h, training=False):
        return super().call(self.dropout(h, training=training), training=training)


def test_dropout_is_replayed(config, batch):
    """At one piece the cached gradient is the plain one only if both passes drop the same; then the state moves on."""

    def with_dropout(config):
        model = make_model(config, None)
        head = DropoutHead(num_layers=2, out_dim=8)
        head.build(model.encoder.output_shape)
        for new, old in zip(head.weights, model.projection_head.weights, strict=False):
            new.assign(old)
        model.projection_head = head
        optimizer = make_optimizer(config, model, 100)
        losses = [float(train_step(model, optimizer, batch[0], None, config)["contrastive"]) for _ in range(2)]
        return losses, values(model)

    plain_losses, plain = with_dropout(dataclasses.replace(config, micro_batch_size=0))
    cached_losses, cached = with_dropout(dataclasses.replace(config, micro_batch_size=BATCH))
    assert cached_losses == pytest.approx(plain_losses, rel=1e-4)
    assert_close(cached, plain, 1e-4)
    in_two, _ = with_dropout(config)
    assert in_two[0] != pytest.approx(plain_losses[0], rel=1e-3)


def test_a_run_in_pieces(tiny, tmp_path):
    config = Config.from_flags([*tiny, "--micro_batch_size=8", "--train_steps=2", f"--model_dir={tmp_path}"])
    model = train(config)
    norm = next(layer for layer in model.resnet.layers if isinstance(layer, BatchNorm))
    assert np.abs(norm.moving_mean.numpy()).max() > 0


def test_pieces_must_divide_the_batch():
    with pytest.raises(ConfigError, match="micro_batch_size must divide"):
        Config(train_batch_size=10, micro_batch_size=4)
    with pytest.raises(ConfigError, match="Only pretraining"):
        Config(train_mode="finetune", train_batch_size=8, micro_batch_size=4)
