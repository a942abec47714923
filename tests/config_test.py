"""Rules of single settings and of settings together; arithmetic of steps."""

import dataclasses
import json
import pathlib

import pytest

from simclr_tf.config import Config, flag_fields
from simclr_tf.errors import ConfigError

REFERENCE_FLAGS = json.loads((pathlib.Path(__file__).parent / "golden" / "reference_flags.json").read_text())


def test_every_flag_of_the_reference_is_there_with_its_default():
    ours = {field.name: field for field in flag_fields()}
    for name, theirs in (REFERENCE_FLAGS["tf2"] | REFERENCE_FLAGS["tf1_only"]).items():
        if name == "use_tpu":  # decided otherwise: there it defaults to True, here to what there is
            assert ours[name].default is None
            continue
        assert ours[name].default == theirs["default"], name
        if "values" in theirs:
            assert set(theirs["values"]) <= set(ours[name].metadata["choices"]), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(temperature=0.0), ["--temperature must be above 0", "--temperature=0.0"]),
        (dict(temperature=float("nan")), ["finite", "--temperature=nan"]),
        (dict(learning_rate=float("inf")), ["finite", "--learning_rate=inf"]),
        (dict(train_batch_size=0), ["--train_batch_size must be at least 1", "--train_batch_size=0"]),
        (dict(resnet_depth=20), ["18, 34, 50, 101, 152, 200", "--resnet_depth=20"]),
        (dict(width_multiplier=0.3), ["whole number of channels", "--width_multiplier=0.3"]),
        (dict(optimizer="sgd"), ["momentum, adam, lars", "--optimizer=sgd"]),
        (dict(fine_tune_after_block=2), ["--fine_tune_after_block=-1", "--train_mode=finetune"]),
        (dict(ft_proj_selector=4), ["-1 to 3", "--ft_proj_selector=4"]),
        (dict(proj_head_mode="none", ft_proj_selector=1), ["-1 to 0", "--proj_head_mode=none"]),
        (dict(labels_per_class=3), ["--train_mode=finetune", "--labels_per_class=3"]),
        (dict(train_mode="finetune", labels_per_class=3, label_fraction=0.1), ["Only one of them"]),
        (dict(use_tpu=True, strategy="cpu"), ["contradicts", "--strategy=cpu"]),
        (dict(train_epochs=0), ["something to train", "--train_epochs=0"]),
        (dict(variable_schema="("), ["regular expression", "--variable_schema=("]),
        (dict(momentum=True), ["--momentum must be a number"]),
    ],
)
def test_a_broken_rule_names_the_rule_and_the_value(settings, words):
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    for word in words:
        assert word in str(caught.value)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1


@pytest.mark.parametrize(
    ("settings", "num_examples", "total", "warmup", "epoch", "interval"),
    [
        # ImageNet with the reference's defaults, by its formulas on paper.
        ({}, 1281167, 250228, 25022, 2502, 2502),
        (dict(train_batch_size=4096), 1281167, 31279, 3127, 313, 313),
        (dict(train_steps=500, warmup_epochs=0.0), 2048, 500, 0, 4, 4),
        # A set of half a batch or less: the reference's epoch is 0 steps long and it never ends.
        (dict(train_batch_size=512, train_epochs=3), 200, 2, 3, 1, 1),
        (dict(checkpoint_steps=7), 5000, 977, 97, 10, 7),
    ],
)
def test_steps(settings, num_examples, total, warmup, epoch, interval):
    config = Config(**settings)
    assert config.total_steps(num_examples) == total
    assert config.warmup_steps(num_examples) == warmup
    assert config.epoch_steps(num_examples) == epoch
    assert config.checkpoint_interval(num_examples) == interval


def test_given_are_the_settings_that_were_chosen():
    assert Config(resnet_depth=18).given == {"resnet_depth"}
    assert Config.from_flags(["--resnet_depth=50"]).given == {"resnet_depth"}
