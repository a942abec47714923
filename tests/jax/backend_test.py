"""Keras's JAX backend, in processes of its own (driver.py): against the reference's numbers and TensorFlow's."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, make_model, make_optimizer, set_from_tf1, train, train_step
from simclr_tf.model import named_variables
from simclr_tf.summaries import read_history
from simclr_tf.training import train_then_eval
from tests.golden.fill import fill
from tests.golden.formats_test import write
from tests.golden.recorded import training_batch
from tests.jax.cases import ARCHITECTURES, GENTLE, RUN_ON, STEPS, TRAJECTORIES

pytestmark = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed: extra [jax]")


def run(folder, devices, *jobs):
    """Has the driver do `jobs` in `folder` on that many virtual CPU devices."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.jax.driver", str(folder), *jobs], capture_output=True, text=True, check=False,
        env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


# --- Against the reference -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return (run(tmp_path_factory.mktemp("golden"), 1, "golden") / "golden.txt").read_text()


@pytest.mark.parametrize("name", [*ARCHITECTURES, *TRAJECTORIES])
def test_golden_numbers(name, golden):
    """The very tests of tests/golden, at their tolerances."""
    assert re.search(rf"\[{name}\] PASSED", golden), golden[-4000:]


# --- 1, 2 and 8 devices ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), 1, "devices")


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    return run(tmp_path_factory.mktemp("eight"), 8, "devices")


@pytest.fixture(scope="module")
def tensorflow():
    """Losses and weights of the same recipes on TensorFlow."""
    found = {}
    for name, flags in GENTLE.items():
        config = Config.from_flags(flags)
        model = make_model(config, 10, initialize=False)
        set_from_tf1(model, fill)
        optimizer = make_optimizer(config, model, 160)
        step = tf.function(lambda images, labels, m=model, o=optimizer, c=config: train_step(m, o, images, labels, c))
        losses = []
        for k in range(STEPS):
            batch = training_batch(k, config.train_batch_size, config.image_size, True)
            losses.append(float(step(*map(tf.constant, batch))["total"]))
        found[name] = {"losses": losses} | {item.name: item.variable.numpy() for item in named_variables(model)}
    return found


@pytest.mark.parametrize(("layout", "recipe"), [
    *[("two", recipe) for recipe in RUN_ON[2]], *[("eight", recipe) for recipe in RUN_ON[8]],
    *[("tensorflow", recipe) for recipe in GENTLE],
])
def test_neither_devices_nor_backend_change_losses_and_weights(layout, recipe, one, request):
    other = request.getfixturevalue(layout)
    one = np.load(one / f"{recipe}.npz")
    other = other[recipe] if layout == "tensorflow" else np.load(other / f"{recipe}.npz")
    # Other devices add up in another order; another backend has other kernels as well.
    first, early, late = {"tensorflow": (1e-5, 1e-4, 3e-3)}.get(layout, (1e-6, 1e-5, 1e-3))
    if recipe == "bfloat16":
        first, early, late = 1e-2, 3e-2, 0.1
    for steps, tolerance in ((1, first), (3, early), (STEPS, late)):
        np.testing.assert_allclose(other["losses"][:steps], one["losses"][:steps], rtol=tolerance)
    names = [name for name in one.files if name != "losses"]
    everything = np.concatenate([one[name].ravel() for name in names])
    difference = np.linalg.norm(np.concatenate([other[name].ravel() for name in names]) - everything)
    assert difference < late * np.linalg.norm(everything)


# --- Commands, on two devices ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    """The folder of eight steps on TensorFlow, with a recipe that does not amplify rounding; every other is kept."""
    model_dir = tmp_path_factory.mktemp("unbroken")
    train(Config.from_flags([
        *tiny, "--temperature=0.5", "--learning_rate=0.02", "--train_steps=8", "--checkpoint_steps=2",
        f"--model_dir={model_dir}",
    ]))
    return model_dir


def copy_up_to(step, model_dir, copy):
    """A run's folder as it was at `step`."""
    later = [f"ckpt-{s}.*" for s in range(step + 1, 9)]
    shutil.copytree(model_dir, copy, ignore=shutil.ignore_patterns(*later))


