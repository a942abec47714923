"""The learning rate: linear warm-up, then cosine decay to zero."""

from __future__ import annotations

import math

import keras
from keras import ops


class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Rises from 0 at step 0 to the scaled rate at `warmup_steps`, then falls along half a cosine to 0 at the end.

    Args:
      base_learning_rate: rate before scaling.
      scaling: "linear" multiplies it by batch_size / 256, "sqrt" by the square root of batch_size.
      batch_size: images per step over all replicas.
      warmup_steps: 0 starts at the full rate. If it is not below `total_steps` the full rate is never reached.
      total_steps: step at which the rate is 0, and stays 0.
    """

    def __init__(self, base_learning_rate, scaling, batch_size, warmup_steps, total_steps):
        if scaling not in ("linear", "sqrt"):
            raise ValueError(f"scaling must be 'linear' or 'sqrt'. Received: scaling={scaling!r}")
        self.base_learning_rate = base_learning_rate
        self.scaling = scaling
        self.batch_size = batch_size
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.peak = base_learning_rate * (batch_size / 256 if scaling == "linear" else math.sqrt(batch_size))

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rising = step / max(1, self.warmup_steps) * self.peak
        decay_steps = max(1, self.total_steps - self.warmup_steps)
        progress = ops.clip((step - self.warmup_steps) / decay_steps, 0.0, 1.0)
        falling = self.peak * 0.5 * (1.0 + ops.cos(math.pi * progress))
        return ops.where(step < self.warmup_steps, rising, falling)

    def get_config(self):
        return dict(
            base_learning_rate=self.base_learning_rate, scaling=self.scaling, batch_size=self.batch_size,
            warmup_steps=self.warmup_steps, total_steps=self.total_steps,
        )
