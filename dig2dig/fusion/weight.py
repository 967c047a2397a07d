"""Diffusion information gain: how much the denoiser learns about each source in each step, and what weights follow."""

import torch
from torch import Tensor

from dig2dig.fusion.resample import grow
from dig2dig.shapes import Gains, Maps, Sources, Weights


def pixel_loss(estimate: Tensor, target: Tensor, kind: str) -> Tensor:
    """Distance at each pixel, mean over channels: squared (l2), absolute (l1) or of the gradients (gradient).

    Args:
        estimate: Shape (…, c, h, w).
        target: Broadcastable to it.
        kind: ``l2``, ``l1`` or ``gradient``: the length of the difference's gradient, forward differences.

    Returns:
        Shape (…, 1, h, w), in squared or absolute intensity.
    """
    difference = estimate - target
    if kind == "l2":
        loss = difference.square()
    elif kind == "l1":
        loss = difference.abs()
    else:
        right = torch.diff(difference, dim=-1, append=difference[..., -1:])
        down = torch.diff(difference, dim=-2, append=difference[..., -1:, :])
        loss = torch.hypot(right, down)
    return loss.mean(-3, keepdim=True)


def information_gain(
    estimate: Sources, estimate_next: Sources, sources: Sources, kind: str = "gain", loss: str = "l2"
) -> Gains:
    r"""Gain of each source in one step from t to s, per pixel.

    .. math::
        \mathrm{DIG}_k(t) &= \ell(\hat c_k(t), c_k) - \ell(\hat c_k(s), c_k) && \text{gain} \\
        &= \ell(\hat c_k(s), \hat c_k(t)) && \text{change} \\
        &= \ell(\hat c_k(t), c_k) && \text{residual: what is still to come}

    Args:
        estimate: Reconstructions :math:`\hat c_k(t)`.
        estimate_next: Reconstructions :math:`\hat c_k(s)`; after the last time the sources themselves.
        sources: The clean sources.
        kind: ``gain``, ``change`` or ``residual``.
        loss: See :func:`pixel_loss`.

    References:
        Cao et al., "Dig2DIG", arXiv:2503.18627; ``change`` and ``residual`` are our variants.
    """
    if kind == "change":
        return pixel_loss(estimate_next, estimate, loss)
    left = pixel_loss(estimate, sources, loss)
    return left if kind == "residual" else left - pixel_loss(estimate_next, sources, loss)


def normalise(gain: Gains, kind: str) -> Gains:
    """Gains without a unit: shares of the sources' sum at each pixel, or multiples of each image's mean.

    Raw gains of 0.01 would make every softmax weight 1/k. Where nothing is gained, shares stay near zero
    instead of dividing noise by noise.
    """
    if kind == "none":
        return gain
    size = gain.abs()
    mean = size.mean((1, 2, 3, 4), keepdim=True)
    if kind == "mean":
        return gain / (mean + 1e-12)
    return gain / (size.sum(1, keepdim=True) + 1e-2 * mean + 1e-12)


def fusion_weight(gain: Gains, temperature: float = 1.0) -> Weights:
    r"""Turns information gains into per-pixel weights of the sources.

    .. math:: w_k = \exp(g_k / \tau) \,/\, \sum_j \exp(g_j / \tau)

    Equal gains give the plain average; a small temperature picks, at each
    pixel, the source the denoiser learns most about in this step.

    Args:
        gain: Gain of each source, shape (b, k, 1, h, w), in squared intensity or normalised.
        temperature: Softness tau > 0, in the unit of the gain.

    Returns:
        Weights in [0, 1] that sum to one over k, same shape.

    References:
        Cao et al., "Dig2DIG", arXiv:2503.18627.
    """
    return (gain / temperature).softmax(1)


def scoped(weights: list[Maps], scope: str) -> list[Maps]:
    """Weights of all times as they are (``full``), their mean over time (``spatial``) or over space (``temporal``)."""
    if scope == "spatial":
        height, width = max(maps.shape[-2:] for maps in weights)
        return [torch.stack([grow(maps, height, width) for maps in weights]).mean(0)] * len(weights)
    if scope == "temporal":
        return [maps.mean((-2, -1), keepdim=True) for maps in weights]
    return weights
