"""Whatever happens to a run's folder: it goes on from the newest good checkpoint, or says why not."""

import os
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import checkpoint, evaluation, lock
from simclr_tf.summaries import Summaries

DATA = "ckpt-4.data-00000-of-00001"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


# --- Files of the run ------------------------------------------------------------------------------------------------
@pytest.mark.fault("`checkpoint` state file missing, empty, garbage", "ignored: goes on from the newest checkpoint")
@pytest.mark.parametrize("content", [None, b"", b"\0garbage", b'model_checkpoint_path: "ckpt-99"'])
def test_the_state_file_does_not_matter(run_dir, few, command, content):
    (run_dir / "checkpoint").unlink()
    if content is not None:
        (run_dir / "checkpoint").write_bytes(content)
    code, said = command(*few, "--train_steps=4", f"--model_dir={run_dir}")
    assert code == 0 and "Resuming from " in said and "at step 4" in said


@pytest.mark.fault("checkpoint data truncated, bit-flipped, deleted; index or record truncated or deleted",
                   "warning that names the file; goes on from the checkpoint before it")
@pytest.mark.parametrize(("name", "damage"), [
    (DATA, cut), (DATA, flip), (DATA, os.remove), ("ckpt-4.index", cut), ("ckpt-4.json", cut),
    ("ckpt-4.json", os.remove),
])
def test_damage_falls_back_with_a_warning(run_dir, few, command, name, damage):
    damage(run_dir / name)
    code, said = command(*few, "--train_steps=2", f"--model_dir={run_dir}")
    assert code == 0 and "WARNING" in said and name in said and "at step 2" in said


@pytest.mark.fault("every checkpoint damaged", "exit 3, each with its damage; never a restart at step 0")
def test_all_damaged_is_no_restart(run_dir, few, command):
    for step in (2, 4):
        cut(run_dir / f"ckpt-{step}.data-00000-of-00001")
    code, said = command(*few, "--train_steps=4", f"--model_dir={run_dir}")
    assert code == 3 and "Every checkpoint in" in said and "ckpt-2" in said and "ckpt-4" in said


def test_after_damage_the_run_ends_as_if_nothing_had_been(run_dir, finished, few, command):
    flip(run_dir / DATA)
    assert command(*few, "--train_steps=4", "--checkpoint_steps=2", f"--model_dir={run_dir}")[0] == 0
    readers = [tf.train.load_checkpoint(str(folder / "ckpt-4")) for folder in (run_dir, finished)]
    for name in readers[1].get_variable_to_shape_map():
        if name.endswith("VARIABLE_VALUE"):
            np.testing.assert_array_equal(*(reader.get_tensor(name) for reader in readers), err_msg=name)


# --- Settings --------------------------------------------------------------------------------------------------------
@pytest.mark.fault("resume with another depth, width, batch, seed, image size, temperature",
                   "exit 3 with each field, old and new value; `--allow_changed_settings` goes on")
@pytest.mark.parametrize("flag", [
    "--resnet_depth=34", "--width_multiplier=0.125", "--train_batch_size=16", "--seed=1", "--image_size=16",
    "--temperature=0.7",
])
def test_changed_settings_are_refused(run_dir, few, command, flag):
    code, said = command(*few, "--train_steps=4", flag, "--use_blur", f"--model_dir={run_dir}")
    assert code == 3 and f"{flag} (was " in said and "--use_blur=True (was False)" in said


def test_changed_settings_may_be_allowed_and_longer_training_is_none(run_dir, few, command):
    allowed = "--allow_changed_settings=seed,learning_rate"
    code, said = command(*few, "--train_steps=4", "--seed=1", "--learning_rate=1", allowed, f"--model_dir={run_dir}")
    assert code == 0 and "going on with --seed=1 (was 0)" in said
    code, said = command(*few, "--train_epochs=7", "--train_steps=4", f"--model_dir={run_dir}")
    assert code == 0


@pytest.mark.fault("`--checkpoint` missing, of something else, of another width", "exit 3, what was found and wanted")
@pytest.mark.parametrize("case", ["missing", "other", "width"])
def test_a_checkpoint_that_does_not_fit(finished, few, command, tmp_path, case):
    flags, path = [], finished
    if case == "missing":
        path, words = tmp_path / "nowhere", "nowhere"
    elif case == "other":
        path = tf.train.Checkpoint(v=tf.Variable([1.0])).write(str(tmp_path / "other"))
        words = "other"
    else:
        flags, words = ["--width_multiplier=0.5"], "width_multiplier=0.5"
    code, said = command(*few, *flags, "--train_mode=finetune", "--train_steps=1", f"--checkpoint={path}",
                         f"--model_dir={tmp_path / 'run'}")
    assert code == 3 and words in said


