"""The teacher of a distillation: a finished model whose class probabilities a student learns (arXiv 2006.10029, 2.3).

L = -(1 - a) * sum over labelled x of log P_student(y | x)
    -   a    * sum over all x of sum over y of P_teacher(y | x; T) log P_student(y | x; T)

with a = `--distill_weight` and T = `--distill_temperature`. A step takes the mean over a batch drawn from all examples
in place of the sums, so that the two terms keep the proportion they have there. `losses.py` holds the formula,
`step.forward` puts it together.
"""

from __future__ import annotations

import dataclasses
import logging

import keras
import numpy as np

from simclr_tf import prediction, released, restore
from simclr_tf.config import Config
from simclr_tf.errors import CheckpointError, DataError
from simclr_tf.model import SimCLR, make_model
from simclr_tf.sources import Source

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen model, and the names of its classes where its checkpoint keeps them."""

    model: SimCLR
    class_names: tuple[str, ...] | None

    def __call__(self, images):
        """Logits [n, classes], float32, of images [n, H, W, 3]; in inference mode, nothing in the teacher moves."""
        h = self.model.encoder(images, training=False)
        hiddens = self.model.projection_head(h, training=False)
        return keras.ops.stop_gradient(self.model.supervised_head(hiddens[self.model.ft_proj_selector]))


def load_teacher(config: Config) -> Teacher:
    """The model in the checkpoint `config.teacher`: a run's folder, a prefix, or a released model.

    Raises:
      CheckpointError: there is no such checkpoint, or it has no supervised head.
    """
    own = Config(mode="eval", precision=config.precision, given=frozenset({"precision"}))
    own = restore.follow_checkpoint(own, config.teacher, restore.TO_EVALUATE)
    arch, arrays = released.inspect(config.teacher)
    if arch.num_classes is None:
        raise CheckpointError(
            f"A teacher needs a supervised head, and {arrays.source} has none. Fine-tune it first, then distil from "
            "the fine-tuned run."
        )
    if own.cifar_stem != config.cifar_stem:
        raise CheckpointError(
            f"The teacher {arrays.source} takes images of {'up to' if own.cifar_stem else 'above'} 32 pixels. "
            f"Received: --image_size={config.image_size}. Teacher and student see the same images: use --image_size="
            f"{own.image_size}."
        )
    if own.image_size != config.image_size:
        log.warning("WARNING: the teacher was trained on %d-pixel images and sees %d-pixel ones", own.image_size,
                    config.image_size)
    model = make_model(own, arch.num_classes)
    model.trainable = False
    log.info("Teacher: %s", released.restore_into(model, config.teacher))
    metadata = restore.own_metadata(config.teacher)
    return Teacher(model, metadata.class_names if metadata else None)


def with_classes_of(teacher: Teacher, source: Source, config: Config) -> Source:
    """`source` under the teacher's class names, with no labels but those the student may learn from.

    Raises:
      DataError: labels are to be mixed in (`config.distill_weight` below 1) and are not the teacher's classes.
    """
    number = teacher.model.num_classes
    names = teacher.class_names
    if names is None:  # as in the authors' checkpoints: the number has to do
        names = source.class_names if source.num_classes == number else prediction.class_names(number)
    if config.distill_weight < 1:
        if source.class_names != names:
            raise DataError(
                f"--distill_weight={config.distill_weight:g} mixes labels in, and those of {source.name} "
                f"({source.num_classes or 'no'} classes) are not the teacher's {number} classes. Use "
                "--distill_weight=1 to learn from the teacher alone."
            )
        return source
    nobody = np.zeros(source.num_examples, bool)
    return dataclasses.replace(source, class_names=names, labelled=nobody)

