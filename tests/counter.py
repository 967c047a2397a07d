"""The random numbers of a training sample by NumPy's unsigned arithmetic: SplitMix64, then Box and Muller."""

import math
from collections.abc import Sequence

import numpy as np
import torch

GOLDEN = 0x9E3779B97F4A7C15


def hashed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draws_by_hand(seed: int, index: int, shape: Sequence[int]) -> tuple[list[float], torch.Tensor]:
    """Two uniform numbers, and noise of a shape, float64."""
    key = hashed((hashed(np.array([index], np.uint64)) + np.uint64(seed + 1)) * np.uint64(GOLDEN))
    n = math.prod(shape)
    bits = hashed(key + np.arange(1 + (n + 1) // 2, dtype=np.uint64) * np.uint64(GOLDEN))
    u = (bits >> np.uint64(40)).astype(float) / 2**24
    v = (bits >> np.uint64(8) & np.uint64(2**24 - 1)).astype(float) / 2**24
    radius = np.sqrt(-2 * np.log(1 - u[1:]))
    noise = np.concatenate([radius * np.cos(2 * np.pi * v[1:]), radius * np.sin(2 * np.pi * v[1:])])[:n]
    return [float(u[0]), float(v[0])], torch.from_numpy(noise.reshape(tuple(shape)))
