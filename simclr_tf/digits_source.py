"""Scikit-learn's digits as a source: a data set that is always there."""

import logging

import numpy as np
import tensorflow as tf

from simclr_tf import sources, splits

log = logging.getLogger(__name__)


def open_digits(split: str) -> sources.Source:
    """Scikit-learn's 1,797 scans of handwritten digits, 8x8, as RGB; split by us, as they have no split."""
    from sklearn.datasets import load_digits  # slow to import, and for this data set only

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255, [1797, 8, 8]
    number = {f"digit_{i}": i for i in range(len(pixels))}
    used = splits.other_test_name(split, ("train", "test"))
    parts = splits.stratified(splits.Record(key, str(bunch.target[i])) for key, i in number.items())
    records = splits.take_slices("digits", used, parts)
    chosen = [number[record.path] for record in records]
    encoded = [tf.io.encode_png(np.repeat(pixels[i][..., None], 3, -1)).numpy() for i in chosen]
    log.info("digits: %s.", splits.OWN_SPLIT)
    return sources.held(
        "digits", split, [str(c) for c in bunch.target_names], bunch.target[chosen],
        [record.path for record in records], encoded, notes=(splits.OWN_SPLIT, *splits.alias_note(split, used)),
    )  # fmt: skip
