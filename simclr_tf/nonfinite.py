"""What happens at training steps whose loss or gradients are infinite or not a number."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from simclr_tf import checkpoint
from simclr_tf.config import Config
from simclr_tf.data import Feed
from simclr_tf.errors import NonFiniteError

log = logging.getLogger(__name__)

MAX_SKIPPED = 10  # steps one after the other; more means that the weights are to blame, not a batch
ADVICE = "Look at the examples, lower --learning_rate, raise --temperature or --warmup_epochs"


class Guard:
    """Stops or warns, and writes down which examples were in the batch.

    Args:
      feed: that the batches come from.
      tags: names of the metrics.
      writes: whether this process writes the run's files.
    """

    def __init__(self, config: Config, feed: Feed, tags: Sequence[str], writes: bool):
        self._config, self._feed, self._tags, self._writes = config, feed, tags, writes
        self._skipped = 0  # one after the other

    def check(self, step: int, rows: np.ndarray, finite: np.ndarray) -> None:
        """Looks at the steps after `step`, metrics `rows` [m, metrics], `finite` bool [m].

        Raises:
          NonFiniteError: at a step that is not finite, or at too many in succession where they are skipped.
        """
        for at, sound in enumerate(finite.tolist()):
            self._skipped = 0 if sound else self._skipped + 1
            if sound:
                continue
            values = dict(zip(self._tags, map(float, rows[at]), strict=True))
            where = self._write_down(step + at, values)
            bad = [f"{tag.removeprefix('train/')} {v}" for tag, v in values.items() if not np.isfinite(v)]
            what = f"Step {step + at + 1}: {', '.join(bad) or 'a gradient'} is not finite; no update was made"
            saved = checkpoint.newest_text(self._config.model_dir)
            if self._config.nan_policy == "stop":
                raise NonFiniteError(f"{what}. {saved}{where} {ADVICE}, or skip such steps with --nan_policy=skip.")
            if self._skipped > MAX_SKIPPED:
                raise NonFiniteError(
                    f"{what}, nor in the {MAX_SKIPPED} steps before it: this is not a matter of single batches. "
                    f"{saved}{where} {ADVICE}."
                )
            log.warning("WARNING: %s (--nan_policy=skip).%s", what, where)

    def _write_down(self, batch: int, values: dict[str, float]) -> str:
        """Writes `nonfinite_<step>.json`; a sentence that says so."""
        if not self._writes:
            return ""
        path = os.path.join(self._config.model_dir, f"nonfinite_{batch + 1}.json")
        content = {"step": batch + 1, "metrics": {k: str(v) for k, v in values.items()},
                   "examples": self._feed.ids(batch)}
        try:
            with tf.io.gfile.GFile(path, "w") as file:
                json.dump(content, file, indent=1)
        except tf.errors.OpError as error:
            log.warning("WARNING: could not write %s: %s", path, error)
            return ""
        return f" The batch's examples are in {path}."
