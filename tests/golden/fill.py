"""The rule that makes weights and images for the golden numbers, so that neither has to be stored.

The order of the random draws is part of the rule.
"""

import zlib

import numpy as np


def fill(name: str, shape) -> np.ndarray:
    """The float32 value of the variable of that TF1 name and shape."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    leaf = name.rpartition("/")[2]
    if leaf == "kernel":
        value = rng.standard_normal(shape) / np.sqrt(int(np.prod(shape[:-1])))
    elif leaf in ("gamma", "moving_variance"):
        value = rng.uniform(0.5, 1.5, shape)
    else:  # beta, bias, moving_mean, Momentum
        value = 0.1 * rng.standard_normal(shape)
    return value.astype(np.float32)


def image_batch(n: int, size: int, seed: int = 0) -> np.ndarray:
    """float32 [n, size, size, 3] in [0, 1]: coloured waves with noise, without symmetry."""
    rng = np.random.Generator(np.random.PCG64(seed))
    frequency = rng.uniform(1, 6, (n, 3, 2))
    phase = rng.uniform(0, 2 * np.pi, (n, 3))
    noise = rng.uniform(0, 0.1, (n, size, size, 3))
    y, x = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing="ij")
    y, x = y[None, :, :, None], x[None, :, :, None]
    fy, fx, phase = (v[:, None, None] for v in (frequency[..., 0], frequency[..., 1], phase))
    waves = 0.5 + 0.4 * np.sin(2 * np.pi * (fy * y + fx * x) + phase)
    return np.clip(waves + noise, 0, 1).astype(np.float32)
