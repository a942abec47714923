"""Names, shapes and order of all variables against the authors' (tf1_variables.json.gz).

The released ones go up to 3 GB of weights: the models are built without any.
"""

import math
import re

import keras
import pytest

from simclr_tf import SimCLR
from simclr_tf.architecture import Architecture, variables
from simclr_tf.model import named_variables
from tests.golden.recorded import read

RECORDED = read("tf1_variables.json.gz")


def settings(name: str) -> dict:
    """The arguments of `SimCLR` that a recorded architecture's name says, such as `r50_2x_sk1` or `r18_1x_sk0_32px`."""
    depth, width, kind, value, size = re.fullmatch(r"r(\d+)_(\d)x_(s[ke])(\d+)(?:_(\d+)px)?", name).groups()
    ratio = {"sk0": 0.0, "sk1": 0.0625, "se25": 0.25}[kind + value]
    classes = 10 if size or kind == "se" else 1000
    return {"depth": int(depth), "width": int(width), f"{kind}_ratio": ratio, "cifar_stem": size == "32",
            "num_classes": classes}


@pytest.fixture(scope="module")
def weightless():
    """Builds models whose variables have names and shapes but no values."""

    def build(**kwargs):
        with keras.StatelessScope(initialize_variables=False):
            return SimCLR(**kwargs)

    yield build
    keras.utils.clear_session()  # forgets the variables that wait for a value


def listing(model):
    return [[item.name, list(item.variable.shape)] for item in named_variables(model)]


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_variables_of_recorded_architectures(name, weightless):
    assert listing(weightless(**settings(name))) == RECORDED[name]


def test_all_released_architectures_are_recorded():
    names = {f"r{d}_{w}x_sk{k}" for d in (50, 101, 152) for w in (1, 2) for k in (0, 1)} | {"r152_3x_sk1", "r50_4x_sk0"}
    assert names < set(RECORDED)
    assert len(RECORDED) == len(names) + 3


@pytest.mark.parametrize(("depth", "parameters", "count"), [(18, 11_809_258, 131), (34, 21_924_842, 211)])
def test_selective_kernels_at_depth_18_and_34(depth, parameters, count, weightless):
    """The reference has no SK convolution in basic blocks, only the ResNet-D stem and (weightless) pooled shortcuts.

    So the list is the plain network's with three convolutions in the place of the stem's one. The counts are those of
    the reference's model, built with `--sk_ratio=0.0625 --image_size=64` and 10 classes.
    """
    plain = listing(weightless(depth=depth, num_classes=10))
    if depth == 34:
        assert plain == RECORDED["r34_1x_sk0_64px"]

    def renumbered(name):
        kind = re.match(r"base_model/(conv2d|batch_normalization)(?:_(\d+))?/", name)
        return name.replace(kind[0], f"base_model/{kind[1]}_{int(kind[2] or 0) + 2}/") if kind else name

    stem = []
    for k, (inputs, outputs) in enumerate([(3, 32), (32, 32), (32, 64)]):
        suffix = f"_{k}" if k else ""
        stem.append([f"base_model/conv2d{suffix}/kernel", [3, 3, inputs, outputs]])
        if k < 2:
            stem += [[f"base_model/batch_normalization{suffix}/{leaf}", [outputs]]
                     for leaf in ("gamma", "beta", "moving_mean", "moving_variance")]
    expected = stem + [[renumbered(name), shape] for name, shape in plain[1:]]
    found = listing(weightless(depth=depth, sk_ratio=0.0625, num_classes=10))
    assert found == expected
    assert (sum(math.prod(shape) for _, shape in found), len(found)) == (parameters, count)
    with_cifar_stem = {"depth": depth, "cifar_stem": True, "num_classes": 10}
    assert listing(weightless(sk_ratio=0.0625, **with_cifar_stem)) == listing(weightless(**with_cifar_stem))


@pytest.mark.parametrize("kwargs", [
    dict(depth=50, sk_ratio=0.0625), dict(depth=101, sk_ratio=0.25, se_ratio=0.25, width=0.5),
    dict(depth=18, sk_ratio=0.0625, cifar_stem=True), dict(depth=34, se_ratio=0.1, width=2),
    dict(depth=18, proj_head_mode="linear", proj_out_dim=64, num_classes=None), dict(depth=18, proj_head_mode="none"),
    dict(depth=18, num_proj_layers=2, ft_proj_selector=-1), dict(depth=101, num_proj_layers=4, ft_proj_selector=4),
])
def test_shapes_without_a_model_are_those_of_the_model(kwargs, weightless):
    kwargs = dict(num_classes=10) | kwargs
    shapes = [[name, list(shape)] for name, shape in variables(Architecture(**kwargs)).items()]
    assert listing(weightless(**kwargs)) == shapes
