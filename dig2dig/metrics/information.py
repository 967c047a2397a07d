"""Entropy and mutual information of grey levels, and feature mutual information in its fast regional form."""

import math

import torch
from torch import Tensor

from dig2dig.metrics.levels import Grey, Levels, PerSource, Scores, grey_levels
from dig2dig.shapes import Image

PIXELS = 16384  # windows in one computation; memory grows with them


def _entropy(counts: Tensor) -> Tensor:
    """Entropy in bits of counts along the last axis."""
    p = counts / counts.sum(-1, keepdim=True)
    return -torch.xlogy(p, p).sum(-1) / math.log(2)


def _histogram(levels: Tensor, bins: int) -> Tensor:
    """Counts of whole numbers below ``bins`` in each row of (n, pixels)."""
    n = len(levels)
    shifted = levels.long() + bins * torch.arange(n, device=levels.device)[:, None]
    return torch.bincount(shifted.flatten(), minlength=n * bins).double().view(n, bins)


def entropy(fused: Image) -> Scores:
    r"""EN, entropy of the 256-bin histogram in bits: :math:`-\sum_i p_i \log_2 p_i`.

    Reference: Roberts et al., "Assessment of image fusion procedures using entropy, image quality, and multispectral
    classification", 2008.
    """
    return _entropy(_histogram(grey_levels(fused).flatten(1), 256))


def _entropies(f: Grey, s: Levels, brightest: int = 255) -> tuple[Tensor, Tensor]:
    """Entropy in bits, the fused image's plus each source's (b, k), and of both together, levels clipped there."""
    alone = _entropy(_histogram(torch.cat([f, s], 1).flatten(0, 1).flatten(1), 256)).view(len(f), -1)
    pairs = 256 * s.clamp(max=brightest) + f.clamp(max=brightest)
    joint = _entropy(_histogram(pairs.flatten(0, 1).flatten(1), 256 * 256)).view(s.shape[:2])
    return alone[:, :1] + alone[:, 1:], joint


def mutual_information(f: Grey, s: Levels, brightest: int = 255) -> PerSource:
    r"""MI with each source in bits: :math:`H(F) + H(S) - H(F, S)` of 256 grey levels, in the joint one clipped.

    Reference: Qu et al., "Information measure for performance of image fusion", 2002.
    """
    alone, joint = _entropies(f, s, brightest)
    return alone - joint


def normalised_information(f: Grey, s: Levels) -> PerSource:
    r"""NMI with each source: :math:`2\, I(F; S) / (H(F) + H(S))`, 1 for a copy.

    Reference: Hossny et al., "Comments on 'Information measure for performance of image fusion'", 2008.
    """
    alone, joint = _entropies(f, s)
    return torch.where(alone > 0, 2 * (alone - joint) / alone.clamp(min=1e-12), 0.0)


def _windows(features: Tensor) -> Tensor:
    """The nine values around each inner pixel, column after column: (9, n) of one image (h, w)."""
    h, w = features.shape
    return torch.stack([features[i : h - 2 + i, j : w - 2 + j].flatten() for j in range(3) for i in range(3)])


def _distribution(windows: Tensor) -> Tensor:
    """Windows (9, n) stretched to [0, 1] and divided by their sum; constant ones are uniform."""
    low, high = windows.amin(0), windows.amax(0)
    raised = torch.where(high > low, windows - low, 1.0)
    return raised / raised.sum(0)


def _nats(p: Tensor) -> Tensor:
    """Entropy in nats of the masses along all axes but the last; a negative mass counts with its absolute value."""
    return -p.abs().clamp_(min=1e-30).log_().mul_(p).flatten(0, -2).sum(0)


def _spread(p: Tensor) -> Tensor:
    """Standard deviation of the position 1 … 9 under p (9, n)."""
    at = torch.arange(9, dtype=p.dtype, device=p.device)[:, None]
    mean = (at * p).sum(0)
    return ((at - mean) ** 2 * p).sum(0).sqrt()


def _shared(f: Tensor, s: Tensor) -> Tensor:
    """Normalised mutual information of distributions f, s (9, n).

    The joint distribution is modelled as a mixture of two: the independent one, and the most dependent one with the
    same margins (Fréchet's bound). The mixture has the correlation of f and s. Where all mass lies at one position in
    both, it is 1 at the same position and 0 else.
    """
    same = (f == s).all(0)
    a, b = f - f.mean(0), s - s.mean(0)
    scale = (a.square().sum(0) * b.square().sum(0)).sqrt()
    c = torch.where(scale > 1e-12, (a * b).sum(0) / scale.clamp(min=1e-12), 0.0)  # 0 where one side is constant
    s = torch.where(c < 0, s.flip(0), s)  # the lower bound is the upper one of reversed positions
    sum_f, sum_s = f.cumsum(0), s.cumsum(0)
    joint = torch.minimum(sum_f[:, None], sum_s)
    covariance = joint.sum((0, 1)) - sum_f.sum(0) * sum_s.sum(0)
    spread = _spread(f) * _spread(s)
    mixed = (c != 0) & (covariance > 1e-9) & (spread > 1e-9)
    share = torch.where(mixed, c.abs() * spread / covariance.clamp(min=1e-9), 0.0)
    joint -= torch.maximum((sum_f - f)[:, None], sum_s - s)
    joint.clamp_(min=0).mul_(share).addcmul_(((1 - share) * f)[:, None], s)
    alone = _nats(f) + _nats(s)
    return torch.where(alone > 0, 2 * (alone - _nats(joint)) / alone, same.to(alone))


def _regional(f: Tensor, s: Tensor) -> Tensor:
    """Mean over all 3×3 windows of one fused and one source feature image."""
    total = f.new_zeros((), dtype=torch.float64)
    windows_f, windows_s = _windows(f), _windows(s)
    for part_f, part_s in zip(windows_f.split(PIXELS, 1), windows_s.split(PIXELS, 1), strict=True):
        found = _shared(_distribution(part_f), _distribution(part_s))
        total += torch.where((part_f == part_s).all(0), 1.0, found).double().sum()
    return total / windows_f.shape[1]


def feature_information_pixel(f: Grey, s: Levels) -> PerSource:
    """FMI of grey levels: normalised mutual information in 3×3 windows, mean over windows.

    References: Haghighat et al., "A non-reference image fusion metric based on mutual information of image features",
    2011; Haghighat and Razian, "Fast-FMI: non-reference image fusion metric", 2014.
    """
    f, s = f.float(), s.float()
    scores = [torch.stack([_regional(image[0], source) for source in row]) for image, row in zip(f, s, strict=True)]
    return torch.stack(scores)


def feature_information_gradient(f: Grey, s: Levels) -> PerSource:
    """FMI of horizontal central differences, the gradient of the authors' code (Haghighat and Razian, 2014)."""
    return feature_information_pixel(*(torch.gradient(levels, dim=-1)[0] for levels in (f, s)))
