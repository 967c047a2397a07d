"""Smoothing and resampling of images and maps."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

SMALL = 2**18  # pixels; calls on less are mostly overhead


def smooth(maps: Float[Tensor, "b k c h w"], sigma: float) -> Float[Tensor, "b k c h w"]:
    """Gaussian filter of standard deviation ``sigma`` pixels, reflected at the border; none for 0.

    Wide filters work on area averages of the map: they cost no more than narrow ones.
    """
    height, width = maps.shape[-2:]
    factor = coarseness(sigma / 2)
    if factor > 1 and min(height, width) > 1:
        return resample(smooth(downsample(maps, factor), sigma / factor), height, width)
    return _gaussian(_gaussian(maps, sigma, -1), sigma, -2) if sigma > 0 else maps


def _gaussian(maps: Tensor, sigma: float, axis: int) -> Tensor:
    """One axis of a Gaussian filter: the sum of shifted copies, which is faster than a convolution of one channel."""
    side = maps.shape[axis]
    radius = min(math.ceil(3 * sigma), side - 1)
    taps = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(radius + 1)]
    total = 2 * sum(taps) - taps[0]
    margin = [radius, radius, 0, 0] if axis == -1 else [0, 0, radius, radius]
    flat = maps.flatten(0, 2)[:, None]
    wide = pad(flat, margin, mode="reflect")
    result = flat * (taps[0] / total)
    for i in range(1, radius + 1):
        for start in (radius - i, radius + i):
            result = result.add_(wide.narrow(axis, start, side), alpha=taps[i] / total)
    return result.view(maps.shape)


def resample(images: Tensor, height: int, width: int) -> Tensor:
    """Images (..., c, h, w) on another grid: bilinear interpolation to a finer one, area means on a coarser one."""
    if images.shape[-2:] == (height, width):
        return images
    mode = "area" if height <= images.shape[-2] and width <= images.shape[-1] else "bilinear"
    flat = images.reshape(-1, *images.shape[-3:])
    return interpolate(flat, (height, width), mode=mode).view(*images.shape[:-2], height, width)


def coarseness(sigma: float) -> int:
    """How many times smaller a map may be that a Gaussian of ``sigma`` pixels has smoothed: a power of two."""
    return 2 ** max(0, math.floor(math.log2(max(sigma, 1.0))))


def box(images: Tensor, radius: int) -> Tensor:
    """Mean over windows of side 2·radius + 1, cut off at the border; (n, 1, h, w)."""
    side = 2 * radius + 1
    rows = avg_pool2d(images, (side, 1), 1, (radius, 0), count_include_pad=False)
    return avg_pool2d(rows, (1, side), 1, (0, radius), count_include_pad=False)


def guided_filter(image: Tensor, guide: Tensor, radius: int, epsilon: float) -> Tensor:
    """Filters ``image`` so that its edges follow ``guide``, both (n, 1, h, w) in [0, 1].

    Reference: He, Sun and Tang, "Guided image filtering", 2013.
    """
    mean_guide, mean_image = box(guide, radius), box(image, radius)
    covariance = box(guide * image, radius) - mean_guide * mean_image
    variance = box(guide * guide, radius) - mean_guide**2
    slope = covariance / (variance + epsilon)
    offset = mean_image - slope * mean_guide
    return box(slope, radius) * guide + box(offset, radius)


def downsample(images: Tensor, factor: int) -> Tensor:
    """Area means of images (..., c, h, w) on a grid ``factor`` times coarser, its size rounded up."""
    return images if factor == 1 else resample(images, *(math.ceil(side / factor) for side in images.shape[-2:]))


def grouped(count: int, size: torch.Size) -> list[slice]:
    """Sources to work on at once, of (..., h, w): all of small images; of large ones one, which leaves them room."""
    each = count if size[-2] * size[-1] <= SMALL else 1
    return [slice(start, start + each) for start in range(0, count, each)]


def filled(images: Tensor, valid: Tensor) -> Tensor:
    """Images (..., c, h, w) whose pixels that are not ``valid``, (..., 1, h, w), continue the others smoothly.

    They are the means of ever larger squares around them. An image without any valid pixel is zero.
    """
    if valid.all() or max(images.shape[-2:]) == 1:
        return images * valid
    share = downsample(valid.to(images), 2)
    coarse = filled(downsample(images * valid, 2) / share.clamp(min=1e-6), share > 0)
    return torch.where(valid, images, resample(coarse, *images.shape[-2:]))


def resize(images: Tensor, side: int) -> Tensor:
    """Area means of images (..., c, h, w) whose longer side is at most ``side`` pixels; smaller ones are left."""
    height, width = images.shape[-2:]
    scale = side / max(height, width)
    return images if scale >= 1 else resample(images, max(1, round(height * scale)), max(1, round(width * scale)))
