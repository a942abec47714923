"""Downloads of released checkpoints, from a server in this process: by name, resumed, checked, without a network."""

import base64
import hashlib
import http.server
import json
import os
import pathlib
import re
import threading
import zipfile

import numpy as np
import pytest

from simclr_tf import catalog, cli, download, formats, released
from simclr_tf.architecture import variables
from simclr_tf.errors import CheckpointError
from tests.golden.fill import fill
from tests.golden.formats_test import write

NAME = "simclrv2/pretrained/r18_0.25x_sk0"  # not among the released, but as they are; small
TF1 = "/simclr-checkpoints/simclrv2/pretrained/r18_0.25x_sk0/model.ckpt-250228"
TF2 = "/simclr-checkpoints-tf2/simclrv2/pretrained/r18_0.25x_sk0/saved_model/variables/variables"


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> bytes) with ranges; breaks off after `stop_after` bytes of a body, if that is set."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.stop_after, self.md5 = {}, [], None, {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content, wanted = self.server.files.get(self.path), self.headers.get("Range")
        self.server.requests.append((self.path.rsplit("/", 1)[-1], wanted))
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if wanted and self.headers.get("If-Range") == tag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        if md5 := self.server.md5.get(self.path):
            self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={md5}")
        self.end_headers()
        self.wfile.write(content[start:][:self.server.stop_after])

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """TF1 checkpoint and hub module (which are alike) of a small network, and a zip of it."""
    model = next(m for m in small_models() if m.category == "pretrained")
    folder = tmp_path_factory.mktemp("served")
    prefix = folder / "model.ckpt-250228"
    write(prefix, {name: fill(name, shape) for name, shape in variables(model.architecture).items()})
    found = {suffix: pathlib.Path(f"{prefix}{suffix}").read_bytes() for suffix in (".data-00000-of-00001", ".index")}
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for suffix, content in found.items():
            archive.writestr(f"inside/model.ckpt-1{suffix}", content)
    return found | {"zip": (folder / "a.zip").read_bytes()}


def small_models():
    row = (18, 0.25, 0, 1.0, 2.0, 3.0, 4.0, 5.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "_V2", (row,))
        return tuple(catalog._v2())


@pytest.fixture
def server(monkeypatch, files):
    """A server of the small network's files, in the place of the authors' storage."""
    server = Server()
    monkeypatch.setattr(catalog, "HTTPS", server.url)
    monkeypatch.setattr(catalog, "table", small_models)
    monkeypatch.setattr(download, "_pause", lambda failures: None)
    server.files = {f"{TF1}{suffix}": content for suffix, content in files.items() if suffix != "zip"}
    yield server
    server.shutdown()
    server.server_close()


def data_file(folder):
    return folder / NAME / "model.ckpt-250228.data-00000-of-00001"


def assert_filled(model):
    kernel = model.resnet.layers[0].kernel.numpy()
    np.testing.assert_array_equal(kernel, fill("base_model/conv2d/kernel", kernel.shape))


@pytest.mark.parametrize("name", [NAME, f"gs:/{TF1.rsplit('/', 1)[0]}", f"gs:/{TF1.rsplit('/', 1)[0]}/"])
def test_by_name_or_the_authors_bucket_and_once(server, tmp_path, capfd, name):
    model = released.load(name, folder=tmp_path)
    assert_filled(model)
    assert (model.num_classes, model.architecture["depth"]) == (1000, 18)
    assert "100 %" in capfd.readouterr().err  # progress, on no terminal line by line
    recorded = json.loads((tmp_path / NAME / download.RECORD).read_text())
    content = server.files[TF1 + ".index"]
    assert recorded["model.ckpt-250228.index"] == dict(
        size=len(content), sha256=hashlib.sha256(content).hexdigest(), url=server.url + TF1 + ".index")
    asked = len(server.requests)
    assert_filled(released.load(name, folder=tmp_path))
    assert len(server.requests) == asked == 2
    assert not [p for p in os.listdir(tmp_path / NAME) if ".part" in p]


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(server, tmp_path, capfd):
    server.stop_after = half = len(server.files[TF1 + ".data-00000-of-00001"]) // 2 + 1
    assert_filled(released.load(NAME, folder=tmp_path))
    assert [r for r in server.requests if "data" in r[0]] == [
        (data_file(tmp_path).name, None), (data_file(tmp_path).name, f"bytes={half}-")]
    assert "going on after" in capfd.readouterr().err


@pytest.mark.parametrize("changed", [False, True])
def test_a_later_process_goes_on_unless_the_file_has_changed(server, tmp_path, monkeypatch, changed):
    key = TF1 + ".data-00000-of-00001"
    content = server.files[key]
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.stop_after, server.files[key] = 1000, content[:500] + b"?" * (len(content) - 500) if changed else content
    monkeypatch.setattr(download, "_patience", lambda error: 0)
    with pytest.raises(CheckpointError, match="Run again to go on where it stopped"):
        released.load(NAME, folder=tmp_path)
    assert not data_file(tmp_path).exists()
    server.stop_after, server.files[key] = None, content
    assert_filled(released.load(NAME, folder=tmp_path))
    assert data_file(tmp_path).read_bytes() == content
    assert "bytes=1000-" in [r[1] for r in server.requests]


@pytest.mark.fault("downloaded file with another checksum", "exit 3 naming the file")
@pytest.mark.parametrize("damage", ["one byte", "truncated"])
def test_files_are_checked_against_their_record(server, tmp_path, damage):
    released.load(NAME, folder=tmp_path)
    content = bytearray(data_file(tmp_path).read_bytes())
    content[1000] ^= 1
    data_file(tmp_path).write_bytes(content if damage == "one byte" else content[:-1])
    with pytest.raises(CheckpointError, match=r"is not what it was.*(SHA-256|bytes).*Delete it to download it again"):
        released.load(NAME, folder=tmp_path)
    data_file(tmp_path).unlink()
    assert_filled(released.load(NAME, folder=tmp_path))


