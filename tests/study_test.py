"""A study at its smallest, on the embedded digits: every row, stopped half-way and gone on with, told in a report."""

import dataclasses
import glob
import json
import os
import re
import signal

import keras
import numpy as np
import pytest

from simclr_tf import Config, baseline, checkpoint, cli, study, study_plan, study_report, study_runs
from simclr_tf.errors import CheckpointError, ConfigError, DataError, Interrupted
from simclr_tf.evaluation import Predictions
from simclr_tf.report import read_run
from tests.released_test import weights, write

SPLITS = ("--study_labelled_split=test[40:100]", "--eval_split=test[:40]", "--train_split=train[:200]")
STEPS = ("--train_steps=2", "--study_steps=2", "--study_label_steps=1", "--study_batch_size=8")
CHOICES = ("--study_seeds=0", "--study_learning_rates=0.2,0.8", "--study_finetune_learning_rates=0.4",
           "--study_linear_learning_rates=0.1", "--study_label_counts=1,100")


def flags_of(tiny, *more):
    return [*tiny, "--mode=study", "--image_size=8", "--train_batch_size=8", *SPLITS, *STEPS, *CHOICES, *more]


@pytest.fixture(scope="module")
def released_checkpoint(tmp_path_factory):
    """In the format of the authors' TF1 files, with weights that were never trained."""
    prefix = tmp_path_factory.mktemp("released") / "model.ckpt-250"
    write(prefix, weights() | {"global_step": np.int64(250)})
    return str(prefix)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory, released_checkpoint):
    """A study that got a SIGTERM in a run, and the same command again: config, result, files at the stop."""
    folder = str(tmp_path_factory.mktemp("study"))
    config = Config.from_flags(flags_of(
        tiny, f"--study_checkpoint={released_checkpoint}", "--baseline_weights=/nowhere/inception.h5",
        "--baseline_image_size=75", f"--model_dir={folder}", "--data_dir=/unused",
    ))
    begun, train = [], study_runs.training.train_then_eval

    def stopping(run):
        begun.append(run.model_dir)
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(run)

    with pytest.MonkeyPatch.context() as patch:
        # Neither the study nor its table looks into the frozen network; `baseline_test.py` does.
        patch.setattr(baseline, "make_network", small_network)
        patch.setattr(study_runs.training, "train_then_eval", stopping)
        with pytest.raises(Interrupted, match="the same command goes on"):
            study.study(config)
    assert len(begun) == 2  # not one more after the signal
    at_the_stop = {path: os.path.getmtime(path) for path in glob.glob(f"{folder}/**/ckpt-*", recursive=True)}
    at_the_stop |= {path: os.path.getmtime(path) for path in glob.glob(f"{folder}/**/*.npz", recursive=True)}
    # The stopped run goes on, and its newest checkpoint takes the place of the one before.
    at_the_stop = {path: time for path, time in at_the_stop.items() if not path.startswith(begun[1] + os.sep)}
    return config, study.study(config), at_the_stop


def small_network(size, seed, weights):
    assert weights is None
    return keras.Sequential([keras.Input([size, size, 3]), keras.layers.Conv2D(8, 3, 8), keras.layers.Flatten()])


def row_of(result, name):
    return next(row for row in result["rows"] if row["row"] == name)


def test_goes_on_where_it_was_stopped(finished):
    _, _, at_the_stop = finished
    assert any("baseline-none" in path for path in at_the_stop)
    assert {path: os.path.getmtime(path) for path in at_the_stop} == at_the_stop


def test_every_row_that_can_be_run_is_done(finished):
    _, result, _ = finished
    assert [(row["row"], row["status"]) for row in result["rows"]] == [
        ("baseline_none", "done"), ("baseline_imagenet", "not run"), ("scratch", "done"), ("finetuned", "done"),
        ("linear", "done"), ("released", "done"),
    ]
    assert row_of(result, "baseline_none")["train_top_1"] is not None


