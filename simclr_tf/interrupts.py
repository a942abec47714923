"""SIGINT and SIGTERM: finish the step, save, exit; a second one stops at once."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading

from simclr_tf.errors import Interrupted

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While active, remembers the first signal instead of dying of it.

        with Interrupts() as interrupts:
            ...
            if interrupts.signal: save; interrupts.stop(...)

    Python runs signal handlers between two instructions of the main thread, which may be inside a compiled loop for
    minutes. So a thread is woken instead: it sees the second signal, and ends the process, at once.

    One within another (a run of a study) shares what is remembered: a signal that came between two runs stops the next
    one at its first step, and one that came too late for a run stops the study behind it.
    """

    _innermost: Interrupts | None = None

    def __init__(self):
        self.signal: int | None = None
        self._previous: dict = {}
        self._outer: Interrupts | None = None

    def __enter__(self):
        self._outer, Interrupts._innermost = Interrupts._innermost, self
        if self._outer is not None:
            self.signal = self._outer.signal
        # Python delivers signals to the main thread only; elsewhere (a notebook's worker) there is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._previous_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *exc):
        Interrupts._innermost = self._outer
        if self._previous:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._previous_wakeup)
            self._writer.close()

    def _watch(self, reader: socket.socket):
        with reader:
            while received := reader.recv(1):
                number = received[0]
                if number not in SIGNALS:
                    continue
                if self.signal is not None:
                    os._exit(128 + number)
                each = self
                while each is not None:
                    each.signal = number
                    each = each._outer
                log.warning("%s: finishing the step and saving; a second signal stops at once",
                            signal.Signals(number).name)

    def stop(self, message: str, number: int | None = None):
        """Raises the error that ends the process with the signal's exit code; `number`: that of another worker."""
        number = number or self.signal
        raise Interrupted(number, f"{signal.Signals(number).name}: {message}")
