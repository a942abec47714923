"""Which labels a run may see: a few of each class, or all but those held out. The same seed always chooses the same."""

import dataclasses

import numpy as np

from simclr_tf.config import Config
from simclr_tf.errors import DataError
from simclr_tf.sources import Source

LABELS_SEED, HELD_OUT_SEED = 3, 4  # second parts of the seeds; data.py's order and augmentation have 1 and 2


def held_out_apart(source: Source, config: Config) -> tuple[Source, Source]:
    """Splits labelled examples into those to train on and `config.held_out_fraction` of each class, by the seed.

    Raises:
      DataError: there are no labels, or too few for anything to be held out.
    """
    asked = f"--held_out_fraction={config.held_out_fraction}"
    if source.class_names is None:
        raise DataError(f"{asked} needs labels, and {source.name} has none. Use a data set with classes.")
    source = source.with_labels()
    apart = np.zeros(source.num_examples, bool)
    for label in range(source.num_classes):
        members = np.flatnonzero(source.labels == label)
        order = np.random.Generator(np.random.PCG64([config.seed, HELD_OUT_SEED, label])).permutation(len(members))
        apart[members[order[: round(config.held_out_fraction * len(members))]]] = True
    if not apart.any():
        raise DataError(
            f"{asked} holds out nothing of {source.name}, split {source.split}: its {source.num_examples:,} labelled "
            f"images are too few for {source.num_classes} classes. Raise the fraction, or use more labelled images."
        )
    note = f"{asked}: {apart.sum():,} of {source.num_examples:,} examples held out"
    return source.select(np.flatnonzero(~apart), note), source.select(np.flatnonzero(apart), note)


def labelled_subset(source: Source, config: Config) -> Source:
    """`labels_per_class` examples of each class, or `label_fraction` of each class but at least one, by the seed.

    A larger subset contains the smaller ones of the same seed. When distilling the other examples stay, unlabelled.

    Raises:
      DataError: there are no labels, or a class has fewer examples than asked for.
    """
    asked = (
        f"--labels_per_class={config.labels_per_class}"
        if config.labels_per_class
        else f"--label_fraction={config.label_fraction}"
    )
    if source.class_names is None:
        raise DataError(f"{asked} needs labels, and {source.name} has none. Use a data set with classes.")
    source = source.with_labels()
    chosen = []
    members_of = rows_per_class(source.labels, source.num_classes, config.seed)
    for name, members in zip(source.class_names, members_of, strict=True):
        count = config.labels_per_class or (max(1, round(config.label_fraction * len(members))) if len(members) else 0)
        if count > len(members):
            raise DataError(
                f"{asked}: class {name!r} of {source.name} has only {len(members)} examples in split {source.split}. "
                "Ask for fewer, or use a larger split."
            )
        chosen.append(members[:count])
    chosen = np.sort(np.concatenate(chosen))
    if source.name.split("/")[0] == "imagenet2012" and config.label_fraction in (0.01, 0.1):
        asked += (
            f" (drawn by --seed; not the list of the papers, which is --dataset=imagenet2012_subset/"
            f"{config.label_fraction:.0%}".replace("%", "pct)")
        )
    if config.train_mode == "distill":
        labelled = np.zeros(source.num_examples, bool)
        labelled[chosen] = True
        return dataclasses.replace(source, labelled=labelled, notes=(*source.notes, f"{asked}: {len(chosen):,} labels"))
    return source.select(chosen, f"{asked}: {len(chosen):,} of {source.num_examples:,} examples")


def rows_per_class(labels: np.ndarray, num_classes: int, seed: int) -> list[np.ndarray]:
    """For each class its rows in the order in which their labels are taken: the first k are the labelled ones."""
    rows = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        order = np.random.Generator(np.random.PCG64([seed, LABELS_SEED, label])).permutation(len(members))
        rows.append(members[order])
    return rows
