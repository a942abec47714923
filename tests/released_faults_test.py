"""Checkpoints that are wrong, truncated, renamed, mixed up or malicious: exit code 3, and a message with the cause."""

import io
import pathlib
import pickle
import re
import tarfile
import warnings
import zipfile

import h5py
import numpy as np
import pytest

from simclr_tf import cli, released
from simclr_tf.architecture import Architecture, variables
from simclr_tf.errors import CheckpointError
from tests.golden.fill import fill
from tests.golden.formats_test import write

NAME = "model.ckpt-7"
DATA = f"{NAME}.data-00000-of-00001"
WEIGHTS = {name: fill(name, shape) for name, shape in variables(Architecture(18, 0.25, num_classes=10)).items()}
KERNEL = "base_model/conv2d_5/kernel"
CONV = WEIGHTS[KERNEL]


class Bomb:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("was_here"),)


def replaced(**changes):
    """The weights with `changes`: KERNEL's value, or None to leave it out; `name` renames it."""
    weights = dict(WEIGHTS)
    value = weights.pop(KERNEL)
    if "name" in changes:
        weights[changes["name"]] = value
    elif changes["value"] is not None:
        weights[KERNEL] = changes["value"]
    return lambda folder: write(folder / NAME, weights)


def cut(name, keep):
    def make(folder):
        write(folder / NAME, WEIGHTS)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:int(len(content) * keep)])
    return make


def data_of_another(folder):
    write(folder / NAME, {name: value + 1 for name, value in WEIGHTS.items()})
    content = (folder / DATA).read_bytes()
    write(folder / NAME, WEIGHTS)
    assert len(content) == (folder / DATA).stat().st_size
    (folder / DATA).write_bytes(content)


def flipped(folder):
    write(folder / NAME, WEIGHTS)
    content = bytearray((folder / DATA).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / DATA).write_bytes(content)


def two_names(folder):
    write(folder / "a", WEIGHTS)
    write(folder / "b", WEIGHTS)


def other_shards(folder):
    write(folder / NAME, WEIGHTS)
    (folder / f"{NAME}.data-00000-of-00002").write_bytes(b"x")


def stale_state(folder):
    two_names(folder)
    (folder / "checkpoint").write_text('model_checkpoint_path: "c"\n')


def file(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content())


def zipped(members):
    def content():
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the member that is there twice
            for name, value in members:
                archive.writestr(name, value)
        return stream.getvalue()
    return content


def zip_link():
    info = zipfile.ZipInfo("link.index")
    info.external_attr = 0o120777 << 16
    return zipped([(info, "/etc/passwd")])()


def tar_of(**attributes):
    def content():
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            info = tarfile.TarInfo("x.index")
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info)
        return stream.getvalue()
    return content