def test_what_cannot_be_had_says_what_to_fetch(finished):
    config, result, _ = finished
    reason = row_of(result, "baseline_imagenet")["reason"]
    assert "/nowhere/inception.h5" in reason and baseline.WEIGHTS_URL in reason
    for name in ("study.md", "report.html"):
        with open(os.path.join(config.model_dir, name)) as file:
            assert baseline.WEIGHTS_URL in file.read()


def test_accuracies_are_those_of_the_predictions(finished):
    """The table by hand from the runs' own files."""
    config, result, _ = finished
    for name in ("scratch", "finetuned", "linear", "released"):
        row = row_of(result, name)
        by_seed = []
        for seed in row["by_seed"]:
            with np.load(os.path.join(config.model_dir, seed["run"], "predictions.npz")) as archive:
                assert len(archive["labels"]) == 40
                by_seed.append(float((archive["top"][:, 0] == archive["labels"]).mean()))
            assert seed["top_1"] == by_seed[-1]
        assert row["top_1"] == pytest.approx(np.mean(by_seed))
        assert row["interval_95"][0] <= row["top_1"] <= row["interval_95"][1]
    with open(os.path.join(config.model_dir, "study.json")) as file:
        assert json.load(file) == json.loads(json.dumps(result))


def test_from_scratch_gets_as_many_updates_and_its_best_rate(finished):
    _, result, _ = finished
    scratch, tuned = row_of(result, "scratch"), row_of(result, "finetuned")
    assert scratch["updates"] == tuned["updates"] == 2
    for seed in scratch["by_seed"]:
        assert set(seed["by_learning_rate"]) == {"0.2", "0.8"}
        assert seed["top_1"] == max(seed["by_learning_rate"].values())


def test_fine_tuning_is_compared_with_from_scratch_seed_by_seed(finished):
    _, result, _ = finished
    tuned, scratch = row_of(result, "finetuned")["by_seed"], row_of(result, "scratch")["by_seed"]
    assert [c["seed"] for c in result["comparisons"]] == [0]
    for c, a, b in zip(result["comparisons"], tuned, scratch, strict=True):
        assert c["difference"] == pytest.approx(a["top_1"] - b["top_1"])
        assert c["interval_99"][0] <= c["difference"] <= c["interval_99"][1]


def test_the_curve_has_every_count_that_the_classes_allow(finished):
    _, result, _ = finished
    for name in study.CURVE_ROWS:
        points = result["label_efficiency"][name]
        assert [(p["labels_per_class"], p["images"]) for p in points] == [(1, 10), (study_plan.ALL, 60)]
        rates = [[seed["learning_rate"] for seed in p["by_seed"]] for p in points]
        assert rates[0] == rates[1]
    assert "has only" in result["left_out_label_counts"][100]


def test_the_released_row_follows_its_checkpoint(finished, released_checkpoint):
    """Depth, width and size are the checkpoint's, not the study's, and its weights are what training began with."""
    config, result, _ = finished
    run = os.path.join(config.model_dir, row_of(result, "released")["by_seed"][0]["run"])
    with open(os.path.join(run, "flags.flags")) as file:
        flags = file.read()
    assert f"--checkpoint={released_checkpoint}" in flags
    assert "--width_multiplier=0.25" not in flags


@pytest.mark.long
def test_the_released_row_on_a_checkpoint_of_the_authors_resnet_50(tiny, tmp_path):
    """At its own size, 224 pixels, and fine-tuned from the first layer of its projection head, as SimCLRv2 is."""
    write(tmp_path / "model.ckpt-250228", weights("r50_1x_sk0") | {"global_step": np.int64(250228)})
    config = Config.from_flags(flags_of(
        tiny, "--study_rows=released", "--study_label_counts=none", "--eval_split=test[:8]", "--eval_batch_size=8",
        f"--study_checkpoint={tmp_path / 'model.ckpt-250228'}", f"--model_dir={tmp_path / 'study'}",
    ))
    result = study.study(config)
    assert row_of(result, "released")["updates"] == 2
    run = os.path.join(config.model_dir, row_of(result, "released")["by_seed"][0]["run"])
    settings = checkpoint.Metadata.read(checkpoint.latest(run)).settings
    assert (settings["resnet_depth"], settings["width_multiplier"], settings["image_size"]) == (50, 1.0, 224)


