"""What a training leaves to look at: TensorBoard events, `history.jsonl`, and a progress line."""

from __future__ import annotations

import json
import logging
import os
import sys
import time

import numpy as np
import tensorflow as tf

from simclr_tf.checkpoint import storage_error
from simclr_tf.tracking import Tracker

log = logging.getLogger(__name__)

HISTORY = "history.jsonl"
INPUT_WAIT = "input_wait_seconds"  # tag: how long a step waited for its images
BOTTLENECK = 0.2  # share of the time spent waiting from where on the input pipeline is called the bottleneck
STEPS_TO_JUDGE = 10  # before saying so
GRID_IMAGES = 8  # pairs of views in the picture


class Summaries:
    """Writes scalars and pictures of a run. `history.jsonl` holds a line per summary: step, then each scalar.

    Args:
      model_dir: the run's folder.
      start_step: step the training goes on from; later lines, of a training that was killed, are dropped.
      tracker: takes the same, or None.
    """

    def __init__(self, model_dir: str, start_step: int, tracker: Tracker | None = None):
        self._tracker = tracker
        self._path = os.path.join(model_dir, HISTORY)
        kept = [line for line in read_history(model_dir) if line["step"] <= start_step]
        try:
            with tf.io.gfile.GFile(self._path, "w") as file:
                file.write("".join(json.dumps(line) + "\n" for line in kept))
            self._writer = tf.summary.create_file_writer(model_dir)
        except (OSError, tf.errors.OpError) as error:
            raise storage_error(error, f"to {model_dir}") from error

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes `values`, TensorBoard tag -> number, at `step`.

        Raises:
          StorageError: they cannot be written.
        """
        try:
            with tf.io.gfile.GFile(self._path, "a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            with self._writer.as_default():
                for tag, value in values.items():
                    tf.summary.scalar(tag, value, step=step)
            self._writer.flush()
        except (OSError, tf.errors.OpError) as error:
            raise storage_error(error, f"summaries to {self._path}") from error
        if self._tracker:
            self._tracker.scalars(step, values)

    def views(self, step: int, images: np.ndarray) -> None:
        """Writes a picture of the first images [n, S, S, 3k]: a column each, their k views below each other."""
        picture = grid(images)
        try:
            with self._writer.as_default():
                tf.summary.image("image", picture[None], step=step)
            self._writer.flush()
        except (OSError, tf.errors.OpError) as error:
            raise storage_error(error, f"summaries to {self._path}") from error
        if self._tracker:
            self._tracker.picture(step, picture)


def grid(images: np.ndarray) -> np.ndarray:
    """[n, S, S, 3k] -> [k * S, min(n, GRID_IMAGES) * S, 3]: one column per image, one row per view."""
    views = np.split(np.asarray(images[:GRID_IMAGES]), images.shape[-1] // 3, axis=-1)
    return np.concatenate([np.concatenate(list(view), axis=1) for view in views], axis=0)


def read_history(model_dir: str) -> list[dict]:
    """The lines of `history.jsonl`; none if there is no file. A half-written last line is left out."""
    path = os.path.join(model_dir, HISTORY)
    if not tf.io.gfile.exists(path):
        return []
    lines = []
    with tf.io.gfile.GFile(path) as file:
        for line in file.read().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break  # the process was killed while writing it
    return lines


class Progress:
    """One line that tells how training goes: rewritten on a terminal, printed now and then elsewhere."""

    def __init__(self, start_step: int, total_steps: int, batch_size: int, epoch_steps: int):
        self._total, self._batch_size, self._epoch_steps = total_steps, batch_size, epoch_steps
        self._seconds, self._steps = 0.0, 0  # of the steps after the first, which includes tracing
        self._waited = 0.0  # of these seconds, for images
        self._said = False
        self._step = start_step
        self._terminal = sys.stderr.isatty()
        self._shown = 0.0

    @property
    def images_per_second(self) -> float:
        return self._steps * self._batch_size / self._seconds if self._seconds else 0.0

    @property
    def input_share(self) -> float:
        """The share of the time, 0..1, that steps waited for images."""
        return min(1.0, self._waited / self._seconds) if self._seconds else 0.0

    def advance(self, step: int, seconds: float, waited: float = 0.0) -> None:
        """`step` is reached, the last steps took `seconds`, of which they `waited` for images.

        The first call is not counted: it compiles. After some steps a notice tells if images come too slowly.
        """
        if self._shown or self._steps or self._seconds:
            self._steps += step - self._step
            self._seconds += seconds
            self._waited += waited
        else:
            self._seconds = 1e-9
        self._step = step
        if not self._said and self._steps >= STEPS_TO_JUDGE:
            self._said = True
            if self.input_share >= BOTTLENECK:
                log.warning(
                    "The input pipeline is the bottleneck: steps wait for images %.0f %% of the time. Smaller or "
                    "cached images (--cache_dataset), more CPU cores, or --use_blur=False would help.",
                    100 * self.input_share,
                )

    def show(self, values: dict[str, float], last: bool = False) -> None:
        """Prints the line for the values of the newest summary; on a terminal at most twice a second."""
        now = time.monotonic()
        if self._terminal and not last and now - self._shown < 0.5:
            return
        self._shown = now
        text = self.line(values)
        if self._terminal:
            print(f"\r\033[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def line(self, values: dict[str, float]) -> str:
        rate = self.images_per_second
        parts = [f"step {self._step}/{self._total}", f"epoch {self._step / self._epoch_steps:.1f}"]
        if rate:
            parts.append(f"{rate:.0f} img/s" if rate >= 10 else f"{rate:.1f} img/s")
        for tag, name in (("train/total_loss", "loss"), ("train/contrast_loss", "contrastive")):
            if tag in values:
                parts.append(f"{name} {values[tag]:.4f}")
        for tag, name in (("train/contrast_acc", "contrast acc"), ("train/supervised_acc", "top-1")):
            if tag in values:
                parts.append(f"{name} {values[tag]:.1%}")
        if self.input_share >= BOTTLENECK:
            parts.append(f"waiting for images {self.input_share:.0%}")
        if rate and self._step < self._total:
            parts.append(f"ETA {_duration((self._total - self._step) * self._batch_size / rate)}")
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
