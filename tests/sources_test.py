"""Folders, digits and TFDS sets: numbering, splits, slices, labels, and what is said when something is missing."""

import hashlib
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from simclr_tf import sources, tfds_source
from simclr_tf.errors import DataError
from simclr_tf.sources import open_digits, open_folder


def write_images(folder, count, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        Image.new("RGB", (8, 6), (10 * i % 256, 50, 90)).save(folder / f"{i}.png")


def fill(root, *classes, count=10):
    for name in classes:
        write_images(root / name, count)
    return root


def names(source):
    return source.ids(range(source.num_examples))


def test_folder_order_is_by_hash_of_relative_path(tmp_path):
    fill(tmp_path / "train", "cat", "dog")
    fill(tmp_path / "test", "cat", "dog", count=3)
    source = open_folder(str(tmp_path), "train")
    relative = [os.path.relpath(path, tmp_path) for path in names(source)]
    assert relative == sorted(relative, key=lambda path: hashlib.sha256(path.encode()).hexdigest())
    assert source.class_names == ("cat", "dog")
    assert [source.class_names[label] for label in source.labels] == [path.split("/")[1] for path in relative]


@pytest.mark.parametrize("open_source", [open_digits, None], ids=["digits", "folder"])
def test_slices_are_disjoint_and_complete(open_source, tmp_path):
    if open_source is None:
        fill(tmp_path, "a", "b", "c")
        open_source = lambda split: open_folder(str(tmp_path), split)  # noqa: E731
    whole = names(open_source("train"))
    assert names(open_source("train[:30%]")) + names(open_source("train[30%:]")) == whole
    assert names(open_source("train[:7]")) == whole[:7] and names(open_source("train[-3:]")) == whole[-3:]
    test = names(open_source("test"))
    assert not set(whole) & set(test)
    assert names(open_source("train+test")) == whole + test == names(open_source("all"))


def test_folder_without_test_is_split_per_class(tmp_path):
    write_images(tmp_path / "rare", 2)
    write_images(tmp_path / "single", 1)
    write_images(tmp_path / "common", 20)
    train, test = open_folder(str(tmp_path), "train"), open_folder(str(tmp_path), "test")
    assert np.bincount(train.labels).tolist() == [16, 1, 1]  # common, rare, single
    assert np.bincount(test.labels).tolist() == [4, 1]
    assert "20% of each class" in train.describe()


def test_digits():
    train, test = open_digits("train"), open_digits("validation")
    assert (train.num_examples, test.num_examples) == (1438, 359) and train.num_classes == 10
    assert np.bincount(test.labels).min() >= 34
    assert set(open_digits("train[:10%]").labels) == set(range(10))
    image = train.load(5)
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8 and image.max() > 200
    from sklearn.datasets import load_digits

    number = int(train.ids([5])[0].removeprefix("digit_"))
    np.testing.assert_array_equal(image[..., 0], np.round(load_digits().images[number] * 255 / 16))
    assert train.labels[5] == load_digits().target[number]
    assert "validation means test here" in test.describe()


def test_validation_and_test_folders(tmp_path):
    fill(tmp_path / "train", "a", "b")
    fill(tmp_path / "val", "a", "b", count=2)
    assert names(open_folder(str(tmp_path), "validation")) == names(open_folder(str(tmp_path), "val"))
    assert open_folder(str(tmp_path), "test").num_examples == 4  # val/ is what there is to test on
    assert open_folder(str(tmp_path), "train").num_examples == 20
    fill(tmp_path / "test", "a", "b", count=3)
    assert open_folder(str(tmp_path), "test").num_examples == 6
    assert open_folder(str(tmp_path), "validation").num_examples == 4


def test_flat_folder_has_no_labels(tmp_path):
    write_images(tmp_path, 10)
    source = open_folder(str(tmp_path), "train")
    assert source.class_names is None and source.num_classes is None and source.num_examples == 8
    assert set(source.labels) == {-1}


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, "bus", "train")
    assert open_folder(str(tmp_path), "train").class_names == ("bus", "train")


def test_other_files_are_ignored_and_counted(tmp_path):
    fill(tmp_path, "a", "b")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "._0.png").write_text("x")
    (tmp_path / ".cache").mkdir()
    write_images(tmp_path / "b" / "deeper", 2, start=50)
    (tmp_path / "b" / "circle").symlink_to(tmp_path / "b")
    source = open_folder(str(tmp_path), "all")
    assert source.num_examples == 22 and "1 other files ignored (.txt)" in source.describe()


def test_only_the_split_in_use_is_checked(tmp_path):
    fill(tmp_path / "train", "a", "b")
    (tmp_path / "test" / "a").mkdir(parents=True)
    assert open_folder(str(tmp_path), "train[:50%]").num_examples == 10
    with pytest.raises(DataError, match="test/a is the folder of a class and holds no images"):
        open_folder(str(tmp_path), "test")


@pytest.mark.parametrize("split, says", [("nosuch", "train .* test"), ("train[", "train"), ("train[900:]", "slice"),
                                         ("train[:0]", "empty")])  # fmt: skip
def test_wrong_splits(split, says, tmp_path):
    fill(tmp_path, "a", "b")
    with pytest.raises(DataError, match=says):
        open_folder(str(tmp_path), split)


def test_missing_folders(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_folder(str(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match="holds no images"):
        open_folder(str(tmp_path), "train")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        open_folder(str(tmp_path / "file"), "train")


# --- TFDS ------------------------------------------------------------------------------------------------------------
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
    assert names(held) == names(streamed) and len(set(names(held))) == 35
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


def test_a_folder_in_memory_needs_its_files_no_more(tmp_path):
    fill(tmp_path, "cat", "dog", count=3)
    source = open_folder(str(tmp_path), "all")
    gone = source.keys[1]
    os.remove(gone)
    held = source.in_memory()
    before = [source.load(i) for i in range(source.num_examples) if i != 1]
    for key in source.keys:
        if key != gone:
            os.remove(key)
    after = [held.load(i) for i in range(held.num_examples) if i != 1]
    np.testing.assert_array_equal(before, after)
    (bad,) = held.find_bad(range(held.num_examples))
    assert bad[:2] == (1, gone)
    assert open_digits("test").in_memory().contents_are_paths is False
