"""Batches: order, resume, workers, labelled subsets, evaluation's padding, and unreadable images."""

import itertools
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from simclr_tf import augment, data, label_subsets, sources, tfds_source
from simclr_tf.config import Config
from simclr_tf.errors import DataError
from tests.tfds_source_test import TinySet, tiny  # noqa: F401  (a fixture)


def config(**options) -> Config:
    small = dict(dataset="digits", image_size=8, train_batch_size=8, eval_batch_size=8, use_blur=False)
    return Config(**(small | options))


def finetune(**options) -> Config:
    return config(train_mode="finetune", **options)


def digits(count: int) -> sources.Source:
    return data.open_source(config(), f"train[:{count}]")


@pytest.fixture(params=["held", "streamed"])
def source(request, monkeypatch):
    """21 examples, held in memory or read from shards."""
    if request.param == "held":
        return digits(21)
    data_dir = request.getfixturevalue("tiny")
    monkeypatch.setattr(tfds_source, "HOLD_BYTES", 0)
    return data.open_source(config(dataset="tiny_set", data_dir=data_dir), "train[4:25]")


def draw(dataset, count: int) -> dict[str, np.ndarray]:
    """`count` batches, stacked: [count, rows, ...]."""
    batches = list(itertools.islice(dataset.as_numpy_iterator(), count))
    return {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}


def assert_same(a, b):
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def test_every_epoch_is_another_permutation(source):
    index = draw(data.train_batches(source, finetune(train_batch_size=7), 0), 9)["index"].reshape(3, 21)
    for epoch in index:
        assert sorted(epoch) == list(range(21))
    assert len({tuple(epoch) for epoch in index}) == 3
    other = draw(data.train_batches(source, finetune(train_batch_size=7, seed=1), 0), 3)["index"].reshape(21)
    assert tuple(other) not in {tuple(epoch) for epoch in index}


def test_batches_are_a_pure_function_of_the_step(source):
    whole = draw(data.train_batches(source, config(), 0), 7)  # 56 examples: into the third epoch
    assert_same(whole, draw(data.train_batches(source, config(), 0), 7))
    for start in (1, 2, 3, 5):
        assert_same({k: v[start:] for k, v in whole.items()},
                    draw(data.train_batches(source, config(), start), 7 - start))  # fmt: skip


def test_workers_rows_make_the_whole_batch(source):
    whole = draw(data.train_batches(source, config(), 1), 4)
    parts = [draw(data.train_batches(source, config(), 1, worker=w, num_workers=3), 4) for w in range(3)]
    assert_same(whole, {k: np.concatenate([part[k] for part in parts], axis=1) for k in whole})


