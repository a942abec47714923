"""Images, folders, batches and numbers that are wrong: exit 2 or 4 and the cause, or trained on as documented."""

import io
import json
import os
import shutil
import signal
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from simclr_tf import checkpoint, data, strategy, tfds_source
from simclr_tf.summaries import Summaries, read_history
from tests.tfds_source_test import tiny  # noqa: F401  (a fixture)

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def huge_png():
    """30,000 x 30,000 pixels according to its header, and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + bytes(64)


def huge_jpeg():
    """The same of a JPEG."""
    content = encoded(PHOTO, "JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", 30000, 30000) + content[at + 4:]


BAD = {
    "truncated.jpg": encoded(PHOTO, "JPEG")[:400], "truncated.png": encoded(PHOTO, "PNG")[:400], "empty.jpg": b"",
    "text.jpg": b"this is a text", "huge.png": huge_png(), "huge.jpg": huge_jpeg(),
    "zeros.png": bytes(1000), "header.jpg": b"\xff\xd8\xff",
}
ODD = {
    "cmyk.jpg": encoded(PHOTO.convert("CMYK"), "JPEG"), "one.png": encoded(PHOTO.resize((1, 1)), "PNG"),
    "animated.gif": encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)]),
    "long.png": encoded(PHOTO.resize((5000, 1)), "PNG"), "high.jpg": encoded(PHOTO.resize((1, 5000)), "JPEG"),
    "gray.png": encoded(PHOTO.convert("L"), "PNG"), "alpha.png": encoded(PHOTO.convert("RGBA"), "PNG"),
}


def fill(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return f"--dataset=folder:{folder}"


# --- Images ----------------------------------------------------------------------------------------------------------
@pytest.mark.fault("image truncated, empty, text named .jpg, zeros, header of 30,000 x 30,000 pixels",
                   "exit 2 naming file and reason; `--max_bad_images` skips, counts and names it")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named(tmp_path, few, command, name):
    flag = fill(tmp_path / "images", {"good.png": encoded(PHOTO, "PNG"), name: BAD[name]})
    config = data.Config.from_flags([*few, flag, "--train_split=train+test"])
    feed = data.Feed.training(data.open_training_source(config), config)
    with pytest.raises(data.DataError, match=rf"1 unreadable images, --max_bad_images=0 .*\n.*{name}: .+"):
        next(iter(feed))


@pytest.mark.fault("image truncated, empty, text named .jpg, zeros, header of 30,000 x 30,000 pixels",
                   "exit 2 naming file and reason; `--max_bad_images` skips, counts and names it")
def test_bad_images_end_the_run_or_are_skipped(tmp_path, few, command, record_property):
    flag = fill(tmp_path / "images", BAD | {f"good{i}.png": encoded(PHOTO, "PNG") for i in range(3)})
    flags = [*few, flag, "--train_split=train+test", "--train_batch_size=16", "--train_steps=2"]
    code, said = command(*flags, f"--model_dir={tmp_path / 'stop'}")
    assert code == 2 and all(f"{name}: " in said for name in BAD)
    code, said = command(*flags, f"--max_bad_images={len(BAD)}", f"--model_dir={tmp_path / 'skip'}")
    assert code == 0 and said.count("Skipping unreadable image") >= len(BAD)
    record_property("tried", 2 * len(BAD))


@pytest.mark.fault("image CMYK, animated, gray, with alpha, 1x1, 1x5000", "trained on: decoded as documented")
def test_odd_images_are_trained_on(tmp_path, few, command, record_property):
    flag = fill(tmp_path / "images", ODD)
    code, said = command(*few, flag, "--train_split=train+test", "--train_steps=1", f"--model_dir={tmp_path / 'run'}")
    assert code == 0 and "unreadable" not in said
    assert np.isfinite(read_history(tmp_path / "run")[0]["train/total_loss"])
    record_property("tried", len(ODD))


# --- Folders, splits, batches ----------------------------------------------------------------------------------------
@pytest.mark.fault("empty class folder, data set, split; no such split or data set", "exit 2 naming it")
@pytest.mark.parametrize("case", ["class", "set", "split", "no split", "no set", "no name", "a file"])
def test_nothing_there(tmp_path, few, command, case):
    root = tmp_path / "images"
    flags = {"split": ["--train_split=train[:0]"], "no split": ["--train_split=holdout"],
             "no set": ["--dataset=folder:/nowhere"], "no name": ["--dataset=no_such_set"]}.get(case, [])
    words = {"class": "cats", "split": "empty", "no split": "holdout", "no set": "/nowhere", "no name": "no_such_set",
             "a file": "is a file"}.get(case, "holds no images")
    if case == "class":
        fill(root / "dogs", {"a.png": encoded(PHOTO, "PNG")})
        (root / "cats").mkdir()
    elif case == "a file":
        root.write_text("")
    else:
        root.mkdir()
    if not flags:
        flags = [f"--dataset=folder:{root}"]
    code, said = command(*few, *flags, f"--model_dir={tmp_path / 'run'}")
    assert code == 2 and words in said


def cut_after(records, content):
    """The first `records` of a file of TFRecords: whole ones, so that nothing in the file tells of the rest."""
    at = 0
    for _ in range(records):
        at += 8 + 4 + struct.unpack_from("<Q", content, at)[0] + 4  # length, its checksum, data, their checksum
    return content[:at]


RECORDS = {
    "truncated": lambda content: content[: len(content) // 2], "empty": lambda content: b"",
    "whole records missing": lambda content: cut_after(5, content),
    "bit flipped": lambda content: content[:700] + bytes([content[700] ^ 1]) + content[701:], "deleted": None,
}


@pytest.mark.fault("file of records of a TFDS data set truncated, emptied, a bit flipped, deleted", "exit 2 naming it")
@pytest.mark.parametrize("held", [True, False], ids=["held", "streamed"])
@pytest.mark.parametrize("fault", RECORDS)
def test_damaged_records(tmp_path, few, command, tiny, monkeypatch, fault, held):  # noqa: F811
    shutil.copytree(tiny, tmp_path / "sets")
    path = sorted((tmp_path / "sets").rglob("*train*00002-of*"))[0]
    change = RECORDS[fault]
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    monkeypatch.setattr(tfds_source, "HOLD_BYTES", 1 << 30 if held else 0)
    code, said = command(*few, "--dataset=tiny_set", f"--data_dir={tmp_path / 'sets'}", "--train_steps=20",
                         "--train_batch_size=8", "--image_size=8", f"--model_dir={tmp_path / 'run'}")
    assert code == 2 and "tiny_set: the records cannot be read; prepare the data set anew" in said, said
    assert path.name in said


@pytest.mark.fault("data set smaller than the batch; identical images", "trains to the end; finite loss")
@pytest.mark.parametrize("flags", [["--train_split=train[:3]"], ["--dataset=folder:same"]], ids=["small", "identical"])
def test_little_to_learn_from_ends(tmp_path, few, command, flags, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "same", {f"{i}.png": encoded(Image.new("RGB", (8, 8)), "PNG") for i in range(9)})
    code, _ = command(*few, *flags, "--train_steps=2", f"--model_dir={tmp_path / 'run'}")
    assert code == 0
    assert all(np.isfinite(line["train/total_loss"]) for line in read_history(tmp_path / "run"))


@pytest.mark.fault("batch of 1 while pretraining", "exit 2: it has no negatives")
def test_a_batch_of_one_has_no_negatives(tmp_path, few, command):
    code, said = command(*few, "--train_batch_size=1", f"--model_dir={tmp_path / 'run'}")
    assert code == 2 and "none to differ from" in said


@pytest.mark.fault("batch not divisible by the replicas", "exit 2, with a number that is")
def test_a_batch_that_does_not_divide(tmp_path, few, command, monkeypatch):
    monkeypatch.setattr(strategy, "_names", lambda kind: ["CPU:0", "CPU:1"] if kind == "CPU" else [])
    code, said = command(*few, "--strategy=mirrored", "--train_batch_size=7", f"--model_dir={tmp_path / 'run'}")
    assert code == 2 and "--train_batch_size must be a multiple of the number of replicas, 2" in said


# --- Numbers ---------------------------------------------------------------------------------------------------------
@pytest.mark.fault("learning rate 1e20, 1e40",
                   "exit 4, step and last good checkpoint; no checkpoint of infinite weights")
@pytest.mark.parametrize(("rate", "steps"), [("1e20", 9), ("1e40", 1)])
def test_an_absurd_learning_rate(tmp_path, few, command, rate, steps):
    code, said = command(*few, f"--learning_rate={rate}", f"--train_steps={steps}", "--checkpoint_steps=9",
                         f"--model_dir={tmp_path}")
    assert code == 4 and "checkpoint" in said
    assert checkpoint.latest(str(tmp_path)) is None


@pytest.mark.fault("NaN in a batch",
                   "exit 4: step, last good checkpoint, ids of the batch; `--nan_policy=skip` goes on")
def test_nan_in_a_batch(tmp_path, few, command, monkeypatch):
    batches = data.train_batches

    def poisoned(source, config, start_step, **options):
        def spoil(i, batch):
            images = batch["images"]
            return batch | {"images": images * np.nan if i + start_step == 1 else images}

        return batches(source, config, start_step, **options).enumerate().map(spoil)

    monkeypatch.setattr(data, "train_batches", poisoned)
    flags = [*few, "--train_steps=3", "--checkpoint_steps=1", f"--model_dir={tmp_path}"]
    code, said = command(*flags)
    assert code == 4 and "Step 2: " in said and "ckpt-1" in said
    assert len(json.loads((tmp_path / "nonfinite_2.json").read_text())["examples"]) == 8
    code, said = command(*flags, "--nan_policy=skip")
    assert code == 0 and checkpoint.latest(str(tmp_path)).endswith("ckpt-3")


# --- Signals ---------------------------------------------------------------------------------------------------------
@pytest.mark.fault("SIGTERM, SIGINT", "finishes the step, saves; exit 143, 130; the same command goes on")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, few, command, monkeypatch, number, expected):
    scalars = Summaries.scalars

    def signalled(self, step, values):
        scalars(self, step, values)
        if step == 2:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    monkeypatch.setattr(Summaries, "scalars", signalled)
    before = signal.getsignal(number)
    flags = [*few, "--train_steps=5", "--checkpoint_steps=9", f"--model_dir={tmp_path}"]
    code, said = command(*flags)
    assert code == expected and "saved a checkpoint at step 3 of 5" in said
    assert checkpoint.latest(str(tmp_path)).endswith("ckpt-3")
    assert signal.getsignal(number) is before


# --- Flags and devices -----------------------------------------------------------------------------------------------
@pytest.mark.fault("temperature 0, NaN, infinite; unknown flag; missing, circular or binary flagfile; "
                   "`--use_tpu False`; a TPU or GPU that is not there", "exit 2: rule, value, fix")
@pytest.mark.parametrize(("argv", "words"), [
    (["--temperature=0"], "--temperature must be above 0"), (["--temperature=nan"], "finite"),
    (["--temperature=inf"], "finite"), (["--no_such_flag=1"], "no_such_flag"), (["--seed=x"], "seed"),
    (["--train_batch_size=0"], "at least 1"), (["--flagfile=/nowhere.flags"], "/nowhere.flags"),
    (["--flagfile=circle.flags"], "must not include itself"), (["--flagfile=binary.flags"], "readable text"),
    (["--flagfile"], "needs a path"), (["--use_tpu", "False"], "--use_tpu=False"), (["--use_tpu=True"], "TPU"),
    (["--strategy=gpu"], "GPU"), (["--strategy=tpu"], "TPU"), (["--strategy=multi_worker"], "TF_CONFIG"),
])
def test_flags_and_devices(tmp_path, few, command, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle.flags").write_text("--flagfile=circle2.flags\n")
    (tmp_path / "circle2.flags").write_text("--flagfile=circle.flags\n")
    (tmp_path / "binary.flags").write_bytes(b"\xff\xfe\0--seed=1")
    code, said = command(*few, f"--model_dir={tmp_path / 'run'}", *argv)
    assert code == 2 and words in said


@pytest.mark.fault("flagfile with indented comments, blank lines, DOS line ends", "read as meant")
def test_a_flagfile_of_odd_looks(tmp_path, few, command):
    (tmp_path / "odd.flags").write_bytes(b"  # indented\r\n\r\n\t// another\r\n  --seed=3\r\n")
    config = data.Config.from_flags([*few, f"--flagfile={tmp_path / 'odd.flags'}"])
    assert config.seed == 3
