"""Downloads files over https: resumable, complete or not there at all, and checked again whenever they are used.

A folder's `download.json` records the size and SHA-256 that each file had when it first arrived. Files that a user
put there by hand are recorded when they are first seen.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from simclr_tf.errors import CheckpointError, StorageError

try:
    import fcntl
except ImportError:  # Windows: two processes downloading at once are not kept apart there
    fcntl = None

RECORD = "download.json"
ATTEMPTS = 5  # in a row without a single byte
TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_verified: set[tuple] = set()  # files that this process has found to be as recorded: a run asks several times


def fetch(folder: str, files: dict[str, str]) -> None:
    """Sees to it that `folder` holds `files` (name below the folder -> URL), unchanged since they first arrived.

    A transfer that broke off, here or in an earlier process, goes on where it stopped. The files are fetched in
    order; each is complete once it has its name.

    Raises:
      CheckpointError: a file cannot be had (the message says what to fetch from where and where to put it), or is not
        what was recorded.
      StorageError: the folder cannot be written or the disk is full.
    """
    with _storage(folder):
        os.makedirs(folder, exist_ok=True)
    with _lock(folder):
        record = _read_record(folder)
        for name, url in files.items():
            path = os.path.join(folder, name)
            if not os.path.exists(path):
                try:
                    _download(url, path)
                except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                    raise CheckpointError(_by_hand(folder, files, url, error)) from error
            _check(path, name, url, record)
            _write_record(folder, record)


def _by_hand(folder: str, files: dict[str, str], url: str, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    absent = {name: u for name, u in files.items() if not os.path.exists(os.path.join(folder, name))}
    rows = "\n".join(f"  {u}\n    -> {os.path.join(folder, name)}" for name, u in absent.items())
    return f"{url} cannot be downloaded: {reason}. Run again to go on where it stopped, or fetch by hand:\n{rows}"


# --- The record --------------------------------------------------------------------------------------------------


def _read_record(folder: str) -> dict[str, dict]:
    path = os.path.join(folder, RECORD)
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        return {str(name): dict(size=int(row["size"]), sha256=str(row["sha256"]), url=str(row["url"]))
                for name, row in record.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}, the record of what was downloaded, is damaged: {error}. Delete it to record the files as they "
            "are now, or delete the files as well to download them again."
        ) from error


def _write_record(folder: str, record: dict[str, dict]) -> None:
    path = os.path.join(folder, RECORD)
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    with _storage(folder):
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                if file.read() == text:
                    return
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(path + ".new", path)


def _check(path: str, name: str, url: str, record: dict[str, dict]) -> None:
    """Compares the file with its row in `record`, or adds the row."""
    size = os.path.getsize(path)
    known = record.get(name)
    if known is None:
        if size == 0:
            raise CheckpointError(f"{path} is empty. Delete it to download it again from {url}.")
        record[name] = dict(size=size, sha256=_digest(path, "sha256").hexdigest(), url=url)
        return
    state = (os.path.abspath(path), size, os.stat(path).st_mtime_ns, known["sha256"])
    if size != known["size"]:
        found = f"it has {size} bytes, and had {known['size']}"
    elif state in _verified:
        return
    elif (sha256 := _digest(path, "sha256").hexdigest()) != known["sha256"]:
        found = f"its SHA-256 is {sha256}, and was {known['sha256']}"
    else:
        _verified.add(state)
        return
    raise CheckpointError(
        f"{path} is not what it was when it was recorded in {RECORD}: {found}. Delete it to download it again from "
        f"{url}."
    )


def _digest(path: str, algorithm: str):
    with _storage(path), open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm)


# --- One file ----------------------------------------------------------------------------------------------------


def _download(url: str, path: str) -> None:
    """Fetches `url` into `path` by way of `path`.part, with several attempts that each go on where the last stopped."""
    if not url.startswith(("https://", "http://")):
        raise CheckpointError(f"{url} is not downloaded: only http and https are.")
    part = path + ".part"
    with _storage(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    failures = 0
    while True:
        before = os.path.getsize(part) if os.path.exists(part) else 0
        try:
            md5 = _transfer(url, part)
            break
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            progressed = os.path.exists(part) and os.path.getsize(part) > before
            failures = 0 if progressed else failures + 1
            if failures >= _patience(error):
                raise
            _pause(failures)
    if md5 and _digest(part, "md5").digest() != md5:
        _forget(part)
        raise CheckpointError(f"{url} arrived damaged: its MD5 is not the one the server gives. Run again to repeat.")
    with _storage(path):
        os.replace(part, path)
        _forget(part)


def _patience(error: Exception) -> int:
    """How many failures of this kind in a row are enough."""
    if isinstance(error, urllib.error.HTTPError):
        return ATTEMPTS if error.code >= 500 or error.code in (408, 429) else 1
    return 1 if isinstance(error, urllib.error.URLError) else ATTEMPTS  # no such host, no route, refused


def _pause(failures: int) -> None:
    time.sleep(min(30, 2**failures))


def _transfer(url: str, part: str) -> bytes | None:
    """Appends to `part` what it lacks of `url`; returns the MD5 the server gives, if any.

    The server's validator of the file is kept beside `part`: bytes of two versions are never joined.
    """
    validator = _read_validator(part)
    offset = os.path.getsize(part) if validator and os.path.exists(part) else 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", validator)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:
            raise
        _forget(part)  # nothing lies behind our part, so it is not a part of this file
        raise ConnectionError(str(error)) from error
    with response:
        if response.status != 206:
            offset = 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length and length.isdigit() else None
        mode = "ab" if offset else "wb"
        progress = _Progress(os.path.basename(part).removesuffix(".part"), offset, total)
        with _storage(part):
            sink = open(part, mode)
        with sink:
            _write_validator(part, response.headers)
            received = offset
            while chunk := response.read(_CHUNK):
                with _storage(part):
                    sink.write(chunk)
                received += len(chunk)
                progress.show(received)
        progress.end(received)
        if total is not None and received != total:
            raise ConnectionError(f"the connection ended after {received} of {total} bytes")
        return _server_md5(response.headers)


def _server_md5(headers) -> bytes | None:
    """The MD5 that Google Cloud Storage sends with a file."""
    for header in headers.get_all("x-goog-hash") or []:
        for item in header.split(","):
            kind, _, value = item.strip().partition("=")
            if kind == "md5":
                return base64.b64decode(value)
    return None


def _read_validator(part: str) -> str | None:
    try:
        with open(part + ".validator", encoding="ascii") as file:
            return file.read().strip() or None
    except (OSError, ValueError):
        return None


def _write_validator(part: str, headers) -> None:
    tag = headers.get("ETag", "")
    value = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    with _storage(part), open(part + ".validator", "w", encoding="ascii", errors="ignore") as file:
        file.write(value)


def _forget(part: str) -> None:
    for path in (part, part + ".validator"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


# --- The disk and the terminal -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _storage(path: str) -> Iterator[None]:
    """Errors inside are about storage, not about the network."""
    try:
        yield
    except OSError as error:
        reason = "the storage is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise StorageError(f"Could not read or write {path}: {reason}.") from error


@contextlib.contextmanager
def _lock(folder: str) -> Iterator[None]:
    """Lets one process at a time fetch into `folder`; the others then find the files there."""
    with _storage(folder):
        file = open(os.path.join(folder, ".lock"), "w")
    with file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Progress:
    """How far a transfer is: one line that rewrites itself on a terminal, else a line for every tenth."""

    def __init__(self, name: str, offset: int, total: int | None):
        self.name, self.offset, self.total = name, offset, total
        self.started = self.shown = time.monotonic()
        self.tenth = 0
        self.terminal = sys.stderr.isatty()
        if offset:
            print(f"{name}: going on after {offset / 1e6:.1f} MB", file=sys.stderr)

    def text(self, received: int) -> str:
        rate = (received - self.offset) / max(time.monotonic() - self.started, 1e-3)
        line = f"{self.name}: {received / 1e6:.1f}"
        if self.total:
            minutes, seconds = divmod(int((self.total - received) / max(rate, 1)), 60)
            line += f" of {self.total / 1e6:.1f} MB, {100 * received // self.total} %, {minutes}:{seconds:02d} left"
        else:
            line += " MB"
        return f"{line}, {rate / 1e6:.1f} MB/s"

    def show(self, received: int) -> None:
        now = time.monotonic()
        if self.terminal:
            if now - self.shown >= 0.2:
                self.shown = now
                print(f"\r{self.text(received)}\033[K", end="", file=sys.stderr, flush=True)
        elif self.total and 10 * received // self.total > self.tenth:
            self.tenth = 10 * received // self.total
            print(self.text(received), file=sys.stderr, flush=True)

    def end(self, received: int) -> None:
        if self.terminal:
            print(f"\r{self.text(received)}\033[K", file=sys.stderr, flush=True)
