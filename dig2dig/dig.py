"""Diffusion information gain: how much the denoiser learns about each source in each step."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dig2dig.config import DigConfig
from dig2dig.denoiser import Denoiser
from dig2dig.filters import grow, shrink, smooth
from dig2dig.schedule import AlphaBar, Times, add_noise, noise_level, time_of_noise_level
from dig2dig.shapes import Gains, Sources, State, Weights
from dig2dig.tiling import crop, pad

PIXELS_PER_CALL = 2**20  # of all images that one network call sees


@dataclass(frozen=True)
class Information:
    """What the denoiser knows and learns about each source at each time of a grid.

    Attributes:
        times: Decreasing time indices, shape (n, b).
        estimates: Reconstructions of the noised sources; entry i at ``times[i]``, the last one the sources
            themselves; shape (n + 1, b, k, c, h, w), in [-1, 1]. None where no network was run.
        gains: Gain of each step, normalised; shape (n, b, k, 1, h, w).
        weights: Fusion weights of each step, the same shape.
        cost: Mean absolute ``gain`` of each step, whatever the kind of the weights, shape (n, b).
    """

    times: Int[Tensor, "n b"]
    estimates: Float[Tensor, "m b k c h w"] | None
    gains: Float[Tensor, "n b k 1 h w"]
    weights: Float[Tensor, "n b k 1 h w"]
    cost: Float[Tensor, "n b"]


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Repeats grey to colour or averages colour to grey, channels at axis -3."""
    if images.shape[-3] == channels:
        return images
    if images.shape[-3] == 1:
        return images.expand(*images.shape[:-3], channels, *images.shape[-2:])
    if channels == 1:
        return images.mean(-3, keepdim=True)
    raise ValueError(f"cannot turn {images.shape[-3]} channels into {channels}")


def reconstruct(
    sources: Sources, noise: State, times: Times, denoiser: Denoiser, reduce: float = 0.0
) -> Float[Tensor, "m b k c h w"]:
    r"""The denoiser's estimates of all sources, noised to each time with one noise for all of them.

    .. math:: \hat c_k(t) = \hat x_0\big(\sqrt{\bar\alpha_t}\, c_k + \sqrt{1-\bar\alpha_t}\,\varepsilon,\; t\big)

    Sources and times share network calls. A grey source passes a colour prior as three equal channels with
    independent noise. Where the noise is strong, the estimate is smooth and can be had from smaller images: the mean
    over f × f pixels has noise of level :math:`\sigma / f`, and that is what the network sees.

    Args:
        sources: Clean sources in [-1, 1], padded.
        noise: Noise of each image, with the denoiser's channels.
        times: Decreasing time indices, shape (n,).
        denoiser: The prior.
        reduce: Images are halved, at most twice, as long as the noise level stays above this; 0 = never.

    Returns:
        Estimates at each time, then the sources themselves: m = n + 1.
    """
    b, k, c, h, w = sources.shape
    images = to_channels(sources, denoiser.channels).flatten(0, 1)
    estimates = sources.new_empty(len(times) + 1, b, k, c, h, w)
    estimates[-1] = sources
    flat = estimates[:-1].flatten(1, 2)
    levels = noise_level(denoiser.alpha_bar)[times.cpu()]
    factors = torch.tensor([_factor(float(level), reduce, min(h, w)) for level in levels])
    for factor in factors.unique().tolist():
        chosen = (factors == factor).nonzero()[:, 0]
        small, small_noise = shrink(images, factor), shrink(noise, factor) * factor
        t = time_of_noise_level(denoiser.alpha_bar, levels[chosen] / factor) if factor > 1 else times[chosen]
        made = _estimates(small, small_noise, t.to(sources.device), denoiser).unflatten(0, (-1, b * k))
        flat[chosen.to(flat.device)] = grow(to_channels(made, c), h, w)
    return estimates


