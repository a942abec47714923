"""The authors' checkpoints in every format they come in: written here from the recorded names, read as data.

Weights are made by a rule from their names (`golden/fill.py`), so what a loaded model computes can be compared with
what the reference computed with the same weights.
"""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, SimCLR, catalog, checkpoint, cli, released, restore
from simclr_tf.architecture import Architecture, architecture, variables
from simclr_tf.errors import CheckpointError
from simclr_tf.model import make_model, named_variables
from simclr_tf.step import make_optimizer
from tests.golden.fill import fill, image_batch
from tests.golden.formats_test import tf1_name, write
from tests.golden.recorded import FOLDER, read
from tests.golden.variables_test import settings

R18 = dict(depth=18, cifar_stem=True)


def shapes_of(architecture):
    return {name: tuple(shape) for name, shape in read("tf1_variables.json.gz")[architecture]}


def weights(architecture="r18_1x_sk0_32px", head=True):
    return {name: fill(name, shape) for name, shape in shapes_of(architecture).items()
            if head or not name.startswith("head_contrastive")}


@pytest.fixture(scope="module")
def tf1(tmp_path_factory):
    """As the authors' are: weights, optimizer slots, moving averages, the step."""
    folder = tmp_path_factory.mktemp("tf1")
    arrays = weights()
    extra = {"global_step": np.int64(250)}
    for name, value in arrays.items():
        extra[f"ema_model/{name}"] = value + 1 if name.startswith("base_model") else value
        extra[f"{name}/Momentum"] = np.zeros_like(value)
    write(folder / "model.ckpt-250", arrays | extra)
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-250"\n')
    return folder


