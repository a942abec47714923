"""Unpacking an archive of a checkpoint without trusting it.

Nothing is written outside the target folder, links are not followed, and what comes out is bounded: by the sizes the
archive declares, which must be believable, and by what really arrives.
"""

from __future__ import annotations

import errno
import os
import pathlib
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

from simclr_tf.errors import CheckpointError, StorageError

# Weights hardly compress; the all-zero optimizer slots of a fresh run do, but are a part of the whole.
MAX_EXPANSION = 50
MAX_BYTES = 64 * 2**30
MAX_MEMBERS = 10_000
_CHUNK = 1 << 20
_CHECKPOINT_FILES = re.compile(r"(.*\.index|.*\.data-\d{5}-of-\d{5}|checkpoint|tfhub_module\.pb)")
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def is_archive(path: str) -> bool:
    """Whether the local file at `path` is a zip or tar archive."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack(archive: str, folder: str) -> None:
    """Writes the checkpoint's files that are in a zip or (compressed) tar archive into the new folder `folder`.

    Files that are no part of a checkpoint's weights are left out.

    Raises:
      CheckpointError: the archive is damaged, or a member has an absolute path or `..`, is a link or a device, or
        is larger than the archive can plausibly hold. `folder` is removed then.
      StorageError: it cannot be written.
    """
    root = pathlib.Path(folder).resolve()
    try:
        root.mkdir(parents=True)
    except OSError as error:
        raise _storage_error(error, folder) from error
    try:
        limit = min(MAX_BYTES, MAX_EXPANSION * os.path.getsize(archive) + _CHUNK)
        try:
            members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
            _write(archive, members(archive), root, limit)
        except _DAMAGED as error:
            raise CheckpointError(f"{archive} is damaged: {error or type(error).__name__}.") from error
    except BaseException as error:
        shutil.rmtree(root, ignore_errors=True)
        if isinstance(error, OSError):
            raise _storage_error(error, folder) from error
        raise


def _storage_error(error: OSError, folder: str) -> StorageError:
    why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
    return StorageError(f"Cannot write to {folder}: {why}.")


# A member: its name, declared size in bytes, whether it is a regular file, and how to open it.
Member = tuple[str, int, bool, Callable]


def _zip_members(path: str) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if not info.is_dir():
                regular = kind in (0, stat.S_IFREG)
                yield info.filename, info.file_size, regular, lambda info=info: archive.open(info)


def _tar_members(path: str) -> Iterator[Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            if not info.isdir():
                yield info.name, info.size, info.isreg(), lambda info=info: archive.extractfile(info)


def _write(archive: str, members: Iterator[Member], root: pathlib.Path, limit: int) -> None:
    total = written = 0
    for count, (name, size, regular, open_member) in enumerate(members, start=1):
        target = _safe_target(archive, name, root)
        if not regular:
            raise CheckpointError(f"{archive} is unsafe: {name!r} is a link or a device, not a file.")
        total += size
        if total > limit or count > MAX_MEMBERS:
            raise CheckpointError(
                f"{archive} is unsafe: it declares {total} bytes in {count} files, more than the {limit} bytes in "
                f"{MAX_MEMBERS} files that an archive of {os.path.getsize(archive)} bytes may hold."
            )
        if not _CHECKPOINT_FILES.fullmatch(target.name):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_member() as source, open(target, "xb") as sink:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > total:
                    raise CheckpointError(f"{archive} is unsafe: {name!r} is larger than the {size} bytes it declares.")
                sink.write(chunk)
        if target.stat().st_size != size:
            raise CheckpointError(f"{archive} is damaged: {name!r} holds {target.stat().st_size} of {size} bytes.")


def _safe_target(archive: str, name: str, root: pathlib.Path) -> pathlib.Path:
    """Where the member `name` goes; CheckpointError if that is not below `root`."""
    parts = pathlib.PurePosixPath(name).parts
    unsafe = name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or re.match(r"[A-Za-z]:", name)
    target = root.joinpath(*parts) if not unsafe else root
    if unsafe or not target.resolve().is_relative_to(root):
        raise CheckpointError(f"{archive} is unsafe: {name!r} would be written outside the folder it is unpacked in.")
    if target.exists():
        raise CheckpointError(f"{archive} is mixed up: it, or the folder it is unpacked in, has {name!r} twice.")
    return target
