"""Random flags, flagfiles and images for the command: what the fuzz tests and `benchmarks/fuzz.py` draw from.

Everything drawn is something a user could give. Whatever it is, the command ends with a documented exit code.
"""

import io

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from simclr_tf.config import flag_fields

DOCUMENTED = {0, 2, 3, 4, 5}  # exit codes that a command may end with when nothing disturbs it

# Small enough for a run to take seconds; not drawn.
SMALL = ("--image_size=8", "--width_multiplier=0.0625", "--resnet_depth=18", "--use_blur=False", "--train_steps=1",
         "--train_summary_steps=1", "--warmup_epochs=0", "--eval_split=test[:8]", "--eval_batch_size=8",
         "--keep_hub_module_max=-1", "--eval_timeout=0")

# Drawn from these instead of from the whole range: what takes long, downloads, waits, or leaves the machine.
INSTEAD = {
    "mode": ("train", "train_then_eval", "eval", "predict", "export", "list_checkpoints", "doctor"),
    "train_mode": ("pretrain", "finetune", "distill"),
    "dataset": ("digits", "folder:images", "folder:nowhere", "folder:.", "folder:"),
    "train_split": ("train", "train[:9]", "train[90%:]", "test", "train[:0]", "train+test", "x", "train[", ""),
    "eval_split": ("test[:8]", "validation[:4]", "test[:0]", "x", "held_out"),
    "checkpoint": ("nowhere", "images", ".", "run", "simclrv2/no/such"),
    "teacher": ("nowhere", "run"),
    "predict_input": ("images", "images/0.png", "nowhere"),
    "strategy": ("auto", "cpu", "gpu", "tpu", "mirrored", "multi_worker"),
    "train_batch_size": (1, 2, 7, 8, 16),
    "eval_batch_size": (1, 7, 8),
    "variable_schema": ("?!global_step", ".*", "(?!head)", "nothing", "(", "["),
    "allow_changed_settings": ("seed", "seed,temperature", "x", ","),
    "proj_out_dim": (1, 8), "num_proj_layers": (1, 2, 3), "eval_every_epochs": (0, 1), "eval_steps": (0, 1, 9),
    "checkpoint_steps": (0, 1, 5), "steps_per_loop": (0, 1, 7), "max_bad_images": (0, 1, 99),
    "labels_per_class": (0, 1, 1000), "eval_name": ("x", "a b"),
}
LEFT_OUT = {"model_dir", "data_dir", "tpu_name", "tpu_zone", "gcp_project", "master", "wandb", "train_steps",
            "train_epochs", "image_size", "resnet_depth", "width_multiplier", "deterministic", "eval_timeout",
            "warmup_epochs", "train_summary_steps", "checkpoint_epochs"}


def value_of(field) -> st.SearchStrategy:
    """Values for a flag, most of them allowed, some not."""
    meta = field.metadata
    if field.name in INSTEAD:
        return st.sampled_from(INSTEAD[field.name])
    if meta["choices"]:
        return st.sampled_from([*meta["choices"], "x"])
    if isinstance(field.default, bool) or field.default is None:
        return st.sampled_from([True, False, "x"])
    odd = st.sampled_from(["nan", "inf", "-1", "1e40", "x", ""])
    if isinstance(field.default, int):
        return st.integers(-1, 3) | odd
    if isinstance(field.default, float):
        high = meta["at_most"] if meta["at_most"] is not None else 10.0
        return st.floats(0, high) | odd
    return st.sampled_from(["", "x", "1", "1,2"])


@st.composite
def command_lines(draw, most: int = 5) -> list[str]:
    """Flags for a tiny run, without its folder."""
    fields = [f for f in flag_fields() if f.name not in LEFT_OUT and not f.name.startswith(("study", "baseline"))]
    chosen = draw(st.lists(st.sampled_from(fields), max_size=most, unique_by=lambda f: f.name))
    flags = [f"--{field.name}={draw(value_of(field))}" for field in chosen]
    if not any(flag.startswith("--dataset=") for flag in flags):
        flags.append("--dataset=digits")
    return [*SMALL, *(["--train_batch_size=8"] if "train_batch_size" not in {f.name for f in chosen} else []), *flags]


def flagfiles() -> st.SearchStrategy:
    """Contents of flagfiles: any bytes, or lines that look like flags."""
    line = st.one_of(
        st.sampled_from(["--seed=1", "--temperature=0.5", "# comment", "  // comment", "--flagfile=it.flags", "--", "-",
                         "--seed", "--no_such=1", "--nouse_blur", "--=1", "--seed=1 # x"]),
        st.text(max_size=20),
    )
    return st.binary(max_size=200) | st.lists(line, max_size=8).map(lambda ls: "\n".join(ls).encode("utf-8", "replace"))


@st.composite
def images(draw) -> bytes:
    """Bytes of an image file: random ones, a header and random ones, or an image with some bytes changed."""
    kind = draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"]))
    buffer = io.BytesIO()
    pixels = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    Image.fromarray(pixels).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    how = draw(st.sampled_from(["bytes", "header", "changed", "cut", "whole"]))
    if how == "bytes":
        return draw(st.binary(max_size=300))
    if how == "header":
        return bytes(content[: draw(st.integers(2, 40))]) + draw(st.binary(max_size=300))
    if how == "cut":
        return bytes(content[: draw(st.integers(0, len(content)))])
    if how == "changed":
        for _ in range(draw(st.integers(1, 6))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)
