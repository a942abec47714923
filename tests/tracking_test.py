"""Weights & Biases, with a stand-in module of the few names that are used of it."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest

from simclr_tf import Config, evaluate, tracking, train
from simclr_tf.errors import ConfigError
from simclr_tf.summaries import Summaries, read_history
from simclr_tf.training import train_then_eval


class FakeRun:
    def __init__(self, **settings):
        self.settings, self.id = settings, settings["id"]
        self.logged, self.metrics, self.finished = [], [], False

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)


@pytest.fixture
def wandb(monkeypatch):
    fake = types.ModuleType("wandb")
    fake.runs, fake.run = [], None
    fake.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    fake.Image = lambda pixels: ("image", pixels.shape, pixels.dtype)

    def init(**settings):
        fake.run = FakeRun(**settings)
        fake.runs.append(fake.run)
        return fake.run

    def finish():
        fake.run.finished = True
        fake.run = None

    fake.init, fake.finish = init, finish
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_run_and_its_evaluation(wandb, tiny, tmp_path):
    flags = [*tiny, "--train_steps=2", "--wandb", "--mode=train_then_eval", f"--model_dir={tmp_path / 'blue'}"]
    config = Config.from_flags(flags)
    result = train_then_eval(config)
    [run] = wandb.runs
    assert run.settings["name"] == "blue" and run.settings["job_type"] == "train"
    assert run.settings["config"]["train_steps"] == 2
    assert ("*", "step") in run.metrics
    assert [line for line in run.logged if "train/total_loss" in line] == read_history(config.model_dir)
    assert {"step": 2, "image": ("image", (32, 128, 3), np.dtype("uint8"))} in run.logged
    assert run.logged[-1] == {"step": 2, **{k: v for k, v in result.items() if k.startswith("eval/")}}
    evaluate(Config.from_flags([*flags, "--mode=eval"]))
    assert run.finished
    beside = wandb.runs[1]
    assert beside.settings["job_type"] == "eval" and beside.settings["group"] == run.settings["group"]
    assert beside.id != run.id and "eval/label_top_1_accuracy" in beside.logged[0]


def test_a_resumed_run_goes_on_in_the_same_place(wandb, tmp_path):
    config = Config(model_dir=str(tmp_path), wandb=True)
    first = tracking.open_run(config)
    assert tracking.open_run(config)._run is first._run
    wandb.finish()  # the process ended
    again = tracking.open_run(config)
    assert again._run is not first._run and again._run.id == first._run.id
    assert again._run.settings["resume"] == "allow"
    tracking.open_run(Config(model_dir=str(tmp_path / "other"), wandb=True))
    assert again._run.finished and wandb.run.id != first._run.id


def test_not_asked_for_it_is_not_imported(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    assert tracking.open_run(Config(model_dir=str(tmp_path))) is None
    Summaries(str(tmp_path), 0).scalars(1, {"a": 1.0})


def test_not_installed(monkeypatch, tiny, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'simclr_tf\[wandb\]'"):
        train(Config.from_flags([*tiny, "--train_steps=1", "--wandb", f"--model_dir={tmp_path}"]))


def test_refused(wandb, monkeypatch, tmp_path):
    def init(**settings):
        raise wandb.errors.Error("api_key not configured")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(ConfigError, match=r"api_key not configured.*wandb login"):
        tracking.open_run(Config(model_dir=str(tmp_path), wandb=True))


@pytest.mark.long
def test_the_real_one_offline(tiny, tmp_path):
    pytest.importorskip("wandb")
    flags = [*tiny, "--train_steps=2", "--wandb", f"--model_dir={tmp_path}"]
    environment = os.environ | {"WANDB_MODE": "offline"}
    for _ in range(2):  # the second goes on with a finished run
        subprocess.run([sys.executable, "run.py", *flags], check=True, env=environment)
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
