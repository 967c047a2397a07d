"""Grey levels, on which every metric is computed, windows that slide over them, and Sobel's derivatives."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from dig2dig.shapes import Image, Sources

Scores = Float[Tensor, " b"]
PerSource = Float[Tensor, "b k"]
Grey = Float[Tensor, "b 1 h w"]  # grey levels of fused images, float64, 0 to 255
Levels = Float[Tensor, "b k h w"]  # grey levels of K sources
Score = Callable[[Image, Sources], Scores]


def eight_bit(images: Tensor) -> Tensor:
    """Images in [0, 1] as in an 8-bit file: whole numbers of 0 to 255, float64."""
    return (images.double() * 255).round_().clamp_(0, 255)


def grey_levels(images: Tensor) -> Tensor:
    """Luminance in whole grey levels, float64: images in [0, 1] with 1 or 3 channels at axis -3.

    The channels are rounded, as in an 8-bit file. Then their luminance 0.299 R + 0.587 G + 0.114 B is rounded.
    """
    levels = eight_bit(images)
    if levels.shape[-3] == 1:
        return levels
    red, green, blue = levels.unbind(-3)
    return (0.299 * red + 0.587 * green + 0.114 * blue).round().unsqueeze(-3)


def both(fused: Image, sources: Sources) -> tuple[Grey, Levels]:
    """Grey levels of the fused image and of its sources."""
    return grey_levels(fused), grey_levels(sources).squeeze(2)


def stretched(levels: Levels) -> Levels:
    """Each image stretched to 0 … 255 and rounded, halves up as in MATLAB; a constant image is not changed."""
    low, high = levels.amin((-2, -1), keepdim=True), levels.amax((-2, -1), keepdim=True)
    return torch.where(high > low, ((levels - low) / (high - low).clamp(min=1) * 255 + 0.5).floor(), levels)


def by_channel(score: Score) -> Score:
    """The mean of a metric over the channels, each as a grey image."""

    def mean(fused: Image, sources: Sources) -> Scores:
        channels = fused.shape[1]
        each = score(fused.flatten(0, 1)[:, None], sources.transpose(1, 2).flatten(0, 1)[:, :, None])
        return each.view(-1, channels).mean(1)

    return mean


def gaussian(size: int, sigma: float, total: float | None = None) -> list[float]:
    """Weights of a Gaussian window, divided by ``total`` or else by their sum."""
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = (-at.square() / (2 * sigma**2)).exp()
    return (weights / (total or weights.sum())).tolist()


def slide(images: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted sums over square windows inside the images, with the same weights along rows and columns.

    On a CPU a convolution in float64 takes many times as long as tap by tap, and OpenCV, without derivatives, a third.
    """
    first, last = len(weights) // 2, (len(weights) - 1) // 2

    def one(image: Tensor) -> Tensor:
        if image.is_cpu and not image.requires_grad:
            found = torch.from_numpy(cv2.sepFilter2D(image.numpy(), -1, np.asarray(weights), np.asarray(weights)))
            return found[first : len(found) - last, first : found.shape[1] - last]
        for axis in (-2, -1):
            length = image.shape[axis] - first - last
            total = image.narrow(axis, 0, length) * weights[0]
            for i, weight in enumerate(weights[1:], 1):
                total.add_(image.narrow(axis, i, length), alpha=weight)
            image = total
        return image

    return torch.stack([one(image) for image in images.flatten(0, -3)]).unflatten(0, images.shape[:-2])


def moments(fused: Grey, sources: Levels, weights: Sequence[float]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Both means, both variances, and the covariance in windows inside the images."""
    k, centre = sources.shape[1], 128  # centred for precision
    fused, sources = fused - centre, sources - centre
    found = slide(torch.cat([fused, sources, fused**2, sources**2, fused * sources], 1), weights)
    mean_f, mean_s, square_f, square_s, product = found.split([1, k, 1, k, k], 1)
    variances = square_f - mean_f**2, square_s - mean_s**2
    return mean_f + centre, mean_s + centre, *variances, product - mean_f * mean_s


def sobel(levels: Levels, border: str) -> tuple[Tensor, Tensor]:
    """Differences to the right and upwards by Sobel's kernels; ``border`` is a mode of torch's ``pad``."""
    padded = pad(levels, (1, 1, 1, 1), mode=border)
    down = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    along = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return down[..., 2:] - down[..., :-2], along[..., :-2, :] - along[..., 2:, :]
