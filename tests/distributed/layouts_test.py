"""One run, shared out over 1, 2 and 4 replicas of this process and over two processes: the same losses and weights.

The comparison is between the folders that the runs leave: history, checkpoints, predictions.
"""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, make_model, training
from simclr_tf.model import named_variables
from simclr_tf.strategy import mirrored
from simclr_tf.summaries import read_history
from tests.distributed.job import GENTLE, PIECES, Job, cases, variables

CASES = sorted({*cases("")} - {PIECES})
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# Relative, at a step: of the way that the weights have gone.
TOLERANCE = {3: 1e-4, 10: 1e-3}


def train(flags, replicas, model_dir):
    strategy = tf.distribute.get_strategy() if replicas == 1 else mirrored(tuple(f"CPU:{i}" for i in range(replicas)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_strategy", lambda config: strategy)
        training.train_then_eval(Config.from_flags([*flags, f"--model_dir={model_dir}"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def alone(folder, pretrained):
    """The runs of one replica: case -> folder."""
    runs = {name: str(folder / "alone" / name) for name in CASES}
    for name, run in runs.items():
        train(cases(pretrained)[name], 1, run)
    return runs


@pytest.fixture(scope="module")
def workers(folder, pretrained):
    """The runs of two processes: case -> folder."""
    runs = {name: str(folder / "workers" / name) for name in cases(pretrained)}
    commands = [[*flags, f"--model_dir={runs[name]}"] for name, flags in cases(pretrained).items()]
    with Job(folder / "logs", ["-m", "tests.distributed.job", json.dumps(commands)]) as job:
        assert job.end() == [0, 0], job.story()
    return runs


@pytest.fixture(scope="module")
def began(pretrained):
    """The weights that each case begins with."""
    start = {}
    model = make_model(Config.from_flags(list(GENTLE)), 10)
    start["pretrain"] = {f"model/{v.name}": v.variable.numpy() for v in named_variables(model)}
    start["finetune"] = {k.removesuffix(SUFFIX): v for k, v in variables(pretrained, 4).items()}
    return start


def distances(a, b, began, which=lambda name: True):
    """Euclidean norms over all variables of a kind: between `a` and `b`, and from where `b` began (0 if not given)."""
    names = [name for name in b if which(name)]
    start = {name: began.get(name.removesuffix(SUFFIX), 0.0) for name in names}
    return (np.sqrt(sum(np.sum(np.square(x[n].astype(np.float64) - y[n])) for n in names))
            for x, y in ((a, b), (b, start)))


def assert_same_run(run, expected, began):
    """Losses at each step; the way from the first weights, norm-wise; momenta; and every prediction."""
    losses = [{line["step"]: line for line in read_history(folder)} for folder in (run, expected)]
    for step, tolerance in ((1, 1e-4), (2, 1e-4), (3, 1e-4), *((k, 1e-3) for k in range(4, 11))):
        for tag, value in losses[1][step].items():
            if tag.endswith("loss"):
                assert losses[0][step][tag] == pytest.approx(value, rel=tolerance), f"{tag} of step {step}"
    for step, tolerance in TOLERANCE.items():
        a, b = variables(run, step), variables(expected, step)
        assert a.keys() == b.keys()
        # Apart, since moving statistics go so much farther that they would hide the rest.
        for which in (lambda name: "moving_" in name, lambda name: "moving_" not in name):
            error, way = distances(a, b, began, which)
            assert way > 1e-3
            print(f"step {step}: the ways gone differ by {error / way:.1e} of their length {way:.2g}")
            assert error < tolerance * way, f"step {step}: {error / way:.1e}"
    a, b = (np.load(os.path.join(folder, "predictions.npz")) for folder in (run, expected))
    np.testing.assert_array_equal(a["index"], np.arange(40))  # each example once, in order
    np.testing.assert_array_equal(a["labels"], b["labels"])
    np.testing.assert_allclose(a["probabilities"], b["probabilities"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("replicas", "name"), [
    (2, "pretrain"), (2, "finetune"), (4, "pretrain"), pytest.param(4, "finetune", marks=pytest.mark.long),
])
def test_replicas_compute_what_one_does(name, replicas, alone, began, pretrained, tmp_path):
    train(cases(pretrained)[name], replicas, tmp_path)
    assert_same_run(tmp_path, alone[name], began[name])


@pytest.mark.parametrize("name", CASES)
def test_two_processes_compute_what_one_replica_does(name, workers, alone, began):
    assert_same_run(workers[name], alone[name], began[name])


def test_gradient_caching_over_two_processes(workers, pretrained, tmp_path):
    """As over two replicas, which `gradient_caching_test.py` compares with one."""
    train(cases(pretrained)[PIECES], 2, tmp_path)
    a, b = (
        [[line["train/contrast_loss"], line["train/total_loss"]] for line in read_history(run)[:3]]
        for run in (workers[PIECES], tmp_path)
    )
    np.testing.assert_allclose(a, b, rtol=1e-4)
    a, b = variables(workers[PIECES], 3), variables(tmp_path, 3)
    for name, value in b.items():
        np.testing.assert_allclose(a[name], value, rtol=0, atol=1e-4 * max(1.0, np.abs(value).max()), err_msg=name)


def test_only_the_chief_wrote(workers):
    """One events file for the training and one for the evaluation, and no trace of the other worker."""
    assert len(tf.io.gfile.glob(os.path.join(workers["pretrain"], "events.*"))) == 2
    assert len(read_history(workers["pretrain"])) == 10


@pytest.mark.parametrize(("before", "after"), [(1, 2), pytest.param(4, 1, marks=pytest.mark.long)])
def test_a_checkpoint_restores_onto_other_replicas(before, after, alone, began, tmp_path):
    """Six steps on so many replicas, four on others: the run of ten on one."""
    if before == 1:
        for path in tf.io.gfile.glob(os.path.join(alone["pretrain"], "ckpt-6.*")):
            shutil.copy(path, tmp_path)
    else:
        train([*GENTLE, "--mode=train", "--train_steps=10", "--checkpoint_steps=6"], before, tmp_path)
        for path in tf.io.gfile.glob(os.path.join(tmp_path, "ckpt-10.*")):
            os.remove(path)
    train(GENTLE, after, tmp_path)
    a, b = variables(tmp_path, 10, ""), variables(alone["pretrain"], 10, "")
    assert a.keys() == b.keys() and any("momentum" in name for name in a)
    for part in ("model/", "optimizer/momentum"):
        error, way = distances(a, b, began["pretrain"], lambda name, part=part: name.startswith(part))
        assert 0 < way and error < 1e-3 * way, part


def test_the_comparison_notices_statistics_of_each_replica(alone, tmp_path):
    """A control: with --global_bn=False two replicas compute something else, by far more than the tolerances."""
    train([*GENTLE, "--global_bn=False", "--train_steps=1", "--mode=train"], 2, tmp_path)
    here, there = (read_history(folder)[0]["train/contrast_loss"] for folder in (tmp_path, alone["pretrain"]))
    assert abs(here - there) > 1e-2 * there
