"""`--mode=study`: does self-supervision pay? The same few labels with a frozen baseline, from scratch, and pretrained.

Rows are run one after the other, each an ordinary run in its own folder (`study_plan.py`), made once and gone on with
where it was killed (`study_runs.py`). What cannot be had is shown as not run, with what to fetch; the rest still runs.
After each row `study.json` and `study.md` hold what is known so far; `report.html` tells it as a study at the end.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os

import numpy as np
import tensorflow as tf

from simclr_tf import baseline, bootstrap, checkpoint, data, released, study_plan, study_report, study_runs, training
from simclr_tf.config import Config
from simclr_tf.config_checks import listed, study_label_seeds, study_pretrain_seeds, study_seeds
from simclr_tf.errors import CheckpointError, DataError
from simclr_tf.interrupts import Interrupts
from simclr_tf.study_plan import ALL
from simclr_tf.study_runs import Outcome

log = logging.getLogger(__name__)

RESULT, TABLE = "study.json", "study.md"
CURVE_ROWS = ("scratch", "finetuned", "linear")
NEEDS_PRETRAINING = ("finetuned", "linear")
BOOTSTRAP_SEED = 0


@dataclasses.dataclass
class _Row:
    """A row of the table: for each seed the outcomes by learning rate, and the rate that counts."""

    name: str
    reason: str | None = None  # why it is not run
    outcomes: dict[int, dict[float, Outcome]] = dataclasses.field(default_factory=dict)
    rates: dict[int, float] = dataclasses.field(default_factory=dict)

    @property
    def chosen(self) -> dict[int, Outcome]:
        return {seed: self.outcomes[seed][rate] for seed, rate in self.rates.items()}


class _Study:
    """A study while it is run: the rows so far, at all labels and at fewer."""

    def __init__(self, config: Config):
        self.config = config
        self.rows = {name: _Row(name) for name in listed(config, "study_rows", str)}
        self.curve: dict[tuple[str, int], _Row] = {}
        self.tuned: dict[str, tuple[float, dict[float, float]]] = {}  # row -> rate, held-out accuracy by rate
        self.warnings: list[str] = []
        self.skipped_counts: dict[int, str] = {}
        self.data = _check_data(config)


def study(config: Config) -> dict:
    """Runs all rows that can be run; returns what `study.json` holds.

    Raises:
      DataError: there are no labels, or test images are among those that labels are learned from.
      CheckpointError: a folder of the study holds a run with other settings.
      Interrupted: a signal came; the same command goes on from there.
    """
    config = study_plan.settled(config)
    training.make_folder(config.model_dir)
    run = _Study(config)
    with Interrupts() as interrupts:
        for row in run.rows.values():
            _warn(run, row.name)
            row.reason = _unavailable(config, row.name)
            if row.reason:
                log.warning("WARNING: not run: %s: %s", study_plan.TITLES[row.name], row.reason)
                continue
            for seed in study_plan.seeds(config, row.name):
                if row.name in NEEDS_PRETRAINING:
                    _complete(study_plan.pretraining(config, seed), interrupts)
                _run_seed(run, row, seed, ALL, interrupts)
            _write(config, result_of(run))
        for labels in _label_counts(run):
            for name in (name for name in CURVE_ROWS if name in run.rows):
                row = run.curve[name, labels] = _Row(name)
                for seed in study_label_seeds(config):
                    _run_seed(run, row, seed, labels, interrupts)
                _write(config, result_of(run))
    result = result_of(run)
    _write(config, result)
    study_report.write(config, result)
    print(study_report.markdown(result), flush=True)
    return result


# --- Running ---------------------------------------------------------------------------------------------------------
def _complete(config: Config, interrupts: Interrupts) -> None:
    """Makes a run unless it is made; then stops if a signal came meanwhile."""
    study_runs.complete(config)
    if interrupts.signal:
        interrupts.stop("the runs so far are kept; the same command goes on from there")


def _run_seed(run: _Study, row: _Row, seed: int, labels: int, interrupts: Interrupts) -> None:
    """Makes the runs of a row for one seed, and settles which learning rate counts."""
    config = run.config
    choices = study_plan.rates(config, row.name)
    if labels != ALL:
        choices = (run.rows[row.name].rates[seed],)  # a curve differs from point to point by the labels alone
    elif row.name != "scratch" and len(choices) > 1:
        choices = (_tune(run, row.name, interrupts),)
    outcomes = {}
    for rate in choices:
        trial = study_plan.trial(config, row.name, seed, rate, labels)
        log.info("%s, seed %d, learning rate %g%s", study_plan.TITLES[row.name], seed, rate,
                 f", {labels} labels per class" if labels else "")
        _complete(trial, interrupts)
        outcomes[rate] = study_runs.outcome(trial)
    row.outcomes[seed] = outcomes
    row.rates[seed] = max(outcomes, key=lambda rate: outcomes[rate].top_1)


def _tune(run: _Study, name: str, interrupts: Interrupts) -> float:
    """The learning rate of a row that does best on held-out labelled images, with the first seed."""
    if name not in run.tuned:
        found = {}
        for rate in study_plan.rates(run.config, name):
            trial = study_plan.tuning(run.config, name, rate)
            _complete(trial, interrupts)
            found[rate] = study_runs.outcome(trial).top_1
        run.tuned[name] = max(found, key=found.get), found
        log.info("%s: learning rate %g by held-out labelled images", study_plan.TITLES[name], run.tuned[name][0])
    return run.tuned[name][0]


def _unavailable(config: Config, name: str) -> str | None:
    """Why a row cannot be run: what to fetch from where and where to put it."""
    try:
        if name == "baseline_imagenet":
            baseline.find_weights(study_plan.trial(config, name, config.seed, baseline.LEARNING_RATE).baseline_weights)
        elif name == "released":
            released.inspect(config.study_checkpoint)
    except CheckpointError as error:
        return str(error)
    return None


def _warn(run: _Study, name: str) -> None:
    warning = study_plan.may_have_seen(run.config, name)
    if warning:
        log.warning("WARNING: %s", warning)
        run.warnings.append(warning)


def _check_data(config: Config) -> list[dict]:
    """The parts of the data as the report tells them.

    Raises:
      DataError: there are no labels, or a test image is among the labelled ones.
    """
    unlabelled = data.open_source(config, config.train_split)
    labelled = data.open_training_source(study_plan.trial(config, "scratch", study_seeds(config)[0], 1.0))
    test = data.open_source(config, config.eval_split)
    if labelled.class_names is None or test.class_names is None:
        raise DataError(f"A study compares accuracies and needs labels; {labelled.name} has none.")
    common = set(labelled.keys) & set(test.keys)
    if common:
        raise DataError(
            f"{len(common):,} images are in both --study_labelled_split={config.study_labelled_split} and "
            f"--eval_split={config.eval_split}: accuracies would be worthless. Give splits that do not overlap, such "
            "as test[:20%] and test[20%:]."
        )
    seen = len(set(unlabelled.keys) & set(test.keys))
    labelled_split = config.study_labelled_split
    if config.labels_per_class or config.label_fraction < 1:
        labelled_split += f", {config.labels_per_class or f'{100 * config.label_fraction:g} %'} of each class"
    parts = (("Pretraining, without labels", config.train_split, unlabelled),
             ("Labelled", labelled_split, labelled), ("Test", config.eval_split, test))
    return [{"part": part, "split": split, "images": source.num_examples, "classes": labelled.num_classes,
             "also_in_test": seen if part.startswith("Pretraining") else 0} for part, split, source in parts]


def _label_counts(run: _Study) -> list[int]:
    """Labels per class of the curve, those that every class has enough images for."""
    config, possible = run.config, []
    for count in listed(config, "study_label_counts", int):
        if config.labels_per_class and count >= config.labels_per_class:
            run.skipped_counts[count] = f"all rows use {config.labels_per_class} labels per class"
            continue
        try:
            data.open_training_source(study_plan.trial(config, "scratch", config.seed, 1.0, count))
            possible.append(count)
        except DataError as error:
            log.warning("WARNING: the curve leaves out %d labels per class: %s", count, error)
            run.skipped_counts[count] = str(error)
    return possible


# --- Results ---------------------------------------------------------------------------------------------------------
def result_of(run: _Study) -> dict:
    """What `study.json` holds of the rows so far."""
    config = run.config
    rows = [_row_result(run, row) for row in run.rows.values()]
    pretrained = [study_plan.pretraining(config, seed) for seed in study_pretrain_seeds(config)]
    return {
        "dataset": config.dataset,
        "data": run.data,
        "seeds": study_seeds(config),
        "pretrain_seeds": study_pretrain_seeds(config),
        "network": f"ResNet-{config.resnet_depth}, width {config.width_multiplier:g}, {config.image_size} px",
        "rows": rows,
        "pretraining": [_pretraining_result(c) for c in pretrained] if set(NEEDS_PRETRAINING) & set(run.rows) else [],
        "comparisons": _comparisons(run),
        "ratio_to_baseline": _ratio(run),
        "label_efficiency": _curve_result(run),
        "left_out_label_counts": run.skipped_counts,
        "warnings": run.warnings,
        "resamples": bootstrap.RESAMPLES,
    }


def _row_result(run: _Study, row: _Row) -> dict:
    published = study_plan.PUBLISHED.get(run.config.dataset.split(":")[0], {}).get(row.name)
    result = {
        "row": row.name, "title": study_plan.TITLES[row.name], "status": "done" if row.rates else "pending",
        "published": published and {"top_1": published[0] / 100, "what": published[1]},
    }
    if row.reason:
        return result | {"status": "not run", "reason": row.reason}
    return result | _measured(run, row) if row.rates else result


def _measured(run: _Study, row: _Row) -> dict:
    chosen = row.chosen
    trained = [o.train_top_1 for o in chosen.values() if o.train_top_1 is not None]
    by_seed = [
        {"seed": seed, "top_1": o.top_1, "top_5": o.top_5, "train_top_1": o.train_top_1,
         "learning_rate": row.rates[seed], "run": os.path.relpath(o.config.model_dir, run.config.model_dir),
         "by_learning_rate": {f"{rate:g}": each.top_1 for rate, each in row.outcomes[seed].items()}}
        for seed, o in chosen.items()
    ]
    correct = _mean_correct(chosen)
    held_out = run.tuned.get(row.name)
    return {
        "top_1": float(correct.mean()),
        "interval_95": bootstrap.interval(correct, BOOTSTRAP_SEED),
        "top_5": float(np.mean([o.top_5 for o in chosen.values()])),
        "train_top_1": float(np.mean(trained)) if trained else None,
        "updates": next(iter(chosen.values())).updates,
        "held_out_by_learning_rate": held_out and {f"{rate:g}": value for rate, value in held_out[1].items()},
        "by_seed": by_seed,
        "cost": _cost([o for by_rate in row.outcomes.values() for o in by_rate.values()]),
    }


def _mean_correct(chosen: dict[int, Outcome]) -> np.ndarray:
    """float [n]: the share of seeds that were right on each test image."""
    return np.mean([o.correct for o in chosen.values()], axis=0)


def _cost(outcomes: list[Outcome]) -> dict:
    """Of one run on average: seconds and images per second of training; the largest peak of memory."""
    seconds = [o.seconds for o in outcomes if o.seconds]
    rates = [o.images_per_second for o in outcomes if o.images_per_second]
    return {
        "runs": len(outcomes),
        "seconds": float(np.mean(seconds)) if seconds else None,
        "images_per_second": float(np.mean(rates)) if rates else None,
        "peak_megabytes": max((o.peak_megabytes for o in outcomes if o.peak_megabytes), default=None),
    }


def _pretraining_result(config: Config) -> dict:
    seconds, rate = study_runs.cost(config)
    return {"seed": config.seed, "run": os.path.basename(config.model_dir), "seconds": seconds,
            "images_per_second": rate, "peak_megabytes": study_runs.peak_megabytes(config)}


def _comparisons(run: _Study) -> list[dict]:
    """Fine-tuned against from scratch, seed by seed, on the same test images."""
    if not {"finetuned", "scratch"} <= set(run.rows):
        return []
    tuned, scratch = run.rows["finetuned"].chosen, run.rows["scratch"].chosen
    found = []
    for seed in tuned.keys() & scratch.keys():
        c = bootstrap.compare(tuned[seed].correct, scratch[seed].correct, BOOTSTRAP_SEED)
        found.append({"seed": seed, "difference": c.difference, "interval_99": (c.low, c.high), "p": c.p})
    return sorted(found, key=lambda row: row["seed"])


def _ratio(run: _Study) -> dict | None:
    """How many times the accuracy of the frozen baseline with random weights fine-tuning reaches."""
    if not {"finetuned", "baseline_none"} <= set(run.rows):
        return None
    tuned, frozen = run.rows["finetuned"].chosen, run.rows["baseline_none"].chosen
    if not tuned or not frozen:
        return None
    a, b = _mean_correct(tuned), _mean_correct(frozen)
    if not b.any():
        return None
    return {"ratio": float(a.mean() / b.mean()), "interval_95": bootstrap.ratio_interval(a, b, BOOTSTRAP_SEED)}


def _curve_result(run: _Study) -> dict:
    """row -> points of labels per class (0: all) and accuracy."""
    curves = {}
    for (name, labels), row in [*run.curve.items(), *(((name, ALL), row) for name, row in run.rows.items())]:
        if name in CURVE_ROWS and row.rates and run.curve:
            chosen = {seed: o for seed, o in row.chosen.items() if seed in study_label_seeds(run.config)}
            correct = _mean_correct(chosen)
            curves.setdefault(name, []).append({
                "labels_per_class": labels, "images": labels * run.data[1]["classes"] or run.data[1]["images"],
                "top_1": float(correct.mean()), "interval_95": bootstrap.interval(correct, BOOTSTRAP_SEED),
                "by_seed": [{"seed": seed, "top_1": o.top_1, "learning_rate": row.rates[seed]}
                            for seed, o in chosen.items()],
            })
    return curves


def _write(config: Config, result: dict) -> None:
    texts = {RESULT: json.dumps(result, indent=1), TABLE: study_report.markdown(result)}
    for name, text in texts.items():
        path = os.path.join(config.model_dir, name)
        try:
            with tf.io.gfile.GFile(path, "w") as file:
                file.write(text)
        except (OSError, tf.errors.OpError) as error:
            raise checkpoint.storage_error(error, path) from error
