"""What the method is measured against: classical fusions and DDFM on the same prior.

Every classical fusion is a pure function on ``sources`` (b, k, c, h, w) in [0, 1] and gives (b, c, h, w), not clipped
unless it says so.
"""

import math
from collections.abc import Callable

import pywt
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from dig2dig.color import luminance
from dig2dig.config import DigConfig, GuidanceConfig, ResearchConfig, SamplerConfig
from dig2dig.fusion.resample import box, guided_filter
from dig2dig.metrics.objectives import mertens
from dig2dig.shapes import Image, Sources

SALIENCY = [math.exp(-(i**2) / 50) for i in range(6)]  # of guided filtering: 11 × 11, standard deviation 5


def mean(sources: Sources) -> Image:
    """The plain average."""
    return sources.mean(1)


def _filtered(images: Tensor, *taps: float) -> Tensor:
    """Images (..., h, w) filtered with a window of these taps, from its middle outwards, in both directions."""
    kernel = images.new_tensor([*taps[:0:-1], *taps])
    kernel, radius = kernel / kernel.sum(), len(taps) - 1
    flat = pad(images.flatten(0, -3)[:, None], [radius] * 4, mode="reflect")
    return conv2d(conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0].view(images.shape)


def _expanded(images: Tensor, like: Tensor) -> Tensor:
    """Images on the grid of the finer level, by Burt's filter."""
    spread = torch.zeros_like(like)
    spread[..., ::2, ::2] = images
    return 4 * _filtered(spread, 6.0, 4.0, 1.0)


def _choose_largest(bands: Tensor) -> Tensor:
    """The coefficient of largest absolute value among the sources, at axis 1."""
    return bands.gather(1, bands.abs().argmax(1, keepdim=True)).squeeze(1)


def laplacian(sources: Sources, levels: int = 5) -> Image:
    """Laplacian pyramid: in each band the coefficient of largest absolute value, the mean of what is left.

    Reference: Burt and Kolczynski, "Enhanced image capture through fusion", 1993.
    """
    bands, level = [], sources
    while len(bands) < levels and min(level.shape[-2:]) >= 4:
        smaller = _filtered(level, 6.0, 4.0, 1.0)[..., ::2, ::2]
        bands.append(_choose_largest(level - _expanded(smaller, level)))
        level = smaller
    fused = level.mean(1)
    for band in reversed(bands):
        fused = _expanded(fused, band) + band
    return fused.clamp(0, 1)


def wavelet(sources: Sources, name: str = "db2", levels: int = 4) -> Image:
    """Discrete wavelet transform: the detail coefficient of largest absolute value, the mean of the approximation.

    Reference: Li, Manjunath and Mitra, "Multisensor image fusion using the wavelet transform", 1995.
    """
    height, width = sources.shape[-2:]
    levels = min(levels, pywt.dwt_max_level(min(height, width), name))
    approximation, *details = pywt.wavedec2(sources.cpu().numpy(), name, mode="symmetric", level=levels)
    chosen = [tuple(_choose_largest(torch.from_numpy(band)).numpy() for band in bands) for bands in details]
    fused = pywt.waverec2([approximation.mean(1), *chosen], name, mode="symmetric")
    return torch.from_numpy(fused)[..., :height, :width].to(sources).clamp(0, 1)


def guided(sources: Sources) -> Image:
    """Two scales, each with winner-takes-all saliency weights that a guided filter fits to the source's edges.

    Reference: Li, Kang and Hu, "Image fusion with guided filtering", 2013; its published radii and epsilons.
    """
    b, k, c, h, w = sources.shape
    base = box(sources.reshape(-1, 1, h, w), 15).view(b, k, c, h, w)
    grey = luminance(sources)
    flat = pad(grey.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    edge = conv2d(flat, flat.new_tensor([[[[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]]])).abs()
    saliency = _filtered(edge.unflatten(0, (b, k)), *SALIENCY[: min(h, w)])
    winner = torch.zeros_like(saliency).scatter_(1, saliency.argmax(1, keepdim=True), 1.0).flatten(0, 1)

    def weights(radius: int, epsilon: float) -> Tensor:
        refined = guided_filter(winner, grey.flatten(0, 1), radius, epsilon).clamp(min=0).unflatten(0, (b, k))
        return refined / refined.sum(1, keepdim=True).clamp(min=1e-6)

    return ((weights(45, 0.3) * base).sum(1) + (weights(7, 1e-6) * (sources - base)).sum(1)).clamp(0, 1)


_FUSIONS = (mean, laplacian, wavelet, guided, mertens)
CLASSICAL: dict[str, Callable[[Sources], Image]] = {fusion.__name__: fusion for fusion in _FUSIONS}
"""Fusions without a prior, by name."""


def ddfm(form: str = "code", steps: int = 100) -> SamplerConfig:
    """DDFM as a setting of our sampler: static weights, its EM, 100 steps uniform from pure noise, noise recomputed.

    ``form`` is ``code`` as published (i - x), or ``paper`` (x + v).

    Reference: Zhao et al., "DDFM: Denoising diffusion model for multi-modality image fusion", ICCV 2023.
    """
    research = ResearchConfig(em_form="code" if form == "code" else "paper")
    dig = DigConfig(kind="static")
    return SamplerConfig(steps, "uniform", None, None, dig=dig, guidance=GuidanceConfig(kind="em"), research=research)


def stretch(images: Tensor) -> Tensor:
    """Each image (…, c, h, w) stretched to the whole range [0, 1] by its darkest and brightest value, as DDFM ends."""
    low, high = images.amin((-3, -2, -1), keepdim=True), images.amax((-3, -2, -1), keepdim=True)
    return (images - low) / (high - low).clamp(min=1e-6)
