"""The doctor says one line a subject, in text or JSON, and ends with the exit code of what is wrong."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from simclr_tf import cli, lock


@pytest.fixture
def examine(capsys):
    """`examine(*flags) -> (exit code, {subject: (state, text)})`, the last finding of each subject."""
    def run(*argv):
        code = cli.main(["--mode=doctor", "--json", *map(str, argv)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        report = json.loads(captured.out)
        assert report["healthy"] == (code == 0)
        return code, {f["subject"]: (f["state"], f["text"]) for f in report["findings"]}, report["findings"]

    return run


def test_without_flags_it_looks_at_the_machine(examine, capsys):
    code, found, _ = examine()
    assert code == 0
    assert {"versions", "devices", "memory", "disk"} <= found.keys()
    import keras
    import tensorflow as tf

    for words in (tf.__version__, keras.__version__, "Python 3."):
        assert words in found["versions"][1]
    assert cli.main(["--mode=doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 7 and all(line.startswith(("ok", "warning")) for line in lines)
    disk, = (line for line in lines if " disk: " in line)
    said = float(re.search(r"disk: ([\d,.]+) GiB free", disk)[1].replace(",", ""))
    assert said == pytest.approx(shutil.disk_usage(".").free / 2**30, abs=1)  # others write meanwhile


def test_a_healthy_run(examine, pretrained):
    code, found, _ = examine("--dataset=digits", f"--model_dir={pretrained}", f"--checkpoint={pretrained}",
                             "--eval_split=test")
    assert code == 0 and {state for state, _ in found.values()} <= {"ok", "warning"}
    assert "1,438 images" in found["training data"][1]
    assert "2 in " in found["checkpoints"][1] and "go on at step 4" in found["checkpoints"][1]
    assert "ResNet-18" in found["--checkpoint"][1] or "18" in found["--checkpoint"][1]


def test_damage_is_a_warning_while_there_is_a_good_one_and_a_problem_when_not(examine, pretrained, tmp_path):
    run = shutil.copytree(pretrained, tmp_path / "run")
    (run / "ckpt-4.data-00000-of-00001").write_bytes(b"")
    code, found, findings = examine(f"--model_dir={run}")
    assert code == 0 and "go on at step 2" in found["checkpoints"][1]
    assert any(f["state"] == "warning" and "ckpt-4" in f["text"] for f in findings)
    os.remove(run / "ckpt-2.data-00000-of-00001")
    code, found, _ = examine(f"--model_dir={run}")
    assert code == 3 and found["checkpoints"][0] == "problem"


def test_bad_data_and_folders(examine, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "bad.jpg").write_bytes(b"")
    code, found, _ = examine(f"--dataset=folder:{tmp_path / 'images'}", "--train_split=train+test")
    assert code == 2 and "bad.jpg" in found["training data"][1]
    code, found, _ = examine("--dataset=digits", "--eval_split=holdout")
    assert code == 2 and "holdout" in found["evaluation data"][1]
    (tmp_path / "file").write_text("")
    code, found, _ = examine(f"--model_dir={tmp_path / 'file'}")
    assert code == 2 and found["disk"][0] == "problem"


def test_who_trains_there_is_said(examine, tmp_path):
    with lock.training_lock(str(tmp_path)):
        code, found, _ = examine(f"--model_dir={tmp_path}")
    assert code == 0 and f"process {os.getpid()} on" in found["checkpoints"][1]


def test_the_docs_list_the_settings_that_matter():
    """The list in docs/reliability.md is that of `Config`."""
    import pathlib
    import re

    from simclr_tf.config import flag_fields

    text = pathlib.Path("docs/reliability.md").read_text()
    listed = text.split("old and new value:")[1].split("`--allow_changed_settings=")[0]
    assert re.findall(r"`--(\w+)`", listed) == [f.name for f in flag_fields() if not f.metadata["resumable"]]
