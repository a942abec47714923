"""The notebooks, run from their first cell to the last in kernels of their own, on tiny data (SIMCLR_TF_SMOKE)."""

import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import nbformat
import pytest
from nbclient import NotebookClient

from tests.distributed.job import steps_saved

COLABS = pathlib.Path(__file__).parent.parent / "colabs"
NAMES = ("pretrain", "released_checkpoint", "finetune", "stanford_dogs_study")

# Jupyter's own; nothing here can mend them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning:zmq")


def read(name):
    return nbformat.read(COLABS / f"{name}.ipynb", as_version=4)


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a notebook; returns its code cells, with what they said."""
    for name, value in dict(SIMCLR_TF_SMOKE="1", SIMCLR_TF_RUNS=str(tmp_path), OMP_NUM_THREADS="1").items():
        monkeypatch.setenv(name, value)

    def run(notebook, while_running=None):
        client = NotebookClient(
            notebook, timeout=1500, kernel_name="python3", resources={"metadata": {"path": str(COLABS)}}
        )
        if while_running:
            threading.Thread(target=while_running, args=(client,), daemon=True).start()
        client.execute()
        return [cell for cell in notebook.cells if cell.cell_type == "code"]

    return run


def said(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cells):
    return [cell for cell in cells if any("image/png" in output.get("data", {}) for output in cell.outputs)]


def test_no_notebook_is_forgotten():
    assert {path.stem for path in COLABS.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert [c.metadata.get("tags") for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize(("devices", "installed", "backend", "extra"), [
    (("/dev/accel0",), {"jax"}, "jax", "cpu"),  # Colab's TPU runtime: its JAX stays, TensorFlow reads the data
    (("/dev/vfio/0",), set(), "jax", "jax"),
    (("/dev/accel0",), {"tensorflow-tpu", "tensorflow"}, None, None),
    ((), {"jax"}, None, "cpu"),
    ((), {"tensorflow"}, None, None),
])
@pytest.mark.parametrize("name", NAMES)
def test_the_backend_follows_the_runtime(name, devices, installed, backend, extra, monkeypatch):
    """The cell that installs, told of other machines than this one."""
    cell = next(c.source for c in read(name).cells if c.cell_type == "code" and "KERAS_BACKEND" in c.source)
    for variable in ("KERAS_BACKEND", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.setenv(variable, "")  # so that it is put back afterwards
        monkeypatch.delenv(variable)
    monkeypatch.chdir(COLABS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path in devices if str(path)[:5] == "/dev/" else exists(path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [
        types.SimpleNamespace(metadata={"Name": package}) for package in installed
    ])
    modules = installed - {"tensorflow-tpu"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: (
        None if module in ("jax", "tensorflow") and module not in modules else object()
    ))
    exec(cell, {"os": os, "REPOSITORY": "", "USE_DRIVE": False, "RUNS": "runs"})
    assert os.environ.get("KERAS_BACKEND") == backend
    assert [command[-1].partition("[")[2] for command in commands] == ([f"{extra}]"] if extra else [])


@pytest.mark.parametrize(("name", "words", "shown"), [
    ("released_checkpoint", ["untrained", "final_avg_pool", "class "], 2),
    ("finetune", ["40 of 1,438 examples", "top-1", "chance is 10.0%"], 2),
    ("stanford_dogs_study", ["Sizes: of a smoke test", "scratch"], 2),
])
def test_notebook_runs(name, words, shown, execute):
    cells = execute(read(name))
    text = "".join(map(said, cells))
    for word in words:
        assert word in text.replace("never trained", "untrained"), text
    assert len(pictures(cells)) >= shown


def test_pretraining_is_interrupted_saved_and_gone_on_with(execute, tmp_path):
    """The cell that trains gets the kernel's interrupt, and is run again."""
    notebook = read("pretrain")
    [at] = [i for i, cell in enumerate(notebook.cells) if "training" in cell.metadata.get("tags", [])]
    notebook.cells.insert(at, nbformat.v4.new_code_cell(notebook.cells[at].source))
    for cell in notebook.cells:
        cell.source = cell.source.replace('"--train_steps=16"', '"--train_steps=120"')

    def interrupt(client):
        while not steps_saved(tmp_path / "pretrain"):
            time.sleep(0.02)
        os.kill(client.km.provisioner.pid, signal.SIGINT)

    cells = execute(notebook, interrupt)
    first, second = (said(cell) for cell in cells if "train_then_eval" in cell.source)
    assert "SIGINT: saved a checkpoint at step" in first and "Run this cell again" in first
    assert "Resuming from" in second and "top-1" in second
    assert steps_saved(tmp_path / "pretrain")[-1] == 120
    assert len(pictures(cells)) >= 3
