"""What loading a checkpoint costs: seconds, and memory as a multiple of the weights' size.

    python -m benchmarks.load_checkpoint [architecture ...]      # default: r50_1x_sk0; the large one is r152_3x_sk1

Writes checkpoints of the architecture in every format whose names are recorded, and loads each three times, each in
a process of its own, after TensorFlow is imported: the fastest's seconds and its processor's seconds (which a busy
machine hardly changes), and the largest memory. Memory is the highest
resident size above that before loading; it holds the loaded model itself (1.0 of the multiple). Linux only.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

LOADS = 3
SHARD_BYTES = 256 << 20  # written at once, so that writing the largest takes no more memory than loading it


def main(names: list[str]) -> None:
    print(f"{'':36} {'weights':>9} {'seconds':>8} {'CPU s':>6} {'extra memory':>13} {'multiple':>9}")
    for name in names or ["r50_1x_sk0"]:
        for form, writer in _writers(name).items():
            with tempfile.TemporaryDirectory() as folder:
                path = writer(pathlib.Path(folder))
                loads = [_measure(str(path)) for _ in range(LOADS)]
            seconds, cpu = min(loads)[:2]
            size, extra, peak = (max(column) for column in list(zip(*loads, strict=True))[2:])
            print(f"{name + ', ' + form:36} {size / 1e6:6.0f} MB {seconds:8.2f} {cpu:6.2f} {extra / 1e6:10.0f} MB "
                  f"{extra / size:9.2f}   ({peak / 1e9:.2f} GB in all)", flush=True)


def _writers(name: str) -> dict:
    """Format -> function that writes it to a folder and returns the path to load."""
    from tests.golden import formats_test as formats
    from tests.golden.recorded import read

    def all_at_once(write):
        return lambda folder: write(folder, name, formats.tf1_weights(name))

    if sum(math.prod(shape) for _, shape in read("tf1_variables.json.gz")[name]) * 4 > 4 * SHARD_BYTES:
        return {"TF1 checkpoint": lambda folder: _write_in_shards(folder, name)}
    recorded = read("tf2_variables.json.gz")
    return {form: all_at_once(write) for form, write in formats.FORMATS.items()
            if name in recorded or not form.startswith("TF2")}


def _write_in_shards(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A TF1 checkpoint without optimizer slots, in several data files."""
    import numpy as np
    import tensorflow as tf

    from tests.golden.formats_test import write
    from tests.golden.recorded import read

    rng = np.random.default_rng(0)
    prefixes, shard = [], {}
    rows = read("tf1_variables.json.gz")[name]
    for i, (key, shape) in enumerate(rows):
        shard[key] = rng.random(shape, np.float32)
        if i == len(rows) - 1 or sum(array.nbytes for array in shard.values()) > SHARD_BYTES:
            prefixes.append(folder / f"part{len(prefixes)}" / "part")
            write(prefixes[-1], shard)
            shard = {}
    whole = folder / "model.ckpt-250228"
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(p) for p in prefixes], destination_prefix=str(whole), delete_old_dirs=True)
    return whole


def _measure(path: str) -> tuple[float, float, int, int, int]:
    """Of loading `path` in a new process: seconds, CPU seconds, bytes of weights, extra and highest resident bytes."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.load_checkpoint", "--load", path], capture_output=True,
                          text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    seconds, cpu, *sizes = done.stdout.split()[-5:]
    return float(seconds), float(cpu), *map(int, sizes)


def _load(path: str) -> None:
    from simclr_tf import SimCLR, released

    SimCLR(depth=18, width=0.25)  # what TensorFlow sets up once, at a process's first operation
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the highest resident size so far
    before = _resident("VmRSS")
    start, cpu_start = time.perf_counter(), time.process_time()
    model = released.load(path)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    peak = _resident("VmHWM")
    print(seconds, cpu, 4 * model.count_params(), peak - before, peak)


def _resident(field: str) -> int:
    """Bytes, from what Linux keeps on this process."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _load(sys.argv[2]) if sys.argv[1:2] == ["--load"] else main(sys.argv[1:])
