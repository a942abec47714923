"""Five training steps against google-research/simclr (training_steps.json.gz), through the public functions."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, make_model, make_optimizer, set_from_tf1, train_step
from simclr_tf.model import named_variables
from simclr_tf.strategy import mirrored
from tests.golden.fill import fill
from tests.golden.recorded import read, training_batch

CASES = read("training_steps.json.gz")
FROZEN_BACKBONE = "finetune_momentum_linear"  # recorded with a bug of the reference: tested on its own below
LOSS_TOLERANCE = (1e-4, 1e-4, 1e-4, 3e-3, 3e-2)  # relative, at each of the five steps
L2_NORM, MEDIAN_L2_NORM, L1_CHANGE = 5e-2, 1e-3, 0.15  # relative, of the variables after the fifth
# How far the reference itself ends up from its own recording on another processor, with other kernels, or when the
# last bit of its starting weights differs: measured with it, see docs/parity.md. Which of these happens here cannot be
# known, so where rounding differs a trajectory may be off by twice the largest distance, if that is more than the
# tolerances above. Most cases stay far below them; four leave them altogether from the second step on. (The slowest,
# pretrain_r50_sk, was run least: its first three losses are this code's own with other kernels, which are larger.)
REFERENCE_SPREAD = read("reference_spread.json")
ROUNDS_ALIKE = 1e-6  # at the second step, the first that has seen a gradient; the first must agree to the last bit
TERMS = ("contrastive", "supervised", "weight_decay")


@pytest.fixture(scope="module")
def two_replicas():
    return mirrored(("CPU:0", "CPU:1"))


def start(case, strategy):
    """The config, model and optimizer of a recorded case, with the weights it began with."""
    config = Config.from_flags(case["flags"])
    with strategy.scope():
        model = make_model(config, case["num_classes"])
        set_from_tf1(model, fill)
        optimizer = make_optimizer(config, model, case["num_examples"])
    return config, model, optimizer


def compiled_step(config, model, optimizer, strategy):
    """A function of a global batch: one step, and the means of the loss terms over the replicas."""
    replicas = strategy.num_replicas_in_sync
    if keras.config.backend() == "jax":  # compiles by itself
        return lambda images, labels: train_step(model, optimizer, images, labels, config)

    def step(images, labels):
        def one_replica():
            r = tf.distribute.get_replica_context().replica_id_in_sync_group
            n = config.train_batch_size // replicas
            part = slice(r * n, (r + 1) * n)
            return train_step(model, optimizer, images[part], labels[part], config)

        if replicas == 1:
            return train_step(model, optimizer, images, labels, config)
        return {name: strategy.reduce("MEAN", v, axis=None) for name, v in strategy.run(one_replica).items()}

    compiled = tf.function(step)
    return lambda images, labels: compiled(tf.constant(images), tf.constant(labels))


def run(name, strategy):
    case = CASES[name]
    config, model, optimizer = start(case, strategy)
    before = {item.name: np.asarray(item.variable) for item in named_variables(model)}
    step = compiled_step(config, model, optimizer, strategy)
    losses = []
    for k in range(case["steps"]):
        images, labels = training_batch(k, config.train_batch_size, config.image_size, config.train_mode == "pretrain")
        losses.append({term: float(v) for term, v in step(images, labels).items()})
    after = {item.name: np.asarray(item.variable) for item in named_variables(model)}
    return types.SimpleNamespace(case=case, config=config, losses=losses, before=before, after=after)


def relative(value, expected):
    return abs(value - expected) / max(abs(expected), 1e-12)


@pytest.mark.parametrize("name", sorted(set(CASES) - {FROZEN_BACKBONE}))
def test_trajectory(name, request):
    case = CASES[name]
    strategy = request.getfixturevalue("two_replicas") if case["replicas"] == 2 else tf.distribute.get_strategy()
    ran = run(name, strategy)
    tolerance = allowed(name, ran)
    for k, (losses, expected) in enumerate(zip(ran.losses, case["per_step"], strict=True)):
        for term in TERMS:
            error = relative(losses[term], expected[term])
            assert error < tolerance["losses"][k], (
                f"{term} of step {k}: {losses[term]}, not {expected[term]}: {error:.1e}"
            )
    recorded = case["final_variables[l2_norm,sum,l1_change]"]
    assert set(ran.after) == set(recorded)
    norm_errors = []
    for variable, (norm, total, change) in recorded.items():
        value = ran.after[variable].astype(np.float64)
        moved = np.abs(value - ran.before[variable]).sum()
        norm_errors.append(relative(np.linalg.norm(value), norm))
        assert norm_errors[-1] < tolerance["l2_norm"], variable
        assert abs(moved - change) <= tolerance["l1_change"] * change, variable
        assert abs(value.sum() - total) <= tolerance["l1_change"] * change + 1e-6 * np.abs(value).sum(), variable
    assert np.median(norm_errors) < tolerance["median_l2_norm"]


def allowed(name, ran):
    """The tolerances of a case, by whether this machine's first steps round as the recording's did."""
    stated = dict(
        losses=LOSS_TOLERANCE, l2_norm=L2_NORM, median_l2_norm=MEDIAN_L2_NORM, l1_change=L1_CHANGE,
    )
    first, second = ([(losses[t], recorded[t]) for t in ("contrastive", "supervised")]
                     for losses, recorded in list(zip(ran.losses, ran.case["per_step"], strict=True))[:2])
    if all(a == b for a, b in first) and all(relative(a, b) < ROUNDS_ALIKE for a, b in second):
        return stated
    spread = REFERENCE_SPREAD.get(name, {})
    return {key: np.maximum(value, 2 * np.array(spread.get(key, 0))) for key, value in stated.items()}


def test_linear_evaluation_is_frozen():
    """`--fine_tune_after_block=4`, where the reference moves batch-norm statistics and decays what is not trained."""
    case = CASES[FROZEN_BACKBONE]
    ran = run(FROZEN_BACKBONE, tf.distribute.get_strategy())
    head = {f"head_supervised/linear_layer/dense/{leaf}": leaf for leaf in ("kernel", "bias")}
    for variable, value in ran.after.items():
        if variable not in head:
            np.testing.assert_array_equal(value, ran.before[variable], err_msg=variable)

    # The classifier alone, in float64: softmax regression on h by SGD with Nesterov momentum, decayed as in the loss.
    config, model, _ = start(case, tf.distribute.get_strategy())
    weights = {leaf: ran.before[name].astype(np.float64) for name, leaf in head.items()}
    speed = {leaf: np.zeros_like(w) for leaf, w in weights.items()}
    for k, losses in enumerate(ran.losses):
        images, labels = training_batch(k, config.train_batch_size, config.image_size, False)
        h = np.asarray(model.encoder(images, training=False)).astype(np.float64)
        logits = h @ weights["kernel"] + weights["bias"]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        rows = np.arange(len(labels))
        decay = config.weight_decay / 2 * sum((w**2).sum() for w in weights.values())
        np.testing.assert_allclose(losses["supervised"], -np.log(p[rows, labels]).mean(), rtol=1e-5)
        np.testing.assert_allclose(losses["weight_decay"], decay, rtol=1e-5)
        p[rows, labels] -= 1
        gradient = {"kernel": h.T @ p / len(labels), "bias": p.mean(0)}
        rate = case["per_step"][k]["lr"]
        for leaf in weights:
            g = gradient[leaf] + config.weight_decay * weights[leaf]
            speed[leaf] = config.momentum * speed[leaf] - rate * g
            weights[leaf] += config.momentum * speed[leaf] - rate * g
    for name, leaf in head.items():
        np.testing.assert_allclose(ran.after[name], weights[leaf], rtol=1e-4, atol=1e-6)
