"""Metrics from histograms: entropy and mutual information."""

import math

import torch
from torch import Tensor

from dig2dig.metrics.levels import PerSource, Scores, both, grey_levels
from dig2dig.shapes import Image, Sources


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

    References:
        Roberts et al., "Assessment of image fusion procedures using entropy, image quality, and multispectral
        classification", 2008.
    """
    return _entropy(_histogram(grey_levels(fused).flatten(1), 256))


def _entropies(fused: Image, sources: Sources, saturated: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy in bits of the fused image (b, 1), of each source and of both together (b, k)."""
    f, s = both(fused, sources)
    alone = _entropy(_histogram(torch.cat([f, s], 1).flatten(0, 1).flatten(1), 256)).view(len(f), -1)
    if saturated:
        f, s = f.clamp(max=254), s.clamp(max=254)
    joint = _entropy(_histogram((256 * s + f).flatten(0, 1).flatten(1), 256 * 256)).view(s.shape[:2])
    return alone[:, :1], alone[:, 1:], joint


def information(fused: Image, sources: Sources, saturated: bool = False) -> PerSource:
    r"""Mutual information with each source in bits: :math:`H(F) + H(S) - H(F, S)` of 256 grey levels.

    Args:
        fused: Fused images.
        sources: Their sources.
        saturated: Count levels 254 and 255 as one, in the joint histogram only. MATLAB code that adds 1 to an 8-bit
            number does this; values of bright images are then up to some per cent too high.
    """
    h_f, h_s, h_both = _entropies(fused, sources, saturated)
    return h_f + h_s - h_both


def mutual_information(fused: Image, sources: Sources) -> Scores:
    """MI in bits, summed over the sources.

    References:
        Qu et al., "Information measure for performance of image fusion", 2002.
    """
    return information(fused, sources).sum(1)


def mutual_information_nats(fused: Image, sources: Sources) -> Scores:
    """MI in nats, as in scikit-learn and VIFB."""
    return mutual_information(fused, sources) * math.log(2)


def mutual_information_saturated(fused: Image, sources: Sources) -> Scores:
    """MI in bits with levels 254 and 255 as one in the joint histogram."""
    return information(fused, sources, saturated=True).sum(1)


def normalised_information(fused: Image, sources: Sources) -> Scores:
    r"""NMI: :math:`\sum_k 2\, I(F; S_k) / (H(F) + H(S_k))`. A perfect copy of K equal sources has K.

    References:
        Hossny et al., "Comments on 'Information measure for performance of image fusion'", 2008.
    """
    h_f, h_s, h_both = _entropies(fused, sources)
    total = h_f + h_s
    return torch.where(total > 0, 2 * (total - h_both) / total.clamp(min=1e-12), 0.0).sum(1)
