"""The demo at its smallest: its runs, its table, its report, and that it goes on instead of beginning again."""

import json
import os

import pytest

from simclr_tf import Config, checkpoint, cli, demo
from simclr_tf.errors import CheckpointError


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("demo"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "FINETUNE_STEPS", 1)
        patch.setattr(demo, "SCRATCH_LEARNING_RATES", (0.001, 0.01))
        patch.setattr(demo, "LABELS_PER_CLASS", 1)
        config = Config.from_flags([*tiny, "--mode=demo", "--train_steps=2", f"--model_dir={folder}"])
        yield config, demo.demo(config)


def test_both_rows_learn_from_the_same_labels_with_as_many_updates(finished):
    config, result = finished
    settings = {name: checkpoint.Metadata.read(checkpoint.latest(os.path.join(config.model_dir, name))).settings
                for name in ("pretrain", "finetune", "scratch-0.001", "scratch-0.01")}
    tuned, scratch = settings["finetune"], settings["scratch-0.001"]
    assert {name for name in tuned if tuned[name] != scratch[name]} == {
        "model_dir", "checkpoint", "learning_rate", "train_steps",
    }
    assert scratch["train_steps"] == settings["pretrain"]["train_steps"] + tuned["train_steps"] == 3
    assert scratch["checkpoint"] is None
    assert not settings["pretrain"]["lineareval_while_pretraining"]  # labels play no part in it
    assert result["updates"] == {"simclr": [2, 1], "from_scratch": 3}


def test_from_scratch_counts_with_its_best_rate(finished):
    config, result = finished
    assert result["from_scratch"] == max(result["from_scratch_by_learning_rate"].values())
    with open(os.path.join(config.model_dir, "result.json")) as file:
        assert json.load(file) == result


def test_table_and_report_show_every_row(finished):
    config, result = finished
    text = demo.table_text(result)
    with open(os.path.join(config.model_dir, "report.html")) as file:
        page = file.read()
    for row in ("SimCLR, fine-tuned", "learning rate 0.001", "learning rate 0.01"):
        assert row in text and row in page
    assert "in its favour" in text and "in its favour" in page
    assert page.count("<img") >= 8


def test_again_skips_what_is_done(finished):
    config, result = finished
    before = checkpoint.checkpoints(os.path.join(config.model_dir, "pretrain"))
    times = [os.path.getmtime(f"{path}.index") for path in before]
    assert demo.demo(config) == result
    assert [os.path.getmtime(f"{path}.index") for path in before] == times


def test_another_seed_does_not_reuse_the_runs(finished, tiny):
    config, _ = finished
    with pytest.raises(CheckpointError, match="--seed=1"):
        demo.demo(Config.from_flags([*tiny, "--mode=demo", "--seed=1", "--train_steps=2",
                                     f"--model_dir={config.model_dir}"]))


def test_command_needs_a_folder(tiny, capsys):
    assert cli.main([*tiny, "--mode=demo"]) == 2
    assert "--model_dir" in capsys.readouterr().err
