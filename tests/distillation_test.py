"""Distillation: the loss against a loop in numpy, a step against it written out, and a tiny run end to end."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from PIL import Image

from simclr_tf import Config, checkpoint, data, distillation, losses, make_model, make_optimizer, train, train_step
from simclr_tf.errors import CheckpointError, ConfigError, DataError
from simclr_tf.model import named_variables
from simclr_tf.summaries import read_history
from simclr_tf.training import train_then_eval

RNG = np.random.default_rng(0)


def probabilities(logits, temperature):
    """Row by row and class by class, in float64."""
    rows = [[math.exp(float(v) / temperature) for v in row] for row in logits]
    return [[v / sum(row) for v in row] for row in rows]


def written_out(teacher_logits, logits, temperature):
    total = 0.0
    for p, q in zip(probabilities(teacher_logits, temperature), probabilities(logits, temperature), strict=True):
        total -= sum(pi * math.log(qi) for pi, qi in zip(p, q, strict=True))
    return total / len(logits)


@pytest.fixture(scope="module")
def distill_flags(tiny, pretrained):
    """A student half as wide as its teacher would be at this depth: 18 layers, width 0.125."""
    return (*tiny, "--width_multiplier=0.125", "--train_mode=distill", f"--teacher={pretrained}", "--optimizer=adam",
            "--learning_rate=0.01")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_loss_and_gradient(temperature):
    taught, logits = (3 * RNG.standard_normal((5, 4)).astype(np.float32) for _ in range(2))
    import tensorflow as tf

    with tf.GradientTape() as tape:
        student = tf.constant(logits)
        tape.watch(student)
        loss = losses.distillation_loss(tf.constant(taught), student, temperature)
    np.testing.assert_allclose(loss, written_out(taught, logits, temperature), rtol=1e-5)
    # d/dlogits of a cross entropy of softmaxes: (student - teacher) / temperature, of a mean over 5 rows.
    p, q = (np.array(probabilities(v, temperature)) for v in (taught, logits))
    np.testing.assert_allclose(tape.gradient(loss, student), (q - p) / temperature / 5, rtol=1e-4, atol=1e-7)


def test_a_student_that_equals_its_teacher_is_left_with_the_entropy():
    logits = RNG.standard_normal((6, 3)).astype(np.float32)
    p = np.array(probabilities(logits, 2.0))
    np.testing.assert_allclose(losses.distillation_loss(logits, logits, 2.0), -(p * np.log(p)).sum(1).mean(), rtol=1e-5)


def test_unlabelled_rows_count_nothing_but_are_counted():
    logits = RNG.standard_normal((4, 3)).astype(np.float32)
    labels = np.array([2, -1, 0, -1], np.int32)
    q = probabilities(logits, 1.0)
    expected = -(math.log(q[0][2]) + math.log(q[2][0])) / 4
    np.testing.assert_allclose(losses.partly_supervised_loss(labels, logits), expected, rtol=1e-5)


def test_a_step_is_the_loss_written_out_and_leaves_the_teacher_alone(distill_flags):
    config = Config.from_flags([*distill_flags, "--distill_weight=0.7", "--distill_temperature=2", "--weight_decay=0.1",
                                "--labels_per_class=1", "--train_steps=1"])
    teacher = distillation.load_teacher(config)
    model = make_model(config, 10)
    optimizer = make_optimizer(config, model, 100)
    images = RNG.random((6, 16, 16, 3)).astype(np.float32)
    labels = np.array([3, -1, -1, 9, -1, 0], np.int32)
    before = {item.name: item.variable.numpy() for item in named_variables(teacher.model)}
    taught = teacher.model(images)["logits_sup"].numpy()  # the public endpoint, in inference mode
    np.testing.assert_allclose(teacher(images), taught, rtol=1e-6)
    h = model.encoder(images, training=True)
    logits = model.supervised_head(h).numpy()
    for item in named_variables(model):  # calling it moved the statistics
        if "moving" in item.name:
            item.variable.assign(keras.ops.full(item.variable.shape, float("variance" in item.name)))
    decayed = [v.numpy() for v in model.trainable_variables if len(v.shape) > 1]
    decayed.append(model.supervised_head.bias.numpy())
    terms = train_step(model, optimizer, images, labels, config, teacher)

    q = probabilities(logits, 1.0)
    labelled = -(math.log(q[0][3]) + math.log(q[3][9]) + math.log(q[5][0])) / 6
    expected = dict(contrastive=0, supervised=0.3 * labelled, distillation=0.7 * written_out(taught, logits, 2.0),
                    weight_decay=0.1 / 2 * sum((v.astype(np.float64) ** 2).sum() for v in decayed))
    expected["total"] = sum(expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)
    for item in named_variables(teacher.model):
        np.testing.assert_array_equal(item.variable.numpy(), before[item.name], err_msg=item.name)


def test_labels_are_those_of_the_chosen_examples_only(distill_flags):
    config = Config.from_flags([*distill_flags, "--distill_weight=0.5", "--labels_per_class=2",
                                "--train_batch_size=1437"])
    source = data.open_training_source(config)
    chosen = data.open_training_source(dataclasses.replace(config, train_mode="finetune", teacher=None))
    assert source.num_examples == data.open_source(config, "train").num_examples and chosen.num_examples == 20
    batch = next(iter(data.train_batches(source, config, 0)))
    labels, index = batch["labels"].numpy(), batch["index"].numpy()
    seen = {source.keys[i]: label for i, label in zip(index, labels, strict=True) if label >= 0}
    assert seen == dict(zip(chosen.keys, chosen.labels, strict=True))
    assert batch["images"].shape[-1] == 3


def test_a_student_learns_without_labels_and_carries_the_classes_on(distill_flags, pretrained, tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(RNG.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / f"{i}.png")
    unlabelled = (f"--dataset=folder:{folder}", "--train_steps=3", "--fine_tune_after_block=-1")
    train(Config.from_flags([*distill_flags, *unlabelled, f"--model_dir={tmp_path / 'run'}"]))
    saved = checkpoint.Metadata.read(checkpoint.latest(str(tmp_path / "run")))
    teacher = checkpoint.Metadata.read(checkpoint.latest(pretrained))
    assert saved.class_names == teacher.class_names and len(saved.class_names) == 10
    history = read_history(tmp_path / "run")
    assert all(np.isfinite(line["train/distillation_loss"]) and line["train/supervised_loss"] == 0 for line in history)
    assert {"train/teacher_agreement"} <= history[0].keys()
    # The student is a checkpoint like any other: here it teaches, and is evaluated.
    again = [*distill_flags, "--train_steps=1", f"--teacher={tmp_path / 'run'}", f"--model_dir={tmp_path / 'again'}"]
    result = train_then_eval(Config.from_flags([*again, "--mode=train_then_eval"]))
    assert 0 <= result["eval/label_top_1_accuracy"] <= 1
    with pytest.raises(DataError, match="mixes labels in"):
        train(Config.from_flags([*distill_flags, *unlabelled, "--distill_weight=0.5", f"--model_dir={tmp_path / 'c'}"]))


def test_a_teacher_without_a_head_is_refused(distill_flags, pretrained, monkeypatch):
    from simclr_tf import released

    arch, arrays = released.inspect(pretrained)
    monkeypatch.setattr(released, "inspect", lambda path: (dataclasses.replace(arch, num_classes=None), arrays))
    with pytest.raises(CheckpointError, match="needs a supervised head"):
        distillation.load_teacher(Config.from_flags([*distill_flags]))


def test_a_teacher_of_another_stem_is_refused(distill_flags):
    with pytest.raises(CheckpointError, match=r"--image_size=64.*use --image_size=16"):
        distillation.load_teacher(Config.from_flags([*distill_flags, "--image_size=64"]))


@pytest.mark.parametrize("flags, message", [
    (["--train_mode=distill"], "needs a teacher"),
    (["--train_mode=finetune", "--teacher=x"], "A teacher is for distillation"),
    (["--train_mode=distill", "--teacher=x", "--labels_per_class=3"], "labels are not used"),
    (["--train_mode=distill", "--teacher=x", "--distill_weight=1.5"], "at most 1"),
    (["--train_mode=distill", "--teacher=x", "--distill_temperature=0"], "above 0"),
])
def test_flags_that_contradict(flags, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_flags(flags)
