"""Numbers recorded from google-research/simclr, and the batches they were recorded on."""

import functools
import gzip
import json
import pathlib

import numpy as np

from tests.golden.fill import image_batch

FOLDER = pathlib.Path(__file__).parent


@functools.cache
def read(name: str):
    """The content of a recorded file: .json, .json.gz or .npz (then with arrays as values)."""
    path = FOLDER / name
    if path.suffix == ".npz":
        return dict(np.load(path))
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def training_batch(step: int, batch_size: int, image_size: int, pretraining: bool):
    """Images and labels of a recorded training step; in pretraining, two views along the channels."""
    labels = np.random.Generator(np.random.PCG64(200 + step)).integers(0, 10, batch_size).astype(np.int32)
    images = image_batch(batch_size * (2 if pretraining else 1), image_size, seed=100 + step)
    if pretraining:
        images = np.concatenate([images[:batch_size], images[batch_size:]], axis=-1)
    return images, labels
