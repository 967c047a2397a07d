"""What the gains and weights of one fusion say: means, entropy, and the covariance in the paper's bound."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dig2dig.fusion.plan import Snapshot
from dig2dig.shapes import Image, Sources, Weights


def weight_entropy(weight: Weights) -> Float[Tensor, " b"]:
    r"""Mean entropy of the weights over the image: 1 where all sources count alike, 0 where one decides.

    .. math:: H = -\frac{1}{\log K} \Big\langle \sum_k w_k \log w_k \Big\rangle
    """
    return -torch.xlogy(weight, weight).sum(1).mean((1, 2, 3)) / math.log(weight.shape[1])


def guidance_contribution(x0_hat: Image, sources: Sources, ideal: Image) -> Float[Tensor, "b k 1 h w"]:
    r"""What following source k does to the distance between the estimate and the ideal image, per pixel.

    .. math:: B_k = \big\langle \nabla_{\hat x_0} \|\hat x_0 - c_k\|^2,\; \hat x_0 - x^* \big\rangle

    Positive where a step towards the source is a step towards the ideal. All images are in [-1, 1]. The final result
    stands in for an ideal that is not known.
    """
    return (2 * (x0_hat[:, None] - sources) * (x0_hat - ideal)[:, None]).sum(2, keepdim=True)


def weight_covariance(weight: Weights, contribution: Float[Tensor, "b k 1 h w"]) -> Float[Tensor, "b k"]:
    r"""Covariance over the image of each source's weight and contribution.

    The generalisation error is bounded by :math:`C - \sum_t \sum_k \mathrm{Cov}(w_k, B_k)`: the larger the
    better. Weights that are the same everywhere have covariance zero.

    Reference: Cao et al., "Dig2DIG", arXiv:2503.18627.
    """
    w = weight - weight.mean((2, 3, 4), keepdim=True)
    return (w * (contribution - contribution.mean((2, 3, 4), keepdim=True))).mean((2, 3, 4))


@dataclass(frozen=True)
class DigStatistics:
    """Statistics of one fusion, of n steps and k sources."""

    t: Tensor  # time index of each step, shape (n,)
    weight_mean: Tensor  # mean weight of each source over the image, shape (n, k)
    entropy: Tensor  # entropy of the weights, in [0, 1], shape (n,)
    gain_mean: Tensor  # mean normalised gain of each source, shape (n, k)
    covariance: Tensor  # covariance of weight and guidance contribution, shape (n, k)


def dig_statistics(trace: Sequence[Snapshot], sources: Sources, ideal: Image | None = None) -> DigStatistics:
    """Statistics over the steps that ``fuse`` showed its observer, for the first image of the batch.

    Sources (1, k, c, h, w) and ideal are in [0, 1]; the last guided estimate stands in for an ideal that is not known.
    Steps that were watched without estimates are a ValueError.
    """
    sources = 2 * sources.cpu() - 1
    target = 2 * (trace[-1].guided if ideal is None else ideal.cpu()) - 1
    rows = []
    for step in trace:
        weight = step.weight.cpu()
        if step.x0_hat is None:
            raise ValueError("statistics need the prior's estimates: fuse(..., estimates=True)")
        contribution = guidance_contribution(2 * step.x0_hat.cpu() - 1, sources, target)
        means = [maps.cpu()[0].mean((1, 2, 3)) for maps in (weight, step.gain)]
        rows.append((*means, weight_entropy(weight)[0], weight_covariance(weight, contribution)[0]))
    weight_mean, gain_mean, entropy, covariance = (torch.stack(column) for column in zip(*rows, strict=True))
    return DigStatistics(torch.tensor([step.t for step in trace]), weight_mean, entropy, gain_mean, covariance)
