"""LARS against google-research/simclr, step by step (ops_training.npz)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import LARS
from tests.golden.recorded import read

ARRAYS = read("ops_training.npz")
CASES = read("ops_training.json")["lars"]
SHAPES = {
    "base_model/conv2d/kernel": (3, 3, 4, 8),
    "base_model/batch_normalization/gamma": (8,),
    "base_model/batch_normalization/beta": (8,),
    "head_contrastive/nl_0/dense/kernel": (8, 6),
    "head_supervised/linear_layer/dense/kernel": (8, 10),
    "head_supervised/linear_layer/dense/bias": (10,),
    "base_model/conv2d_1/kernel": (1, 1, 8, 8),
}
EXCLUDED = ("batch_normalization", "bias", "head_supervised")
STARTS_AT_ZERO = "base_model/conv2d_1/kernel"


def normal(seed, shape):
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "tf.function"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["case"]))
def test_every_step(case, compiled):
    variables = {}
    for j, (name, shape) in enumerate(SHAPES.items()):
        variables[name] = keras.Variable(np.zeros(shape) if name == STARTS_AT_ZERO else normal(j, shape))
    excluded = {id(v) for name, v in variables.items() if any(word in name for word in EXCLUDED)}
    optimizer = LARS(
        case["learning_rate"], momentum=case["momentum"], weight_decay=case["weight_decay"],
        nesterov=case["use_nesterov"], classic_momentum=case["classic_momentum"], eeta=case["eeta"],
        exclude=lambda variable: id(variable) in excluded,
    )
    optimizer.build(list(variables.values()))

    def apply(gradients):
        optimizer.apply_gradients(zip(gradients, variables.values(), strict=True))

    if compiled:
        apply = tf.function(apply)
    steps = sum(key.startswith(f"lars/{case['case']}/") for key in ARRAYS) // len(SHAPES)
    assert steps >= 4
    for k in range(steps):
        apply([tf.constant(normal(100 + 10 * k + j, shape)) for j, shape in enumerate(SHAPES.values())])
        for name, variable in variables.items():
            expected = ARRAYS[f"lars/{case['case']}/step{k + 1}/{name}"]
            np.testing.assert_allclose(variable.numpy(), expected, rtol=2e-6, atol=1e-6, err_msg=f"{name} {k}")
