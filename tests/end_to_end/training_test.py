"""Tiny runs of every mode: what they leave behind, resume, restore, freezing, labels."""

import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, checkpoint, evaluate, train
from simclr_tf.errors import CheckpointError, DataError
from simclr_tf.model import named_variables
from simclr_tf.summaries import read_history
from simclr_tf.training import train_then_eval


def weights(model_dir, step):
    reader = tf.train.load_checkpoint(os.path.join(model_dir, f"ckpt-{step}"))
    return {k: reader.get_tensor(k) for k in reader.get_variable_to_shape_map() if k.endswith("VALUE")}


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def tags(model_dir):
    found = set()
    for path in tf.io.gfile.glob(os.path.join(model_dir, "events.*")):
        for event in tf.compat.v1.train.summary_iterator(path):
            found |= {value.tag for value in event.summary.value}
    return found


@pytest.fixture(scope="module")
def finetuned(pretrained, tiny, tmp_path_factory):
    model_dir = str(tmp_path_factory.mktemp("finetuned"))
    result = train_then_eval(Config.from_flags([
        *tiny, "--train_mode=finetune", f"--checkpoint={pretrained}", "--labels_per_class=4", "--optimizer=momentum",
        "--learning_rate=0.1", "--train_steps=3", "--zero_init_logits_layer", f"--model_dir={model_dir}",
        "--keep_hub_module_max=1",
    ]))
    return model_dir, result


def test_pretraining_leaves_what_a_run_leaves(pretrained):
    assert [os.path.basename(p) for p in checkpoint.checkpoints(pretrained)] == ["ckpt-2", "ckpt-4"]
    assert tf.train.latest_checkpoint(pretrained).endswith("ckpt-4")
    assert tags(pretrained) >= {
        "train/total_loss", "train/contrast_loss", "train/contrast_acc", "train/contrast_entropy",
        "train/supervised_loss", "train/supervised_acc", "train/weight_decay", "learning_rate", "image",
    }
    history = read_history(pretrained)
    assert [line["step"] for line in history] == [1, 2, 3, 4]
    assert all(np.isfinite(v) for line in history for v in line.values())


def test_resolved_flags_repeat_the_run(pretrained, tmp_path):
    config = Config.from_flags([f"--flagfile={pretrained}/flags.flags", f"--model_dir={tmp_path}"])
    train(config)
    assert_same_weights(weights(tmp_path, 4), weights(pretrained, 4))


def test_a_resumed_run_equals_an_unbroken_one(pretrained, tmp_path):
    """Weights, optimizer and losses, bit for bit."""
    for path in tf.io.gfile.glob(f"{pretrained}/ckpt-2.*"):
        shutil.copy(path, tmp_path)
    train(Config.from_flags([f"--flagfile={pretrained}/flags.flags", f"--model_dir={tmp_path}"]))
    assert_same_weights(weights(tmp_path, 4), weights(pretrained, 4))
    unbroken = {line["step"]: line["train/total_loss"] for line in read_history(pretrained)}
    for line in read_history(tmp_path):
        assert line["train/total_loss"] == unbroken[line["step"]]


