"""The demo at its smallest: a study of two rows, and what `result.json` says of it."""

import json
import os

import numpy as np
import pytest

from simclr_tf import Config, checkpoint, cli, demo
from simclr_tf.errors import CheckpointError, DataError


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("demo"))
    config = Config.from_flags([
        *tiny, "--mode=demo", "--image_size=8", "--train_steps=2", "--labels_per_class=1", "--study_steps=1",
        "--study_batch_size=10", "--study_learning_rates=0.001,0.01", "--study_finetune_learning_rates=0.01",
        "--study_optimizer=adam", f"--model_dir={folder}",
    ])
    return config, demo.demo(config)


def test_both_rows_learn_from_the_same_labels_with_as_many_updates(finished):
    config, result = finished
    settings = {name: checkpoint.Metadata.read(checkpoint.latest(os.path.join(config.model_dir, name))).settings
                for name in ("pretrain", "finetuned-0.01", "scratch-0.001", "scratch-0.01")}
    tuned, scratch = settings["finetuned-0.01"], settings["scratch-0.001"]
    assert {name for name in tuned if tuned[name] != scratch[name]} == {
        "model_dir", "checkpoint", "learning_rate", "train_steps",
    }
    assert scratch["train_steps"] == settings["pretrain"]["train_steps"] + tuned["train_steps"] == 3
    assert scratch["checkpoint"] is None
    assert tuned["labels_per_class"] == 1 and settings["pretrain"]["labels_per_class"] == 0
    assert not settings["pretrain"]["lineareval_while_pretraining"]  # labels play no part in it
    assert result["updates"] == {"simclr": [2, 1], "from_scratch": 3}
    assert (result["labelled_images"], result["test_images"]) == (10, 40)


def test_the_result_is_that_of_the_runs_and_from_scratch_counts_with_its_best_rate(finished):
    config, result = finished

    def top_1(run):
        with np.load(os.path.join(config.model_dir, run, "predictions.npz")) as archive:
            return (archive["top"][:, 0] == archive["labels"]).mean()

    assert result["simclr"] == result["by_seed"][0]["simclr"] == top_1("finetuned-0.01")
    assert result["from_scratch"] == max(top_1("scratch-0.001"), top_1("scratch-0.01"))
    assert set(result["by_seed"][0]["from_scratch_by_learning_rate"]) == {"0.001", "0.01"}
    with open(os.path.join(config.model_dir, "result.json")) as file:
        assert json.load(file) == result


def test_the_report_tells_of_no_baseline(finished):
    config, _ = finished
    with open(os.path.join(config.model_dir, "report.html")) as file:
        page = file.read()
    assert "SimCLR against from scratch" in page and "The projection head is set aside" in page
    assert "InceptionV3 without its classifier" not in page and "frozen baseline" not in page
    assert "train, 1 of each class" in page and ("half of them blurred" in page) == config.use_blur


def test_again_skips_what_is_done(finished, capsys):
    config, result = finished
    before = checkpoint.checkpoints(os.path.join(config.model_dir, "pretrain"))
    times = [os.path.getmtime(f"{path}.index") for path in before]
    assert demo.demo(config) == result
    assert [os.path.getmtime(f"{path}.index") for path in before] == times
    assert "SimCLR pretrained here, fine-tuned" in capsys.readouterr().out


def test_another_learning_rate_schedule_does_not_reuse_the_runs(finished, tiny):
    config, _ = finished
    with pytest.raises(CheckpointError, match="--train_steps=4"):
        demo.demo(Config.from_flags([*tiny, "--mode=demo", "--image_size=8", "--train_steps=4",
                                     f"--model_dir={config.model_dir}"]))


def test_without_labels_there_is_no_demo(tiny, tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    config = Config.from_flags([*tiny, "--mode=demo", f"--dataset=folder:{tmp_path / 'photos'}",
                                f"--model_dir={tmp_path / 'run'}"])
    with pytest.raises(DataError, match="needs labels"):
        demo.demo(config)


def test_command_needs_a_folder(tiny, capsys):
    assert cli.main([*tiny, "--mode=demo"]) == 2
    assert "--model_dir" in capsys.readouterr().err
