"""Bands of a linear scale space, summed source by source, with the energy that their average loses given back."""

from collections.abc import Callable

import torch
from torch import Tensor

from dig2dig.fusion.resample import coarseness, downsample, resample, smooth
from dig2dig.shapes import Image, Maps

OVERSHOOT = 0.1
"""How far a result may leave what its sources show around a pixel: 5 % of the range of images in [-1, 1].

Energy that is given back makes an edge steeper, and so overshoots it. More than this is a rim of light.
"""


def room(tensor: Tensor) -> Tensor | None:
    """Where a result may be written over a tensor that is used up: there, unless gradients need it."""
    return None if torch.is_grad_enabled() else tensor


def surroundings(sources: Maps) -> tuple[Image, Image]:
    """Least and greatest value of all sources, (b, k, c, h, w), in 3×3 pixels around each one, (b, c, h, w)."""
    return around(sources.amin(1), torch.minimum), around(sources.amax(1), torch.maximum)


def around(images: Image, extreme: Callable[..., Tensor]) -> Image:
    """Least or greatest value in 3×3 pixels; pooling takes twenty times as long on a CPU."""
    for axis in (-2, -1):
        length, found = images.shape[axis] - 1, images.clone()
        for here, there in ((0, 1), (1, 0)):
            part = found.narrow(axis, here, length)
            extreme(part, images.narrow(axis, there, length), out=part)
        images = found
    return images


def within(image: Image, low: Image, high: Image) -> Image:
    """An image held to what :func:`surroundings` gave, which is used up.

    It may be left by ``OVERSHOOT``, but not beyond the whole range.
    """
    least, most = low.amin((1, 2, 3), keepdim=True), high.amax((1, 2, 3), keepdim=True)
    low, high = low.sub_(OVERSHOOT).clamp_(min=least), high.add_(OVERSHOOT).clamp_(max=most)
    return torch.clamp(image, low, high, out=room(low))


class BandSum:
    """The weighted sum of the sources' bands between two noise levels; sources are added one after the other.

    If it is ``held``, it shows no detail stronger than the source that shows most of it at a pixel.
    """

    def __init__(self, energy: float, held: bool = False) -> None:
        self.energy, self.held, self.count = energy, held, 0
        self.total: Tensor | None = None
        self.most: Tensor | None = None  # largest magnitude of the sources' bands
        self.promised: Tensor | float = 0.0  # energy that the weights stand for

    def add(self, sharper: Maps, seen: Maps, weights: Maps) -> None:
        """Adds the bands of some sources, (b, k, c, h, w): what ``sharper`` shows beyond ``seen``, on its grid."""
        size = sharper.shape[-2:]
        known = resample(seen, *size)
        bands = torch.sub(sharper, known, out=None if known is seen else room(known))
        parts = bands.split(1, 1), resample(weights, *size).split(1, 1)
        for band, weight in zip(*parts, strict=True):
            self.total = weight * band if self.total is None else self.total.addcmul_(weight, band)
            if self.held:
                found = band.abs()
                self.most = found if self.most is None else torch.maximum(self.most, found, out=room(self.most))
            if self.energy > 0:
                squares = band.square() if torch.is_grad_enabled() else band.square_()
                self.promised = self.promised + weight * squares.mean(2, keepdim=True)
            self.count += 1

    def restored(self, sigma: float, scale: float, factor: Tensor | None = None) -> Image:
        """The sum with its local energy given back, times a learned factor, (b, 1, h / f, w / f).

        ``sigma`` is the noise level of the sharper end.
        """
        assert isinstance(self.total, Tensor)
        total = self.total[:, 0]
        if isinstance(self.promised, Tensor):
            coarse = coarseness(scale * sigma / 2)
            kept = total.square().mean(1, keepdim=True)
            given = restoring(self.promised[:, 0], kept, sigma, scale / coarse, 2 / coarse, self.count)
            total = torch.mul(total, given**self.energy, out=room(total))
        if factor is not None:
            total = torch.mul(total, resample(factor[:, None], *total.shape[-2:])[:, 0], out=room(total))
        if self.most is None:
            return total
        total = torch.maximum(total, -self.most[:, 0], out=room(total))
        return torch.minimum(total, self.most[:, 0], out=room(total))


def restoring(promised: Tensor, kept: Tensor, sigma: float, scale: float, least: float, k: int) -> Tensor:
    """The factor that gives energy back, from the energies per pixel, both (b, 1, h, w)."""
    both = torch.cat([promised, kept], 1)[:, :, None]
    promised, kept = (blurred(both, sigma, scale, least)[:, :, 0] + 1e-8).split(1, 1)
    return resample((promised / kept).sqrt().clamp(1, k**0.5)[:, None], *both.shape[-2:])[:, 0]


def blurred(images: Maps, sigma: float, scale: float, least: float = 0.0) -> Maps:
    """Gaussian filter whose standard deviation follows the noise level, ``least + scale · sigma`` pixels.

    The result has the coarsest grid that this allows.
    """
    radius = least + scale * sigma
    factor = coarseness(radius / 2)
    return smooth(downsample(images, factor), radius / factor)