def test_training_longer_goes_on(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path, dirs_exist_ok=True)
    train(Config.from_flags([f"--flagfile={pretrained}/flags.flags", f"--model_dir={tmp_path}", "--train_steps=5"]))
    assert checkpoint.latest(tmp_path).endswith("ckpt-5")
    assert [line["step"] for line in read_history(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_resume_with_other_settings_is_refused(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path, dirs_exist_ok=True)
    flags = [f"--flagfile={pretrained}/flags.flags", f"--model_dir={tmp_path}", "--train_steps=6"]
    with pytest.raises(CheckpointError, match=r"--temperature=0.7 \(was 0.1\)"):
        train(Config.from_flags([*flags, "--temperature=0.7"]))
    with pytest.raises(CheckpointError, match="resnet_depth"):
        train(Config.from_flags([*flags, "--resnet_depth=34"]))


def test_finetuning_starts_from_the_checkpoint_and_follows_its_architecture(finetuned, pretrained):
    model_dir, result = finetuned
    settings = checkpoint.Metadata.read(os.path.join(model_dir, "ckpt-3")).settings
    assert (settings["resnet_depth"], settings["width_multiplier"], settings["image_size"]) == (18, 0.25, 16)
    before, after = weights(pretrained, 4), weights(model_dir, 3)
    name = "model/base_model/conv2d/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    assert 0 < np.abs(after[name] - before[name]).max() < 0.1
    assert set(result) == {
        "eval/label_top_1_accuracy", "eval/label_top_5_accuracy", "eval/regularization_loss", "global_step"
    }
    assert json.loads(pathlib.Path(model_dir, "result.json").read_text()) == result
    assert "eval/label_top_1_accuracy" in tags(model_dir)
    assert os.listdir(os.path.join(model_dir, "saved_model")) == ["3"]


def test_evaluation_every_few_epochs_while_training(tmp_path, tiny):
    train(Config.from_flags([
        *tiny, "--train_split=train[:32]", "--train_steps=5", "--eval_every_epochs=1", f"--model_dir={tmp_path}",
    ]))
    evaluated = [line["step"] for line in read_history(tmp_path) if "eval/label_top_1_accuracy" in line]
    assert evaluated == [2, 4]


def test_predictions_are_kept_and_agree_with_the_result(finetuned):
    model_dir, result = finetuned
    kept = np.load(os.path.join(model_dir, "predictions.npz"))
    assert len(kept["labels"]) == 40 and len(set(kept["index"])) == 40
    assert (kept["top"][:, 0] == kept["labels"]).mean() == result["eval/label_top_1_accuracy"]
    assert list(kept["class_names"]) == [str(i) for i in range(10)]


def test_evaluation_of_a_finished_run_gives_the_same_numbers(finetuned, tmp_path, tiny):
    model_dir, result = finetuned
    flags = [*tiny, "--mode=eval", "--train_mode=finetune", "--train_steps=3"]
    again = evaluate(Config.from_flags([*flags, f"--checkpoint={model_dir}", f"--model_dir={tmp_path}"]))
    assert again == result
    followed = evaluate(Config.from_flags([*flags, f"--model_dir={model_dir}", "--eval_timeout=1"]))
    assert followed == result


def test_evaluation_batches_do_not_change_the_numbers(finetuned, tmp_path, tiny):
    model_dir, result = finetuned
    for size in (7, 40, 64):
        flags = [*tiny, "--mode=eval", f"--checkpoint={model_dir}", f"--eval_batch_size={size}"]
        again = evaluate(Config.from_flags([*flags, f"--model_dir={tmp_path}"]))
        assert again["eval/label_top_1_accuracy"] == result["eval/label_top_1_accuracy"]


def test_evaluation_without_a_checkpoint_ends_with_an_error(tmp_path, tiny):
    flags = [*tiny, "--mode=eval", f"--model_dir={tmp_path}", "--eval_timeout=0"]
    with pytest.raises(CheckpointError, match="No checkpoint"):
        evaluate(Config.from_flags(flags))


def test_the_linear_head_alone_leaves_everything_below_bit_equal(pretrained, tmp_path, tiny):
    model = train(Config.from_flags([
        *tiny, "--train_mode=finetune", f"--checkpoint={pretrained}", "--fine_tune_after_block=4",
        "--optimizer=momentum", "--weight_decay=0.1", "--train_steps=2", f"--model_dir={tmp_path}",
    ]))
    before = weights(pretrained, 4)
    for item in named_variables(model):
        same = np.array_equal(item.variable.numpy(), before[f"model/{item.name}/.ATTRIBUTES/VARIABLE_VALUE"])
        assert same != item.in_supervised_head, item.name


def test_pretraining_without_labels_says_so_and_has_no_head(tmp_path, tiny, caplog):
    from PIL import Image

    folder = tmp_path / "flat"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / f"{i}.png")
    flags = [*tiny, f"--dataset=folder:{folder}", "--train_steps=2", f"--model_dir={tmp_path / 'run'}"]
    with caplog.at_level("INFO"):
        model = train(Config.from_flags(flags))
    assert model.supervised_head is None
    assert "Linear evaluation is off" in caplog.text
    with pytest.raises(DataError, match="needs labels"):
        train(Config.from_flags([*flags, "--train_mode=finetune", f"--model_dir={tmp_path / 'ft'}"]))


def test_finetuning_on_other_classes_leaves_the_head_out_and_says_so(pretrained, tmp_path, tiny, caplog):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(tmp_path / "pets" / name / f"{i}.png")
    with caplog.at_level("INFO"):
        model = train(Config.from_flags([
            *tiny, f"--dataset=folder:{tmp_path / 'pets'}", "--train_mode=finetune", f"--checkpoint={pretrained}",
            "--train_steps=1", f"--model_dir={tmp_path / 'run'}",
        ]))
    assert model.num_classes == 2
    assert "head_supervised left out" in caplog.text


def test_an_unreadable_image_while_training_is_named_or_skipped(tmp_path, tiny):
    from PIL import Image

    folder = tmp_path / "flat"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:100])
    flags = [*tiny, f"--dataset=folder:{folder}", "--train_steps=3"]
    with pytest.raises(DataError, match=r"7\.png"):
        train(Config.from_flags([*flags, f"--model_dir={tmp_path / 'a'}"]))
    train(Config.from_flags([*flags, f"--model_dir={tmp_path / 'b'}", "--max_bad_images=1"]))
    assert checkpoint.latest(str(tmp_path / "b")).endswith("ckpt-3")