@pytest.fixture(scope="module")
def runs(unbroken, tiny, tmp_path_factory):
    """What commands are run on, a run begun on TensorFlow and weights in the authors' format; a fine-tuning's flags."""
    folder = tmp_path_factory.mktemp("two")
    copy_up_to(4, unbroken, folder / "resumed")
    model = make_model(Config.from_flags(list(tiny)), 10)
    arrays = {item.name: np.asarray(item.variable) for item in named_variables(model)}
    write(folder / "released" / "model.ckpt-250", arrays | {"global_step": np.int64(250)})
    (folder / "released" / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-250"\n')
    finetune = [*tiny, "--mode=train_then_eval", "--train_mode=finetune", f"--checkpoint={folder}/released",
                "--zero_init_logits_layer", "--optimizer=momentum", "--learning_rate=0.1", "--train_steps=3",
                "--fine_tune_after_block=2"]
    return folder, finetune


@pytest.fixture(scope="module")
def two(runs, tiny):
    folder, finetune = runs
    commands = {
        "resume": [f"--flagfile={folder}/resumed/flags.flags", f"--model_dir={folder}/resumed"],
        "finetune": [*finetune, f"--model_dir={folder}/finetuned", "--keep_hub_module_max=1"],
        "local_bn": [*tiny, "--global_bn=False", f"--model_dir={folder}/refused"],
        "gpu": [*tiny, "--strategy=gpu", f"--model_dir={folder}/refused"],
        "tpu_name": [*tiny, "--tpu_name=mine", f"--model_dir={folder}/refused"],
        "float16": [*tiny, "--precision=mixed_float16", f"--model_dir={folder}/refused"],
        "fused_bn": [*tiny, "--fused_bn", f"--model_dir={folder}/refused"],
        "odd_batch": [*tiny, "--train_batch_size=15", f"--model_dir={folder}/refused"],
    }
    (folder / "commands.json").write_text(json.dumps(list(commands.values())))
    run(folder, 2, "devices", "commands")
    results = json.loads((folder / "results.json").read_text())
    (folder / "by_name.json").write_text(json.dumps(dict(zip(commands, results, strict=True))))
    return folder


@pytest.fixture(scope="module")
def results(two):
    return json.loads((two / "by_name.json").read_text())


def losses(model_dir):
    return {line["step"]: line["train/total_loss"] for line in read_history(model_dir)}


def test_a_run_begun_on_tensorflow_goes_on_on_jax_and_back(two, results, unbroken, tmp_path):
    """Four steps on TensorFlow, two on JAX with two devices, two on TensorFlow: as eight on TensorFlow."""
    assert results["resume"]["code"] == 0, results["resume"]["err"]
    copy_up_to(6, two / "resumed", tmp_path / "mixed")
    train(Config.from_flags([f"--flagfile={unbroken}/flags.flags", f"--model_dir={tmp_path}/mixed"]))
    mixed, unbroken, jax = (losses(path) for path in (tmp_path / "mixed", unbroken, two / "resumed"))
    assert list(mixed) == list(unbroken) == list(jax) == list(range(1, 9))
    for other in (mixed, jax):
        np.testing.assert_allclose(list(other.values()), list(unbroken.values()), rtol=1e-3)
    # What imports JAX; TensorFlow itself does so, too, where it is installed.
    assert not any(name.startswith("simclr_tf.jax") for name in sys.modules)
    assert mixed[5] != unbroken[5] or mixed[6] != unbroken[6], "the steps on JAX were made again on TensorFlow"


def test_a_released_checkpoint_is_fine_tuned(two, results, runs, tmp_path):
    assert results["finetune"]["code"] == 0, results["finetune"]["err"]
    result = train_then_eval(Config.from_flags([*runs[1], f"--model_dir={tmp_path}"]))
    ours, theirs = losses(two / "finetuned"), losses(tmp_path)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)
    evaluated = json.loads((two / "finetuned" / "result.json").read_text())
    assert evaluated["eval/label_top_1_accuracy"] == pytest.approx(result["eval/label_top_1_accuracy"], abs=0.05)
    assert evaluated["eval/regularization_loss"] == pytest.approx(result["eval/regularization_loss"], rel=1e-5)
    assert (two / "finetuned" / "report.html").exists()
    exported = tf.saved_model.load(str(two / "finetuned" / "saved_model" / "3"))
    assert exported(tf.zeros([1, 16, 16, 3]), trainable=False)["logits_sup"].shape == (1, 10)
    named = named_variables(make_model(Config.from_flags(runs[1]), 10))
    assert len(exported.all_variables) == len(named)
    assert len(exported.trainable_variables_list) == sum(item.variable.trainable for item in named)


@pytest.mark.parametrize(("command", "words"), [
    ("local_bn", "--global_bn=False with 2 devices"),
    ("gpu", "JAX has no GPU here. There is: 2 CPU"),
    ("tpu_name", "--tpu_name and --master are TensorFlow's"),
    ("float16", "no scaling of the loss"),
    ("fused_bn", "--fused_bn chooses a kernel of TensorFlow's"),
    ("odd_batch", "--train_batch_size must be a multiple of the number of replicas, 2"),
])
def test_what_is_not_there_is_said_at_start(command, words, results):
    assert results[command]["code"] == 2
    assert words in results[command]["err"] and "Traceback" not in results[command]["err"]
