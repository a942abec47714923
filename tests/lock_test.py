"""One training a folder; what died holds nothing; evaluation and workers go past it."""

import os
import signal
import subprocess
import sys

import pytest

from simclr_tf import lock
from simclr_tf.errors import ConfigError

HOLD = """
import sys, time
from simclr_tf.lock import training_lock
with training_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_training_is_refused_and_told_who_holds_it(tmp_path):
    with lock.training_lock(str(tmp_path)):
        assert f"process {os.getpid()} on " in lock.holder(str(tmp_path))
        with pytest.raises(ConfigError, match=rf"process {os.getpid()} on .* is training in --model_dir="):
            with lock.training_lock(str(tmp_path)):
                pass
        with lock.training_lock(str(tmp_path), take=False):  # a worker
            pass
        with lock.training_lock(str(tmp_path / ".."), take=True):
            pass
    assert lock.holder(str(tmp_path)) is None
    with lock.training_lock(str(tmp_path)):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {process.pid} "):
            with lock.training_lock(str(tmp_path)):
                pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert (tmp_path / lock.NAME).exists()  # stale, and no matter
    with lock.training_lock(str(tmp_path)):
        pass
