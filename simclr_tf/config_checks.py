"""What values of a config's fields are allowed, alone and together, and how the fields that hold lists are read."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING

from simclr_tf.errors import ConfigError

if TYPE_CHECKING:
    from simclr_tf.config import Config

STUDY_ROWS = ("baseline_none", "baseline_imagenet", "scratch", "finetuned", "linear", "released")
RESNET_DEPTHS = (18, 34, 50, 101, 152, 200)
PROBES = ("linear", "logreg", "knn")
# Modes that train, evaluate, or only look at something.
TRAINING_MODES = ("train", "train_then_eval", "demo", "study")


def check_field(field: dataclasses.Field, value) -> None:
    """Raises ConfigError unless `value` is one that `field` allows."""
    meta, name = field.metadata, field.name

    def fail(rule: str):
        raise ConfigError(f"--{name} {rule}. Received: --{name}={value}. {meta['help']}")

    if value is None:
        if field.default is not None:
            fail("needs a value")
        return
    if meta["choices"] and value not in meta["choices"]:
        fail("must be one of " + ", ".join(meta["choices"]))
    if isinstance(field.default, bool) or isinstance(value, str):
        return
    if isinstance(field.default, (int, float)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            fail("must be a number")
        if not math.isfinite(value):
            fail("must be a finite number")
        if meta["above"] is not None and not value > meta["above"]:
            fail(f"must be above {meta['above']}")
        if meta["at_least"] is not None and not value >= meta["at_least"]:
            fail(f"must be at least {meta['at_least']}")
        if meta["at_most"] is not None and not value <= meta["at_most"]:
            fail(f"must be at most {meta['at_most']}")


def check_together(c: Config) -> None:
    """Raises ConfigError where values that are fine alone contradict each other."""

    def rule(ok: bool, text: str, *names: str, fix: str):
        if not ok:
            received = " ".join(f"--{n}={getattr(c, n)}" for n in names)
            raise ConfigError(f"{text}. Received: {received}. {fix}")

    rule(c.resnet_depth in RESNET_DEPTHS, f"--resnet_depth must be one of {', '.join(map(str, RESNET_DEPTHS))}",
         "resnet_depth", fix="Use 18 for small images, 50 for ImageNet.")
    rule(float(64 * c.width_multiplier).is_integer(), "64 * --width_multiplier must be a whole number of channels",
         "width_multiplier", fix="Use for example 0.25, 0.5, 1, 2 or 3.")
    rule(c.train_mode != "pretrain" or c.fine_tune_after_block == -1,
         "Layers are frozen in fine-tuning only: pretraining needs --fine_tune_after_block=-1",
         "train_mode", "fine_tune_after_block", fix="Add --train_mode=finetune or drop --fine_tune_after_block.")
    layers = {"none": 0, "linear": 1, "nonlinear": c.num_proj_layers}[c.proj_head_mode]
    rule(c.ft_proj_selector <= layers, f"--ft_proj_selector must be -1 to {layers}, the number of projection layers",
         "ft_proj_selector", "proj_head_mode", "num_proj_layers", fix="Use 0 for the encoder's output.")
    rule(c.train_steps > 0 or c.train_epochs > 0 or c.mode not in TRAINING_MODES, "There must be something to train",
         "train_steps", "train_epochs", fix="Set one of them above 0.")
    rule(c.train_batch_size > 1 or c.train_mode != "pretrain" or c.mode not in TRAINING_MODES,
         "Contrastive pretraining compares the images of a batch: one alone has none to differ from",
         "train_batch_size", fix="Use at least 2; hundreds learn better.")
    rule(not (c.labels_per_class and c.label_fraction < 1), "Only one of them can choose the labelled examples",
         "labels_per_class", "label_fraction", fix="Drop one.")
    rule(c.train_mode != "distill" or c.teacher or c.mode not in TRAINING_MODES, "Distillation needs a teacher",
         "train_mode", "teacher", fix="Add --teacher=<checkpoint with a supervised head>.")
    rule(c.micro_batch_size == 0 or c.train_batch_size % c.micro_batch_size == 0,
         "--micro_batch_size must divide --train_batch_size", "micro_batch_size", "train_batch_size",
         fix="Use for example half of the batch size, or 0.")
    rule(c.micro_batch_size == 0 or c.train_mode == "pretrain", "Only pretraining needs whole batches in pieces",
         "micro_batch_size", "train_mode", fix="Drop --micro_batch_size, or lower --train_batch_size.")
    rule(c.teacher is None or c.train_mode == "distill", "A teacher is for distillation", "train_mode", "teacher",
         fix="Add --train_mode=distill or drop --teacher.")
    rule(c.train_mode != "distill" or c.distill_weight < 1 or not (c.labels_per_class or c.label_fraction < 1),
         "At --distill_weight=1 labels are not used, so that none can be chosen", "distill_weight", "labels_per_class",
         "label_fraction", fix="Lower --distill_weight, or drop the choice of labels.")
    rule(c.train_mode != "baseline" or c.mode in TRAINING_MODES, "A baseline is trained and evaluated at once",
         "train_mode", "mode", fix="Use --mode=train_then_eval.")
    _check_probes(c, rule)
    if c.mode in ("study", "demo"):
        _check_study(c, rule)
    elif c.train_mode == "pretrain" and c.mode != "probe":
        for name in ("labels_per_class", "label_fraction"):
            rule(name not in c.given or getattr(c, name) == type(c).__dataclass_fields__[name].default,
                 "Pretraining uses every image: labelled subsets are for fine-tuning", "train_mode", name,
                 fix="Add --train_mode=finetune, or slice --train_split.")
    rule(not c.held_out_fraction or c.train_mode == "finetune", "Labelled examples are held out in fine-tuning only",
         "train_mode", "held_out_fraction", fix="Add --train_mode=finetune or drop --held_out_fraction.")
    rule(not (c.use_tpu is True and c.strategy not in ("auto", "tpu")), "--use_tpu=True contradicts --strategy",
         "use_tpu", "strategy", fix="Drop one.")
    rule(not (c.use_tpu is False and c.strategy == "tpu"), "--use_tpu=False contradicts --strategy=tpu",
         "use_tpu", "strategy", fix="Drop one.")
    unknown = c.allowed_changes - {f.name for f in dataclasses.fields(c) if f.metadata}
    rule(not unknown, f"--allow_changed_settings must name flags; {', '.join(sorted(unknown))} is none",
         "allow_changed_settings", fix="Write for example learning_rate,temperature.")
    if c.variable_schema != "?!global_step":  # the reference's default is not a valid expression
        try:
            re.compile(c.variable_schema)
        except re.error as error:
            raise ConfigError(
                f"--variable_schema must be a regular expression ({error}). Received: "
                f"--variable_schema={c.variable_schema}. Leave it out to restore everything but global_step."
            ) from error


def _check_study(c: Config, rule) -> None:
    """Raises ConfigError for lists of a study that cannot be read or contradict each other."""
    rule(c.train_mode == "pretrain", "A study, as the demo is, pretrains first and makes its other runs itself",
         "mode", "train_mode", fix="Drop --train_mode.")
    rows = listed(c, "study_rows", str)
    rule(rows and set(rows) <= set(STUDY_ROWS), f"--study_rows must be some of {','.join(STUDY_ROWS)}", "study_rows",
         fix="Separate them by commas.")
    seeds, pretrained = study_seeds(c), study_pretrain_seeds(c)
    rule(set(pretrained) <= set(seeds), "Pretraining is repeated for seeds of the study only", "study_pretrain_seeds",
         "study_seeds", fix="Add the seed to --study_seeds.")
    rule(set(study_label_seeds(c)) <= set(seeds), "The curve is measured with seeds of the study only",
         "study_label_seeds", "study_seeds", fix="Add the seed to --study_seeds.")
    for name in ("study_learning_rates", "study_finetune_learning_rates", "study_linear_learning_rates"):
        rates = listed(c, name, float)
        rule(getattr(c, name) is None or (rates and all(0 < r < math.inf for r in rates)),
             f"--{name} must be positive numbers", name, fix="Write for example 0.2,0.8,3.2.")
    rule(all(k > 0 for k in listed(c, "study_label_counts", int)), "--study_label_counts must be positive",
         "study_label_counts", fix="Write for example 1,2,5.")
    rule(all(s >= 0 for s in seeds), "Seeds must not be negative", "study_seeds", fix="Write for example 0,1,2.")


def _check_probes(c: Config, rule) -> None:
    """Raises ConfigError for lists of the probes that cannot be read."""
    rule(set(listed(c, "probe", str)) <= set(PROBES) and listed(c, "probe", str),
         f"--probe must be some of {','.join(PROBES)}", "probe", fix="Separate them by commas.")
    ks = listed(c, "knn_k", int)
    rule(ks and all(k > 0 for k in ks), "--knn_k must be whole numbers above 0", "knn_k",
         fix="Write for example 200,20.")
    for name, least in (("probe_learning_rates", "above 0"), ("probe_l2", "at least 0")):
        values = listed(c, name, float)
        rule(getattr(c, name) is None or (values and all(0 <= v < math.inf and (v or name == "probe_l2")
                                                         for v in values)),
             f"--{name} must be numbers {least}", name, fix="Write for example 0.1,1.")
    probe_labels(c)


def probe_labels(c: Config) -> tuple[tuple[str, float | int], ...]:
    """What `--probe_labels` asks for: ("10%", 0.1) for a fraction of each class, ("5", 5) for so many of each.

    Raises:
      ConfigError: an entry is neither.
    """
    entries = listed(c, "probe_labels", str)
    parsed = []
    for entry in entries:
        try:
            value = float(entry[:-1]) / 100 if entry.endswith("%") else int(entry)
        except ValueError:
            value = 0
        if not 0 < value < math.inf or (entry.endswith("%") and value > 1):
            raise ConfigError(
                "--probe_labels must be percentages of each class, up to 100%, or numbers of labels per class. "
                f"Received: --probe_labels={c.probe_labels}. Write for example 1%,10%,100% or 1,5,25."
            )
        parsed.append((entry, value))
    return tuple(parsed)


def listed(c: Config, name: str, kind: type) -> tuple:
    """The values of a flag that holds several, separated by commas, without repetitions.

    Raises:
      ConfigError: one of them is no `kind`.
    """
    text = getattr(c, name) or ""
    if text.lower() == "none":
        return ()
    try:
        return tuple(dict.fromkeys(kind(part.strip()) for part in text.split(",") if part.strip()))
    except ValueError as error:
        raise ConfigError(
            f"--{name} must be a list of {kind.__name__} values, separated by commas. Received: --{name}={text}."
        ) from error


def study_seeds(c: Config) -> tuple[int, ...]:
    """Seeds of a study's cheap rows; the first one's pretraining is always made."""
    return listed(c, "study_seeds", int) or (c.seed,)


def study_label_seeds(c: Config) -> tuple[int, ...]:
    """Seeds of a study's label-efficiency curve."""
    return listed(c, "study_label_seeds", int) or study_seeds(c)


def study_pretrain_seeds(c: Config) -> tuple[int, ...]:
    """Seeds that a study's pretraining is repeated for."""
    return listed(c, "study_pretrain_seeds", int) or study_seeds(c)[:1]
