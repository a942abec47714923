"""One training at a time in a run's folder.

The kernel holds the lock (`flock`), not the file: it ends with its process however that dies, so that nothing stale is
left to remove by hand. Only who writes checkpoints takes it: evaluation, and the workers beside a chief, do not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator

from simclr_tf.errors import ConfigError

log = logging.getLogger(__name__)

NAME = ".training.lock"


@contextlib.contextmanager
def training_lock(model_dir: str, take: bool = True) -> Iterator[None]:
    """Holds the lock of `model_dir` while the block runs.

    Args:
      take: False, of a worker that is not the chief, does nothing.

    Raises:
      ConfigError: another training holds it; the message names its process.
    """
    if not take or "://" in model_dir:  # a remote store has no locks: docs/reliability.md says what that means
        yield
        return
    try:
        descriptor = os.open(os.path.join(model_dir, NAME), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:  # a folder that cannot be written fails at the first thing written, with its reason
        log.info("No lock in %s (%s): see to it that no other training uses it", model_dir, error.strerror)
        yield
        return
    try:
        if _lock(descriptor, model_dir):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(model_dir: str) -> str | None:
    """Who trains in `model_dir` now, for people; None if nobody does or it cannot be known."""
    try:
        descriptor = os.open(os.path.join(model_dir, NAME), os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except OSError as error:
        return _who(descriptor) if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, model_dir: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # a file system without locks
            log.info("No lock in %s (%s): see to it that no other training uses it", model_dir, error.strerror)
            return False
        raise ConfigError(
            f"Two trainings must not share a folder: {_who(descriptor)} is training in --model_dir={model_dir}. Wait "
            "for it, stop it, or use another --model_dir."
        ) from None


def _myself() -> dict:
    return dict(pid=os.getpid(), host=socket.gethostname(), since=time.strftime("%Y-%m-%d %H:%M:%S"))


def _who(descriptor: int) -> str:
    try:
        who = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {who['pid']} on {who['host']} (since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
