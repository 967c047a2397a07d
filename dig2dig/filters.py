"""Smoothing of images and maps."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad


def smooth(maps: Float[Tensor, "b k c h w"], sigma: float) -> Float[Tensor, "b k c h w"]:
    """Gaussian filter of standard deviation ``sigma`` pixels, reflected at the border; none for 0.

    Wide filters work on area averages of the map: they cost no more than narrow ones.
    """
    if sigma <= 0:
        return maps
    flat = maps.flatten(0, 2)[:, None]
    height, width = flat.shape[-2:]
    factor = int(sigma // 4)
    if factor > 1 and min(height, width) > 1:
        small = interpolate(flat, (math.ceil(height / factor), math.ceil(width / factor)), mode="area")
        small = smooth(small[None], sigma / factor)[0]
        return interpolate(small, (height, width), mode="bilinear").view(maps.shape)
    for axis in (2, 3):
        radius = min(math.ceil(3 * sigma), flat.shape[axis] - 1)
        offset = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
        kernel = torch.exp(-offset.square() / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).view([1, 1, -1, 1] if axis == 2 else [1, 1, 1, -1])
        margin = [0, 0, radius, radius] if axis == 2 else [radius, radius, 0, 0]
        flat = conv2d(pad(flat, margin, mode="reflect"), kernel)
    return flat.view(maps.shape)


def box(images: Tensor, radius: int) -> Tensor:
    """Mean over windows of side 2·radius + 1, cut off at the border; (n, 1, h, w)."""
    side = 2 * radius + 1
    rows = avg_pool2d(images, (side, 1), 1, (radius, 0), count_include_pad=False)
    return avg_pool2d(rows, (1, side), 1, (0, radius), count_include_pad=False)


def guided_filter(image: Tensor, guide: Tensor, radius: int, epsilon: float) -> Tensor:
    """Filters ``image`` so that its edges follow ``guide``, both (n, 1, h, w) in [0, 1].

    References:
        He, Sun and Tang, "Guided image filtering", 2013.
    """
    mean_guide, mean_image = box(guide, radius), box(image, radius)
    covariance = box(guide * image, radius) - mean_guide * mean_image
    variance = box(guide * guide, radius) - mean_guide**2
    slope = covariance / (variance + epsilon)
    offset = mean_image - slope * mean_guide
    return box(slope, radius) * guide + box(offset, radius)


def shrink(images: Tensor, factor: int) -> Tensor:
    """Means over ``factor`` × ``factor`` pixels of images (n, c, h, w); what is left at the border is averaged too."""
    return images if factor == 1 else avg_pool2d(images, factor, ceil_mode=True)


def grow(images: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation of images (..., c, h, w) to a larger size."""
    if images.shape[-2:] == (height, width):
        return images
    flat = interpolate(images.flatten(0, -4), (height, width), mode="bilinear")
    return flat.view(*images.shape[:-2], height, width)