@pytest.mark.fault("downloaded file with another checksum", "exit 3 naming the file")
def test_the_servers_md5_is_checked(server, tmp_path):
    server.md5[TF1 + ".index"] = base64.b64encode(b"0" * 16).decode()
    with pytest.raises(CheckpointError, match="arrived damaged"):
        released.load(NAME, folder=tmp_path)
    assert not (tmp_path / NAME / "model.ckpt-250228.index").exists()


def test_without_a_network_the_error_says_what_to_put_where(server, tmp_path, monkeypatch, capfd):
    server.shutdown()
    server.server_close()
    monkeypatch.chdir(tmp_path)
    code = cli.main(["--train_mode=finetune", "--dataset=digits", f"--checkpoint={NAME}", "--model_dir=run"])
    error = capfd.readouterr().err
    assert code == 3 and "Traceback" not in error
    for suffix in (".data-00000-of-00001", ".index"):
        assert f"{server.url}{TF1}{suffix}\n    -> checkpoints/{NAME}/model.ckpt-250228{suffix}" in error


def test_files_put_there_by_hand_need_no_network(server, tmp_path, files):
    (tmp_path / NAME / "hub" / "variables").mkdir(parents=True)
    for suffix in (".data-00000-of-00001", ".index"):
        (tmp_path / NAME / "hub" / "variables" / f"variables{suffix}").write_bytes(files[suffix])
    assert_filled(released.load(NAME, folder=tmp_path))
    assert not server.requests


def test_another_format_is_taken_where_one_is_not_there(server, tmp_path):
    server.files = {key.replace(TF1, TF2): content for key, content in server.files.items()}
    assert_filled(released.load(NAME, folder=tmp_path))
    assert (tmp_path / NAME / "saved_model" / "variables" / "variables.index").exists()
    server.files = {}
    with pytest.raises(CheckpointError, match=r"404|Not Found"):
        released.load("simclrv2/supervised/r18_0.25x_sk0", folder=tmp_path)


def test_the_wrong_network_under_a_released_name_is_an_error(server, tmp_path):
    wrong = next(m for m in small_models() if m.name == NAME)
    write(data_file(tmp_path).with_name("model.ckpt-250228"), {
        name: np.zeros(shape, np.float32) for name, shape in variables(
            wrong.architecture.__class__(34, 0.25, num_classes=1000)).items()})
    with pytest.raises(CheckpointError, match=r"mixed up: it holds ResNet-34 .* but simclrv2/.* is ResNet-18"):
        released.load(NAME, folder=tmp_path)


@pytest.mark.parametrize(("path", "served"), [
    ("/some/a.zip", {"/some/a.zip": "zip"}),
    ("/run/ckpt-3", {"/run/ckpt-3.index": ".index", "/run/ckpt-3.data-00000-of-00001": ".data-00000-of-00001"}),
    ("/hub/7/", {"/hub/7/variables/variables.index": ".index",
                 "/hub/7/variables/variables.data-00000-of-00001": ".data-00000-of-00001"}),
])
def test_a_url(server, tmp_path, files, path, served):
    server.files = {key: files[value] for key, value in served.items()}
    assert_filled(released.load(server.url + path, folder=tmp_path))
    assert released.locate(server.url + path, folder=tmp_path).startswith(f"{tmp_path}/127.0.0.1_")


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://127.0.0.1/../../etc/x", "https:///x"])
def test_a_url_that_names_no_file_is_an_error(tmp_path, url):
    with pytest.raises(CheckpointError, match="names no file"):
        released.load(url, folder=tmp_path)


def test_a_distilled_model_is_what_its_folder_says(monkeypatch, tmp_path):
    """Their steps are not published: the `checkpoint` file there is asked."""
    server = Server()
    monkeypatch.setattr(catalog, "HTTPS", server.url)
    source = next(m for m in catalog._distilled()).sources[0]
    server.files[source.state.removeprefix(server.url)] = b'model_checkpoint_path: "gs://x/model.ckpt-123"\n'
    fetched = {}
    fetch = download.fetch
    monkeypatch.setattr(download, "fetch", lambda folder, files: (
        fetch(folder, files) if "checkpoint" in files else fetched.update(files)))
    monkeypatch.setattr(catalog, "table", lambda: tuple(catalog._distilled()))
    path = released.locate("simclrv2/distill_1pct/r50_1x_sk0", folder=tmp_path)
    assert path.endswith("model.ckpt-123.index") and list(fetched) == [
        "model.ckpt-123.data-00000-of-00001", "model.ckpt-123.index"]
    server.shutdown()
    server.server_close()


def test_gs_paths_that_are_not_the_authors_are_read_where_they_are(monkeypatch, tmp_path):
    assert released.locate("gs://mine/run", folder=tmp_path) == "gs://mine/run"
    assert os.listdir(tmp_path) == []


def test_remote_folders_are_read_without_a_copy(tmp_path, files):
    """`ram://` is a file system of TensorFlow's that is no local one, as `gs://` is."""
    import tensorflow as tf

    tf.io.gfile.makedirs("ram://run")
    for suffix in (".data-00000-of-00001", ".index"):
        with tf.io.gfile.GFile(f"ram://run/model.ckpt-5{suffix}", "wb") as file:
            file.write(files[suffix])
    assert formats.find_prefix("ram://run") == "ram://run/model.ckpt-5"
    assert_filled(released.load("ram://run", folder=tmp_path))
