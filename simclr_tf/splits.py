"""Splits of data sets that bring none: folders and digits. TFDS makes its own.

Examples are numbered by the SHA-256 of their relative path, which mixes the classes, so that any slice of a split holds
all of them.
"""

import collections
import dataclasses
import hashlib
import logging
import re
import types
from collections.abc import Iterable, Mapping, Sequence

import tensorflow_datasets as tfds

from simclr_tf.errors import DataError

log = logging.getLogger(__name__)

TEST_FRACTION = 0.2  # of each class, where a data set has no test split of its own
OWN_SPLIT = f"split by us, {TEST_FRACTION:.0%} of each class for test, by hash of the names"

VALIDATION_NAMES = ("validation", "val", "valid")
SPLIT_NAMES = ("train", "test", *VALIDATION_NAMES)


@dataclasses.dataclass(frozen=True)
class Record:
    """An example before it is read: its path relative to the data set's root, and its class, if it has one."""

    path: str
    class_name: str | None

    @property
    def rank(self) -> str:
        return hashlib.sha256(self.path.encode(errors="surrogateescape")).hexdigest()


def by_hash(records: Iterable[Record]) -> list[Record]:
    """The records in their fixed order."""
    return sorted(records, key=lambda record: record.rank)


def stratified(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Splits into train and test: of each class the last fifth in hash order is for testing (of two images, one)."""
    classes = collections.defaultdict(list)
    for record in by_hash(records):
        classes[record.class_name].append(record)
    splits = {"train": [], "test": []}
    for members in classes.values():
        num_test = min(max(round(TEST_FRACTION * len(members)), 1), len(members) - 1)
        splits["train"] += members[: len(members) - num_test]
        splits["test"] += members[len(members) - num_test :]
    return {name: by_hash(members) for name, members in splits.items()}


def other_test_name(spec: str, names: Iterable[str]) -> str:
    """`spec` with `validation` (`val`, `valid`) and `test` standing for each other where only one of them exists."""
    names = set(names)
    spec = re.sub(rf"\b({'|'.join(VALIDATION_NAMES)})\b", "validation", spec)
    if "validation" not in names and "test" in names:
        return re.sub(r"\bvalidation\b", "test", spec)
    if "test" not in names and "validation" in names:
        return re.sub(r"\btest\b", "validation", spec)
    return spec


def take_slices(name: str, spec: str, splits: Mapping[str, Sequence[Record]]) -> list[Record]:
    """The records of a split in TFDS notation: `train`, `test[20%:]`, `train[:100]+test`, ...

    Raises:
      DataError: the notation is wrong, there is no such split, or the slice lies outside of it.
    """
    sizes = {
        key: types.SimpleNamespace(num_examples=len(records), shard_lengths=[len(records)])
        for key, records in splits.items()
    }
    try:
        instructions = tfds.core.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        there = ", ".join(f"{key} ({len(records):,} images)" for key, records in splits.items())
        raise DataError(f"{name}: split {spec!r} cannot be had. There are: {there}. ({reason})") from error
    return [record for i in instructions for record in splits[i.splitname][i.from_ : i.to]]


def alias_note(spec: str, used: str) -> tuple[str, ...]:
    """What to tell where `other_test_name` made `used` of `spec`."""
    if spec == used:
        return ()
    log.info("Split %s means %s here.", spec, used)
    return (f"{spec} means {used} here",)
