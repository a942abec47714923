"""SIGKILL anywhere: the same command again ends with the weights and losses of a run that was never disturbed."""

import hashlib
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import checkpoint, cli
from simclr_tf.summaries import read_history

STEPS = 16
FLAGS = (f"--train_steps={STEPS}", "--checkpoint_steps=2", "--keep_checkpoint_max=2")
SAME = "the same command again goes on from the newest complete checkpoint; losses and weights bit-identical"


def trainee(how, *flags):
    """Starts a process that trains and dies; (exit code, stderr)."""
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-m", "tests.faults.trainee", how, *flags], env=environment,
                          capture_output=True, text=True, timeout=600)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def outcome(model_dir):
    """Everything that must not depend on being killed: losses of each step, hash of all variables."""
    clocks = ("images_per_second", "input_wait_seconds")
    history = [{k: v for k, v in line.items() if k not in clocks} for line in read_history(model_dir)]
    reader = tf.train.load_checkpoint(checkpoint.latest(str(model_dir)))
    digest = hashlib.sha256()
    for name in sorted(reader.get_variable_to_shape_map()):
        if name.endswith("VARIABLE_VALUE"):
            digest.update(name.encode() + np.ascontiguousarray(reader.get_tensor(name)).tobytes())
    return history, digest.hexdigest()


@pytest.fixture(scope="module")
def unbroken(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert cli.main([*few, *FLAGS, f"--model_dir={folder}"]) == 0
    history, digest = outcome(folder)
    assert [line["step"] for line in history] == list(range(1, STEPS + 1))
    return history, digest


def survive(few, unbroken, model_dir, deaths):
    """Trains and dies of each of `deaths` in turn, trains to the end, and compares."""
    flags = [*few, *FLAGS, f"--model_dir={model_dir}"]
    for how in deaths:
        code, said = trainee(how, *flags)
        assert code == -signal.SIGKILL, f"{how}: {code}\n{said}"
    code, said = trainee("never:", *flags)
    assert code == 0, said
    assert outcome(model_dir) == unbroken
    files = {name.split(".")[0] for name in os.listdir(model_dir) if name.startswith(("ckpt-", ".saving"))}
    assert files == {f"ckpt-{STEPS - 2}", f"ckpt-{STEPS}"}  # nothing half-written or half-deleted is left


def random_deaths(rng, rounds):
    """Deaths at `rounds` random moments, so far apart that no checkpoint is beyond the next one."""
    steps = sorted(rng.sample(range(2, STEPS - 1, 3), rounds))
    return [f"step:{step + rng.randrange(2)}.{rng.randrange(100):02d}" for step in steps]


@pytest.mark.fault("SIGKILL at random moments", SAME)
def test_three_rounds(few, unbroken, tmp_path, record_property):
    deaths = random_deaths(random.Random(7), 3)
    survive(few, unbroken, tmp_path, deaths)
    record_property("tried", len(deaths))


@pytest.mark.fault("SIGKILL during a save, and while old checkpoints are deleted", SAME)
def test_during_a_save_and_during_deletion(few, unbroken, tmp_path, record_property):
    deaths = ["rename:5", "remove:2"]
    survive(few, unbroken, tmp_path, deaths)
    record_property("tried", len(deaths))


@pytest.mark.long
@pytest.mark.fault("SIGKILL at random moments", SAME)
@pytest.mark.parametrize("seed", range(4))
def test_twenty_rounds(few, unbroken, tmp_path, record_property, seed):
    deaths = random_deaths(random.Random(100 + seed), 5)
    survive(few, unbroken, tmp_path, deaths)
    record_property("tried", len(deaths))


@pytest.mark.long
@pytest.mark.fault("SIGKILL during a save, and while old checkpoints are deleted", SAME)
def test_before_every_rename_and_deletion(few, unbroken, tmp_path, record_property):
    deaths = [*(f"rename:{n}" for n in (1, 2, 3)), *(f"remove:{n}" for n in (1, 2, 3))]
    survive(few, unbroken, tmp_path, deaths)
    record_property("tried", len(deaths))


@pytest.mark.fault("a second SIGTERM", "ends at once with exit code 143; the checkpoints are intact")
def test_a_second_signal_ends_at_once(few, tmp_path):
    code, said = trainee("twice:3", *few, *FLAGS, f"--model_dir={tmp_path}")
    assert code == 143
    assert "a second signal stops at once" in said
    assert checkpoint.latest(str(tmp_path)).endswith("ckpt-2")
