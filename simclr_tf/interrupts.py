"""SIGINT and SIGTERM: finish the step, save, exit; a second one stops at once."""

from __future__ import annotations

import os
import signal
import threading

from simclr_tf.errors import Interrupted


class Interrupts:
    """While active, remembers the first signal instead of dying of it.

        with Interrupts() as interrupts:
            ...
            if interrupts.signal: save; interrupts.stop(...)
    """

    def __init__(self):
        self.signal: int | None = None
        self._previous: dict = {}

    def __enter__(self):
        # Python delivers signals to the main thread only; elsewhere (a notebook's worker) there is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *exc):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _received(self, number, frame):
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number

    def stop(self, message: str):
        """Raises the error that ends the process with the signal's exit code."""
        raise Interrupted(self.signal, f"{signal.Signals(self.signal).name}: {message}")