def truncated_zip(folder):
    write(folder / "in" / NAME, WEIGHTS)
    content = zipped([(p.name, p.read_bytes()) for p in (folder / "in").iterdir()])()
    for path in (folder / "in").iterdir():
        path.unlink()
    (folder / "in").rmdir()
    (folder / "v1.zip").write_bytes(content[:len(content) // 2])


def npz():
    stream = io.BytesIO()
    np.savez(stream, a=np.array([Bomb()], object))
    return stream.getvalue()


def hdf5():
    stream = io.BytesIO()
    with h5py.File(stream, "w") as h5:
        h5["x"] = np.zeros(3)
    return stream.getvalue()


LAMBDA = b'{"class_name": "Lambda", "config": {"function": "..."}}'
FAULTS = {
    # wrong
    "nothing there": (lambda folder: None, "", "holds no checkpoint"),
    "no such path": (lambda folder: None, "nowhere", "does not exist"),
    "another network": (lambda f: write(f / NAME, {"dense/kernel": CONV}), "", "not of SimCLR: it holds dense/kernel"),
    "a name with a typing error": (lambda f: None, "simclrv2/pretrained/r50_1x_sk2", "Did you mean simclrv2/pretr"),
    "integers": (replaced(value=np.zeros(CONV.shape, np.int32)), "", f"{KERNEL} is not a floating-point array"),
    "not a number": (replaced(value=np.full_like(CONV, np.nan)), "", f"{KERNEL} holds infinite numbers or none"),
    "a zip of something else": (file("x.zip", zipped([("notes.txt", "hello")])), "x.zip", "holds no checkpoint"),
    "text": (file("x", b"hello, world"), "x", "its content is none of a checkpoint's"),
    "an empty file": (file("x", b""), "x", "it is empty"),
    "a SavedModel without variables": (file("saved_model.pb", b""), "", "without its variables/variables.index"),
    # truncated
    "half the data": (cut(DATA, 0.5), "", "is truncated: its data files hold"),
    "half the index": (cut(f"{NAME}.index", 0.5), "", f"{NAME}.index is damaged"),
    "an empty index": (cut(f"{NAME}.index", 0), "", "index is empty"),
    "no data": (lambda f: (write(f / NAME, WEIGHTS), (f / DATA).unlink()), "", f"missing beside its index: {DATA}"),
    "no index": (
        lambda f: (write(f / NAME, WEIGHTS), (f / f"{NAME}.index").unlink()), NAME, f"{NAME}.index is missing"),
    "half a zip": (truncated_zip, "v1.zip", "v1.zip"),
    "a flipped bit": (flipped, "", "is damaged at "),
    # renamed
    "a weight renamed": (replaced(name="base_model/convolution_5/kernel"), "", "lacks the convolutions conv2d_5"),
    "a weight missing": (replaced(value=None), "", "lacks the convolutions conv2d_5"),
    "a weight of another shape": (
        replaced(value=CONV[:1]), "", f"{KERNEL} is (1, 3, 16, 16) instead of (3, 3, 16, 16)"),
    "a weight too much": (
        lambda f: write(f / NAME, WEIGHTS | {"head_contrastive/nl_7/dense/kernel": np.zeros((2, 2), np.float32)}), "",
        "nl_7/dense/kernel is (2, 2) instead of"),
    # mixed up
    "data of another checkpoint": (data_of_another, "", "is damaged at "),
    "two checkpoints": (two_names, "", "holds several checkpoints (a, b) and nothing says which one is meant"),
    "a state file of another run": (stale_state, "", "names c, which is not there"),
    "shards of another": (other_shards, "", "data files of 1 and of 2 shards"),
    "a weight twice": (
        lambda f: write(f / NAME, WEIGHTS | {f"module/{KERNEL}": CONV}), "", f"are both {KERNEL}"),
    "a file twice in a zip": (file("x.zip", zipped([("a.index", "1"), ("a.index", "2")])), "x.zip", "'a.index' twice"),
    # malicious
    "a pickle": (file("x.pkl", lambda: pickle.dumps(Bomb())), "x.pkl", "it is a pickle, which can run code"),
    "a NumPy archive of pickles": (file("x.npz", npz), "x.npz", "which may hold pickled objects that run code"),
    "a torch file": (file("x.pt", zipped([("m/data.pkl", pickle.dumps(Bomb()))])), "x.pt", "it is a PyTorch file"),
    "a Lambda layer": (file("x.keras", zipped([("config.json", LAMBDA)])), "x.keras", "Lambda layer runs code"),
    "an HDF5 file": (file("x.h5", hdf5), "x.h5", "it is an HDF5 file"),
    "out of the folder": (file("x.zip", zipped([("../../was_here", "")])), "x.zip", "written outside the folder"),
    "an absolute path": (file("x.zip", zipped([("/tmp/was_here", "")])), "x.zip", "written outside the folder"),
    "a Windows path": (file("x.zip", zipped([("..\\was_here", "")])), "x.zip", "written outside the folder"),
    "a link in a zip": (file("x.zip", zip_link), "x.zip", "is a link or a device"),
    "a link in a tar": (file("x.tar", tar_of(type=tarfile.SYMTYPE, linkname="/etc")), "x.tar", "is a link or a device"),
    "a hard link": (file("x.tar", tar_of(type=tarfile.LNKTYPE, linkname="/etc/passwd")), "x.tar", "is a link"),
    "a device": (file("x.tar", tar_of(type=tarfile.FIFOTYPE)), "x.tar", "is a link or a device"),
    "a zip bomb": (file("x.zip", zipped([("a.index", bytes(200 << 20))])), "x.zip", "is unsafe: it declares"),
    "a tar that declares too much": (file("x.tar", tar_of(size=1 << 40)), "x.tar", "x.tar is"),
}


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Makes the fault in a folder below the working directory; returns the path to give, and the message's part."""
    monkeypatch.chdir(tmp_path)

    def given(fault):
        make, entry, cause = FAULTS[fault]
        (tmp_path / "given").mkdir()
        make(tmp_path / "given")
        return (entry if entry.startswith("simclr") else str(tmp_path / "given" / entry)), cause

    return given


@pytest.mark.fault("`--checkpoint` truncated, damaged, mixed up, renamed; pickle, object arrays, Lambda layer; archive "
                   "with `..`, absolute paths, links, devices, bombs", "exit 3 with the cause; nothing written or run")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_leaves_no_trace(tmp_path, given, fault):
    path, cause = given(fault)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=re.escape(cause)) as caught:
        released.load(path)
    assert path.rstrip("/") in str(caught.value) and caught.value.exit_code == 3
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fault", ["no such path", "not a number", "half the data", "a weight missing", "a pickle"])
def test_the_command_ends_with_exit_code_3(given, capfd, fault):
    path, cause = given(fault)
    code = cli.main(["--mode=train", "--train_mode=finetune", "--dataset=digits", "--image_size=40", "--train_steps=1",
                     "--train_batch_size=8", f"--checkpoint={path}", "--model_dir=run"])
    error = capfd.readouterr().err
    assert code == 3 and "Traceback" not in error
    assert cause in error[error.index("simclr-tf: "):]


def test_flags_that_contradict_the_checkpoint_are_listed_with_both_values(tmp_path, capfd):
    write(tmp_path / NAME, WEIGHTS)
    code = cli.main(["--train_mode=finetune", "--dataset=digits", "--image_size=32", "--resnet_depth=34",
                     "--width_multiplier=2", "--sk_ratio=0.0625", "--se_ratio=0.25", "--num_proj_layers=2",
                     "--proj_out_dim=64", f"--checkpoint={tmp_path}", f"--model_dir={tmp_path}/run"])
    error = capfd.readouterr().err
    assert code == 3
    for text in ("--resnet_depth=34, the checkpoint has 18", "--width_multiplier=2.0, the checkpoint has 0.25",
                 "--sk_ratio=0.0625, the checkpoint has 0", "--se_ratio=0.25, the checkpoint has 0",
                 "--num_proj_layers=2, the checkpoint has 3", "--proj_out_dim=64, the checkpoint has 128",
                 "--image_size=32, the checkpoint's stem is for images above 32 pixels"):
        assert text in error


def test_use_ema_where_there_is_none(tmp_path):
    write(tmp_path / NAME, WEIGHTS)
    with pytest.raises(CheckpointError, match=r"has no moving average \(ema_model/\) of \d+ of its weights"):
        released.load(tmp_path, use_ema=True)


def test_an_exported_saved_model_says_what_to_give_instead(tmp_path):
    key = "_model/encoder/_operations/1/_kernel/.ATTRIBUTES/VARIABLE_VALUE"
    write(tmp_path / "variables" / "variables", {key: CONV, "_CHECKPOINTABLE_OBJECT_GRAPH": b""})
    with pytest.raises(CheckpointError, match=re.escape("give the run's folder or checkpoint instead")):
        released.load(tmp_path)
