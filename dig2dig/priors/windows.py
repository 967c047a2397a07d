"""Images of any size: padding, and overlapping windows for images that are too large for one call of a network."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dig2dig.shapes import Image, Timestep


def pad(images: Tensor, multiple: int) -> Tensor:
    """Reflects images at the bottom and right, again where they are small, until ``multiple`` divides both sides."""
    height, width = images.shape[-2:]
    if height % multiple == width % multiple == 0:
        return images
    reflected = (np.pad(np.arange(side), (0, -side % multiple), "reflect") for side in (height, width))
    rows, columns = (torch.from_numpy(places).to(images.device) for places in reflected)
    return images[..., rows, :][..., columns]


def window_starts(length: int, side: int, overlap: int, multiple: int) -> tuple[list[int], int]:
    """Where windows begin that cover one axis evenly, and how long they are, at most ``side``.

    All lengths and starts are multiples of ``multiple``: the network divides windows into the whole image's blocks.
    """
    if length <= side:
        return [0], length
    overlap = min(overlap, side // 2)
    count = math.ceil((length - overlap) / (side - overlap))
    side = min(side, math.ceil((length + (count - 1) * overlap) / count / multiple) * multiple)
    steps = (length - side) // multiple
    return [multiple * round(i * steps / (count - 1)) for i in range(count)], side


def window_shares(starts: list[int], side: int, length: int, overlap: int) -> Float[Tensor, "windows side"]:
    """Share of each window in the result at each of its positions: one inside, falling smoothly where two overlap.

    The outer quarter of an overlap does not count: a network knows too little of what lies around it. The shares of
    all windows sum to one everywhere.
    """
    position = torch.arange(side, dtype=torch.float32)
    shares = torch.ones(len(starts), side)
    for i, start in enumerate(starts):
        for inner, distance in ((start > 0, position), (start + side < length, side - 1 - position)):
            if inner:
                ramp = ((distance + 0.5 - overlap / 4) / max(overlap / 2, 1)).clamp(0, 1)
                shares[i] *= ramp * ramp * (3 - 2 * ramp) + 1e-6
    places = torch.tensor(starts)[:, None] + torch.arange(side)
    total = torch.zeros(length).index_add(0, places.flatten(), shares.flatten())
    return shares / total[places]


def in_windows(
    function: Callable[[Image, Timestep], Image],
    x_t: Image,
    t: Timestep,
    side: int,
    overlap: int,
    multiple: int,
    pixels: int,
) -> Image:
    """Applies a function to overlapping windows of images whose sides ``multiple`` divides, and blends the results.

    Windows are at most ``side`` high and wide; those of one call have at most ``pixels``, unless one alone has more.
    """
    overlap = min(overlap, side // 2)
    (tops, height), (lefts, width) = (window_starts(n, side, overlap, multiple) for n in x_t.shape[-2:])
    rows = window_shares(tops, height, x_t.shape[-2], overlap).to(x_t)
    columns = window_shares(lefts, width, x_t.shape[-1], overlap).to(x_t)
    result = torch.zeros_like(x_t)
    places = list(product(range(len(x_t)), range(len(tops)), range(len(lefts))))
    per_call = max(1, pixels // (height * width))
    for first in range(0, len(places), per_call):
        part = places[first : first + per_call]
        views = [_window(x_t[i], tops[y], lefts[x], height, width) for i, y, x in part]
        made = function(torch.stack(views), torch.stack([t[i] for i, _, _ in part]))
        for (i, y, x), image in zip(part, made, strict=True):
            _window(result[i], tops[y], lefts[x], height, width).add_(image * rows[y][:, None] * columns[x])
    return result


def _window(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return image[:, top : top + height, left : left + width]
