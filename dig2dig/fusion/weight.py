"""Fusion weights: what share each source has at each pixel, from what the denoiser learns about it."""

from collections.abc import Sequence

import torch

from dig2dig.fusion.resample import upsample
from dig2dig.shapes import Gains, Maps, Weights


def fusion_weight(gain: Gains, temperature: float = 1.0) -> Weights:
    r"""Weights in [0, 1] of the sources at each pixel, which sum to one over k, from their gains.

    .. math:: w_k = \exp(g_k / \tau) \,/\, \sum_j \exp(g_j / \tau)

    Equal gains give the plain average. A small temperature picks the source that the denoiser learns most about.

    Args:
        gain: Gain of each source, shape (b, k, 1, h, w), in squared intensity or normalised.
        temperature: Softness tau > 0, in the unit of the gain.

    Reference: Cao et al., "Dig2DIG", arXiv:2503.18627.
    """
    return (gain / temperature).softmax(1)


def scoped(weights: Sequence[Maps], scope: str) -> list[Maps]:
    """Weights of all times as they are (``full``), their mean over time (``spatial``) or over space (``temporal``)."""
    if scope == "spatial":
        height, width = max(maps.shape[-2:] for maps in weights)
        return [torch.stack([upsample(maps, height, width) for maps in weights]).mean(0)] * len(weights)
    if scope == "temporal":
        return [maps.mean((-2, -1), keepdim=True) for maps in weights]
    return list(weights)
