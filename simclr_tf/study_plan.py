"""The runs of a study: which rows, seeds and settings, made from the study's own config. Nothing is run here.

The study's flags are those of the pretraining, and `study_*` for what learns from labels. Each run is an ordinary one
in a folder of its own: `<model_dir>/[seed<s>/]<row>...`.
"""

from __future__ import annotations

import dataclasses
import os

from simclr_tf import baseline, data
from simclr_tf.config import Config
from simclr_tf.config_checks import listed, study_pretrain_seeds, study_seeds

HELD_OUT_FRACTION = 0.2  # of the labelled images, to choose a learning rate on
ALL = 0  # number of labels per class that stands for all there are

TITLES = {
    "baseline_none": "InceptionV3, random weights, frozen, small classifier",
    "baseline_imagenet": "InceptionV3, ImageNet weights, frozen, small classifier",
    "scratch": "Supervised from scratch",
    "finetuned": "SimCLR pretrained here, fine-tuned",
    "linear": "SimCLR pretrained here, frozen, linear head",
    "released": "Released checkpoint, fine-tuned",
}
# Top-1 in per cent of the published study on the official photos of Stanford Dogs, row -> (accuracy, its name there).
PUBLISHED = {
    "stanford_dogs": {
        "baseline_imagenet": (4.1, "InceptionV3 frozen, small classifier"),
        "finetuned": (6.8, "SimCLRv1 pretrained on the dogs"),
        "released": (62.5, "the authors' ImageNet SimCLRv2, fine-tuned"),
    },
}
# Data sets whose test images are, as far as is known, among the images of ImageNet's training set.
FROM_IMAGENET = ("stanford_dogs", "imagenette", "imagewoof", "imagewang")


def settled(config: Config) -> Config:
    """`config` with the test split of a study where none was given."""
    if "eval_split" in config.given:
        return config
    return dataclasses.replace(config, eval_split="test[20%:]")


def pretraining(config: Config, seed: int) -> Config:
    """The pretraining that the rows of `seed` start from; labels play no part in it."""
    seeds = study_pretrain_seeds(config)
    return _run(
        config, seed if seed in seeds else seeds[0], "pretrain", mode="train", train_mode="pretrain",
        lineareval_while_pretraining=False, labels_per_class=0, label_fraction=1.0, ft_proj_selector=0,
        zero_init_logits_layer=False, eval_every_epochs=0,
    )


def trials(config: Config, row: str, seed: int, labels: int = ALL) -> dict[float, Config]:
    """The runs of a row by learning rate, of which one will count.

    Args:
      labels: examples of each class whose labels are used; `ALL`: as the study's own flags say.
    """
    return {rate: trial(config, row, seed, rate, labels) for rate in rates(config, row)}


def trial(config: Config, row: str, seed: int, rate: float, labels: int = ALL) -> Config:
    """One run of a row, at one learning rate."""
    fewer = config.study_label_steps if labels != ALL else 0
    steps = fewer or config.study_steps
    if row.startswith("baseline"):
        weights = "none" if row == "baseline_none" else _imagenet(config)
        return _supervised(
            config, row, seed, labels, rate, steps, train_mode="baseline", baseline_weights=weights, optimizer="adam",
        )
    if row == "scratch":
        steps = fewer or config.study_scratch_steps or steps
        return _supervised(config, row, seed, labels, rate, steps, checkpoint=None)
    if row == "released":
        run = _supervised(config, row, seed, labels, rate, steps, checkpoint=config.study_checkpoint)
        return dataclasses.replace(run, **_FOLLOWED, given=None)
    changes = {"checkpoint": pretraining(config, seed).model_dir}
    if row == "linear":
        changes |= dict(fine_tune_after_block=4, ft_proj_selector=0, optimizer="momentum")
    return _supervised(config, row, seed, labels, rate, steps, **changes)


def tuning(config: Config, row: str, rate: float) -> Config:
    """The run of the first seed that shows how good a learning rate is on held-out labelled images."""
    run = trial(config, row, study_seeds(config)[0], rate)
    folder, name = os.path.split(run.model_dir)
    return dataclasses.replace(
        run, model_dir=os.path.join(folder, "tuning", name), held_out_fraction=HELD_OUT_FRACTION,
        eval_split=data.HELD_OUT, given=run.given,
    )


def rates(config: Config, row: str) -> tuple[float, ...]:
    """The learning rates that a row chooses from."""
    if row.startswith("baseline"):
        return (baseline.LEARNING_RATE,)
    if row == "linear":
        return listed(config, "study_linear_learning_rates", float)
    if row == "scratch":
        return listed(config, "study_learning_rates", float)
    return listed(config, "study_finetune_learning_rates", float) or listed(config, "study_learning_rates", float)


def seeds(config: Config, row: str) -> tuple[int, ...]:
    """The seeds that a row is run for: a baseline takes its time on every image once, as pretraining does."""
    return study_pretrain_seeds(config) if row.startswith("baseline") else study_seeds(config)


def may_have_seen(config: Config, row: str) -> str | None:
    """A warning where the weights a row starts from may have been made with the test images; None where not."""
    if row not in ("baseline_imagenet", "released"):
        return None
    what = "The checkpoint of" if row == "released" else "ImageNet's weights in"
    name = config.dataset.split("/")[0].split(":")[0]
    if name in FROM_IMAGENET:
        return (
            f"{what} the row \"{TITLES[row]}\" may have seen the test images: {name} consists of photos of ImageNet. "
            "Its accuracy is not one on unseen images."
        )
    if name == "folder":
        return (
            f"Whether the weights of the row \"{TITLES[row]}\" have seen these photos cannot be known from here. If "
            "they come from ImageNet, or from where its photos came from, its accuracy is not one on unseen images."
        )
    return None


# --- Details ---------------------------------------------------------------------------------------------------------
# What the released row leaves to its checkpoint: at their defaults they count as not chosen.
_FOLLOWED = {
    name: Config.__dataclass_fields__[name].default
    for name in ("resnet_depth", "width_multiplier", "sk_ratio", "se_ratio", "proj_head_mode", "num_proj_layers",
                 "proj_out_dim", "image_size", "ft_proj_selector")
}


def _imagenet(config: Config) -> str:
    return "imagenet" if config.baseline_weights == "none" else config.baseline_weights


def _supervised(config: Config, row: str, seed: int, labels: int, rate: float, steps: int, **changes) -> Config:
    """A run on the labelled split."""
    name = row.replace("_", "-") if row.startswith("baseline") else f"{row}-{rate:g}"
    if labels != ALL:
        changes |= dict(labels_per_class=labels, label_fraction=1.0)
        name = os.path.join(f"labels-{labels}", name)
    settings = dict(
        mode="train_then_eval", train_mode="finetune", checkpoint=None, train_split=config.study_labelled_split,
        train_batch_size=config.study_batch_size, train_steps=steps, optimizer=config.study_optimizer,
        learning_rate=rate, learning_rate_scaling="linear", warmup_epochs=0.0, weight_decay=config.study_weight_decay,
        keep_checkpoint_max=1,
    )
    return _run(config, seed, name, **(settings | changes))


def _run(config: Config, seed: int, name: str, **changes) -> Config:
    """A run in the folder `name` below the study's, or below its seed's where the study has several."""
    alone = config.study_seeds is None
    folder = os.path.join(config.model_dir, *([] if alone else [f"seed{seed}"]), name)
    return dataclasses.replace(config, model_dir=folder, seed=seed, given=None, **changes)