@pytest.mark.parametrize("blur", [False, True])
def test_views_do_not_depend_on_the_chunk(source, monkeypatch, blur):
    """Distorted one by one, in threes and all at once: the same bits; and the views of `two_views`, where every
    example has those of its own index and epoch."""
    options = config(train_batch_size=12, image_size=32, use_blur=blur)
    example_bytes = 2 * 32 * 32 * 3 * 4
    ways = []
    for chunk, examples in ((1, 1), (3, 3.5), (12, 99)):
        monkeypatch.setattr(data, "CHUNK_BYTES", int(examples * example_bytes))
        assert data._chunk(12, example_bytes) == chunk and data._chunk(13, example_bytes) in (1, 13)
        ways.append(draw(data.train_batches(source, options, 0), 3))
        assert ways[-1]["images"].shape == (3, 12, 32, 32, 6)
    assert_same(ways[0], ways[1])
    assert_same(ways[0], ways[2])
    for counter in (0, 11, 20, 21, 35):  # in the first epoch and the second
        index = ways[0]["index"].reshape(-1)[counter]
        seed = tf.constant([options.seed, data._AUGMENTATION], tf.int32)
        for number in (tf.constant(counter // 21, tf.int64), tf.constant(index)):
            seed = tf.random.fold_in(seed, number, alg="philox")
        views = augment.two_views(source.load(index), seed, 32, 1.0, blur)
        expected = np.concatenate(views, axis=-1)
        np.testing.assert_allclose(ways[0]["images"].reshape(-1, 32, 32, 6)[counter], expected, rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def four_files(tmp_path_factory):
    """60 examples in four files of 15."""
    data_dir = tmp_path_factory.mktemp("four_files")
    tfds.disable_progress_bar()
    TinySet(data_dir=data_dir).download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=4))
    return str(data_dir)


def test_files_are_shared_out_among_workers(four_files, monkeypatch, tmp_path):
    """Batches are those of one worker, for any number of them; of two, each reads half of the files."""
    monkeypatch.setattr(tfds_source, "HOLD_BYTES", 0)

    def opened(data_dir):
        return data.open_source(config(dataset="tiny_set", data_dir=data_dir), "train")

    source = opened(four_files)
    assert source.streams(8) == 4 and source.streams(6) == 2 and source.streams(7) == 1
    whole = draw(data.train_batches(source, config(), 3), 15)
    for workers in (2, 3, 4):
        parts = [
            draw(data.train_batches(source, config(), 3, worker=w, num_workers=workers), 15) for w in range(workers)
        ]
        assert_same(whole, {k: np.concatenate([part[k] for part in parts], axis=1) for k in whole})
    # Two rows of each stream a batch: 15 batches are two epochs of each.
    index = draw(data.train_batches(source, config(), 0), 15)["index"].ravel()
    assert np.bincount(index).tolist() == [2] * 60

    half = tmp_path / "half"
    shutil.copytree(four_files, half)
    source = opened(str(half))
    for path in [shard.path for shard in source.shards][1::4] + [shard.path for shard in source.shards][0::4]:
        os.remove(path)  # of the first worker's streams, 0 and 1
    draw(data.train_batches(source, config(), 0, worker=1, num_workers=2), 15)
    with pytest.raises(tf.errors.NotFoundError):
        draw(data.train_batches(source, config(), 0, worker=0, num_workers=2), 1)


def test_training_batches(source):
    batch = draw(data.train_batches(source, config(), 0), 1)
    assert batch["images"].shape == (1, 8, 8, 8, 6) and batch["images"].dtype == np.float32
    assert 0 <= batch["images"].min() and 0.1 < batch["images"].max() <= 1
    assert np.abs(batch["images"][..., :3] - batch["images"][..., 3:]).mean() > 0.01  # two views
    labels = source.with_labels().labels
    np.testing.assert_array_equal(batch["labels"], labels[batch["index"]])
    assert draw(data.train_batches(source, finetune(), 0), 1)["images"].shape == (1, 8, 8, 8, 3)


def test_a_set_smaller_than_the_batch_repeats(source):
    batch = draw(data.train_batches(source, config(train_batch_size=50), 0), 2)
    assert np.bincount(batch["index"].ravel()[:42]).tolist() == [2] * 21
    first = {i: batch["images"][0, row] for row, i in reversed(list(enumerate(batch["index"][0])))}
    assert all(np.any(batch["images"][0, row] != first[batch["index"][0, row]]) for row in range(21, 42))
    assert draw(data.train_batches(digits(1), config(), 0), 2)["index"].max() == 0


def test_evaluation_counts_each_example_once(source):
    dataset = data.eval_batches(source, config())
    assert dataset.element_spec["images"].shape == (8, 8, 8, 3)
    batches = draw(dataset, 99)
    assert batches["index"].ravel().tolist() == [*range(21), -1, -1, -1]
    assert batches["weights"].ravel().tolist() == [1.0] * 21 + [0.0] * 3
    labels = source.with_labels().labels
    assert batches["labels"].ravel().tolist() == [*labels, 0, 0, 0]
    assert_same({k: v[1:] for k, v in batches.items()}, draw(data.eval_batches(source, config(), start_step=1), 99))


# --- Labelled subsets ------------------------------------------------------------------------------------------------
def test_labels_per_class_is_balanced_and_seeded():
    few, more = (data.open_training_source(finetune(labels_per_class=k)) for k in (3, 5))
    assert np.bincount(few.labels).tolist() == [3] * 10 and few.num_examples == 30
    everything = range(30), range(50)
    assert set(few.ids(everything[0])) < set(more.ids(everything[1]))
    other = data.open_training_source(finetune(labels_per_class=3, seed=1))
    assert set(few.ids(everything[0])) != set(other.ids(everything[0]))


def test_label_fraction_keeps_one_of_each_class():
    source = data.open_training_source(finetune(label_fraction=0.1))
    assert set(np.bincount(source.labels)) <= {14, 15}
    assert np.bincount(data.open_training_source(finetune(label_fraction=1e-4)).labels).tolist() == [1] * 10


def test_labelled_subset_of_a_streamed_set(tiny, monkeypatch):  # noqa: F811
    options = dict(dataset="tiny_set", data_dir=tiny, labels_per_class=4)
    held = data.open_training_source(finetune(**options))
    monkeypatch.setattr(tfds_source, "HOLD_BYTES", 4096)  # less than the set, more than the subset
    streamed = data.open_training_source(finetune(**options))
    assert np.bincount(streamed.labels).tolist() == [4] * 3
    assert streamed.ids(range(12)) == held.ids(range(12))
    np.testing.assert_array_equal(streamed.load(7), held.load(7))


def test_too_few_labels_name_the_class(tmp_path):
    with pytest.raises(DataError, match=r"class '.' of digits has only"):
        data.open_training_source(finetune(train_split="train[:60]", labels_per_class=20))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="needs labels"):
        data.open_training_source(finetune(dataset=f"folder:{tmp_path}", train_split="all", labels_per_class=1))


