"""The models that the authors released: names, architectures, where their files are, and published accuracies.

Sources: the two READMEs and `tf2/colabs/imagenet_results.ipynb` of google-research/simclr, and for the distilled
models table 3 of the SimCLRv2 paper (arXiv 2006.10029). Accuracies are ImageNet top-1 in per cent, theirs.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re

from simclr_tf.architecture import RELEASED_SK_RATIO, Architecture, variables
from simclr_tf.errors import CheckpointError

HTTPS = "https://storage.googleapis.com"
BUCKETS = ("gs://simclr-checkpoints/", "gs://simclr-checkpoints-tf2/", "gs://simclr-gcs/")  # the authors', public
_TF1_BUCKET = "simclr-checkpoints/simclrv2"
_TF2_BUCKET = "simclr-checkpoints-tf2"
_CLASSES = 1000

# depth, width, SK; then top-1: fine-tuned on 1 %, 10 %, 100 % of the labels; linear evaluation; supervised
_V2 = (
    (50, 1, 0, 57.9, 68.4, 76.3, 71.7, 76.6), (50, 1, 1, 64.5, 72.1, 78.7, 74.6, 78.5),
    (50, 2, 0, 66.3, 73.9, 79.1, 75.6, 77.8), (50, 2, 1, 70.6, 77.0, 81.3, 77.7, 79.3),
    (101, 1, 0, 62.1, 71.4, 78.2, 73.6, 78.0), (101, 1, 1, 68.3, 75.1, 80.6, 76.3, 79.6),
    (101, 2, 0, 69.1, 75.8, 80.7, 77.0, 78.9), (101, 2, 1, 73.2, 78.8, 82.4, 79.0, 80.1),
    (152, 1, 0, 64.0, 73.0, 79.3, 74.5, 78.3), (152, 1, 1, 70.0, 76.5, 81.3, 77.2, 79.9),
    (152, 2, 0, 70.2, 76.6, 81.1, 77.4, 79.1), (152, 2, 1, 74.2, 79.4, 82.9, 79.4, 80.4),
    (152, 3, 1, 74.9, 80.1, 83.1, 79.8, 80.5),
)
# category -> step of its TF1 checkpoints, column of its accuracy in _V2, layer of the projection head that its
# classifier reads (by the paper's appendix: the first one after fine-tuning on few labels)
_V2_CATEGORIES = {
    "pretrained": (250228, 6, 0), "finetuned_1pct": (751, 3, 1), "finetuned_10pct": (3754, 4, 1),
    "finetuned_100pct": (37535, 5, 0), "supervised": (28151, 7, 0),
}
# The distilled models: those of the paper. Their step is only in the folder's `checkpoint` file.
_V2_DISTILLED = ((50, 1, 0, 73.9, 77.5), (50, 2, 1, 75.9, 80.2), (152, 3, 1, 76.6, 80.9))
# width, then top-1: linear evaluation, fine-tuned on 10 %, on 100 %
_V1 = ((1, 69.1, 65.8, 75.6), (2, 74.2, 71.6, 79.2), (4, 76.6, 74.5, 80.8))


@dataclasses.dataclass(frozen=True)
class Source:
    """One of the formats a model was released in.

    format: in words.
    url: its folder or archive in Google Cloud Storage, as `gs://`.
    files: name below the model's folder here -> https URL. The index comes last, so that it stands for the whole.
    state: URL of the `checkpoint` file that says what the files are called, where that is not known.
    """

    format: str
    url: str
    files: dict[str, str] = dataclasses.field(hash=False)
    state: str | None = None


@dataclasses.dataclass(frozen=True)
class Released:
    """A released model. `name` is what `released.load` and --checkpoint take.

    parameters: of the encoder with its classifier excluded, as published.
    accuracy: published ImageNet top-1 in per cent, `measured` how.
    ft_proj_selector: layer of the projection head that its classifier reads; cannot be seen in the weights.
    sources: formats it is to be had in, the one that is downloaded first.
    """

    name: str
    category: str
    architecture: Architecture
    accuracy: float
    measured: str
    sources: tuple[Source, ...]
    ft_proj_selector: int = 0

    @property
    def parameters(self) -> int:
        """Number of the encoder's parameters, batch-norm statistics included (as in the published table)."""
        return sum(math.prod(s) for n, s in variables(self.architecture).items() if n.startswith("base_model/"))


@functools.cache
def table() -> tuple[Released, ...]:
    """The released models of SimCLRv2 and SimCLRv1, in the order of the authors' READMEs."""
    return (*_v2(), *_distilled(), *_v1())


def find(name: str) -> Released | None:
    """The released model that the name, or the `gs://` URL of its folder or archive, stands for."""
    if name.startswith(BUCKETS):
        found = find_source(name)
        return found[0] if found else None
    return next((model for model in table() if model.name == name.rstrip("/")), None)


def find_in_path(path: str) -> Released | None:
    """The released model whose name is a part of `path`, as where its files were copied folder by folder."""
    match = re.search(r"(?:^|/)(simclrv[12]/[^/]+/[^/]+)", path)
    return find(match[1]) if match else None


