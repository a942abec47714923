"""How kernels start: at random, at random from a seed, or at zero where a checkpoint is about to fill them."""

from __future__ import annotations

import itertools

import keras


class Initializers:
    """Makes one initializer after another, each with a seed of its own: the same seed twice makes equal kernels equal.

    Args:
      seed: of the model; random when None.
      zeros: start every kernel at zero. Drawing random numbers is most of the time that a large network takes to make.
    """

    def __init__(self, seed: int | None = None, zeros: bool = False):
        self._seeds = itertools.repeat(None) if seed is None else itertools.count(seed * 1_000_003 + 1)
        self._zeros = zeros

    def make(self, initializer: type[keras.initializers.Initializer], **kwargs) -> keras.initializers.Initializer:
        """The next one: `initializer(seed=..., **kwargs)`, or zeros."""
        return keras.initializers.Zeros() if self._zeros else initializer(seed=next(self._seeds), **kwargs)
