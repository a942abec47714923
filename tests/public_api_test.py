"""The public API as the README and the docs promise it: names, arguments with their defaults, and what comes back."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import simclr_tf
from simclr_tf import (
    LARS,
    Config,
    SimCLR,
    WarmupCosine,
    embed,
    evaluate,
    export,
    make_model,
    make_optimizer,
    nt_xent,
    preprocess_for_eval,
    released,
    set_from_tf1,
    train,
    train_step,
    two_views,
)
from tests.golden.fill import fill, image_batch

REQUIRED = inspect.Parameter.empty
# What must stay as it is. More arguments may follow, if they have defaults.
ARGUMENTS = {
    SimCLR: dict(
        depth=50, width=1, sk_ratio=0.0, se_ratio=0.0, cifar_stem=False, num_classes=None, proj_head_mode="nonlinear",
        num_proj_layers=3, proj_out_dim=128, ft_proj_selector=0, batch_norm_decay=0.9, global_bn=True,
    ),
    nt_xent: dict(z=REQUIRED, temperature=0.1, normalize=True),
    LARS: dict(
        learning_rate=REQUIRED, momentum=0.9, weight_decay=0.0, nesterov=False, classic_momentum=True, eeta=0.001,
    ),
    WarmupCosine: dict(
        base_learning_rate=REQUIRED, scaling=REQUIRED, batch_size=REQUIRED, warmup_steps=REQUIRED,
        total_steps=REQUIRED,
    ),
    two_views: dict(image=REQUIRED, seed=REQUIRED, image_size=REQUIRED, color_jitter_strength=1.0, blur=True),
    preprocess_for_eval: dict(image=REQUIRED, image_size=REQUIRED, crop=True),
    make_model: dict(config=REQUIRED, num_classes=REQUIRED),
    make_optimizer: dict(config=REQUIRED, model=REQUIRED, num_examples=REQUIRED),
    train_step: dict(model=REQUIRED, optimizer=REQUIRED, images=REQUIRED, labels=REQUIRED, config=REQUIRED),
    released.load: dict(name_or_path=REQUIRED, num_classes=None, use_ema=False),
    released.table: {},
    set_from_tf1: dict(model=REQUIRED, read=REQUIRED),
    train: dict(config=REQUIRED),
    evaluate: dict(config=REQUIRED),
    embed: dict(model=REQUIRED, dataset=REQUIRED),
}
ENDPOINTS = {  # of a narrow ResNet-18 without CIFAR stem on 64 px
    "initial_conv": (2, 32, 32, 16), "initial_max_pool": (2, 16, 16, 16), "block_group1": (2, 16, 16, 16),
    "block_group2": (2, 8, 8, 32), "block_group3": (2, 4, 4, 64), "block_group4": (2, 2, 2, 128),
    "final_avg_pool": (2, 128), "proj_head_input": (2, 128), "proj_head_output": (2, 128),
}


@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda f: f.__qualname__)
def test_arguments_and_defaults(function):
    parameters = list(inspect.signature(function).parameters.values())
    promised, more = parameters[: len(ARGUMENTS[function])], parameters[len(ARGUMENTS[function]):]
    assert {p.name: p.default for p in promised} == ARGUMENTS[function]
    assert all(p.default is not REQUIRED or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in more)


def test_lars_takes_a_predicate_on_variables():
    exclude = inspect.signature(LARS).parameters["exclude"].default
    assert exclude(keras.Variable(0.0)) is False
    assert isinstance(LARS(0.1), keras.optimizers.Optimizer)
    assert list(inspect.signature(export).parameters)[:3] == ["model", "path", "format"]


def test_everything_is_found_by_its_name():
    for name in simclr_tf.__all__:
        assert getattr(simclr_tf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = simclr_tf.nonsense


@pytest.mark.parametrize("num_classes", [None, 5])
def test_model(num_classes):
    model = SimCLR(depth=18, width=0.25, num_classes=num_classes)
    assert isinstance(model, keras.Model)
    assert model.count_params() > 0  # all variables exist
    set_from_tf1(model, fill)
    images = image_batch(2, 64)
    expected = ENDPOINTS | ({"logits_sup": (2, 5)} if num_classes else {})
    endpoints = model(images, training=False)
    assert {name: tuple(value.shape) for name, value in endpoints.items()} == expected
    np.testing.assert_array_equal(model.encoder(images), endpoints["final_avg_pool"])
    np.testing.assert_array_equal(model(images)["proj_head_output"], endpoints["proj_head_output"])
    assert set(model(tf.constant(images), training=True)) == set(expected)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        model(255 * images)


def test_loss_and_schedule():
    z = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    assert nt_xent(z, temperature=0.5, normalize=False).shape == ()
    schedule = WarmupCosine(0.3, "linear", 512, 10, 100)
    assert isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
    np.testing.assert_allclose([schedule(k) for k in (0, 5, 10, 55, 100)], [0, 0.3, 0.6, 0.3, 0], atol=1e-7)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_views_and_preprocessing(dtype):
    image = image_batch(1, 40)[0]
    image = (255 * image).astype(np.uint8) if dtype is np.uint8 else image
    views = two_views(image, seed=[1, 2], image_size=24, color_jitter_strength=0.5, blur=False)
    assert len(views) == 2
    for picture in (*views, preprocess_for_eval(image, 24), preprocess_for_eval(image, 24, crop=False)):
        assert (tuple(picture.shape), picture.dtype) == ((24, 24, 3), tf.float32)
        assert 0 <= picture.numpy().min() < picture.numpy().max() <= 1
    again = two_views(tf.constant(image), tf.constant([1, 2]), 24, 0.5, False)
    np.testing.assert_array_equal(views, again)
    assert np.abs(views[0] - views[1]).max() > 0.05


@pytest.mark.parametrize(("flags", "channels", "labels"), [
    (["--train_mode=pretrain"], 6, True), (["--lineareval_while_pretraining=False"], 6, False),
    (["--train_mode=finetune", "--optimizer=momentum"], 3, True),
])
def test_one_training_step(flags, channels, labels, tiny):
    config = Config.from_flags([*tiny, "--train_batch_size=4", "--train_steps=2", *flags])
    assert Config(**{k: getattr(config, k) for k in ("resnet_depth", "image_size")}).image_size == 16
    with pytest.raises(AttributeError):  # frozen
        config.image_size = 32
    model = make_model(config, 3 if labels else None)
    optimizer = make_optimizer(config, model, num_examples=8)
    images = image_batch(4, 16)
    images = np.concatenate([images] * (channels // 3), axis=-1)
    before = [v.numpy() for v in model.trainable_variables]
    losses = train_step(model, optimizer, images, np.array([0, 1, 2, 0]) if labels else None, config)
    assert set(losses) == {"contrastive", "supervised", "weight_decay", "total"}
    assert all(tuple(value.shape) == () for value in losses.values())
    assert float(losses["total"]) == pytest.approx(sum(float(v) for k, v in losses.items() if k != "total"), rel=1e-6)
    assert (float(losses["contrastive"]) > 0) == (channels == 6)
    assert (float(losses["supervised"]) > 0) == labels
    assert int(optimizer.iterations) == 1
    assert any(np.any(a != v.numpy()) for a, v in zip(before, model.trainable_variables, strict=True))


def test_a_run_from_the_library(pretrained, tiny, tmp_path):
    """Fine-tune from a checkpoint, evaluate, embed, export: what a notebook does."""
    config = Config.from_flags([
        *tiny, "--train_mode=finetune", "--train_steps=1", f"--checkpoint={pretrained}", f"--model_dir={tmp_path}",
    ])
    assert isinstance(train(config), SimCLR)
    result = evaluate(Config.from_flags([*tiny, "--mode=eval", "--train_mode=finetune", "--train_steps=1",
                                         f"--model_dir={tmp_path}"]))
    assert result["global_step"] == 1
    assert 0 <= result["eval/label_top_1_accuracy"] <= 1
    assert tf.train.latest_checkpoint(str(tmp_path)).endswith("ckpt-1")

    model = released.load(pretrained)
    assert isinstance(model, SimCLR)
    assert model.num_classes == 10
    assert released.load(pretrained, num_classes=7).num_classes == 7
    images = image_batch(6, 16)
    h = embed(model, tf.data.Dataset.from_tensor_slices(images).batch(4))
    assert h.dtype == np.float32
    np.testing.assert_allclose(h, model.encoder(images), rtol=1e-4, atol=1e-5)
    export(model, str(tmp_path / "model.keras"), "keras")
    assert (tmp_path / "model.keras").is_file()


def test_the_table_of_released_models_has_names_and_published_accuracies():
    table = released.table()
    accuracies = {model.name: model.accuracy for model in table}
    assert accuracies["simclrv2/pretrained/r50_1x_sk0"] == 71.7
    assert accuracies["simclrv2/finetuned_100pct/r152_3x_sk1"] == 83.1
    assert accuracies["simclrv1/pretrain/4x"] == 76.6