def test_the_report_tells_it_as_a_study(finished):
    config, result, _ = finished
    with open(os.path.join(config.model_dir, "report.html")) as file:
        page = file.read()
    headings = re.findall(r"<h2[^>]*>([^<]+)<", page)
    expected = ["Question", "Results", "SimCLR against from scratch", "Label efficiency", "Method", "Data", "Baseline",
                "Augmented pairs", "Nearest neighbours", "Confused after fine-tuning", "Cost", "Limits"]
    assert [h for h in headings if h in expected] == expected
    for text in ("arXiv 2002.05709", "arXiv 2006.10029", "NT-Xent", "LARS", "95 % interval", "hence both rows"):
        assert text in page
    markdown = study_report.markdown(result)
    for row in result["rows"]:
        assert row["title"] in page and row["title"] in markdown


def test_the_report_tells_of_nothing_that_was_not_done(finished):
    config, result, _ = finished
    one = result | {"rows": [row for row in result["rows"] if row["row"] != "baseline_imagenet"]}
    assert "InceptionV3 without" in study_report._baseline(one).text and "both" not in study_report._baseline(one).text
    for blur in (False, True):
        other = dataclasses.replace(config, use_blur=blur, optimizer="adam", given=config.given)
        told = str(study_report._method(other, result).tables[0].rows)
        assert ("half of them blurred" in told) == blur and "Adam minimises it" in told


def test_other_settings_are_not_mistaken_for_the_same(finished):
    config, _, _ = finished
    with pytest.raises(CheckpointError, match=r"--train_steps=3 \(was 2\)"):
        study.study(dataclasses.replace(config, study_steps=3, study_rows="scratch", given=config.given))
    with pytest.raises(CheckpointError, match="train_steps"):
        study.study(dataclasses.replace(config, train_steps=5, study_rows="linear", given=config.given))


def test_a_study_makes_no_second_look_at_the_test_images_in_choosing(finished):
    """Of several learning rates fine-tuning takes the one that does best on labelled images held out of training."""
    config, _, _ = finished
    run = study_plan.tuning(config, "finetuned", 0.4)
    assert (run.eval_split, run.held_out_fraction, run.seed) == ("held_out", 0.2, 0)
    assert run.train_split == config.study_labelled_split


# --- Without running it ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dataset", ["stanford_dogs", "stanford_dogs:0.2.0", "imagenette/320px", "folder:dogs"])
def test_warns_where_weights_may_have_seen_the_test_images(tiny, dataset):
    config = Config.from_flags([*tiny, f"--dataset={dataset}", "--mode=study", "--model_dir=unused"])
    for row in ("released", "baseline_imagenet"):
        warning = study_plan.may_have_seen(config, row)
        assert warning and "not one on unseen images" in warning and study_plan.TITLES[row] in warning
    for row in ("baseline_none", "scratch", "finetuned", "linear"):
        assert study_plan.may_have_seen(config, row) is None


def test_no_warning_for_images_from_elsewhere(tiny):
    config = Config.from_flags([*tiny, "--mode=study", "--model_dir=unused"])
    assert study_plan.may_have_seen(config, "released") is None


def test_the_pretraining_is_the_same_for_all_seeds_that_share_it(tiny):
    config = Config.from_flags(flags_of(tiny, "--study_seeds=0,1", "--model_dir=m"))
    assert study_plan.pretraining(config, 1) == study_plan.pretraining(config, 0)
    each = dataclasses.replace(config, study_pretrain_seeds="0,1", given=None)
    assert study_plan.pretraining(each, 1).seed == 1
    assert study_plan.pretraining(each, 1).model_dir == os.path.join("m", "seed1", "pretrain")


