"""What the tests have another process do on Keras's JAX backend: `python -m tests.jax.driver <folder> <job>...`.

A process has one backend and one number of devices. The jobs leave their results in the folder; what those should be is
for the tests to say.
"""

import json
import os
import sys
import warnings

os.environ["KERAS_BACKEND"] = "jax"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import contextlib
import io
import pathlib

import jax
import numpy as np
import pytest

from simclr_tf import Config, cli, make_model, make_optimizer, set_from_tf1
from simclr_tf.jax_devices import JaxDevices
from simclr_tf.jax_step import CompiledStep
from simclr_tf.model import named_variables
from tests.golden.fill import fill
from tests.golden.recorded import training_batch
from tests.jax.cases import ARCHITECTURES, GENTLE, RUN_ON, STEPS, TRAJECTORIES


def golden(folder):
    """The tests against the reference's numbers, on this backend; leaves pytest's report."""
    report = io.StringIO()
    chosen = " or ".join(f"[{name}]" for name in (*ARCHITECTURES, *TRAJECTORIES))
    with contextlib.redirect_stdout(report):
        pytest.main(["-v", "-p", "no:cacheprovider", "--no-header", "-k", chosen,
                     "tests/golden/forward_test.py::test_every_endpoint",
                     "tests/golden/trajectories_test.py::test_trajectory"])
    (folder / "golden.txt").write_text(report.getvalue())


def devices(folder):
    """Ten steps of recipes that do not amplify rounding, on all devices of this process."""
    count = len(jax.devices())
    for name in RUN_ON[count]:
        config = Config.from_flags(GENTLE[name])
        rows = np.arange(config.train_batch_size)
        if config.micro_batch_size:  # its pieces, whose statistics are their own, are to hold the same images
            rows = rows.reshape(-1, count, config.micro_batch_size // count).swapaxes(0, 1).ravel()
        model = make_model(config, 10, initialize=False)
        set_from_tf1(model, fill)
        optimizer = make_optimizer(config, model, 160)
        on = JaxDevices(jax.devices())
        step = CompiledStep(model, optimizer, config, on)
        values, constant = step.begin()
        losses = []
        for k in range(STEPS):
            images, labels = training_batch(k, config.train_batch_size, config.image_size, True)
            batch = on.share_out({"images": images[rows], "labels": labels[rows]})
            assert len(batch["images"].sharding.device_set) == count
            donated = values[0][0]
            values, _, terms, _, _ = step(values, True, constant, batch["images"], batch["labels"])
            assert donated.is_deleted()
            losses.append(float(terms["total"]))
        step.end(values)
        np.savez(folder / f"{name}.npz", losses=losses, **{
            item.name: np.asarray(item.variable) for item in named_variables(model)
        })


def commands(folder):
    """Runs the command lines of `commands.json` one after another; leaves their exit codes and messages."""
    results = []
    for argv in json.loads((folder / "commands.json").read_text()):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(argv)
        results.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    warnings.filterwarnings("error", module="simclr_tf")
    for job in sys.argv[2:]:
        {"golden": golden, "devices": devices, "commands": commands}[job](pathlib.Path(sys.argv[1]))
