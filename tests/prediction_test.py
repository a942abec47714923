"""`--mode=predict`: images in, names and probabilities out, of a run of ours and of a checkpoint of the authors."""

import csv
import json
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy.special import softmax

from simclr_tf import cli, preprocess_for_eval, released
from simclr_tf.architecture import Architecture, variables
from tests.golden.fill import fill
from tests.golden.formats_test import write


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.png", "more/c.png"):
        Image.fromarray(rng.integers(0, 256, (52, 60, 3), np.uint8)).save(folder / name)
    return folder


def predict(path, images, model_dir, *flags):
    """Exit code, and what the two files hold."""
    code = cli.main(["--mode=predict", f"--checkpoint={path}", f"--predict_input={images}", f"--model_dir={model_dir}",
                     "--eval_batch_size=2", *flags])
    if code:
        return code, None, None
    with open(model_dir / "predictions.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    return code, json.loads((model_dir / "predictions.json").read_text()), table


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """A small network in a TF1 checkpoint, with the 1000 classes of ImageNet."""
    folder = tmp_path_factory.mktemp("authors")
    arch = Architecture(18, 0.25, num_classes=1000)
    write(folder / "model.ckpt-7", {name: fill(name, shape) for name, shape in variables(arch).items()})
    return folder


def test_a_folder_with_a_released_model(authors, photos, tmp_path):
    """Against the model called by hand on the evaluation's crop."""
    code, results, table = predict(authors, photos, tmp_path, "--image_size=40")
    assert code == 0
    assert [os.path.relpath(r["image"], photos) for r in results] == ["a.png", "b.png", "more/c.png"]
    model = released.load(authors)
    for result in results:
        image = preprocess_for_eval(tf.io.decode_png(tf.io.read_file(result["image"])), 40)
        probabilities = softmax(model(image[None])["logits_sup"].numpy()[0].astype(np.float64))
        top = np.argsort(-probabilities)[:5]
        np.testing.assert_allclose([c["probability"] for c in result["classes"]], probabilities[top], atol=1e-5)
        names = [c["name"] for c in result["classes"]]
        assert all(len(name) == 9 and name.startswith("n") for name in names)  # WordNet's ids, in ImageNet's order
        assert len(set(names)) == 5
    rows = [(r["image"], str(rank), c["name"], c["probability"])
            for r in results for rank, c in enumerate(r["classes"], 1)]
    assert [(r["image"], r["rank"], r["class"], float(r["probability"])) for r in table] == rows


def test_wordnet_ids_are_in_the_order_of_imagenet(authors, photos, tmp_path):
    """The first three and the last: tench, goldfish, great white shark, toilet tissue."""
    from simclr_tf.prediction import class_names

    names = class_names(str(authors), 1000)
    assert names[:3] == ("n01440764", "n01443537", "n01484850") and names[-1] == "n15075141" and len(names) == 1000


def test_an_image_with_a_run_of_ours(pretrained, photos, tmp_path, capsys):
    code, results, table = predict(pretrained, photos / "a.png", tmp_path)
    assert code == 0 and len(results) == 1 and len(table) == 5
    assert {c["name"] for c in results[0]["classes"]} < {str(i) for i in range(10)}
    assert f"{photos}/a.png: " in capsys.readouterr().out


@pytest.mark.parametrize(("images", "code"), [("nowhere", 2), ("empty", 2), ("broken", 2)])
def test_no_images(pretrained, tmp_path, capfd, images, code):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"no png")
    assert predict(pretrained, tmp_path / images, tmp_path / "out")[0] == code
    error = capfd.readouterr().err
    assert images in error and "Traceback" not in error


def test_a_model_without_classes(photos, tmp_path, capfd):
    write(tmp_path / "c" / "model.ckpt-7", {n: fill(n, s) for n, s in variables(Architecture(18, 0.25)).items()})
    assert predict(tmp_path / "c", photos, tmp_path / "out")[0] == 3
    assert "has no supervised head to classify with" in capfd.readouterr().err
