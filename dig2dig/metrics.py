"""Fusion metrics: pure functions on luminance in [0, 1], computed on 8-bit grey levels as their authors do.

Every function takes ``fused`` (b, 1, h, w) and, where it needs them, ``sources`` (b, k, 1, h, w), and gives one value
for each image, or one for each image and source.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad
from torchmetrics.functional.image import visual_information_fidelity

from dig2dig.color import luminance
from dig2dig.shapes import Image, Sources

Scores = Float[Tensor, " b"]
PerSource = Float[Tensor, "b k"]


def grey_levels(images: Tensor) -> Tensor:
    """Luminance in whole grey levels of 255, float64: images in [0, 1] with 1 or 3 channels at axis -3."""
    return (luminance(images).double() * 255).round().clamp(0, 255)


def entropy(fused: Image) -> Scores:
    r"""EN, entropy of the 256-bin histogram in bits, [0, 8], more is better: :math:`-\sum_i p_i \log_2 p_i`.

    References:
        Roberts et al., "Assessment of image fusion procedures using entropy, image quality, and multispectral
        classification", 2008.
    """
    counts = torch.zeros(len(fused), 256, dtype=torch.float64, device=fused.device)
    levels = grey_levels(fused).long().flatten(1)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))
    p = counts / levels.shape[1]
    return -torch.xlogy(p, p).sum(1) / math.log(2)


def standard_deviation(fused: Image) -> Scores:
    """SD, population standard deviation in grey levels, [0, 127.5], more is better."""
    return grey_levels(fused).flatten(1).std(1, correction=0)


def spatial_frequency(fused: Image) -> Scores:
    r"""SF in grey levels, more is better: root of the summed mean squared differences along rows and columns.

    References:
        Eskicioglu and Fisher, "Image quality measures and their performance", 1995.
    """
    grey = grey_levels(fused)
    return (grey.diff(dim=-1).square().mean((1, 2, 3)) + grey.diff(dim=-2).square().mean((1, 2, 3))).sqrt()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over the last two axes; 0 where one side is constant."""
    a, b = (x - x.mean((-2, -1), keepdim=True) for x in (a, b))
    spread = (a.square().sum((-2, -1)) * b.square().sum((-2, -1))).sqrt()
    return torch.where(spread > 0, (a * b).sum((-2, -1)) / spread.clamp(min=1e-12), 0.0)


def sum_of_correlations_of_differences(fused: Image, sources: Sources) -> Scores:
    r"""SCD, [-K, K], more is better: correlation of what one source added with that source, summed.

    .. math:: \sum_k r(F - \bar c_{-k},\; c_k)

    with the mean of the other sources in place of the other one where K > 2.

    References:
        Aslantas and Bendes, "A new image quality metric for image fusion", 2015.
    """
    fused, sources = grey_levels(fused)[:, None], grey_levels(sources)
    others = (sources.sum(1, keepdim=True) - sources) / (sources.shape[1] - 1)
    return correlation(fused - others, sources).sum((1, 2))


