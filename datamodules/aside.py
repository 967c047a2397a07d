"""Large arrays of a tall stack, in files without a name: memory does not grow with the number of sources."""

import math
from shutil import disk_usage
from tempfile import TemporaryFile, gettempdir

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from dig2dig.shapes import is_tall


def aside(array: np.ndarray, count: int) -> np.ndarray:
    """One of ``count`` such arrays; on disk if they are too large, where memory can be had back without a loss."""
    if not is_tall(count, array.size) or isinstance(array, np.memmap):
        return array
    kept = _room(array.shape, array.dtype)
    kept[...] = array
    return kept


def room(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Tensor:
    """Room for what there is of all sources, (k, …); on disk if it is too large."""
    count, *rest = shape
    return torch.from_numpy(_room(shape, dtype) if is_tall(count, math.prod(rest)) else np.empty(shape, dtype))


def _room(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Room on disk; in memory where the folder for temporary files (TMPDIR) has none."""
    if disk_usage(gettempdir()).free < 2 * math.prod(shape) * np.dtype(dtype).itemsize:
        return np.empty(shape, dtype)
    with TemporaryFile(prefix="dig2dig_") as file:
        return np.memmap(file, dtype, "w+", shape=shape)
