"""Outputs in inference mode against google-research/simclr (forward.npz), with weights and images made by a rule."""

import numpy as np
import pytest

from simclr_tf import SimCLR, set_from_tf1
from tests.golden.fill import fill, image_batch
from tests.golden.recorded import read
from tests.golden.variables_test import settings

RECORDED = read("forward.npz")
ARCHITECTURES = sorted({key.split("/")[0] for key in RECORDED})
TOLERANCE = 1e-5  # of the largest value of an endpoint


def build(name, **kwargs):
    """The model of a recorded architecture and the images it was run on."""
    model = SimCLR(**settings(name), **kwargs)
    set_from_tf1(model, fill)
    return model, image_batch(2, 32 if "32px" in name else 64, seed=1)


def assert_close(found, expected, what):
    error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE, f"{what} is off by {error:.1e}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_endpoint(name):
    model, images = build(name)
    assert_recorded(model, name, images)


def assert_recorded(model, name, images):
    """Every endpoint that was recorded for `name` and that `model` has; without a projection head z is h.

    Returns how many arrays were compared.
    """
    found = {endpoint: np.asarray(value) for endpoint, value in model(images).items()}
    hiddens = model.projection_head(found["final_avg_pool"])
    found |= {f"proj_{k}": hidden for k, hidden in enumerate(hiddens)}
    projects = model.architecture["proj_head_mode"] != "none"
    keys = [key for key in RECORDED if key.startswith(name + "/") and (projects or "/proj_" not in key)]
    assert len(keys) >= 3
    for key in keys:
        endpoint, _, part = key.removeprefix(name + "/").partition("/")
        value = found[endpoint]
        value = {"": lambda v: v, "mean": lambda v: v.mean((1, 2)), "corner": lambda v: v[:, 0, 0]}[part](value)
        assert_close(value, RECORDED[key], key)
    np.testing.assert_array_equal(found["proj_head_input"], found["final_avg_pool"])
    np.testing.assert_array_equal(found["proj_head_output"], hiddens[-1])
    return len(keys)


@pytest.mark.parametrize("selector", [0, 1, 2, 3, -1])
def test_ft_proj_selector_feeds_the_supervised_head(selector):
    name = "r18_1x_sk0_32px"
    model, images = build(name, ft_proj_selector=selector)
    endpoint = {0: "final_avg_pool", 3: "proj_head_output", -1: "proj_head_output"}.get(selector, f"proj_{selector}")
    hidden = RECORDED[f"{name}/{endpoint}"]
    scope = "head_supervised/linear_layer/dense"
    logits = hidden @ fill(f"{scope}/kernel", (hidden.shape[1], 10)) + fill(f"{scope}/bias", (10,))
    assert_close(model(images)["logits_sup"], logits, f"logits of selector {selector}")
