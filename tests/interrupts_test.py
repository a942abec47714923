"""Signals within a run of a study: remembered by both, whichever of them it came to."""

import os
import signal
import time

import pytest

from simclr_tf.errors import Interrupted
from simclr_tf.interrupts import Interrupts


def send(number, to):
    os.kill(os.getpid(), number)
    until = time.monotonic() + 10
    while to.signal is None and time.monotonic() < until:
        time.sleep(0.01)


def test_a_signal_between_two_runs_stops_the_next_one():
    with Interrupts() as study:
        with Interrupts() as run:
            assert run.signal is None
        send(signal.SIGTERM, study)
        with Interrupts() as run:
            assert run.signal == signal.SIGTERM
            with pytest.raises(Interrupted, match="SIGTERM: saved"):
                run.stop("saved")


def test_a_signal_too_late_for_a_run_stops_the_study():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as study:
        with Interrupts() as run:
            send(signal.SIGINT, run)
        assert study.signal == signal.SIGINT
    with Interrupts() as later:
        assert later.signal is None
    assert signal.getsignal(signal.SIGINT) is before
