"""A study told as one: the question, the method and its sources, the data, what was measured, and what it is worth."""

from __future__ import annotations

import dataclasses

import numpy as np

from simclr_tf import report, study_neighbours, study_plan
from simclr_tf.config import Config
from simclr_tf.config_checks import listed, study_pretrain_seeds, study_seeds
from simclr_tf.report import Section, Table, percent, pictures

MISSING = "-"
_METHOD = "SimCLR learns from images without labels, then a classifier learns from the labelled ones."
_STEPS = (
    "Of each image in a batch two views are made by random crops, flips and colour distortion{blur}.",
    "A residual network f turns each view into features h = f(view), a small projection head g those into z = g(h).",
    "The loss (NT-Xent) is the cross-entropy of finding, among all other views of the batch, the one of the same "
    "image, by cosine similarity of the z divided by a temperature.",
    "{optimizer} minimises it, with linear warm-up and cosine decay of the learning rate.",
)
_LAST_STEPS = {  # by whether layers of the projection head stay
    False: "The projection head is set aside; the network is fine-tuned on the labelled images with a new linear "
           "classifier, or kept as it is below one.",
    True: "The network is fine-tuned on the labelled images with a new linear classifier on {layer} of the projection "
          "head, as in SimCLRv2, or kept as it is below one without the head.",
}
_SOURCES = (
    ("SimCLR", "Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual "
               "Representations, 2020 (arXiv 2002.05709)"),
    ("SimCLRv2", "Chen, Kornblith, Swersky, Norouzi, Hinton: Big Self-Supervised Models are Strong Semi-Supervised "
                 "Learners, 2020 (arXiv 2006.10029)"),
    ("LARS", "You, Gitman, Ginsburg: Large Batch Training of Convolutional Networks, 2017 (arXiv 1708.03888)"),
    ("InceptionV3", "Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception Architecture for Computer "
                    "Vision, 2015 (arXiv 1512.00567)"),
)
_BASELINE = (
    "Keras's InceptionV3 without its classifier, frozen, with images resized to its size and scaled to -1..1 as it was "
    "trained with. Its features are computed once per image, without augmentation, standardised by the labelled "
    "images, and classified by three dense layers with dropout. With random weights the raw features differ between "
    "images by about a hundredth of their size, so that without standardising a classifier would learn nothing from "
    "them. The accuracy on the labelled images shows that the classifier was trained."
)
_BOTH_BASELINES = (
    " A published 4.1 % with ImageNet's weights on the dogs looks like images prepared in another way or like random "
    "weights: hence both rows."
)


# --- Texts and tables ------------------------------------------------------------------------------------------------
def markdown(result: dict) -> str:
    """The tables of a study as Markdown."""
    parts = [_markdown_table(_results_table(result)), *_remarks(result)]
    for table in (_training_table(result), _comparison_table(result), _curve_table(result), _cost_table(result)):
        if table:
            parts.append(_markdown_table(table))
    for row in result["rows"]:
        if row["status"] == "not run":
            parts.append(f"Not run: {row['title']}. {row['reason']}")
    return "\n\n".join([*parts, *result["warnings"]]) + "\n"


def _results_table(result: dict) -> Table:
    """What the rows reach."""
    rows = []
    for row in result["rows"]:
        published = f"{100 * row['published']['top_1']:.1f} %" if row["published"] else MISSING
        if row["status"] == "done":
            rows.append([
                row["title"], percent_2(row["top_1"]), _interval(row["interval_95"]), percent_2(row["top_5"]),
                published,
            ])
        else:
            rows.append([row["title"], row["status"], MISSING, MISSING, published])
    done = [(row["top_1"], i) for i, row in enumerate(result["rows"]) if row["status"] == "done"]
    columns = ["Row", "Top-1", "95 % interval", "Top-5", "Published"]
    if not any(row["published"] for row in result["rows"]):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(columns, rows, numeric=range(1, len(columns)), best=[max(done)[1]] if done else [])


