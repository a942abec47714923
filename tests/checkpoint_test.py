"""Checkpoints are complete or absent, verified, strict, and survive what is done to their folder."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, checkpoint
from simclr_tf.errors import CheckpointError, ConfigError, NonFiniteError, StorageError
from simclr_tf.model import make_model
from simclr_tf.step import make_optimizer

CONFIG = Config(resnet_depth=18, width_multiplier=0.25, image_size=16, train_steps=5, seed=3)


@pytest.fixture(scope="module")
def state():
    model = make_model(CONFIG, 4)
    return checkpoint.training_state(model, make_optimizer(CONFIG, model, 100))


def fill(state, value):
    for i, variable in enumerate(state.values()):
        variable.assign(np.full(variable.shape, value + i))


def hold(state, value):
    return all((v.numpy() == np.float32(value + i)).all() for i, v in enumerate(state.values()))


@pytest.fixture
def saved(tmp_path, state):
    """A folder with checkpoints at 1 and 2, filled with their step * 1000."""
    for step in (1, 2):
        fill(state, step * 1000)
        checkpoint.save(str(tmp_path), step, state, CONFIG, ("a", "b"))
    fill(state, 0)
    return tmp_path


def test_what_is_saved_is_restored(saved, state):
    prefix = checkpoint.latest(str(saved))
    assert prefix.endswith("ckpt-2")
    checkpoint.restore(prefix, state)
    assert hold(state, 2000)
    metadata = checkpoint.Metadata.read(prefix)
    assert (metadata.step, metadata.class_names, metadata.settings["seed"]) == (2, ("a", "b"), 3)


def test_tensorflow_finds_and_reads_it_by_the_names_we_promise(saved):
    prefix = tf.train.latest_checkpoint(str(saved))
    assert prefix == str(saved / "ckpt-2")
    shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    assert shapes["model/base_model/conv2d/kernel/.ATTRIBUTES/VARIABLE_VALUE"] == [3, 3, 3, 16]
    assert "optimizer/momentums/base_model/conv2d/kernel/.ATTRIBUTES/VARIABLE_VALUE" in shapes
    assert "_CHECKPOINTABLE_OBJECT_GRAPH" in shapes


@pytest.mark.parametrize("content", [None, "", "garbage\0", 'model_checkpoint_path: "ckpt-77"'])
def test_the_checkpoint_file_is_not_trusted(saved, content):
    if content is None:
        (saved / "checkpoint").unlink()
    else:
        (saved / "checkpoint").write_text(content)
    assert checkpoint.latest(str(saved)).endswith("ckpt-2")


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete data", "delete record", "empty record"])
def test_damage_falls_back_to_the_checkpoint_before_with_a_warning(saved, state, damage, caplog):
    data = saved / "ckpt-2.data-00000-of-00001"
    if damage == "truncate":
        data.write_bytes(data.read_bytes()[:-10])
    elif damage == "flip":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "delete data":
        data.unlink()
    elif damage == "delete record":
        (saved / "ckpt-2.json").unlink()
    else:
        (saved / "ckpt-2.json").write_text("")
    prefix = checkpoint.latest(str(saved))
    assert prefix.endswith("ckpt-1")
    assert "ckpt-2" in caplog.text
    checkpoint.restore(prefix, state)
    assert hold(state, 1000)


def test_if_all_are_damaged_it_is_an_error_and_not_a_restart(saved):
    for step in (1, 2):
        (saved / f"ckpt-{step}.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"Every checkpoint in .* is damaged.*ckpt-2.*ckpt-1"):
        checkpoint.latest(str(saved))


def test_a_save_that_died_half_way_leaves_no_checkpoint(saved, state):
    shutil.copytree(saved, saved / ".saving-3")
    os.remove(saved / "ckpt-2.index")
    assert checkpoint.latest(str(saved)).endswith("ckpt-1")
    checkpoint.save(str(saved), 3, state, CONFIG, None)
    assert checkpoint.latest(str(saved)).endswith("ckpt-3")
    assert not (saved / ".saving-3").exists()


def test_pruning_keeps_the_newest(saved, state):
    checkpoint.save(str(saved), 10, state, CONFIG, None)
    checkpoint.prune(str(saved), 2)
    assert [os.path.basename(p) for p in checkpoint.checkpoints(str(saved))] == ["ckpt-2", "ckpt-10"]
    assert not list(saved.glob("ckpt-1.*"))
    checkpoint.prune(str(saved), 0)
    assert len(checkpoint.checkpoints(str(saved))) == 2


def evaluated(folder, step, accuracy):
    (folder / f"result_{step}.json").write_text(json.dumps({"eval/label_top_1_accuracy": accuracy}))


def test_pruning_keeps_the_best_that_was_evaluated_and_takes_leftovers_away(saved, state):
    for step in (3, 4, 5):
        checkpoint.save(str(saved), step, state, CONFIG, None)
    for step, accuracy in ((1, 0.5), (2, 0.7), (3, 0.7), (9, 0.99)):  # 9 exists no more
        evaluated(saved, step, accuracy)
    (saved / "result_4.json").write_text("garbage")
    (saved / "ckpt-4.index").unlink()  # deletion was interrupted
    (saved / ".saving-7").mkdir()
    checkpoint.prune(str(saved), 1)
    assert [os.path.basename(p) for p in checkpoint.checkpoints(str(saved))] == ["ckpt-3", "ckpt-5"]
    left = {name for name in os.listdir(saved) if not name.startswith(("result", "checkpoint"))}
    assert {name.split(".")[0] for name in left} == {"ckpt-3", "ckpt-5"}


def test_pruning_works_in_folders_whose_names_look_like_patterns(tmp_path, state):
    folder = tmp_path / "run[1]*"
    for step in (1, 2):
        checkpoint.save(str(folder), step, state, CONFIG, None)
    checkpoint.prune(str(folder), 1)
    assert not list(folder.glob("ckpt-1.*")) and len(list(folder.glob("ckpt-2.*"))) == 3


def test_no_checkpoint_of_weights_that_are_not_finite(saved, state):
    name = "model/base_model/conv2d/kernel"
    state[name].assign(np.full(state[name].shape, np.inf))
    with pytest.raises(NonFiniteError, match=rf"1 of .*{name}.*last good checkpoint is .*ckpt-2"):
        checkpoint.save(str(saved), 3, state, CONFIG, None)
    assert checkpoint.latest(str(saved)).endswith("ckpt-2")


def test_a_disk_with_too_little_room_is_said_before_anything_is_written(saved, state, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(StorageError, match=r"needs \d+ MiB, and the storage of .* has 1 MiB left: it is full"):
        checkpoint.save(str(saved), 3, state, CONFIG, None)
    assert not (saved / ".saving-3").exists()


def test_a_checkpoint_deleted_while_looked_at_gives_way_to_the_newer_one(saved, state, monkeypatch):
    """As when the training saves and prunes between an evaluation's listing and its reading."""
    verify, calls = checkpoint.verify, []

    def first_replace(prefix):
        if not calls:
            checkpoint.save(str(saved), 3, state, CONFIG, None)
            checkpoint.prune(str(saved), 1)
        calls.append(prefix)
        return verify(prefix)

    monkeypatch.setattr(checkpoint, "verify", first_replace)
    assert checkpoint.latest(str(saved)).endswith("ckpt-3")
    assert [os.path.basename(p) for p in calls] == ["ckpt-2", "ckpt-3"]