def test_rows_differ_by_what_they_compare_and_nothing_else(tiny):
    config = Config.from_flags(flags_of(tiny, "--model_dir=m"))
    tuned, scratch = (study_plan.trial(config, row, 0, 0.2) for row in ("finetuned", "scratch"))
    different = {f.name for f in dataclasses.fields(Config)
                 if f.compare and getattr(tuned, f.name) != getattr(scratch, f.name)}
    assert different == {"model_dir", "checkpoint"}
    assert scratch.checkpoint is None and tuned.checkpoint == study_plan.pretraining(config, 0).model_dir


def test_test_images_among_the_labelled_ones_are_refused(tiny, tmp_path):
    config = Config.from_flags([*tiny, "--mode=study", "--study_labelled_split=test[:50]", "--eval_split=test[40:]",
                                f"--model_dir={tmp_path}"])
    with pytest.raises(DataError, match="10 images are in both"):
        study.study(config)


@pytest.mark.parametrize(("flag", "text"), [
    ("--study_rows=scratch,magic", "must be some of"),
    ("--study_seeds=0,x", "list of int values"),
    ("--study_pretrain_seeds=7", "seeds of the study only"),
    ("--study_label_seeds=1", "seeds of the study only"),
    ("--study_label_counts=0", "must be positive"),
    ("--train_mode=finetune", "pretrains first"),
])
def test_flags_that_cannot_be_meant(tiny, flag, text):
    with pytest.raises(ConfigError, match=text):
        Config.from_flags([*tiny, "--mode=study", "--model_dir=unused", flag])


def test_a_study_needs_a_folder(tiny, capsys):
    assert cli.main([*tiny, "--mode=study"]) == 2
    assert "--model_dir" in capsys.readouterr().err


def test_the_ratio_to_the_baseline():
    """60 of 80 right against 20 of 80: three times."""
    run = study_of(finetuned=[[60]], baseline_none=[[20]])
    found = study._ratio(run)
    assert found["ratio"] == 3
    assert found["interval_95"][0] < 3 < found["interval_95"][1]


def test_three_seeds_are_compared_one_by_one_each_at_its_own_best_rate():
    run = study_of(finetuned=[[30], [20], [10]], scratch=[[9, 12], [25, 3], [10, 10]])
    assert [run.rows["scratch"].rates[seed] for seed in range(3)] == [0.2, 0.1, 0.1]
    found = study._comparisons(run)
    assert [c["difference"] * 80 for c in found] == pytest.approx([18, -5, 0])
    assert found[0]["interval_99"][0] > 0 > found[1]["interval_99"][0]
    assert study._mean_correct(run.rows["finetuned"].chosen).mean() == pytest.approx(60 / 240)


def study_of(**rows):
    """A study whose rows are known: by seed and learning rate, how many of 80 test images were right (the first)."""
    def outcome(correct):
        labels = np.zeros(80, np.int32)
        top = np.where(np.arange(80) < correct, 0, 1)[:, None]
        found = Predictions(np.arange(80), labels, top, np.ones([80, 1]))
        return study_runs.Outcome(None, found.top_1(), 1.0, found.correct, found.index, 1, None, None, None, None)

    run = study._Study.__new__(study._Study)
    run.rows = {name: study._Row(name) for name in rows}
    for name, seeds in rows.items():
        for seed, counts in enumerate(seeds):
            outcomes = {rate: outcome(count) for rate, count in zip((0.1, 0.2), counts, strict=False)}
            run.rows[name].outcomes[seed] = outcomes
            run.rows[name].rates[seed] = max(outcomes, key=lambda rate: outcomes[rate].top_1)
    return run


def test_nothing_is_known_before_anything_is_there(tiny, tmp_path):
    config = Config.from_flags(flags_of(tiny, f"--model_dir={tmp_path / 'none'}"))
    assert study_runs.outcome(config) is None
    assert read_run(config).predictions is None