def _training_table(result: dict) -> Table:
    """How the rows were trained."""
    rows = [
        [row["title"], ", ".join(f"{100 * s['top_1']:.2f}" for s in row["by_seed"]) + " %",
         percent_2(row["train_top_1"]) if row["train_top_1"] is not None else MISSING,
         f"{row['updates']:,}", _rates(row)]
        for row in result["rows"] if row["status"] == "done"
    ]
    return Table(("Row", "Top-1 by seed", "In training", "Updates", "Learning rate"), rows, numeric=(2, 3, 4))


def _remarks(result: dict) -> list[str]:
    test = result["data"][2]
    texts = [
        f"Top-1 is the mean over the seeds on {test['images']:,} test images; intervals are bootstrapped over these "
        f"images ({result['resamples']:,} resamples). Chance is {percent_2(1 / test['classes'])}."
    ]
    if any(row["row"] == "scratch" and row["status"] == "done" for row in result["rows"]):
        texts[0] += (
            " From scratch counts with the learning rate that does best on the test images themselves, in its favour; "
            "the other rows' learning rate was fixed or chosen on held-out labelled images."
        )
    if ratio := result["ratio_to_baseline"]:
        texts.append(
            f"Fine-tuned SimCLR has {ratio['ratio']:.2f} times the accuracy of the frozen InceptionV3 with random "
            f"weights (95 % interval {ratio['interval_95'][0]:.2f} to {ratio['interval_95'][1]:.2f})."
        )
    return texts


def _comparison_table(result: dict) -> Table | None:
    rows = [
        [str(c["seed"]), _points(c["difference"]), f"{_points(c['interval_99'][0])} to {_points(c['interval_99'][1])}",
         f"{c['p']:.2g}"]
        for c in result["comparisons"]
    ]
    columns = ("Seed", "SimCLR fine-tuned minus from scratch, points", "99 % interval", "p")
    return Table(columns, rows, numeric=(1, 2, 3)) if rows else None


def _curve_table(result: dict) -> Table | None:
    curves = result["label_efficiency"]
    if not curves:
        return None
    counts = [p["labels_per_class"] for p in max(curves.values(), key=len)]
    rows = []
    for name, points in curves.items():
        found = {p["labels_per_class"]: f"{percent_2(p['top_1'])} ({_interval(p['interval_95'])})" for p in points}
        rows.append([study_plan.TITLES[name], *(found.get(count, MISSING) for count in counts)])
    images = {p["labels_per_class"]: p["images"] for points in curves.values() for p in points}
    names = [f"{'all' if c == study_plan.ALL else c} ({images[c]:,} images)" for c in counts]
    return Table(("Labels per class", *names), rows, numeric=range(1, len(counts) + 1))


def _cost_table(result: dict) -> Table | None:
    rows = []
    for each in result["pretraining"]:
        rows.append([f"Pretraining, seed {each['seed']}", "1", *_cost_cells(each)])
    for row in result["rows"]:
        if row["status"] == "done":
            rows.append([row["title"], str(row["cost"]["runs"]), *_cost_cells(row["cost"])])
    columns = ("Row", "Runs", "Training seconds, each", "Images/s", "Peak memory, MB")
    return Table(columns, rows, numeric=(1, 2, 3, 4)) if rows else None


def _cost_cells(cost: dict) -> list[str]:
    return [f"{cost[name]:,.0f}" if cost[name] else MISSING for name in ("seconds", "images_per_second",
                                                                         "peak_megabytes")]


def _rates(row: dict) -> str:
    return ", ".join(dict.fromkeys(f"{seed['learning_rate']:g}" for seed in row["by_seed"]))


def percent_2(share: float) -> str:
    return f"{100 * share:.2f} %"


