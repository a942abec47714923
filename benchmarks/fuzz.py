"""Random command lines, flagfiles and images for so many seconds: `python -m benchmarks.fuzz --seconds=600`.

Prints how often each exit code came, and stops with the command line that ended otherwise. No two runs draw the same,
unless given the same --seed.
"""

import argparse
import collections
import contextlib
import io
import os
import random
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, seed, settings

from simclr_tf import cli
from tests.faults import fuzz

LONGEST = 600  # seconds that a command may take; more is a hang


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    arguments = parser.parse_args()
    print(f"--seed={arguments.seed}", flush=True)
    end = time.monotonic() + arguments.seconds
    codes, slowest, runs = collections.Counter(), 0.0, 0
    quick = settings(max_examples=10**6, deadline=None, database=None, phases=[Phase.generate],
                     suppress_health_check=list(HealthCheck))

    class Enough(Exception):
        pass

    def one(kind, argv):
        nonlocal slowest, runs
        if time.monotonic() > end:
            raise Enough
        runs += 1
        began = time.monotonic()
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = cli.main([*argv, f"--model_dir=run{runs}"])
        slowest = max(slowest, time.monotonic() - began)
        codes[kind, code] += 1
        wrong = code not in fuzz.DOCUMENTED or "Traceback" in said.getvalue() or slowest > LONGEST
        assert not wrong, f"exit code {code} of {argv}\n{said.getvalue()}"

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.mkdir("images")
        for i in range(4):
            tf.io.write_file(f"images/{i}.png", tf.io.encode_png(np.full([9, 9, 3], 60 * i, np.uint8)))

        @seed(arguments.seed)
        @quick
        @given(fuzz.command_lines(), fuzz.flagfiles(), fuzz.images())
        def everything(argv, flagfile, image):
            one("flags", argv)
            with open("it.flags", "wb") as file:
                file.write(flagfile)
            one("flagfile", [*fuzz.SMALL, "--dataset=digits", "--mode=doctor", "--flagfile=it.flags"])
            with open("images/9.jpg", "wb") as file:
                file.write(image)
            one("image", ["--mode=doctor", "--dataset=folder:images", "--train_split=train+test"])
            os.remove("images/9.jpg")

        with contextlib.suppress(Enough):
            everything()
    for (kind, code), count in sorted(codes.items()):
        print(f"{kind}: exit {code}: {count}")
    print(f"{runs} commands, the slowest {slowest:.0f} s")


if __name__ == "__main__":
    main()
