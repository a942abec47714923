"""Embeddings: the network's own endpoints, complete and in order, in files that others read."""

import csv
import json
import os

import numpy as np
import pytest
import tensorflow as tf
from pyarrow import parquet

from simclr_tf import Config, checkpoint, cli, data, embed, embedding_files, errors, neighbours, released
from simclr_tf.augment import preprocess_for_eval


@pytest.fixture(scope="module")
def written(pretrained, tmp_path_factory):
    """Folder of `--mode=embed`, by the command line; the projector and the neighbours are of part of the images."""
    folder = tmp_path_factory.mktemp("embedded")
    code = cli.main([
        "--mode=embed", "--dataset=digits", "--eval_split=test[:40]", "--eval_batch_size=16",
        f"--checkpoint={pretrained}", "--embed_parquet", "--projector_images=20", "--embed_queries=5",
        "--embed_neighbours=3", "--report_images=0", f"--model_dir={folder}",
    ])
    assert code == 0
    return folder


def expected(pretrained, endpoint="final_avg_pool"):
    """The vectors of the first 40 test digits, one call of the model, without any of our batches."""
    model = released.load(checkpoint.latest(pretrained))
    source = data.open_source(Config(dataset="digits"), "test[:40]")
    images = np.stack([preprocess_for_eval(source.load(i), 16, crop=False) for i in range(40)])
    values = model(images, training=False)[endpoint].numpy()
    return (values.mean((1, 2)) if values.ndim == 4 else values), source


def test_rows_are_the_models_output_in_the_order_of_the_split(written, pretrained):
    vectors, source = expected(pretrained)
    ours, labels, description = embedding_files.read(written)
    np.testing.assert_allclose(ours, vectors, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels, source.labels)
    assert (description["examples"], description["dimensions"]) == (40, 128)
    with open(written / "examples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == source.ids(range(40))
    assert [row["class"] for row in rows] == [source.class_names[i] for i in source.labels]


def test_parquet_holds_the_same(written):
    table = parquet.read_table(written / "embeddings.parquet").to_pydict()
    vectors, labels, _ = embedding_files.read(written)
    np.testing.assert_array_equal(np.array(table["embedding"], np.float32), vectors)
    assert table["label"] == labels.tolist()


def test_tensorboards_projector_plugin_serves_the_folder(written):
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.projector import projector_plugin
    from werkzeug import test as werkzeug_test
    from werkzeug import wrappers

    class NoRuns:
        def list_runs(self, *_, **__):
            return []

    context = base_plugin.TBContext(logdir=str(written / "projector"), data_provider=NoRuns())
    routes = projector_plugin.ProjectorPlugin(context).get_plugin_apps()

    def get(route, **query):
        return werkzeug_test.Client(routes[route], wrappers.Response).get(
            "/", query_string={"run": ".", "name": "embeddings", **query})

    assert json.loads(get("/runs").data) == ["."]
    vectors, *_ = embedding_files.read(written)
    served = np.frombuffer(get("/tensor").data, np.float32).reshape(20, -1)
    np.testing.assert_allclose(served, vectors[:20], rtol=1e-5, atol=1e-6)
    assert get("/metadata").data.decode().splitlines()[0] == "class\tid"
    assert len(get("/metadata").data.decode().splitlines()) == 21
    assert get("/sprite_image").data[1:4] == b"PNG"


def test_neighbours_are_listed_with_their_names(written):
    vectors, *_ = embedding_files.read(written)
    rows, _ = neighbours.nearest(vectors[:5], vectors, 3, own=np.arange(5))
    with open(written / "neighbours.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [int(row["neighbour"]) for row in listed] == rows.ravel().tolist()
    assert listed[0]["id"].startswith("test/") or listed[0]["id"]


@pytest.mark.parametrize("endpoint", ["block_group2", "proj_head_output", "logits_sup"])
def test_any_endpoint(pretrained, tmp_path, endpoint):
    config = Config(mode="embed", dataset="digits", eval_split="test[:40]", eval_batch_size=16, endpoint=endpoint,
                    checkpoint=pretrained, model_dir=str(tmp_path), projector_images=0, embed_neighbours=0,
                    eval_name="x")
    embedding_files.write(config)
    ours, _, description = embedding_files.read(tmp_path, "x")
    np.testing.assert_allclose(ours, expected(pretrained, endpoint)[0], rtol=1e-3, atol=1e-4)
    assert description["endpoint"] == endpoint
    assert sorted(os.listdir(tmp_path)) == ["embeddings_x.json", "embeddings_x.npy", "examples_x.csv", "labels_x.npy"]


def test_several_replicas_give_the_same_rows(pretrained, tmp_path, written):
    config = Config(mode="embed", dataset="digits", eval_split="test[:40]", eval_batch_size=16, strategy="mirrored",
                    checkpoint=pretrained, model_dir=str(tmp_path), projector_images=0, embed_neighbours=0)
    embedding_files.write(config)
    np.testing.assert_allclose(embedding_files.read(tmp_path)[0], embedding_files.read(written)[0], atol=1e-5)


def test_unreadable_images_have_no_row(pretrained, tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(np.full([20, 20, 3], 20 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    config = Config(mode="embed", dataset=f"folder:{folder}", eval_split="train", eval_batch_size=4, max_bad_images=1,
                    checkpoint=pretrained, model_dir=str(tmp_path / "out"), projector_images=0)
    embedding_files.write(config)
    vectors, labels, description = embedding_files.read(tmp_path / "out")
    assert len(vectors) == len(labels) == description["examples"]
    with open(tmp_path / "out" / "examples.csv") as file:
        text = file.read()
    assert "3.png" not in text and text.count(".png") == len(vectors)


def test_nothing_is_left_half_written(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_files._Writer, "finish", lambda self: (_ for _ in ()).throw(OSError(28, "No space")))
    config = Config(mode="embed", dataset="digits", eval_split="test[:16]", eval_batch_size=16, checkpoint=pretrained,
                    model_dir=str(tmp_path))
    with pytest.raises(errors.StorageError):
        embedding_files.write(config)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_is_said(tmp_path, pretrained, tiny):
    with pytest.raises(errors.CheckpointError, match="No checkpoint"):
        embedding_files.write(Config(mode="embed", dataset="digits", model_dir=str(tmp_path)))
    headless = released.load(checkpoint.latest(pretrained))
    headless.supervised_head = None
    with pytest.raises(errors.ConfigError, match="logits_sup"):
        embedding_files.Embedder(headless, Config(), None, "logits_sup")
    with pytest.raises(errors.ConfigError, match="no endpoint 'nowhere'"):
        embed(headless, [np.zeros([1, 16, 16, 3], np.float32)], "nowhere")


def test_in_a_program(pretrained):
    model = released.load(checkpoint.latest(pretrained))
    images = np.random.default_rng(0).uniform(size=[6, 16, 16, 3]).astype(np.float32)
    whole = model(images)["proj_head_output"].numpy()
    for dataset in ([images[:4], images[4:]], [{"images": images}], [(images, None)],
                    tf.data.Dataset.from_tensor_slices(images).batch(4)):
        np.testing.assert_allclose(embed(model, dataset, "proj_head_output"), whole, rtol=1e-4, atol=1e-5)