def _interval(pair) -> str:
    return f"{100 * pair[0]:.2f} to {100 * pair[1]:.2f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _markdown_table(table: Table) -> str:
    """Columns are padded, so that it can be read in a terminal too."""
    rows = (table.columns, *table.rows)
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * (width - 1) + ":" if i in table.numeric else "-" * width for i, width in enumerate(widths)]
    lines = [[cell.rjust(width) if i in table.numeric else cell.ljust(width)
              for i, (cell, width) in enumerate(zip(line, widths, strict=True))] for line in cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


# --- The report ------------------------------------------------------------------------------------------------------
def write(config: Config, result: dict) -> str:
    """Writes `report.html` into the study's folder and returns its path."""
    name = {"stanford_dogs": "Stanford Dogs", "cifar10": "CIFAR-10", "digits": "handwritten digits"}.get(
        config.dataset, config.dataset)
    seed = study_seeds(config)[0]

    def run_of(row: str) -> report.Run | None:
        for each in result["rows"]:
            if each["row"] == row and each["status"] == "done":
                return report.read_run(study_plan.trial(config, row, seed, each["by_seed"][0]["learning_rate"]))
        return None

    def of(part, run, title, anchor):
        def renamed(_):
            section = run and part(run)
            return section and dataclasses.replace(section, title=title, anchor=anchor)
        return renamed

    pretrained = report.read_run(study_plan.pretraining(config, study_pretrain_seeds(config)[0]))
    shown = {row["row"] for row in result["rows"] if row["status"] == "done"} & {"finetuned", "linear"}
    return report.write_report(
        config, title=f"Does self-supervision pay? {name}",
        lead=f"The same few labels {'with a frozen baseline, ' if _baselines(result) else ''}from scratch, and after "
             "pretraining without labels.",
        parts=(
            lambda _: _question(config, result),
            lambda _: _results(result),
            lambda _: _comparison(result),
            lambda _: _efficiency(result),
            lambda _: _method(config, result),
            lambda _: _data(result),
            lambda _: _baseline(result),
            of(report.views, pretrained, "Augmented pairs", "views"),
            of(report.curves, pretrained, "Pretraining", "pretraining"),
            lambda _: study_neighbours.section(pretrained.config) if shown else None,
            of(report.confusion, run_of("finetuned"), "Confused after fine-tuning", "confusion"),
            of(report.confusion, run_of("scratch"), "Confused when trained from scratch", "confusion-scratch"),
            lambda _: _cost(result),
            lambda _: _limits(config, result),
            lambda run: report.configuration(run),
        ),
    )


def _question(config: Config, result: dict) -> Section:
    unlabelled, labelled, test = result["data"]
    text = (
        f"There are {unlabelled['images']:,} images without labels and {labelled['images']:,} with one of "
        f"{labelled['classes']} classes. Is it worth pretraining on the former before learning from the latter? Each "
        f"row below learns from the same labels and is tested on the same {test['images']:,} other images."
    )
    headline = [(percent(row["top_1"]), row["title"]) for row in result["rows"]
                if row["status"] == "done" and row["row"] in ("finetuned", "scratch", "baseline_none")]
    return Section("Question", "question", text, headline)


def _results(result: dict) -> Section:
    note = " ".join(_remarks(result))
    details = [(row["title"], [("not run", row["reason"])]) for row in result["rows"] if row["status"] == "not run"]
    return Section("Results", "results", tables=[_results_table(result), _training_table(result)], note=note,
                   details_title="Rows that were not run, and what they need", details=details)


def _comparison(result: dict) -> Section | None:
    table = _comparison_table(result)
    text = (
        "Both systems are tested on the same images, so they are compared image by image (paired bootstrap). An "
        "interval that leaves out 0 means that another choice of test images would not have turned the order."
    )
    return table and Section("SimCLR against from scratch", "comparison", text, tables=[table])


def _efficiency(result: dict) -> Section | None:
    table = _curve_table(result)
    if table is None:
        return None
    series = [
        (study_plan.TITLES[name], np.array([p["images"] for p in points]), np.array([100 * p["top_1"] for p in points]))
        for name, points in result["label_efficiency"].items()
    ]
    note = " ".join(f"{count} labels per class left out: {why}." for count, why in
                    result["left_out_label_counts"].items())
    picture = pictures.curves_by_labels(series, result["data"][-1]["images"])
    return Section("Label efficiency", "label-efficiency", "Test accuracy over the number of labelled images.",
                   pictures=[picture], tables=[table], note=note)


def _method(config: Config, result: dict) -> Section:
    length = f"{config.train_steps:,} updates" if config.train_steps else f"{config.train_epochs:,} epochs"
    rows = [
        ["Network", result["network"]],
        ["Pretraining", f"{length}, batch {config.train_batch_size}, temperature {config.temperature:g}, "
                        f"{config.optimizer}, learning rate {config.learning_rate:g} ({config.learning_rate_scaling}), "
                        f"seeds {', '.join(map(str, result['pretrain_seeds']))}"],
        ["Learning from labels", f"{config.study_steps:,} updates of {config.study_batch_size} images, "
                                 f"{config.study_optimizer}, seeds {', '.join(map(str, result['seeds']))}"],
        ["From scratch", f"{config.study_scratch_steps or config.study_steps:,} updates, learning rates "
                         f"{', '.join(f'{r:g}' for r in listed(config, 'study_learning_rates', float))}"],
    ]
    layer = config.ft_proj_selector
    which = "the last layer" if layer < 0 else f"layer {layer}"
    texts = (*_STEPS, _LAST_STEPS[layer != 0])
    blur = ", half of them blurred" if config.use_blur else ""
    optimizer = {"lars": "LARS", "adam": "Adam", "momentum": "SGD with momentum"}[config.optimizer]
    steps = [(str(k), text.format(blur=blur, layer=which, optimizer=optimizer)) for k, text in enumerate(texts, 1)]
    sources = [source for source in _SOURCES if source[0] != "InceptionV3" or _baselines(result)]
    return Section("Method", "method", _METHOD, tables=[
        Table(("", "Step"), steps), Table(("", "Here"), rows), Table(("", "Source"), sources),
    ])


def _baselines(result: dict) -> int:
    return sum(row["row"].startswith("baseline") for row in result["rows"])


def _baseline(result: dict) -> Section | None:
    text = _BASELINE + (_BOTH_BASELINES if _baselines(result) > 1 else "")
    return Section("Baseline", "baseline", text) if _baselines(result) else None


def _data(result: dict) -> Section:
    rows = [[d["part"], d["split"], f"{d['images']:,}", str(d["classes"])] for d in result["data"]]
    seen = result["data"][0]["also_in_test"]
    note = f"{seen:,} of the test images were seen in pretraining, without their labels." if seen else (
        "No test image is among the images of the other two parts.")
    table = Table(("Part", "Split", "Images", "Classes"), rows, numeric=(2, 3))
    return Section("Data", "data", f"Data set: {result['dataset']}.", tables=[table], note=note)


def _cost(result: dict) -> Section | None:
    table = _cost_table(result)
    note = (
        "Seconds of training by the run's own clock, without compiling and evaluating. Memory is the peak of the whole "
        "process during the run, the data it holds included, or of the GPU where there is one."
    )
    return table and Section("Cost", "cost", tables=[table], note=note)


def _limits(config: Config, result: dict) -> Section:
    limits = [
        "Intervals are about the choice of test images; how much the seed matters is seen in the accuracies by seed.",
    ]
    if len(result["pretrain_seeds"]) < len(result["seeds"]):
        limits.append("Pretraining was not repeated for every seed, so the seeds do not show how much it varies.")
    if any(row["published"] for row in result["rows"]):
        limits.append("The published figures are from other images, sizes, networks and training times: they stand "
                      "beside these for orientation and are no comparison.")
    return Section("Limits", "limits", " ".join([*limits, *result["warnings"]]))
