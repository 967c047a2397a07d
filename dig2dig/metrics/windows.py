"""Windows that slide over images, and Sobel's derivatives."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dig2dig.metrics.levels import Grey, Levels


def gaussian(size: int, sigma: float) -> list[float]:
    """Weights of a Gaussian window that sum to one."""
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = (-at.square() / (2 * sigma**2)).exp()
    return (weights / weights.sum()).tolist()


def box(size: int) -> list[float]:
    """Weights of a uniform window."""
    return [1 / size] * size


def slide(images: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted sums over square windows inside the images, with the same weights along rows and columns.

    One image at a time, tap by tap: on a CPU this is many times faster than a convolution in float64.
    """

    def one(image: Tensor) -> Tensor:
        for axis in (-2, -1):
            length = image.shape[axis] - len(weights) + 1
            total = image.narrow(axis, 0, length) * weights[0]
            for i, weight in enumerate(weights[1:], 1):
                total.add_(image.narrow(axis, i, length), alpha=weight)
            image = total
        return image

    return torch.stack([one(image) for image in images.flatten(0, -3)]).unflatten(0, images.shape[:-2])


class Moments(NamedTuple):
    """Local statistics of fused images (b, 1, h, w) and sources (b, k, h, w), and their covariance."""

    mean_f: Tensor
    mean_s: Tensor
    var_f: Tensor
    var_s: Tensor
    cov: Tensor


def moments(fused: Grey, sources: Levels, weights: Sequence[float]) -> Moments:
    """Means, variances and covariance in windows inside the images; levels are centred for precision."""
    k, centre = sources.shape[1], 128
    fused, sources = fused - centre, sources - centre
    found = slide(torch.cat([fused, sources, fused**2, sources**2, fused * sources], 1), weights)
    mean_f, mean_s, square_f, square_s, product = found.split([1, k, 1, k, k], 1)
    return Moments(
        mean_f + centre, mean_s + centre, square_f - mean_f**2, square_s - mean_s**2, product - mean_f * mean_s
    )


def sobel(levels: Levels, border: str) -> tuple[Tensor, Tensor]:
    """Differences to the right and upwards by Sobel's kernels; ``border`` is a mode of torch's ``pad``."""
    padded = pad(levels, (1, 1, 1, 1), mode=border)
    down = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    along = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return down[..., 2:] - down[..., :-2], along[..., :-2, :] - along[..., 2:, :]
