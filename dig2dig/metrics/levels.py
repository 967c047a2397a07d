"""Grey levels, on which every metric is computed."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dig2dig.shapes import Image, Sources

Scores = Float[Tensor, " b"]
PerSource = Float[Tensor, "b k"]
Grey = Float[Tensor, "b 1 h w"]
"""Grey levels of fused images, float64, 0 to 255."""

Levels = Float[Tensor, "b k h w"]
"""Grey levels of K sources."""

Score = Callable[[Image, Sources], Scores]


def eight_bit(images: Tensor) -> Tensor:
    """Images in [0, 1] as in an 8-bit file: whole numbers of 0 to 255, float64."""
    return (images.double() * 255).round().clamp(0, 255)


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