def test_a_restore_is_strict_both_ways_and_about_shapes(saved, state):
    prefix = str(saved / "ckpt-1")
    with pytest.raises(CheckpointError, match=r"model/extra \(2,\) is missing"):
        checkpoint.restore(prefix, state | {"model/extra": tf.Variable([1.0, 2.0])})
    with pytest.raises(CheckpointError, match=r"head_supervised/linear_layer/dense/bias .* has no place"):
        checkpoint.restore(prefix, {k: v for k, v in state.items() if "bias" not in k})
    name = "model/base_model/conv2d/kernel"
    with pytest.raises(CheckpointError, match=r"conv2d/kernel has shape \(3, 3, 3, 16\), not \(1,\)"):
        checkpoint.restore(prefix, state | {name: tf.Variable([1.0])})


def test_changed_settings_are_listed_field_by_field(saved):
    metadata = checkpoint.Metadata.read(str(saved / "ckpt-1"))
    checkpoint.check_same_settings(dataclasses.replace(CONFIG, train_steps=9, eval_batch_size=7), metadata)
    changed = dataclasses.replace(CONFIG, seed=4, temperature=0.5, model_dir="/x")
    with pytest.raises(CheckpointError, match=r"--seed=4 \(was 3\)") as caught:
        checkpoint.check_same_settings(changed, metadata)
    assert "--temperature=0.5 (was 0.1)" in str(caught.value)
    assert "--allow_changed_settings=seed,temperature" in str(caught.value)
    with pytest.raises(CheckpointError, match="--seed=4") as caught:
        checkpoint.check_same_settings(dataclasses.replace(changed, allow_changed_settings="temperature"), metadata)
    assert "--temperature=0.5" not in str(caught.value)
    checkpoint.check_same_settings(dataclasses.replace(changed, allow_changed_settings="seed,temperature"), metadata)
    with pytest.raises(ConfigError, match="tempreature is none"):
        dataclasses.replace(changed, allow_changed_settings="tempreature")


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path, state):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Could not write"):
        checkpoint.save(str(tmp_path / "file" / "run"), 1, state, CONFIG, None)


def test_the_record_names_size_and_sha256_of_each_file(saved):
    record = json.loads((saved / "ckpt-1.json").read_text())
    for name, entry in record["files"].items():
        assert (saved / name).stat().st_size == entry["size"]
        assert len(entry["sha256"]) == 64
