"""TFDS data sets as sources: numbering, splits, and what is said when something is missing."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from simclr_tf import sources, tfds_source
from simclr_tf.errors import DataError


class TinySet(tfds.core.GeneratorBasedBuilder):
    """60 coloured 10x8 PNG images of 3 classes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["red", "green", "blue"]),
            "extra": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 60), "test": self._generate_examples(60, 20)}

    def _generate_examples(self, first, count):
        for i in range(first, first + count):
            image = np.full((10, 8, 3), i, np.uint8)
            image[..., i % 3] += 100
            yield i, {"image": image, "label": i % 3, "extra": str(i)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A data_dir that holds `tiny_set`, its training split in 5 shards."""
    data_dir = tmp_path_factory.mktemp("tfds")
    builder = TinySet(data_dir=data_dir)
    config = tfds.download.DownloadConfig(num_shards=5)
    tfds.disable_progress_bar()
    builder.download_and_prepare(download_config=config)
    return str(data_dir)


def test_held_and_streamed_number_alike(tiny, monkeypatch):
    held = tfds_source.open_tfds("tiny_set", "train[5:40]", tiny)
    monkeypatch.setattr(tfds_source, "HOLD_BYTES", 0)
    streamed = tfds_source.open_tfds("tiny_set", "train[5:40]", tiny)
    assert isinstance(streamed, tfds_source.StreamedSource) and not isinstance(held, tfds_source.StreamedSource)
    assert held.num_examples == streamed.num_examples == 35 and held.class_names == ("red", "green", "blue")
    assert held.ids(range(35)) == streamed.ids(range(35)) and len(set(held.ids(range(35)))) == 35
    np.testing.assert_array_equal(streamed.with_labels().labels, held.labels)
    for i in (0, 17, 34):
        np.testing.assert_array_equal(held.load(i), streamed.load(i))
        assert held.load(i)[0, 0].argmax() == held.labels[i]
    assert isinstance(tfds_source.open_tfds("tiny_set", "train", tiny, hold=True), sources.Source)


@pytest.mark.parametrize("split, says", [("validation", "train .60 images., test"), ("train[:0]", "empty")])
def test_wrong_tfds_splits(tiny, split, says):
    with pytest.raises(DataError, match=says):
        tfds_source.open_tfds("tiny_set", split, tiny)


def test_unknown_and_unprepared_tfds_sets(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="cifar10"):
        tfds_source.open_tfds("cifar1o", "train", str(tmp_path))
    monkeypatch.setattr(tfds_source, "_has_network", lambda: False)
    for download in (False, True):
        with pytest.raises(DataError, match=f"{tmp_path}.*must be the folder that holds mnist/"):
            tfds_source.open_tfds("mnist", "train", str(tmp_path), download=download)
