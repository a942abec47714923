"""Several runs in one table: complete, escaped, and every number in the CSV."""

import csv
import io
import json

import numpy as np
import pytest

from simclr_tf import Config, cli, errors, options
from simclr_tf.report import compare


def leave(folder, correct, rate, probe=None):
    """A run of four test images, `correct` of them right."""
    folder.mkdir(parents=True)
    top = np.array([[0, 1]] * correct + [[1, 0]] * (4 - correct), np.int32)
    np.savez_compressed(
        folder / "predictions.npz", index=np.arange(4), labels=np.zeros(4, np.int32), top=top,
        probabilities=np.full([4, 2], 0.5, np.float32), ids=np.array(["x"] * 4), class_names=np.array(["a", "b"]),
        step=20)
    lines = [{"step": s, "train/total_loss": 9 / s, "images_per_second": 50.0} for s in (10, 20)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = Config(dataset="digits", model_dir=str(folder), learning_rate=rate, mode="train_then_eval",
                    train_mode="finetune")
    (folder / "flags.flags").write_text(options.to_flagfile(config))
    if probe:
        (folder / "probe.json").write_text(json.dumps({"result": {"probe/knn/top_1": probe, "probe/test_images": 4}}))


def test_the_command_leaves_three_files_that_agree(tmp_path, capsys):
    leave(tmp_path / "x" / "a|b", 1, 0.1)
    leave(tmp_path / "x" / "<b>", 3, 0.2, probe=0.5)
    folders = [str(tmp_path / "x" / "a|b"), str(tmp_path / "x" / "<b>")]
    out = tmp_path / "out"
    assert cli.main(["--mode=compare", f"--runs={','.join(folders)}", f"--model_dir={out}"]) == 0
    rows = list(csv.DictReader(io.StringIO((out / "compare.csv").read_text())))
    assert [row["folder"] for row in rows] == folders
    assert [float(row["top_1"]) for row in rows] == [0.25, 0.75]
    assert [row["probe/knn/top_1"] for row in rows] == ["", "0.5"]
    assert [float(row["Loss"]) for row in rows] == [0.45, 0.45]
    text = (out / "compare.md").read_text()
    assert text in capsys.readouterr().out
    assert "a\\|b" in text and "<b>" not in text and "&lt;b&gt;" in text
    table = text.split("\n\n")[0].splitlines()
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1  # every row has the same cells
    assert "25.0 %" in table[2] and "75.0 %" in table[3] and "50.0 %" in table[3]
    assert "--learning_rate | 0.1 | 0.2" in text and "--dataset" not in text
    page = (out / "compare.html").read_text()
    assert "<b></th>" not in page and "&lt;b&gt;" in page and "75.0 %" in page and "https://" not in page


def test_names_are_the_shortest_ends_that_differ():
    assert compare.short_names(["/r/a", "/r/b/"]) == ["a", "b"]
    assert compare.short_names(["/r/a/x", "/r/b/x"]) == ["a/x", "b/x"]
    assert compare.short_names(["/r/a", "/r/a"]) == ["/r/a (1)", "/r/a (2)"]


@pytest.mark.parametrize("runs", [None, " , "])
def test_there_must_be_runs(tmp_path, runs):
    with pytest.raises(errors.ConfigError, match="--runs"):
        compare.compare(Config(mode="compare", runs=runs, model_dir=str(tmp_path)))


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(errors.ConfigError, match="holds neither flags"):
        compare.compare(Config(mode="compare", runs=str(tmp_path), model_dir=str(tmp_path / "out")))


def test_an_evaluation_alone_is_compared_too(tmp_path):
    leave(tmp_path / "a", 2, 0.1)
    (tmp_path / "a" / "flags.flags").unlink()
    (tmp_path / "a" / "flags.json").write_text(json.dumps({"dataset": "digits", "mode": "eval", "unknown": 1}))
    found = compare.compare(Config(mode="compare", runs=str(tmp_path / "a"), model_dir=str(tmp_path / "out")))
    assert found[0].numbers["top_1"] == 0.5
