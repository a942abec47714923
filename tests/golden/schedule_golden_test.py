"""The learning rate against google-research/simclr, at every recorded step."""

import numpy as np
import pytest

from simclr_tf.config import Config
from simclr_tf.step import make_schedule
from tests.golden.recorded import read

CASES = read("ops_training.json")["schedule"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["case"]))
def test_every_recorded_step(case):
    names = ("learning_rate", "train_batch_size", "train_epochs", "train_steps", "warmup_epochs")
    config = Config(learning_rate_scaling=case["scaling"], **{name: case[name] for name in names})
    assert config.total_steps(case["num_examples"]) == case["total_steps"]
    schedule = make_schedule(config, case["num_examples"])
    rates = [float(schedule(step)) for step in case["steps"]]
    peak = max(case["values"])
    np.testing.assert_allclose(rates, case["values"], rtol=2e-6, atol=3e-7 * peak)