def structural_similarity(fused: Image, sources: Sources) -> PerSource:
    """SSIM with each source, [-1, 1], more is better: uniform 7×7 windows inside the image, unbiased covariance.

    References:
        Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    y, x = grey_levels(fused)[:, None].expand_as(sources[:, :, :1]).flatten(0, 1), grey_levels(sources).flatten(0, 1)
    mean_x, mean_y = avg_pool2d(x, 7, 1), avg_pool2d(y, 7, 1)
    unbiased = 49 / 48
    var_x = unbiased * (avg_pool2d(x * x, 7, 1) - mean_x**2)
    var_y = unbiased * (avg_pool2d(y * y, 7, 1) - mean_y**2)
    covariance = unbiased * (avg_pool2d(x * y, 7, 1) - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3)).unflatten(0, sources.shape[:2])


def visual_information(fused: Image, sources: Sources) -> PerSource:
    """VIF of each source in the fused image, pixel domain on four scales, about [0, 1], more is better.

    Needs at least 41 pixels a side.

    References:
        Sheikh and Bovik, "Image information and visual quality", 2006.
    """
    x = grey_levels(sources).flatten(0, 1)
    y = grey_levels(fused)[:, None].expand_as(grey_levels(sources)).flatten(0, 1)
    return visual_information_fidelity(y, x, reduction="none").view(sources.shape[:2])


class _Edges(NamedTuple):
    strength: Tensor
    angle: Tensor


def _sobel(grey: Tensor, mode: str, scale: float) -> _Edges:
    across = grey.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) * scale
    kernels = torch.stack([across, -across.T])[:, None]
    padded = pad(grey, (1, 1, 1, 1), mode=mode)
    x, y = conv2d(padded, kernels).unbind(1)
    return _Edges((x * x + y * y).sqrt(), torch.where(x == 0, math.pi / 2, torch.atan(y / x)))


def gradient_preservation(fused: Image, sources: Sources) -> Scores:
    r"""Qabf, [0, 1], more is better: how much of the sources' edges, in strength and angle, the fused image keeps.

    .. math:: Q = \frac{\sum_k \sum_x g_k\, Q^g_k Q^a_k}{\sum_k \sum_x g_k}

    with sigmoids of relative strength and angle.

    References:
        Xydeas and Petrovic, "Objective image fusion performance measure", 2000.
    """
    f, s = (_sobel(grey_levels(x).flatten(0, -4), "constant", 1.0) for x in (fused, sources))
    strength, angle = (x.unflatten(0, sources.shape[:2]) for x in s)
    f_strength, f_angle = f.strength[:, None], f.angle[:, None]
    small, large = torch.minimum(strength, f_strength), torch.maximum(strength, f_strength)
    ratio = torch.where(strength == f_strength, f_strength, small / large.clamp(min=1e-300))
    turn = 1 - (angle - f_angle).abs() / (math.pi / 2)
    kept = 0.9994 / (1 + (-15 * (ratio - 0.5)).exp()) * 0.9879 / (1 + (-22 * (turn - 0.8)).exp())
    total = strength.sum((1, 2, 3))
    return torch.where(total > 0, (kept * strength).sum((1, 2, 3)) / total.clamp(min=1e-12), 0.0)


def fusion_artefacts(fused: Image, sources: Sources) -> Scores:
    r"""Nabf, [0, 1], less is better: share of edges in the fused image that are stronger than in any source.

    References:
        Shreyamsha Kumar, "Multifocus and multispectral image fusion based on pixel significance using discrete
        cosine harmonic wavelet transform", 2013.
    """
    f, s = (_sobel(grey_levels(x).flatten(0, -4), "reflect", 1 / 8) for x in (fused, sources))
    strength, angle = (x.unflatten(0, sources.shape[:2]) for x in (s.strength, s.angle.where(s.strength > 0, 0.0)))
    f_strength, f_angle = f.strength[:, None], f.angle.where(f.strength > 0, 0.0)[:, None]
    small, large = torch.minimum(strength, f_strength), torch.maximum(strength, f_strength)
    ratio = torch.where(small > 0, small / large.clamp(min=1e-300), 0.0)
    turn = ((angle - f_angle).abs() - math.pi / 2).abs() * 2 / math.pi
    kept = (0.9999 / (1 + (-19 * (ratio - 0.5)).exp()) * 0.9995 / (1 + (-22 * (turn - 0.5)).exp())).sqrt()
    importance = torch.where(strength >= 2, strength**1.5, 0.001)
    new = (f_strength > strength).all(1, keepdim=True)
    return (new * (1 - kept) * importance).sum((1, 2, 3)) / importance.sum((1, 2, 3))


METRICS: dict[str, Callable[[Image, Sources], Scores]] = {
    "EN": lambda fused, _: entropy(fused),
    "SD": lambda fused, _: standard_deviation(fused),
    "SF": lambda fused, _: spatial_frequency(fused),
    "SCD": sum_of_correlations_of_differences,
    "VIF": lambda fused, sources: visual_information(fused, sources).sum(1),
    "Qabf": gradient_preservation,
    "SSIM": lambda fused, sources: structural_similarity(fused, sources).mean(1),
    "Nabf": fusion_artefacts,
}
"""The metrics that are shown during runs: VIF is summed over the sources, SSIM is their mean."""


def fusion_metrics(fused: Image, sources: Sources) -> dict[str, Scores]:
    """All of :data:`METRICS`, from images in [0, 1]; those that an image is too small for are left out."""
    enough = {"SSIM": 7, "VIF": 41}
    side = min(fused.shape[-2:])
    return {name: metric(fused, sources) for name, metric in METRICS.items() if side >= enough.get(name, 2)}
