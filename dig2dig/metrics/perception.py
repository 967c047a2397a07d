"""Metrics from models of human vision: visual information, contrast preservation, visible difference.

Visual information in torchmetrics has the same definition. It takes 60 to 80 times as long and is less exact (up to
5e-8 apart). A source without detail gives NaN.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from dig2dig.metrics.levels import Grey, Levels, PerSource, Scores, both, gaussian, moments, slide, sobel, stretched
from dig2dig.shapes import Image, Sources


def _information(f: Grey, s: Levels, size: int, noise: float = 2.0) -> tuple[PerSource, PerSource]:
    """Information in each source that the fused image passes to the eye, and all of it, on one scale."""
    _, _, var_f, var_s, covariance = moments(f, s, gaussian(size, size / 5))
    var_f, var_s, tiny = var_f.clamp(min=0), var_s.clamp(min=0), 1e-10
    gain = covariance / (var_s + tiny)
    rest = torch.where(var_s < tiny, var_f, var_f - gain * covariance)
    flat = (var_s < tiny) | (var_f < tiny)
    gain, rest = gain.where(~flat, 0.0), rest.where(var_f >= tiny, 0.0)
    var_s = var_s.where(var_s >= tiny, 0.0)
    rest = torch.where(gain < 0, var_f, rest).clamp(min=tiny)
    gain = gain.clamp(min=0)
    passed = (1 + gain**2 * var_s / (rest + noise)).log().sum((-2, -1))
    return passed, (1 + var_s / noise).log().sum((-2, -1))


def visual_information(f: Grey, s: Levels) -> PerSource:
    """VIF of each source in the fused image, pixel domain on four scales, about [0, 1]; 0 for a source without detail.

    Differentiable.

    Reference: Sheikh and Bovik, "Image information and visual quality", 2006.
    """
    passed, offered = _information(f, s, 17)
    for size in (9, 5, 3):
        f, s = slide(torch.cat([f, s], 1), gaussian(size, size / 5))[..., ::2, ::2].tensor_split([1], 1)
        more = _information(f, s, size)
        passed, offered = passed + more[0], offered + more[1]
    return torch.where(offered > 0, passed / offered.clamp(min=1e-12), 0.0)


def _radius(levels: Levels, divisor: float) -> Tensor:
    """Distance from zero frequency on the half plane of ``rfft2``: size / divisor at Nyquist's frequency."""
    h, w = levels.shape[-2:]
    rows = torch.fft.fftfreq(h, dtype=torch.float64, device=levels.device) * 2 * h / divisor
    columns = torch.fft.rfftfreq(w, dtype=torch.float64, device=levels.device) * 2 * w / divisor
    return (rows[:, None].square() + columns.square()).sqrt()


def _filtered(levels: Levels, response: Tensor) -> Tensor:
    """Images with each frequency multiplied by ``response``."""
    return torch.fft.irfft2(torch.fft.rfft2(levels) * response, s=levels.shape[-2:])


def _masked_contrast(seen: Tensor) -> Tensor:
    """Local band contrast after masking; the Gaussians have their continuous normalisation."""
    padded = pad(seen, (15,) * 4)
    near, wide = (slide(padded, gaussian(31, sigma, sigma * (2 * torch.pi) ** 0.5)) for sigma in (2.0, 4.0))
    contrast = torch.where(wide != 0, near / wide - 1, 0.0).abs()
    return contrast**3 / (contrast**2 + 1e-4)


def contrast_preservation(fused: Image, sources: Sources) -> Scores:
    """Qcb: the share of the sources' visible local contrast that the fused image keeps, weighted by squared contrast.

    Each image is stretched to 0 … 255 and filtered by a contrast sensitivity, a difference of Gaussians. The band
    contrasts (Gaussians of 2 and 4 pixels) are masked and compared.

    References: Chen and Blum, "A new automated quality assessment algorithm for image fusion", 2009; constants as in
    Liu et al., "Objective assessment of multiresolution image fusion algorithms for context enhancement in night
    vision", 2012.
    """
    levels = stretched(torch.cat(both(fused, sources), 1))
    radius = _radius(levels, 30.0)
    sensitivity = (-((radius / 15.3870) ** 2)).exp() - 0.7622 * (-((radius / 1.3456) ** 2)).exp()
    f, s = _masked_contrast(_filtered(levels, sensitivity)).tensor_split([1], 1)
    small, large = torch.minimum(f, s), torch.maximum(f, s)
    kept = torch.where(large > 0, small / large.clamp(min=1e-300), 1.0)
    salience = s.square() + 1e-300
    return ((kept * salience).sum(1) / salience.sum(1)).mean((-2, -1))


def _blocks(levels: Levels) -> Tensor:
    """Mean of 16×16 blocks, with zeros beyond the right and lower border."""
    h, w = levels.shape[-2:]
    return avg_pool2d(pad(levels, (0, -w % 16, 0, -h % 16)), 16)


def visible_difference(fused: Image, sources: Sources) -> Scores:
    """Qcv, in squared levels, 0 at best: visible difference to the sources, weighted by their edges in 16×16 blocks.

    Each image is stretched to 0 … 255. The difference is filtered by Mannos and Sakrison's contrast sensitivity. The
    weight of a source's block is the sum of its gradients to the power of 5.

    Reference: Chen and Varshney, "A human perception inspired quality metric for image fusion based on regional
    information", 2007.
    """
    f, s = (stretched(levels) for levels in both(fused, sources))
    x, y = sobel(s, "constant")
    weight = _blocks((x * x + y * y) ** 2.5)
    radius = 0.144 * _radius(s, 8.0)
    seen = _filtered(s - f, 2.6 * (0.0192 + radius) * (-(radius**1.1)).exp())
    total = weight.sum((1, 2, 3))
    error = _blocks(seen.square())
    return torch.where(total > 0, (weight * error).sum((1, 2, 3)) / total.clamp(min=1e-12), error.mean((1, 2, 3)))
