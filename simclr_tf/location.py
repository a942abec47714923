"""Where a checkpoint is: a path, a released model's name or a URL, and the local path that it comes to."""

from __future__ import annotations

import logging
import os
import re
import urllib.error
import urllib.parse

import tensorflow as tf

from simclr_tf import catalog, download, formats
from simclr_tf.catalog import Released, Source
from simclr_tf.errors import CheckpointError

log = logging.getLogger(__name__)

FOLDER = "checkpoints"  # where released models are put or downloaded, below the working directory
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


def locate(name_or_path: str | os.PathLike, *, folder: str = FOLDER) -> str:
    """A path that `formats.open_checkpoint` takes; what is not here yet is downloaded.

    Args:
      name_or_path: an existing path (first choice), the name of a released model, a `gs://` path, or an https URL of
        an archive, of a checkpoint's prefix, or (with a final slash) of a SavedModel's or hub module's folder. What
        lies in the authors' buckets is downloaded like a name; other `gs://` paths are read where they are.
      folder: where downloads go: `<folder>/<name>` or `<folder>/<host>/<path>`.

    Raises:
      CheckpointError: there is no such thing, or it cannot be downloaded: what to fetch and where to put it is said.
      StorageError: it cannot be written.
    """
    path = os.fspath(name_or_path)
    if path.startswith(catalog.BUCKETS):
        if found := catalog.find_source(path):
            released, source = found
            return _from_release(released, (source,), os.path.join(folder, released.name))
        path = path.replace("gs:/", catalog.HTTPS, 1)
    if path.startswith(("https://", "http://")):
        return _from_url(path, folder)
    if "://" in path or tf.io.gfile.exists(path) or tf.io.gfile.exists(path + ".index"):
        return path
    if released := catalog.find(path):
        return _from_release(released, released.sources, os.path.join(folder, released.name))
    if path.startswith(("simclrv1/", "simclrv2/")):
        raise catalog.no_such_model(path)
    return path  # open_checkpoint says what is wrong with it


def _from_release(released: Released, sources: tuple[Source, ...], folder: str) -> str:
    """The path of the released model in `folder`, in whichever of the formats is there; downloaded otherwise."""
    for source in sources:
        if source.files and all(os.path.exists(os.path.join(folder, name)) for name in source.files):
            download.fetch(folder, source.files)
            return _entry(folder, source.files)
    if os.path.isdir(folder):
        try:
            found = formats.find_prefix(folder)
        except CheckpointError:
            log.debug("%s holds no complete checkpoint", folder)
        else:
            index = os.path.relpath(f"{found}.index", folder)
            incomplete = [source for source in sources if index in source.files]
            if not incomplete:
                return found  # put there by hand, in a layout of its own
            sources = tuple(incomplete)
    log.info("Downloading %s", released.name)
    first = None
    for source in sources:
        log.info("%s: %s", source.format, source.url)
        try:
            files = source.files or _stated_files(source.state, folder)
            download.fetch(folder, files)
            return _entry(folder, files)
        except CheckpointError as error:
            first = first or error
            if not _not_there(error):
                break
    raise first


def _not_there(error: CheckpointError) -> bool:
    """Whether the server was reached and has no such file, so that another format is worth a try."""
    cause = error.__cause__
    return isinstance(cause, urllib.error.HTTPError) and cause.code in (403, 404, 410)


def _entry(folder: str, files: dict[str, str]) -> str:
    """The path that stands for the downloaded `files`: their index, or the archive."""
    return os.path.join(folder, list(files)[-1])


def _stated_files(state_url: str, folder: str) -> dict[str, str]:
    """Files of the checkpoint that the `checkpoint` file at `state_url` names."""
    download.fetch(folder, {"checkpoint": state_url})
    path = os.path.join(folder, "checkpoint")
    with open(path, encoding="utf-8", errors="replace") as file:
        match = re.search(r'^model_checkpoint_path: "(?:.*/)?([\w.-]+)"', file.read(1 << 16), re.MULTILINE)
    if not match:
        raise CheckpointError(f"{path}, from {state_url}, names no checkpoint. Delete it to download it again.")
    return catalog.files_of(f"{state_url.rsplit('/', 1)[0]}/{match[1]}")


def _from_url(url: str, folder: str) -> str:
    parts = urllib.parse.urlsplit(url)
    segments = [segment for segment in parts.path.split("/") if segment]
    if not parts.netloc or not segments or ".." in segments:
        raise CheckpointError(f"{url} names no file to download.")
    host = re.sub(r"[^\w.-]", "_", parts.netloc)
    if parts.path.endswith("/"):
        url, segments = f"{url}variables/variables", [*segments, "variables", "variables"]
    target = os.path.join(folder, host, *segments[:-1])
    name = segments[-1]
    files = {name: url} if name.endswith(_ARCHIVES) else catalog.files_of(url.removesuffix(".index"))
    download.fetch(target, files)
    return _entry(target, files)