# --- Unreadable images -----------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    """Config of a folder of 12 images, the first two in order unreadable: `bad` is their paths."""
    for i in range(12):
        Image.new("RGB", (9, 9), (20 * i, 100, 100)).save(tmp_path / f"{i}.png")
    options = config(dataset=f"folder:{tmp_path}", train_batch_size=4, eval_batch_size=4)
    bad = data.open_source(options, "all").ids([0, 1])
    for path in bad:
        with open(path, "wb") as file:
            file.write(b"\x89PNG is what it claims")
    return options, bad


def allow(options: Config, count: int) -> Config:
    return Config(**{field: getattr(options, field) for field in options.given} | {"max_bad_images": count})


def test_bad_images_are_found_and_named(folder):
    options, paths = folder
    source = data.open_source(options, "all")
    assert [(index, path) for index, path, _ in source.find_bad(range(12))] == list(enumerate(paths))
    with pytest.raises(DataError, match=paths[1]):
        source.load(1)
    for feed in (data.Feed.training(source, options), data.Feed.evaluation(source, options)):
        with pytest.raises(DataError, match="--max_bad_images") as error:
            list(itertools.islice(feed, 3))
        assert paths[0] in str(error.value) or paths[1] in str(error.value)


def test_bad_images_are_skipped_in_training(folder, caplog):
    options, paths = folder
    options = allow(options, 2)
    source = data.open_source(options, "all")
    feed = data.Feed.training(source, options)
    batches = [batch["index"].numpy() for batch in itertools.islice(feed, 6)]  # two epochs
    assert sorted(feed.bad) == [0, 1] and all(path in caplog.text for path in paths)
    assert np.bincount(np.ravel(batches), minlength=12).tolist() == [0, 0, 6] + [2] * 9
    assert_same(np.stack(batches), draw(data.train_batches(source, options, 0, bad={0, 1}), 6)["index"])


def test_recovery_inside_a_function_of_several_steps(folder):
    options, _ = folder
    options = allow(options, 5)
    source = data.open_source(options, "all")
    feed = data.Feed.training(source, options)
    step, total = tf.Variable(0, dtype=tf.int64), tf.Variable(0.0)

    @tf.function
    def run(iterator, count):
        for _ in tf.range(count):
            batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(batch)):
                total.assign_add(tf.reduce_sum(batch["images"]))
                step.assign_add(1)

    iterator = iter(feed.batches())
    while step.numpy() < 6:
        try:
            run(iterator, tf.constant(6 - step.numpy()))
        except tf.errors.OpError as error:
            iterator = iter(feed.recover(error, int(step.numpy())))
    expected = draw(data.train_batches(source, options, 0, bad={0, 1}), 6)["images"].sum()
    np.testing.assert_allclose(total.numpy(), expected, rtol=1e-5)


def test_bad_images_weigh_nothing_in_evaluation(folder):
    options, _ = folder
    options = allow(options, 2)
    feed = data.Feed.evaluation(data.open_source(options, "all"), options)
    batches = list(feed)
    assert len(batches) == 3
    assert np.concatenate([batch["weights"] for batch in batches]).tolist() == [0, 0] + [1] * 10
    assert not batches[0]["images"][:2].numpy().any() and batches[0]["images"][2].numpy().any()


def test_streamed_stand_ins(tiny, monkeypatch):  # noqa: F811
    options = config(dataset="tiny_set", data_dir=tiny, train_batch_size=10)
    held = data.train_batches(data.open_source(options, "train[:10]"), options, 0, bad={3, 4, 9})
    monkeypatch.setattr(tfds_source, "HOLD_BYTES", 0)
    streamed = data.train_batches(data.open_source(options, "train[:10]"), options, 0, bad={3, 4, 9})
    for dataset in (held, streamed):
        assert sorted(draw(dataset, 1)["index"][0]) == [0, 0, 1, 2, 5, 5, 5, 6, 7, 8]


def test_a_file_deleted_during_the_run(folder):
    options, _ = folder
    source = data.open_source(options, "train[2:]")
    path = source.ids([0])[0]
    tf.io.gfile.remove(path)
    with pytest.raises(DataError, match=f"{path}: no such file"):
        list(itertools.islice(data.Feed.training(source, options), 3))


def test_errors_that_no_image_caused_are_not_swallowed():
    feed = data.Feed.training(digits(8), config())
    error = tf.errors.ResourceExhaustedError(None, None, "out of memory")
    with pytest.raises(tf.errors.ResourceExhaustedError):
        feed.recover(error, 0)


@pytest.mark.parametrize(("name", "fraction", "said"), [("imagenet2012", 0.1, True), ("imagenet2012", 0.01, True),
                                                        ("imagenet2012", 0.2, False), ("cifar10", 0.1, False)])
def test_the_papers_own_lists_are_pointed_at_where_a_fraction_of_imagenet_is_drawn(name, fraction, said):
    source = sources.held(name, "train", ("a", "b"), [0, 1] * 100, [str(i) for i in range(200)], [b""] * 200)
    text = label_subsets.labelled_subset(source, Config(train_mode="finetune", label_fraction=fraction)).describe()
    assert (f"--dataset=imagenet2012_subset/{round(100 * fraction)}pct" in text) == said
