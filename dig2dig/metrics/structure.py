"""Likeness of grey levels to the sources: error, correlation, structural similarity on one scale and on several.

This is not torchmetrics' structural similarity. SSIM there counts a padded border. MS-SSIM there counts it on the last
scale, and drops an odd last row or column. Without the border SSIM is the same, but takes 20 to 80 times as long.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from dig2dig.metrics.levels import Grey, Levels, PerSource, Scores, gaussian, moments, slide

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""Constants of structural similarity, in squared grey levels."""

POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weight of each scale, from fine to coarse."""


def squared_error(f: Grey, s: Levels) -> PerSource:
    """MSE against each source, in squared grey levels.

    Reference: Jagalingam and Hegde, "A review of quality metrics for fused image", 2015.
    """
    return (f - s).square().mean((-2, -1))


def peak_signal_to_noise(f: Grey, s: Levels) -> Scores:
    r"""PSNR in dB, :math:`10 \log_{10} (255^2 / \mathrm{MSE})` of the mean error (Jagalingam and Hegde, 2015)."""
    return 10 * (255**2 / squared_error(f, s).mean(1)).log10()


def peak_signal_to_noise_own_peak(f: Grey, s: Levels) -> Scores:
    """PSNR in dB with the brightest grey level of the fused image as the peak."""
    return 10 * (f.amax((1, 2, 3)).square() / squared_error(f, s).mean(1)).log10()


def root_error_vifb(f: Grey, s: Levels) -> PerSource:
    """RMSE in VIFB's form: root of the summed squares, divided by the number of pixels."""
    return (squared_error(f, s) / (f.shape[-2] * f.shape[-1])).sqrt()


def peak_signal_to_noise_vifb(f: Grey, s: Levels) -> Scores:
    """PSNR in VIFB's form, with :func:`root_error_vifb` in the place of the mean squared error."""
    return 10 * (255**2 / root_error_vifb(f, s).mean(1)).log10()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """CC, Pearson's correlation over the last two axes; 0 where one side is constant.

    Reference: Shah et al., "Multifocus and multispectral image fusion based on pixel significance using multiresolution
    decomposition", 2013.
    """
    a, b = (x - x.mean((-2, -1), keepdim=True) for x in (a, b))
    spread = (a.square().sum((-2, -1)) * b.square().sum((-2, -1))).sqrt()
    return torch.where(spread > 0, (a * b).sum((-2, -1)) / spread.clamp(min=1e-12), 0.0)


def correlation_of_differences(f: Grey, s: Levels) -> PerSource:
    r"""SCD: correlation :math:`r(F - \bar c_{-k},\; c_k)` of a source with the fused image minus the other source.

    For K > 2, the mean of the other sources stands for the other source. Differentiable.

    Reference: Aslantas and Bendes, "A new image quality metric for image fusion", 2015.
    """
    others = (s.sum(1, keepdim=True) - s) / max(s.shape[1] - 1, 1)
    return correlation(f - others, s)


def _similarity(f: Grey, s: Levels, weights: list[float], unbiased: float = 1.0) -> tuple[PerSource, PerSource]:
    """Mean structural similarity, and the mean of its part without luminance."""
    mean_f, mean_s, var_f, var_s, covariance = moments(f, s, weights)
    contrast = (2 * unbiased * covariance + C2) / (unbiased * (var_f + var_s) + C2)
    luminance = (2 * mean_f * mean_s + C1) / (mean_f**2 + mean_s**2 + C1)
    return (luminance * contrast).mean((-2, -1)), contrast.mean((-2, -1))


def similarity(f: Grey, s: Levels) -> PerSource:
    """SSIM with each source: uniform 7×7 windows inside the image, unbiased covariance, as in scikit-image.

    Differentiable.

    Reference: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    return _similarity(f, s, [1 / 7] * 7, 49 / 48)[0]


def similarity_gaussian(f: Grey, s: Levels) -> PerSource:
    """SSIM with each source in Gaussian 11×11 windows of sigma 1.5, the authors' first form."""
    return _similarity(f, s, gaussian(11, 1.5))[0]


def _halved(levels: Tensor) -> Tensor:
    """Means of 2×2 pixels; an odd last row or column is repeated."""
    odd_h, odd_w = levels.shape[-2] % 2, levels.shape[-1] % 2
    return avg_pool2d(pad(levels, (0, odd_w, 0, odd_h), mode="replicate"), 2)


def multi_scale_similarity(f: Grey, s: Levels) -> PerSource:
    """MS-SSIM with each source on five scales. A negative mean contrast on a scale counts as 0.

    Reference: Wang et al., "Multiscale structural similarity for image quality assessment", 2003.
    """
    scales = []
    for power in POWERS:
        full, contrast = _similarity(f, s, gaussian(11, 1.5))
        scales.append((full if len(scales) == 4 else contrast).clamp(min=0) ** power)
        f, s = _halved(f), _halved(s)
    return torch.stack(scales).prod(0)


def _exposure_similarity(f: Grey, s: Levels) -> Scores:
    """Likeness in structure and contrast to the best patch that the sources could make, on one scale."""
    k, size, eps = s.shape[1], 11, 2.0**-52
    f, s = f - 128, s - 128
    i, j = torch.triu_indices(k, k)
    twice = torch.where(i == j, 1.0, 2.0).to(s)[:, None, None]
    mean, product = slide(torch.cat([s, s[:, i] * s[:, j]], 1), [1 / size] * size).split([k, len(i)], 1)
    inner = size**2 * (product - mean[:, i] * mean[:, j])
    norm = inner[:, i == j].clamp(min=0).sqrt()
    together = (twice * inner).sum(1, keepdim=True).clamp(min=0).sqrt()
    consistency = ((together + eps) / (norm.sum(1, keepdim=True) + eps)).clamp(eps, 1 - eps)
    energy = norm + 0.001
    share = (energy / size) ** (math.pi / 2 * consistency).tan().clamp(max=10) + eps
    factor = share / share.sum(1, keepdim=True) / energy
    length = (twice * factor[:, i] * factor[:, j] * inner).sum(1, keepdim=True).clamp(min=0).sqrt()
    factor = torch.where(length > 0, factor / length.clamp(min=1e-300) * energy.amax(1, keepdim=True), factor)
    fine = slide(torch.cat([s, f, s[:, i] * s[:, j], s * f, f * f], 1), gaussian(size, 1.5))
    mean, mean_f, product, cross, square = fine.split([k, 1, len(i), k, 1], 1)
    variance = (twice * factor[:, i] * factor[:, j] * (product - mean[:, i] * mean[:, j])).sum(1)
    covariance = (factor * (cross - mean * mean_f)).sum(1)
    return ((2 * covariance + C2) / (variance + (square - mean_f**2)[:, 0] + C2)).mean((-2, -1))


def exposure_fusion_similarity(f: Grey, s: Levels) -> Scores:
    """MEF-SSIM on three scales, of luminance in float64; differentiable.

    Reference: Ma, Zeng and Wang, "Perceptual quality assessment for multi-exposure image fusion", 2015.
    """
    scales = []
    for power in POWERS[:3]:
        scales.append(_exposure_similarity(f, s).clamp(min=0) ** (power / sum(POWERS[:3])))
        f, s = _halved(f), _halved(s)
    return torch.stack(scales).prod(0)