def test_two_replicas_train_and_evaluate_like_one(tmp_path, tiny, monkeypatch):
    flags = [*tiny, "--train_steps=2", "--learning_rate=0.01", "--mode=train_then_eval", "--eval_split=test[:37]"]
    one = train_then_eval(Config.from_flags([*flags, f"--model_dir={tmp_path / 'one'}"]))
    from simclr_tf import strategy

    monkeypatch.setattr(strategy, "_names", lambda kind: ["CPU:0", "CPU:1"] if kind == "CPU" else [])
    many = train_then_eval(Config.from_flags([*flags, "--strategy=mirrored", f"--model_dir={tmp_path / 'two'}"]))
    losses = [[line["train/total_loss"] for line in read_history(tmp_path / run)] for run in ("one", "two")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert one["eval/label_top_1_accuracy"] == pytest.approx(many["eval/label_top_1_accuracy"], abs=1 / 37)
    assert len(np.load(tmp_path / "two" / "predictions.npz")["labels"]) == 37


@pytest.mark.parametrize("precision", ["mixed_bfloat16"])
def test_mixed_precision_trains(tmp_path, tiny, precision):
    train(Config.from_flags([*tiny, "--train_steps=2", f"--precision={precision}", f"--model_dir={tmp_path}"]))
    assert all(np.isfinite(line["train/total_loss"]) for line in read_history(tmp_path))


def test_a_batch_larger_than_the_data_ends(tmp_path, tiny):
    flags = [*tiny, "--train_split=train[:6]", "--train_epochs=2", "--checkpoint_epochs=1", f"--model_dir={tmp_path}"]
    train(dataclasses.replace(Config.from_flags(flags), lineareval_while_pretraining=False))
    assert checkpoint.latest(str(tmp_path)).endswith("ckpt-1")


def test_predict_names_classes_and_probabilities(finetuned, tmp_path, tiny):
    from PIL import Image

    from simclr_tf.prediction import predict

    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/a.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    flags = ["--mode=predict", f"--checkpoint={finetuned[0]}", f"--model_dir={tmp_path / 'out'}"]
    results = predict(Config.from_flags([*flags, f"--predict_input={tmp_path / 'in'}"]))
    assert [os.path.basename(r["image"]) for r in results] == ["b.png", "a.png"]
    assert results[0]["classes"] == results[1]["classes"]  # the same pixels
    for guess in results[0]["classes"]:
        assert guess["name"] in "0123456789" and 0 <= guess["probability"] <= 1
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == results
    assert (tmp_path / "out" / "predictions.csv").read_text().count("\n") == 1 + 2 * 5
    one = predict(Config.from_flags([*flags, f"--predict_input={tmp_path / 'in' / 'b.png'}"]))
    assert one[0]["classes"] == results[0]["classes"]
    with pytest.raises(DataError, match="does not exist"):
        predict(Config.from_flags([*flags, f"--predict_input={tmp_path / 'nowhere'}"]))


def test_class_names_of_checkpoints_that_keep_none(tmp_path):
    from simclr_tf.prediction import class_names

    names = class_names(str(tmp_path), 1000)
    assert names[0] == "n01440764" and len(names) == 1000
    assert class_names(str(tmp_path), 2) == ("class 0", "class 1")
