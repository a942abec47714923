"""Folders and digits: numbering, splits, slices, labels, and what is said when something is missing."""

import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from simclr_tf.digits_source import open_digits
from simclr_tf.errors import DataError
from simclr_tf.folder_source import open_folder


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
