"""NT-Xent against google-research/simclr: loss, its gradient, and the logits that the accuracy reads."""

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf.losses import nt_xent, nt_xent_and_logits
from tests.golden.recorded import read

ARRAYS = read("ops_training.npz")
CASES = read("ops_training.json")["ntxent"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["case"]))
def test_loss_gradient_and_logits(case):
    recorded = {key: ARRAYS[f"ntxent/{case['case']}/{key}"] for key in ("hidden", "loss", "grad", "logits_ab")}
    hidden = tf.constant(recorded["hidden"])
    assert hidden.shape == (2 * case["pairs"], case["dim"])
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        loss, logits = nt_xent_and_logits(hidden, case["temperature"], case["hidden_norm"])
    gradient = tape.gradient(loss, hidden)
    scale = np.abs(recorded["grad"]).max()
    np.testing.assert_allclose(loss, recorded["loss"], rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, recorded["grad"], rtol=0, atol=5e-6 * scale + 1e-8)
    np.testing.assert_allclose(logits, recorded["logits_ab"], rtol=2e-6, atol=2e-6 * np.abs(logits).max())
    assert float(nt_xent(hidden, case["temperature"], case["hidden_norm"])) == float(loss)
