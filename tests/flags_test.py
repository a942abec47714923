"""The presets under flags/: every one is a valid run, and says what it costs and gives."""

import pathlib

import pytest

from simclr_tf import options

FLAGS = pathlib.Path(__file__).parent.parent / "flags"
PRESETS = sorted(FLAGS.rglob("*.flags"))
REQUIRED = {
    "demo.flags", "cifar10/pretrain.flags", "cifar10/linear.flags", "cifar10/finetune.flags",
    "cifar10/distill.flags",
    "imagenet/pretrain_r50.flags", "simclrv2/finetune_1pct.flags", "simclrv2/finetune_small.flags",
    "simclrv2/finetune_small_momentum.flags", "simclrv2/linear_small.flags", "simclrv1/finetune_small.flags",
    "stanford_dogs/pretrain.flags", "stanford_dogs/fast.flags", "stanford_dogs/finetune.flags",
    "stanford_dogs/study.flags",
    "cifar10/study.flags",
    "small_batch/cifar10.flags",
}


def test_all_recipes_are_there():
    assert {str(path.relative_to(FLAGS)) for path in PRESETS} >= REQUIRED


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: str(path.relative_to(FLAGS)))
def test_preset_parses_and_is_explained(path):
    config = options.parse([f"--flagfile={path}"])
    assert config.model_dir.startswith("runs/")
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Command:", f"--flagfile=flags/{path.relative_to(FLAGS)}", "Cost:", "Expected:"):
        assert any(word in line for line in head), f"{path} does not say {word}"


@pytest.mark.parametrize("name", ["cifar10", "stanford_dogs"])
def test_second_steps_start_from_the_first(name):
    first = options.parse([f"--flagfile={FLAGS}/{name}/pretrain.flags"])
    for path in (FLAGS / name).glob("*.flags"):
        if path.stem not in ("pretrain", "fast", "study"):
            second = options.parse([f"--flagfile={path}"])
            if second.train_mode == "distill":
                assert second.teacher == options.parse([f"--flagfile={FLAGS}/{name}/finetune.flags"]).model_dir
            else:
                assert second.checkpoint == first.model_dir
            assert second.model_dir != first.model_dir
            assert (second.image_size, second.resnet_depth) == (first.image_size, first.resnet_depth)
