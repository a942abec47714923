"""The frozen baseline: what its network sees and gives, that its features are made once, and where its weights are."""

import dataclasses
import glob
import hashlib
import inspect
import json
import os
import sys

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from simclr_tf import Config, baseline, cli, data
from simclr_tf.errors import CheckpointError, DataError

SMALL = ("--mode=train_then_eval", "--train_mode=baseline", "--baseline_weights=none", "--baseline_image_size=75",
         "--dataset=digits", "--train_split=train[:48]", "--eval_split=test[:40]", "--train_batch_size=16",
         "--train_steps=40", "--keep_hub_module_max=-1")


@pytest.fixture(scope="module")
def network():
    """InceptionV3 with random weights, and a file that holds them."""
    return baseline.make_network(75, 0, None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("baseline"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baseline, "PART_BATCHES", 1)
        config = Config.from_flags([*SMALL, f"--model_dir={folder}"])
        yield config, baseline.train_then_eval(config)


def test_images_are_what_inception_was_trained_with():
    """Keras's own preprocessing, and the whole image at its size."""
    config = Config.from_flags([*SMALL, "--model_dir=unused"])
    network = baseline._Network(config, None)
    image = np.random.default_rng(0).integers(0, 256, [75, 75, 3], np.uint8)
    expected = keras.applications.inception_v3.preprocess_input(image.astype(np.float32))
    np.testing.assert_allclose(network.view(image).numpy(), expected, atol=1e-6)
    oblong = np.repeat(np.linspace(0, 255, 150).astype(np.uint8)[None, :, None], 40, 0).repeat(3, -1)
    seen = network.view(oblong).numpy()
    assert seen.shape == (75, 75, 3)
    assert seen[0, 0, 0] < -0.97 and seen[0, -1, 0] > 0.97  # nothing is cut off


def test_features_are_the_frozen_networks(finished, network):
    """Computed by Keras itself on the same images, one by one."""
    config, _ = finished
    source = data.open_source(config, config.eval_split)
    found = baseline.features(baseline._Network(config, None), source, config)
    assert sorted(found.index) == list(range(40))
    view = baseline._Network(config, None).view
    some = np.stack([view(source.load(int(i))).numpy() for i in found.index[:4]])
    expected = network.predict(some, verbose=0)
    np.testing.assert_allclose(found.values[:4], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.labels, source.labels[found.index])


def test_the_classifier_is_trained_and_measured(finished):
    config, result = finished
    assert result["train/label_top_1_accuracy"] > 0.3  # chance is 10 %
    with open(os.path.join(config.model_dir, "result.json")) as file:
        assert json.load(file)["train/label_top_1_accuracy"] == result["train/label_top_1_accuracy"]
    for name in ("predictions.npz", "flags.flags"):
        assert os.path.exists(os.path.join(config.model_dir, name))


def test_the_classifier_learns_what_logistic_regression_learns():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=[5, 30])
    labels = np.repeat(np.arange(5), 100).astype(np.int32)
    values = (centres[labels] + 2 * rng.normal(size=[500, 30])).astype(np.float32)
    train, test = np.arange(500) % 2 == 0, np.arange(500) % 2 == 1
    config = Config.from_flags([*SMALL, "--train_batch_size=50", "--model_dir=unused"])
    classifier = baseline.make_classifier(30, 5, seed=0)
    assert [type(layer).__name__ for layer in classifier.layers] == ["Dense", "Dropout", "Dense", "Dropout", "Dense"]
    baseline.fit(classifier, values[train], labels[train], config, 200)
    found = (classifier.predict(values[test], verbose=0).argmax(1) == labels[test]).mean()
    expected = LogisticRegression(max_iter=1000).fit(values[train], labels[train]).score(values[test], labels[test])
    assert 0.7 < expected < 0.98
    assert found >= expected - 0.03


def test_features_are_kept_and_a_lost_or_damaged_part_is_made_again(finished, network, monkeypatch):
    config, result = finished
    parts = sorted(glob.glob(os.path.join(config.model_dir, "features", "*.npz")))
    assert len(parts) == 4  # two batches of 32 for either split
    with open(parts[1], "r+b") as file:
        file.truncate(100)
    os.remove(parts[2])
    kept = {path: os.path.getmtime(path) for path in (parts[0], parts[3])}
    monkeypatch.setattr(baseline, "PART_BATCHES", 1)
    monkeypatch.setattr(baseline, "make_network", lambda *_: network)
    again = baseline.train_then_eval(config)
    assert again["train/label_top_1_accuracy"] == pytest.approx(result["train/label_top_1_accuracy"], abs=0.1)
    assert {path: os.path.getmtime(path) for path in kept} == kept
    assert sorted(glob.glob(os.path.join(config.model_dir, "features", "*.npz"))) == parts


def test_other_weights_do_not_take_the_features(finished, monkeypatch):
    """The features' files carry the identity of the network, the seed of random weights in it."""
    config, _ = finished
    other = dataclasses.replace(config, seed=1)
    source = data.open_source(config, config.eval_split)
    monkeypatch.setattr(baseline._Network, "__call__", lambda self, images: np.zeros([len(images), 3], np.float32))
    assert baseline.features(baseline._Network(other, None), source, other).values.shape == (40, 3)
    assert baseline.features(baseline._Network(config, None), source, config).values.shape == (40, 2048)


def test_weights_from_a_file(network, tmp_path):
    path = str(tmp_path / "inception.weights.h5")
    network.save_weights(path)
    loaded = baseline.make_network(75, 5, baseline.find_weights(path))
    for a, b in zip(network.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("weights", "text"), [
    ("nowhere.h5", "nowhere.h5, which is no file"), ("imagenet", "is damaged or not Keras's"),
])
def test_weights_that_cannot_be_had(weights, text, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / baseline.WEIGHTS_FILE).write_bytes(b"not these")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=text):
        baseline.find_weights(weights)


def test_keras_has_the_same_file_and_checksum():
    """What is fetched and checked is what Keras itself would fetch."""
    source = inspect.getsource(sys.modules[keras.applications.InceptionV3.__module__])
    assert baseline.WEIGHTS_MD5 in source and baseline.WEIGHTS_FILE in source
    assert len(baseline.WEIGHTS_MD5) == hashlib.md5().digest_size * 2


def test_a_file_of_something_else_ends_with_exit_code_3(tmp_path, capsys):
    path = tmp_path / "wrong.h5"
    path.write_bytes(b"no weights")
    flags = [flag for flag in SMALL if "weights" not in flag]
    assert cli.main([*flags, f"--baseline_weights={path}", f"--model_dir={tmp_path / 'run'}"]) == 3
    assert "does not hold the weights of Keras's InceptionV3" in capsys.readouterr().err


def test_without_labels_there_is_no_baseline(tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    flags = [flag for flag in SMALL if "dataset" not in flag and "split" not in flag]
    flags += ["--train_split=train", "--eval_split=train"]
    config = Config.from_flags([*flags, f"--dataset=folder:{tmp_path / 'photos'}", f"--model_dir={tmp_path / 'run'}"])
    with pytest.raises(DataError, match="needs labels"):
        baseline.train_then_eval(config)
