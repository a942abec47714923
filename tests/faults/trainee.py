"""A training that dies where it is told to: `python -m tests.faults.trainee <how>:<where> <flags>`.

step:N.F     SIGKILL from a timer, a fraction F of a step's time after step N was recorded
rename:N     SIGKILL before the N-th rename of a checkpoint's files
remove:N     SIGKILL before the N-th file of an old checkpoint is deleted
twice:N      two SIGTERMs at step N
never:       not at all
"""

import os
import signal
import sys
import threading
import time

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")

import tensorflow as tf

from simclr_tf import cli
from simclr_tf.summaries import Summaries


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(module, name, number, action):
    """Has the `number`-th call of `module.name` do `action` first."""
    function, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            action()
        return function(*args, **kwargs)

    setattr(module, name, counted)


def after_step(step, action):
    scalars = Summaries.scalars

    def watched(self, at, values):
        scalars(self, at, values)
        if at == step:
            action()

    Summaries.scalars = watched


def twice():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
    time.sleep(60)  # not reached: the second one ends the process at once, whatever it is doing


def main(how, argv):
    kind, _, where = how.partition(":")
    if kind == "step":
        step, _, fraction = where.partition(".")
        began = []
        after_step(int(step) - 1, lambda: began.append(time.monotonic()))

        def soon():
            taken = time.monotonic() - began[0] if began else 0.05
            threading.Timer(float(f"0.{fraction}") * min(taken, 1.0), die).start()

        after_step(int(step), soon)
    elif kind == "rename":
        at_call(tf.io.gfile, "rename", int(where), die)
    elif kind == "remove":
        at_call(tf.io.gfile, "remove", int(where), die)
    elif kind == "twice":
        after_step(int(where), twice)
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