def find_source(url: str) -> tuple[Released, Source] | None:
    """The released model, and which of its formats, that the `gs://` URL is the folder or archive of."""
    return next(((m, source) for m in table() for source in m.sources if source.url == url.rstrip("/")), None)


def files_of(prefix: str) -> dict[str, str]:
    """Files of the tensor bundle at the https prefix: name -> URL, the index last."""
    base = prefix.rsplit("/", 1)[-1]
    return {base + suffix: prefix + suffix for suffix in (".data-00000-of-00001", ".index")}


def _saved_model(folder: str) -> Source:
    """A TF2 SavedModel of which only the variables are fetched."""
    inner = "saved_model/variables"
    prefix = f"{HTTPS}/{_TF2_BUCKET}/{folder}/{inner}/variables"
    files = {f"{inner}/{name}": url for name, url in files_of(prefix).items()}
    return Source("TF2 SavedModel", f"gs://{_TF2_BUCKET}/{folder}/saved_model", files)


def _v2():
    for category, (step, column, selector) in _V2_CATEGORIES.items():
        for row in _V2:
            model = "r{}_{}x_sk{}".format(*row[:3])
            folder = f"{_TF1_BUCKET}/{category}/{model}"
            tf1 = Source("TF1 checkpoint", f"gs://{folder}", files_of(f"{HTTPS}/{folder}/model.ckpt-{step}"))
            name = f"simclrv2/{category}/{model}"
            sources = (tf1, _saved_model(name))
            yield Released(
                name, category, _v2_architecture(*row[:3]), row[column], _MEASURED[category], sources, selector)


def _distilled():
    for category, column in (("distill_1pct", 3), ("distill_10pct", 4)):
        for row in _V2_DISTILLED:
            model = "r{}_{}x_sk{}".format(*row[:3])
            name = f"simclrv2/{category}/{model}"
            folder = f"{_TF1_BUCKET}/{category}/{model}"
            tf1 = Source("TF1 checkpoint", f"gs://{folder}", {}, f"{HTTPS}/{folder}/checkpoint")
            sources = (tf1, _saved_model(name))
            yield Released(name, category, _v2_architecture(*row[:3]), row[column], _MEASURED[category], sources)


def _v2_architecture(depth: int, width: int, sk: int) -> Architecture:
    return Architecture(depth, width, sk * RELEASED_SK_RATIO, num_classes=_CLASSES)


def _v1():
    for column, category in enumerate(("pretrain", "finetune_10pct", "finetune_100pct"), start=1):
        for row in _V1:
            name = f"simclrv1/{category}/{row[0]}x"
            sources = [_saved_model(name)]
            if category == "pretrain":
                archive = f"ResNet50_{row[0]}x.zip"
                path = f"simclr-gcs/checkpoints/{archive}"
                sources.insert(0, Source("TF1 checkpoint in a zip", f"gs://{path}", {archive: f"{HTTPS}/{path}"}))
            arch = Architecture(50, row[0], proj_head_mode="none", num_classes=_CLASSES)
            yield Released(name, category, arch, row[column], _MEASURED[category], tuple(sources))


_MEASURED = {
    "pretrained": "linear evaluation", "pretrain": "linear evaluation", "supervised": "supervised",
    "finetuned_1pct": "fine-tuned on 1 %", "finetuned_10pct": "fine-tuned on 10 %",
    "finetuned_100pct": "fine-tuned on 100 %", "finetune_10pct": "fine-tuned on 10 %",
    "finetune_100pct": "fine-tuned on 100 %", "distill_1pct": "distilled, 1 %", "distill_10pct": "distilled, 10 %",
}


# --- As text -----------------------------------------------------------------------------------------------------

_HEADINGS = ("Name", "ResNet", "SK", "Parameters", "Top-1", "Measured", "Formats")


def rows() -> list[tuple[str, ...]]:
    """The table as text, without headings."""
    return [
        (m.name, f"{m.architecture.depth} {m.architecture.width:g}x", "yes" if m.architecture.sk_ratio else "no",
         f"{m.parameters / 1e6:.0f} M", f"{m.accuracy:.1f} %", m.measured, ", ".join(s.format for s in m.sources))
        for m in table()
    ]


def table_text() -> str:
    """The table for a terminal, as --mode=list_checkpoints prints it."""
    cells = [_HEADINGS, *rows()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in cells)


def table_markdown() -> str:
    """The table as it stands in checkpoints/README.md."""
    cells = [_HEADINGS, ["---"] * len(_HEADINGS), *[(f"`{r[0]}`", *r[1:]) for r in rows()]]
    return "\n".join("| " + " | ".join(r) + " |" for r in cells)


def no_such_model(name: str) -> CheckpointError:
    """The error for a name that no released model has."""
    near = difflib.get_close_matches(name, [m.name for m in table()], n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else "--mode=list_checkpoints lists the released models."
    return CheckpointError(f"{name} is neither a file or folder nor a released model. {hint}")
