"""Fine-tuning from checkpoints of the authors' kind: the presets run, and the scale of SimCLRv1's weights explained."""

import json
import pathlib
import re

import numpy as np
import pytest

from simclr_tf import Config, SimCLR, cli, make_optimizer, options, set_from_tf1, train_step
from simclr_tf.architecture import Architecture, variables
from simclr_tf.formats import open_checkpoint
from simclr_tf.model import named_variables
from tests.golden.fill import fill, image_batch
from tests.golden.formats_test import write, write_v1_zip

FLAGS = pathlib.Path(__file__).parent.parent / "flags"
LONG = pytest.mark.long
PRESETS = [
    ("simclrv2/finetune_small", ()), ("simclrv1/finetune_small", ("--mode=train",)),
    pytest.param("simclrv2/finetune_small_momentum", ("--fine_tune_after_block=2",), marks=LONG),
    pytest.param("simclrv2/linear_small", (), marks=LONG),
]
SMALL = ["--dataset=digits", "--image_size=40", "--train_steps=2", "--train_batch_size=16", "--eval_split=test[:20]",
         "--eval_batch_size=20", "--keep_hub_module_max=-1"]


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """Paths by version: a TF1 checkpoint, and a zip without projection head."""
    arch = Architecture(18, 0.25, num_classes=1000)
    weights = {name: fill(name, shape) for name, shape in variables(arch).items()}
    v2, v1 = tmp_path_factory.mktemp("v2"), tmp_path_factory.mktemp("v1")
    write(v2 / "model.ckpt-250228", weights | {"global_step": np.int64(250228)})
    return {"simclrv2": v2, "simclrv1": write_v1_zip(v1, "r18", weights)}


@pytest.mark.parametrize(("preset", "more"), PRESETS)
def test_a_preset_runs(authors, tmp_path, caplog, preset, more):
    """And moves what it says it moves: everything, what lies after a block, or the classifier alone."""
    version = preset.split("/")[0]
    flags = [f"--flagfile={FLAGS}/{preset}.flags", *more]
    config = options.parse(flags)
    before = open_checkpoint(authors[version])
    with caplog.at_level("INFO"):
        assert cli.main([*flags, *SMALL, f"--checkpoint={authors[version]}", f"--model_dir={tmp_path}"]) == 0
    assert "head_supervised left out: 1000 classes, data has 10" in caplog.text
    count = len(before.shapes) - 2
    assert f"{count} of {count + 2} variables" in caplog.text

    if config.mode == "train_then_eval":
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["global_step"] == 2 and 0 <= result["eval/label_top_1_accuracy"] <= 1
    after = open_checkpoint(tmp_path)
    assert ("head_contrastive/nl_0/dense/kernel" in after.shapes) == (version == "simclrv2")
    group = 0
    for name in variables(Architecture(18, 0.25)):  # in the network's order
        if re.fullmatch(r"base_model/conv2d\w*/kernel", name):
            if after.shapes[name][0] == 1:  # the projection shortcut that opens a block group
                group += 1
            moved = not np.array_equal(after.read(name), before.read(name))
            assert moved == (group > config.fine_tune_after_block), name
    for layer in range(3 if version == "simclrv2" else 0):
        name = f"head_contrastive/nl_{layer}/dense/kernel"
        decays = config.weight_decay > 0
        moved = not np.array_equal(after.read(name), before.read(name))
        assert moved == (layer < config.ft_proj_selector or decays), name
    if version == "simclrv1":
        assert config.ft_proj_selector == 0 and config.optimizer == "lars"


def test_v1_cannot_serve_a_layer_of_the_projection_head(authors, tmp_path, capfd):
    code = cli.main(["--train_mode=finetune", *SMALL, f"--checkpoint={authors['simclrv1']}", "--ft_proj_selector=1",
                     f"--model_dir={tmp_path}"])
    assert code == 3
    assert "has no projection head" in capfd.readouterr().err


@pytest.mark.parametrize("optimizer", ["lars", "momentum"])
def test_large_convolutions_as_v1s_under_both_optimizers(optimizer):
    """Batch norm undoes a factor c on a kernel; the gradient is divided by it, so an update of SGD by c squared."""
    steps, rate = (3, 0.05) if optimizer == "lars" else (1, 1e4)  # one step's change is looked at, however large
    config = Config(train_mode="finetune", optimizer=optimizer, learning_rate=rate, warmup_epochs=0, weight_decay=0,
                    train_batch_size=256, train_steps=100)
    images, labels = image_batch(8, 16, seed=1), np.arange(8) % 4
    losses, changes = [], []
    for c in (100, 1680):  # so large that batch norm's epsilon does not count
        model = SimCLR(18, 0.25, proj_head_mode="none", num_classes=4)
        convolutions = [i for i in named_variables(model) if re.search(r"conv2d\w*/kernel", i.name)]
        scales = {i.name: c for i in convolutions}
        set_from_tf1(model, lambda name, shape, scales=scales: fill(name, shape) * scales.get(name, 1))
        start = [i.variable.numpy() for i in convolutions]
        make = make_optimizer(config, model, 1000)
        losses.append([float(train_step(model, make, images, labels, config)["total"]) for _ in range(steps)])
        changes.append([(i.variable.numpy() - old) / c for i, old in zip(convolutions, start, strict=True)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3 if optimizer == "lars" else 1e-5)
    for ours, scaled in zip(*changes, strict=True):
        expected = ours if optimizer == "lars" else ours / 16.8**2
        assert np.linalg.norm(scaled - expected) < 0.02 * np.linalg.norm(expected)
