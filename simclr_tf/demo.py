"""`--mode=demo`: does pretraining without labels pay? The same network and few labels, with it and without.

The flags are those of the pretraining (`flags/demo.flags`); the other runs are made from them here. Each is an
ordinary run in a folder of its own, so a demo that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os

import tensorflow as tf

from simclr_tf import checkpoint, data, report, training
from simclr_tf.config import Config
from simclr_tf.errors import DataError

log = logging.getLogger(__name__)

LABELS_PER_CLASS = 2
FINETUNE_STEPS = 300
FINETUNE_LEARNING_RATE = 0.01
SCRATCH_LEARNING_RATES = (0.003, 0.01, 0.03)


def demo(config: Config) -> dict:
    """Pretrains, fine-tunes, and trains from scratch; leaves `result.json` and `report.html`; prints the table.

    Training from scratch gets every advantage: as many updates as pretraining and fine-tuning together, and the
    learning rate that does best on the very images the result is measured on.

    Returns:
      What `result.json` holds: `simclr` and `from_scratch`, top-1 accuracies in 0..1; `from_scratch_by_learning_rate`;
      `labels_per_class`, `test_images`, `updates` of each row, `seed`.

    Raises:
      DataError: `config.dataset` has no labels to fine-tune on.
    """
    source = data.open_training_source(config)
    if source.class_names is None:
        raise DataError(f"The demo compares accuracies and needs labels; {source.name} has none. Use --dataset=digits.")
    pretraining = _pretraining(config)
    pretrain_steps = config.total_steps(source.num_examples)
    finetuning = _supervised(
        config, source.num_classes, "finetune", FINETUNE_LEARNING_RATE, FINETUNE_STEPS, pretraining.model_dir,
    )
    scratch_steps = pretrain_steps + FINETUNE_STEPS
    scratch = {
        rate: _supervised(config, source.num_classes, f"scratch-{rate:g}", rate, scratch_steps, None)
        for rate in SCRATCH_LEARNING_RATES
    }

    log.info("1. Pretraining on %s images without their labels", f"{source.num_examples:,}")
    training.train(pretraining)
    log.info("2. Fine-tuning on %d labels per class", LABELS_PER_CLASS)
    simclr = _top_1(training.train_then_eval(finetuning))
    by_rate = {}
    for number, (rate, run) in enumerate(scratch.items(), 1):
        log.info("3. From scratch on the same labels, learning rate %g (%d of %d)", rate, number, len(scratch))
        by_rate[rate] = _top_1(training.train_then_eval(run))
    best = max(by_rate, key=by_rate.get)

    result = {
        "simclr": simclr,
        "from_scratch": by_rate[best],
        "from_scratch_by_learning_rate": {f"{rate:g}": accuracy for rate, accuracy in by_rate.items()},
        "labels_per_class": LABELS_PER_CLASS,
        "test_images": data.open_source(config, config.eval_split).num_examples,
        "updates": {"simclr": [pretrain_steps, FINETUNE_STEPS], "from_scratch": scratch_steps},
        "seed": config.seed,
    }
    path = os.path.join(config.model_dir, "result.json")
    try:
        with tf.io.gfile.GFile(path, "w") as file:
            json.dump(result, file, indent=1)
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, path) from error
    print(table_text(result), flush=True)
    _write_report(config, result, pretraining, finetuning, scratch[best])
    return result


def table_text(result: dict) -> str:
    """The result as a table for the terminal."""
    head, *rows = _table_rows(result)
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in (head, ["-" * width for width in widths], *rows)]
    return "\n".join(["", *lines, "", _remark(result), ""])


def _table_rows(result: dict) -> list[list[str]]:
    labels = f"{result['labels_per_class']} per class"
    pretrained, finetuned = result["updates"]["simclr"]
    rows = [["", "Labels", "Updates", "Test accuracy"],
            ["SimCLR, fine-tuned", labels, f"{pretrained} + {finetuned}", report.percent(result["simclr"])]]
    best = max(result["from_scratch_by_learning_rate"].items(), key=lambda item: item[1])[0]
    for rate, accuracy in result["from_scratch_by_learning_rate"].items():
        name = f"From scratch, learning rate {rate}{' (best)' if rate == best else ''}"
        rows.append([name, labels, str(result["updates"]["from_scratch"]), report.percent(accuracy)])
    return rows


def _remark(result: dict) -> str:
    return (
        f"Accuracy on {result['test_images']} test images, seed {result['seed']}. The best learning rate from scratch "
        "was chosen on these very images, in its favour."
    )


def _pretraining(config: Config) -> Config:
    return _variant(config, "pretrain", mode="train", train_mode="pretrain", lineareval_while_pretraining=False)


def _supervised(
    config: Config, num_classes: int, name: str, learning_rate: float, steps: int, origin: str | None,
) -> Config:
    """A run on a few labels, all of them in every batch."""
    return _variant(
        config, name, mode="train_then_eval", train_mode="finetune", checkpoint=origin,
        labels_per_class=LABELS_PER_CLASS, train_batch_size=LABELS_PER_CLASS * num_classes, train_steps=steps,
        optimizer="adam", learning_rate=learning_rate, learning_rate_scaling="linear", warmup_epochs=0.0,
    )


def _variant(config: Config, name: str, **changes) -> Config:
    """`config` with changes, as a run in the folder `name` that saves at its end only."""
    return dataclasses.replace(
        config, model_dir=os.path.join(config.model_dir, name), given=None, **changes,
    )


def _top_1(result: dict) -> float:
    return result["eval/label_top_1_accuracy"]


def _write_report(config: Config, result: dict, pretraining: Config, finetuning: Config, scratch: Config) -> None:
    """The table, and the parts of the single runs' reports that show why it is so."""
    before, after, without = (report.read_run(c) for c in (pretraining, finetuning, scratch))

    def table(_):
        head, *rows = _table_rows(result)
        return report.Section(
            "Result", "result", headline=[
                (report.percent(result["simclr"]), "SimCLR, fine-tuned"),
                (report.percent(result["from_scratch"]), "from scratch, best learning rate"),
            ], tables=[report.Table(head, rows, numeric=(2, 3), best=[0])], note=_remark(result),
        )

    def of(part, run, title, anchor):
        def renamed(_):
            section = part(run)
            return section and dataclasses.replace(section, title=title, anchor=anchor)
        return renamed

    report.write_report(
        config, title="SimCLR on handwritten digits" if config.dataset == "digits" else f"SimCLR on {config.dataset}",
        lead=f"Is pretraining without labels worth it, with {LABELS_PER_CLASS} labels per class to learn from?",
        parts=(
            table,
            of(report.views, before, "What pretraining sees", "views"),
            of(report.curves, before, "Pretraining, no labels", "pretraining"),
            of(report.curves, after, "Fine-tuning", "fine-tuning"),
            of(report.curves, without, "From scratch, best learning rate", "scratch"),
            of(report.confusion, after, "Confusion after fine-tuning", "confusion"),
            of(report.confusion, without, "Confusion from scratch", "confusion-scratch"),
            of(report.configuration, before, "Configuration of pretraining", "configuration"),
        ),
    )
