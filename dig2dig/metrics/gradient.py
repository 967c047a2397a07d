"""Contrast and edges of the fused image, and the edges that it keeps from its sources."""

import math

import torch
from torch import Tensor

from dig2dig.metrics.levels import Grey, Levels, Scores, eight_bit, grey_levels, sobel
from dig2dig.shapes import Image


def standard_deviation(fused: Image) -> Scores:
    """SD, population standard deviation in grey levels (Rao, "In-fibre Bragg grating sensors", 1997)."""
    return grey_levels(fused).flatten(1).std(1, correction=0)


def spatial_frequency(fused: Image) -> Scores:
    r"""SF in grey levels: root of the summed mean squared differences along rows and columns.

    Reference: Eskicioglu and Fisher, "Image quality measures and their performance", 1995.
    """
    grey = grey_levels(fused)
    return (grey.diff(dim=-1).square().mean((1, 2, 3)) + grey.diff(dim=-2).square().mean((1, 2, 3))).sqrt()


def spatial_frequency_vifb(fused: Image) -> Scores:
    """SF in VIFB's form: channels side by side as one wide image, sums divided by the number of all pixels."""
    wide = torch.cat(eight_bit(fused).unbind(1), -1)
    return ((wide.diff(dim=-1).square().sum((1, 2)) + wide.diff(dim=-2).square().sum((1, 2))) / wide[0].numel()).sqrt()


def _steepness(fused: Image) -> Tensor:
    """Root mean square of the central differences along rows and columns, one-sided at the border."""
    down, right = torch.gradient(grey_levels(fused), dim=(-2, -1))
    return ((down.square() + right.square()) / 2).sqrt()


def average_gradient(fused: Image) -> Scores:
    r"""AG in grey levels: mean of :math:`\sqrt{(\partial_x^2 + \partial_y^2) / 2}` by central differences.

    Reference: Cui et al., "Detail preserved fusion of visible and infrared images using regional saliency extraction
    and multi-scale image decomposition", 2015.
    """
    return _steepness(fused).mean((1, 2, 3))


def average_gradient_matlab(fused: Image) -> Scores:
    """AG with the sum divided by (h - 1)(w - 1), as in MATLAB code."""
    return _steepness(fused).sum((1, 2, 3)) / ((fused.shape[-2] - 1) * (fused.shape[-1] - 1))


def edge_intensity(fused: Image) -> Scores:
    """EI, mean length of Sobel's gradient; the border is repeated.

    Reference: Rajalingam and Priya, "Hybrid multimodality medical image fusion technique for feature enhancement in
    medical diagnosis", 2018.
    """
    x, y = sobel(grey_levels(fused), "replicate")
    return (x * x + y * y).sqrt().mean((1, 2, 3))


def _edges(levels: Tensor, border: str) -> tuple[Tensor, Tensor]:
    """Strength of the edges, and their angle."""
    x, y = sobel(levels, border)
    flat, upright = (x == 0) & (y == 0), x == 0  # where roots and quotients have no derivative
    strength = torch.where(flat, 0.0, torch.where(flat, 1.0, x * x + y * y).sqrt())
    return strength, torch.where(upright, math.pi / 2, torch.atan(y / torch.where(upright, 1.0, x)))


def gradient_preservation(f: Grey, s: Levels) -> Scores:
    r"""Qabf: the share of the sources' edges, in strength and angle, that the fused image keeps. Differentiable.

    .. math:: Q = \frac{\sum_k \sum_x g_k\, Q^g_k Q^a_k}{\sum_k \sum_x g_k}

    The qualities Q are sigmoids of the relative strength and the relative angle.

    Reference: Xydeas and Petrovic, "Objective image fusion performance measure", 2000.
    """
    (f, angle_f), (s, angle_s) = (_edges(levels, "constant") for levels in (f, s))
    small, large = torch.minimum(s, f), torch.maximum(s, f)
    ratio = torch.where(small == large, large, small / torch.where(large > 0, large, 1.0))
    turn = 1 - (angle_s - angle_f).abs() / (math.pi / 2)
    kept = 0.9994 / (1 + (-15 * (ratio - 0.5)).exp()) * 0.9879 / (1 + (-22 * (turn - 0.8)).exp())
    total = s.sum((1, 2, 3))
    return torch.where(total > 0, (kept * s).sum((1, 2, 3)) / total.clamp(min=1e-12), 0.0)


def fusion_artefacts(f: Grey, s: Levels) -> Scores:
    r"""Nabf: the share of edges in the fused image that are stronger than in any source. Differentiable.

    .. math:: N = \frac{\sum_k \sum_{x: g_F > g_j \forall j} w_k (1 - Q_k)}{\sum_k \sum_x w_k}

    Q is as in Qabf with other constants. The weights are strength to the power of 1.5 (0.001 below two grey levels).

    Reference: Shreyamsha Kumar, "Multifocus and multispectral image fusion based on pixel significance using discrete
    cosine harmonic wavelet transform", 2013.
    """
    (f, angle_f), (s, angle_s) = (_edges(levels / 8, "reflect") for levels in (f, s))
    small, large = torch.minimum(s, f), torch.maximum(s, f)
    ratio = torch.where(small > 0, small / torch.where(large > 0, large, 1.0), 0.0)
    turn = ((angle_s - angle_f).abs() - math.pi / 2).abs() * 2 / math.pi
    kept = (0.9999 / (1 + (-19 * (ratio - 0.5)).exp()) * 0.9995 / (1 + (-22 * (turn - 0.5)).exp())).sqrt()
    importance = torch.where(s >= 2, s**1.5, 0.001)
    new = (f > s).all(1, keepdim=True)
    return (new * (1 - kept) * importance).sum((1, 2, 3)) / importance.sum((1, 2, 3))


def fusion_artefacts_misplaced(f: Grey, s: Levels) -> Scores:
    """Nabf with the first source in the place of the fused image, as a common script has it by mistake."""
    return fusion_artefacts(s[:, :1], torch.cat([s[:, 1:], f], 1))