def _factor(level: float, reduce: float, side: int) -> int:
    """How many times smaller images may be at a noise level, 1, 2 or 4, and still have some 16 pixels a side."""
    return max((f for f in (1, 2, 4) if reduce > 0 and level / f >= reduce and side // f >= 16), default=1)


def _estimates(images: Tensor, noise: Tensor, times: Tensor, denoiser: Denoiser) -> Tensor:
    """Estimates of (b·k) images at n times in calls of bounded size, shape (n·b·k, c, h, w)."""
    count, (h, w) = len(images), images.shape[-2:]
    k = count // len(noise)
    padded, padded_noise = pad(images, denoiser.multiple), pad(noise, denoiser.multiple)
    parts = []
    # (time, source) pairs in one list, cut into calls of bounded size
    for part in torch.arange(len(times) * count, device=images.device).split(max(1, PIXELS_PER_CALL // (h * w))):
        source, t = part % count, times[part // count]
        noised = add_noise(padded[source], padded_noise[source // k], t, denoiser.alpha_bar)
        parts.append(crop(denoiser(noised, t), h, w))
    return torch.cat(parts)


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


def scoped(weights: Float[Tensor, "n b k 1 h w"], scope: str) -> Float[Tensor, "n b k 1 h w"]:
    """Weights of all steps as they are (``full``), their mean over time (``spatial``) or over space (``temporal``)."""
    if scope == "spatial":
        return weights.mean(0, keepdim=True).expand_as(weights)
    if scope == "temporal":
        return weights.mean((-2, -1), keepdim=True).expand_as(weights)
    return weights


def measure(
    sources: Sources,
    noises: list[State],
    times: Times,
    denoiser: Denoiser,
    config: DigConfig,
    estimates: bool = True,
) -> Information:
    """Gains and weights of all sources at all times, before any sampling.

    Args:
        sources: Clean sources in [-1, 1], padded.
        noises: One noise (b, c, h, w) for each draw that gains and estimates are averaged over.
        times: Decreasing time indices, shape (n,).
        denoiser: The prior.
        config: Kind, loss, normalisation, smoothing and temperature.
        estimates: Whether the reconstructions themselves are needed; if not, static weights need no network.
    """
    b, k, _, h, w = sources.shape
    gains = sources.new_zeros(len(times), b, k, 1, h, w)
    cost, mean_estimate = sources.new_zeros(len(times), b), None
    for noise in noises if estimates or config.kind != "static" else []:
        draw = reconstruct(sources, noise, times, denoiser, config.reduce)
        for i in range(len(times)) if config.kind != "static" else []:
            gains[i] += information_gain(draw[i], draw[i + 1], sources, config.kind, config.loss) / len(noises)
            cost[i] += information_gain(draw[i], draw[i + 1], sources).abs().mean((1, 2, 3, 4)) / len(noises)
        if estimates:
            mean_estimate = draw if mean_estimate is None else mean_estimate.add_(draw)
    if mean_estimate is not None:
        mean_estimate /= len(noises)
    for i, level in enumerate(noise_level(denoiser.alpha_bar)[times.cpu()].tolist()):
        radius = config.smoothing + config.smoothing_noise * level
        gains[i] = normalise(smooth(gains[i], radius), config.normalise)
    weights = scoped(torch.stack([fusion_weight(gain, config.temperature) for gain in gains]), config.scope)
    return Information(times.to(sources.device)[:, None].expand(-1, b), mean_estimate, gains, weights, cost)


def resample(information: Information, times: Int[Tensor, "n b"], alpha_bar: AlphaBar) -> Information:
    """The same information at the times of another grid, interpolated linearly in the log of the noise level."""
    if times.shape == information.times.shape and torch.equal(times.cpu(), information.times.cpu()):
        return information
    device = information.gains.device
    log_sigma = noise_level(alpha_bar).log()
    known, wanted = (-log_sigma[grid.cpu()].T.contiguous() for grid in (information.times, times))
    right = torch.searchsorted(known, wanted).clamp(1, known.shape[1] - 1)
    low, high = known.gather(1, right - 1), known.gather(1, right)
    share = ((wanted - low) / (high - low)).clamp(0, 1).T.to(information.gains.dtype).to(device)
    right, sample = right.T.to(device), torch.arange(times.shape[1], device=device)

    def between(values: Tensor) -> Tensor:
        part = share.view(*share.shape, *[1] * (values.ndim - 2))
        return values[right - 1, sample].lerp(values[right, sample], part)

    estimates = information.estimates
    if estimates is not None:
        estimates = torch.cat([between(estimates[:-1]), estimates[-1:]])
    gains, weights, cost = map(between, (information.gains, information.weights, information.cost))
    return Information(times.to(device), estimates, gains, weights, cost)