# --- Others in the folder --------------------------------------------------------------------------------------------
@pytest.mark.fault("two trainings in a folder", "the second: exit 2, naming the process of the first")
def test_a_second_trainer_is_refused_and_evaluation_is_not(run_dir, few, command):
    with lock.training_lock(str(run_dir)):
        code, said = command(*few, "--train_steps=4", f"--model_dir={run_dir}")
        assert code == 2 and f"process {os.getpid()} on" in said
        code, said = command(*few, "--mode=eval", "--train_steps=4", f"--model_dir={run_dir}")
        assert code == 0 and "top-1" in said


@pytest.mark.fault("evaluation while the training deletes the checkpoint", "takes the newer one; exit 0")
def test_evaluation_of_a_checkpoint_that_goes_away(run_dir, few, command, monkeypatch):
    load, seen = evaluation.load, []

    def meanwhile(config, path):
        seen.append(os.path.basename(path))
        if seen == ["ckpt-4"]:  # the training saves the next one and prunes, between finding this one and reading it
            for part in (DATA.removeprefix("ckpt-4"), ".index", ".json"):
                os.remove(run_dir / f"ckpt-4{part}")
            checkpoint.save(str(run_dir), 6, newer, config, tuple("0123456789"))
        return load(config, path)

    reader = tf.train.load_checkpoint(str(run_dir / "ckpt-4"))
    newer = {name.removesuffix(checkpoint.VALUE): tf.Variable(reader.get_tensor(name))
             for name in reader.get_variable_to_shape_map() if name.endswith(checkpoint.VALUE)}
    monkeypatch.setattr(evaluation, "load", meanwhile)
    code, said = command(*few, "--mode=eval", "--train_steps=6", f"--model_dir={run_dir}")
    assert code == 0 and "was deleted while it was read" in said and seen[:2] == ["ckpt-4", "ckpt-6"]
    assert set(seen[2:]) <= {"ckpt-6"}  # the report reads it once more


# --- Storage ---------------------------------------------------------------------------------------------------------
@pytest.mark.fault("`--model_dir` that is a file, or below one", "exit 2")
@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_as_folder(few, command, tmp_path, below):
    (tmp_path / "file").write_text("")
    code, said = command(*few, f"--model_dir={tmp_path / 'file' / below}")
    assert code == 2 and "model_dir" in said


@pytest.mark.fault("`--model_dir` that cannot be written", "exit 5")
def test_a_folder_that_cannot_be_written(few, command, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    # Permissions do not bind root; no one can make a folder in this one.
    folder = tmp_path / "locked" / "run" if os.geteuid() else "/sys/run"
    code, said = command(*few, "--train_steps=1", f"--model_dir={folder}")
    assert code == 5 and "Could not write" in said


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.fault("disk full", "exit 5, before anything is written if it can be seen; older checkpoints intact")
def test_too_little_room_is_seen_before_training(small_disk, few, command):
    code, said = command(*few, "--train_steps=1", f"--model_dir={small_disk / 'run'}")
    assert code == 5 and "needs" in said and "MiB left: it is full" in said


@pytest.mark.fault("disk full", "exit 5, before anything is written if it can be seen; older checkpoints intact")
def test_a_disk_that_fills_up_during_a_save(small_disk, few, command, monkeypatch):
    """Others' files take the room between the check and the writing."""
    monkeypatch.setattr(checkpoint, "check_space", lambda *_: None)
    save = checkpoint.save

    def crowded(model_dir, step, *rest):
        if step == 2:
            free = os.statvfs(small_disk)
            (small_disk / "others").write_bytes(bytes(free.f_bavail * free.f_bsize))
        return save(model_dir, step, *rest)

    monkeypatch.setattr(checkpoint, "save", crowded)
    run = small_disk / "run"
    code, said = command(*few, "--train_steps=2", "--checkpoint_steps=1", "--train_summary_steps=0",
                         f"--model_dir={run}")
    assert code == 5 and "the storage is full" in said
    assert checkpoint.latest(str(run)).endswith("ckpt-1")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.fault("disk full", "exit 5, before anything is written if it can be seen; older checkpoints intact")
def test_summaries_on_a_full_disk(run_dir, few, command, monkeypatch):
    scalars = Summaries.scalars

    def full(self, step, values):
        self._path = "/dev/full"
        scalars(self, step, values)

    monkeypatch.setattr(Summaries, "scalars", full)
    code, said = command(*few, "--train_steps=5", f"--model_dir={run_dir}")
    assert code == 5 and "the storage is full" in said and checkpoint.latest(str(run_dir)).endswith("ckpt-4")