def assert_forward(model):
    """The outputs that the reference recorded for these weights."""
    out = model(image_batch(2, 32, seed=1))
    recorded = read("forward.npz")
    for endpoint in ("final_avg_pool", "proj_head_output", "logits_sup"):
        expected = recorded[f"r18_1x_sk0_32px/{endpoint}"]
        np.testing.assert_allclose(out[endpoint], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("entry", ["", "model.ckpt-250", "model.ckpt-250.index"])
def test_a_tf1_checkpoint_by_folder_prefix_or_file(tf1, entry, caplog):
    with caplog.at_level("INFO"):
        model = released.load(tf1 / entry)
    assert_forward(model)
    assert "121 of 121 variables, 11.8 M parameters" in caplog.text
    assert "optimizer slot Momentum" in caplog.text and "global step" in caplog.text


def test_use_ema_takes_the_moving_average(tf1):
    plain, ema = (released.load(tf1, use_ema=e) for e in (False, True))
    for a, b in zip(named_variables(plain), named_variables(ema), strict=True):
        difference = 1 if a.name.startswith("base_model") else 0
        np.testing.assert_allclose(b.variable.numpy() - a.variable.numpy(), difference, atol=1e-6)


@pytest.mark.fault("SavedModel with code of its own", "its weights are read as data; nothing of it runs")
def test_a_saved_model_is_read_without_running_it(tmp_path):
    """One whose function would write a file is loaded, and the file does not appear."""
    trace = tmp_path / "was_here"
    module = tf.Module()
    entries = read("tf2_variables.json.gz")["r18_1x_sk0_32px"]["saved_model"]
    module.trainable_variables_list = [
        tf.Variable(fill(tf1_name(name), shape), name=name) for _, name, shape in entries
    ]

    @tf.function(input_signature=[])
    def run():
        tf.io.write_file(str(trace), "x")
        return tf.constant(0)

    module.__call__ = run
    tf.saved_model.save(module, str(tmp_path / "saved"))
    assert_forward(released.load(tmp_path / "saved"))
    assert not trace.exists()


def test_own_checkpoints_load_like_the_authors(tmp_path):
    config = Config(resnet_depth=18, image_size=32, width_multiplier=0.25)
    model = make_model(config, 4)
    state = checkpoint.training_state(model, make_optimizer(config, model, 10))
    checkpoint.save(str(tmp_path), 1, state, config, None)
    loaded = released.load(tmp_path)
    assert loaded.architecture | {"seed": 0} == model.architecture | {"seed": 0} and loaded.num_classes == 4
    for a, b in zip(named_variables(model), named_variables(loaded), strict=True):
        np.testing.assert_array_equal(a.variable.numpy(), b.variable.numpy())


def archive(path, members):
    """A zip or tar of name -> bytes."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
    else:
        with tarfile.open(path, "w") as file:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_v1_archive_without_projection_head(tmp_path, suffix):
    write(tmp_path / "model.ckpt-225206", weights(head=False) | {"global_step": np.int64(225206)})
    files = {f"ResNet50_1x/{f}": (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)}
    model = released.load(archive(tmp_path / f"v1{suffix}", files))
    assert model.architecture["proj_head_mode"] == "none"
    out = model(image_batch(2, 32, seed=1))
    expected = read("forward.npz")["r18_1x_sk0_32px/logits_sup"]
    np.testing.assert_allclose(out["logits_sup"], expected, atol=1e-5 * np.abs(expected).max())


def test_another_architecture_is_an_error_that_names_both(tf1):
    model = SimCLR(depth=34, cifar_stem=True)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(CheckpointError) as caught:
        released.restore_into(model, tf1)
    assert "18" in str(caught.value) and "34" in str(caught.value)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_a_head_of_other_classes_is_left_out_and_said(tf1, caplog):
    with caplog.at_level("INFO"):
        model = released.load(tf1, num_classes=7)
    assert model.num_classes == 7
    assert "head_supervised left out" in caplog.text and "10 classes" in caplog.text


def test_variable_schema_is_the_allow_list(tf1):
    model = SimCLR(**R18, num_classes=10)
    head = [v.variable.numpy() for v in named_variables(model) if v.name.startswith("head")]
    released.restore_into(model, tf1, schema=r"(?!global_step|(?:.*/|^)Momentum|head)")
    for item in named_variables(model):
        if item.name.startswith("base_model"):
            np.testing.assert_array_equal(item.variable.numpy(), fill(item.name, item.variable.shape))
    kept = [v.variable.numpy() for v in named_variables(model) if v.name.startswith("head")]
    assert all(np.array_equal(a, b) for a, b in zip(head, kept, strict=True))


def test_flags_follow_the_checkpoint_and_may_not_contradict_it(tf1):
    arch, arrays = released.inspect(tf1)
    followed = released.follow(Config(), arch, arrays.source)
    assert (followed.resnet_depth, followed.image_size, followed.num_proj_layers) == (18, 32, 3)
    with pytest.raises(CheckpointError, match=r"--resnet_depth=34, the checkpoint has 18"):
        released.follow(Config(resnet_depth=34), arch, arrays.source)


def test_every_architecture_is_read_off_its_weights():
    """The recorded ones, by the reference's names and shapes alone."""
    for name, rows in read("tf1_variables.json.gz").items():
        arch = architecture({n: tuple(shape) for n, shape in rows})
        assert {key: getattr(arch, key) for key in settings(name)} == settings(name), name
        assert (arch.proj_head_mode, arch.num_proj_layers, arch.proj_out_dim) == ("nonlinear", 3, 128)


@pytest.mark.parametrize("kwargs", [
    dict(se_ratio=0.25, width=0.5), dict(depth=101, sk_ratio=0.25, se_ratio=0.125), dict(depth=18, cifar_stem=True),
    dict(proj_head_mode="linear", proj_out_dim=64), dict(proj_head_mode="none", num_classes=None),
    dict(num_proj_layers=2, num_classes=7), dict(depth=34, sk_ratio=0.0625), dict(ft_proj_selector=-1),
])
def test_any_architecture_is_read_off_its_weights(kwargs):
    arch = Architecture(**dict(depth=50, num_classes=10) | kwargs)
    assert architecture(variables(arch)) == arch


def test_the_layer_that_the_classifier_reads(tf1, tmp_path):
    """Weights don't show it: it is the run's, or for the authors' fine-tuned models, by their name, the paper's."""
    config = Config(resnet_depth=18, image_size=32, width_multiplier=0.25, ft_proj_selector=2, train_mode="finetune")
    model = make_model(config, 4)
    checkpoint.save(str(tmp_path), 1, checkpoint.training_state(model, make_optimizer(config, model, 10)), config, None)
    images = image_batch(2, 32, seed=1)
    np.testing.assert_array_equal(released.load(tmp_path)(images)["logits_sup"], model(images)["logits_sup"])

    for category, selector in (("finetuned_1pct", 1), ("finetuned_100pct", 0)):
        folder = tmp_path / "simclrv2" / category / "r50_1x_sk0"
        folder.parent.mkdir(parents=True)
        os.symlink(tf1, folder)
        assert released.load(folder).ft_proj_selector == selector
        followed = restore.follow_checkpoint(Config(mode="predict"), str(folder), restore.TO_EVALUATE)
        assert followed.ft_proj_selector == selector


def test_the_page_of_released_checkpoints_holds_the_table():
    page = (FOLDER.parents[1] / "checkpoints" / "README.md").read_text()
    assert catalog.table_markdown().strip() in page


def test_the_table_has_all_models_and_their_published_accuracies(capsys):
    by_name = {row.name: row for row in released.table()}
    assert len([n for n in by_name if n.startswith("simclrv2/pretrained/")]) == 13
    assert {"simclrv2/finetuned_1pct/r152_3x_sk1", "simclrv2/supervised/r101_2x_sk0"} <= set(by_name)
    assert cli.main(["--mode=list_checkpoints"]) == 0
    text = capsys.readouterr().out
    for figure in ("71.7", "57.9", "83.1", "69.1", "76.6"):
        assert figure in text
