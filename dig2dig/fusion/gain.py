"""Diffusion information gain: how much the denoiser learns about each source in each step, measured before sampling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dig2dig.color import to_channels
from dig2dig.config import DigConfig
from dig2dig.fusion.resample import coarseness, downsample, grouped, resample, smooth
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import AlphaBar, Times, add_noise, draw_noise, generators, noise_level, time_of_noise_level
from dig2dig.priors.windows import pad
from dig2dig.shapes import Gains, Maps, Sources, State, Valid

LEAST = 32  # pixels of a side; smaller images are borders for the most part
SHARED = 2**20  # pixels in all draws for the gain of whole sources


def pixel_loss(estimate: Tensor, target: Tensor, kind: str) -> Tensor:
    """Distance at each pixel, mean over channels, (…, c, h, w) to (…, 1, h, w).

    ``l2`` is squared, ``l1`` absolute intensity; ``gradient`` is the length of the difference's gradient, by forward
    differences.
    """
    difference = estimate - target
    if kind == "gradient":
        right = torch.diff(difference, dim=-1, append=difference[..., -1:])
        down = torch.diff(difference, dim=-2, append=difference[..., -1:, :])
        loss = torch.hypot(right, down)
    else:
        loss = difference.square() if kind == "l2" else difference.abs()
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

    Reference: Cao et al., "Dig2DIG", arXiv:2503.18627; ``change`` and ``residual`` are our variants.
    """
    if kind == "change":
        return pixel_loss(estimate_next, estimate, loss)
    left = pixel_loss(estimate, sources, loss)
    return left if kind == "residual" else left - pixel_loss(estimate_next, sources, loss)


def normalise(gain: Gains, kind: str) -> Gains:
    """Gains without a unit: multiples of twice the sources' mean at each pixel, ``sum``, or of each image's mean.

    Of two sources, ``sum`` gives shares. Plain shares of many sources are small, and their softmax nearly 1/k, as is
    that of raw gains. Where nothing is gained, gains stay near zero instead of dividing noise by noise.
    """
    if kind == "none":
        return gain
    size = gain.abs()
    mean = size.mean((1, 2, 3, 4), keepdim=True)
    if kind == "mean":
        return gain / (mean + 1e-12)
    return gain / (2 * size.mean(1, keepdim=True) + 1e-2 * mean + 1e-12)


@dataclass(frozen=True)
class Measured:
    """What the denoiser learns about each source at each time that was measured.

    Maps keep the resolution that they were measured or smoothed at.
    """

    times: Times  # decreasing time indices, shape (n,)
    gains: list[Maps]  # normalised gain of each source to the next time, n maps (b, k, 1, h / f, w / f)
    estimates: list[Maps] | None = None  # reconstructions of the noised sources, (b, k, c, h / f, w / f) in [-1, 1]
    cost: Float[Tensor, " m"] | None = None  # mean absolute ``gain`` of each step
    total: Float[Tensor, "b k"] | None = None  # what is gained of each source in all, where it is asked for

    def after(self, count: int) -> "Measured":
        """Without the first ``count`` times."""
        estimates, cost = self.estimates and self.estimates[count:], None if self.cost is None else self.cost[count:]
        return Measured(self.times[count:], self.gains[count:], estimates, cost, self.total)


def reconstruct(
    sources: Sources, noise: State, times: Times, denoiser: Denoiser, reduce: float = 0.0, grids: Sequence[int] = ()
) -> list[Maps]:
    r"""The denoiser's estimates of all sources, noised to each time with one noise for all of them.

    .. math:: \hat c_k(t) = \hat x_0\big(\sqrt{\bar\alpha_t}\, c_k + \sqrt{1-\bar\alpha_t}\,\varepsilon,\; t\big)

    Sources and times share network calls. A grey source passes a colour prior as three equal channels with
    independent noise. Where the noise is strong, the estimate is smooth and can be had from smaller images: the mean
    over f × f pixels has noise of level :math:`\sigma / f`, and that is what the network sees.

    Sources are in [-1, 1] and padded; the noise has the denoiser's channels. Images are halved, at most twice, as long
    as the noise level stays above ``reduce``; 0 = never; once more for a time whose maps are needed on a grid of eight
    pixels or more alone, as ``grids`` says. Gives (b, k, c, h / f, w / f) at each time.
    """
    b, k, c, h, w = sources.shape
    images = to_channels(sources, denoiser.channels).flatten(0, 1)
    estimates: list[Maps] = [sources] * len(times)
    sigmas = noise_level(denoiser.alpha_bar)[times.cpu()]
    each = zip(sigmas.tolist(), grids or [1] * len(times), strict=True)
    factors = torch.tensor([_factor(sigma, reduce, min(h, w), grid) for sigma, grid in each])
    for factor in factors.unique().tolist():
        chosen = (factors == factor).nonzero()[:, 0]
        small, small_noise = (downsample(pad(one, factor), factor) for one in (images, noise * factor))
        t = time_of_noise_level(denoiser.alpha_bar, sigmas[chosen] / factor) if factor > 1 else times[chosen]
        made = to_channels(_estimates(small, small_noise, t.to(sources.device), denoiser), c)
        for i, estimate in zip(chosen.tolist(), made.unflatten(0, (-1, b, k)), strict=True):
            estimates[i] = estimate
    return estimates


def _factor(sigma: float, reduce: float, side: int, grid: int) -> int:
    """How many times smaller images may be at a noise level, and still be of a size that priors know."""
    fit = [f for f in (2, 4, 8) if f <= max(grid, 4) and sigma / f >= reduce > 0 and side // f >= LEAST]
    return max(fit, default=1)


def _estimates(images: Tensor, noise: Tensor, times: Tensor, denoiser: Denoiser) -> Tensor:
    """Estimates of (b·k) images at n times, all pairs in calls of bounded size, shape (n·b·k, c, h, w)."""
    count, (h, w) = len(images), images.shape[-2:]
    k = count // len(noise)
    padded, padded_noise = pad(images, denoiser.multiple), pad(noise, denoiser.multiple)
    per_call = max(1, denoiser.pixels // (h * w))
    parts = []
    for part in torch.arange(len(times) * count, device=images.device).split(per_call):
        source, t = part % count, times[part // count]
        noised = add_noise(padded[source], padded_noise[source // k], t, denoiser.alpha_bar)
        parts.append(denoiser(noised, t)[..., :h, :w])
    return torch.cat(parts)


def measure(
    sources: Sources,
    noises: list[State],
    times: Times,
    denoiser: Denoiser,
    config: DigConfig,
    estimates: bool = True,
    cost: bool = False,
    sigma_most: float = math.inf,
    valid: Valid | None = None,
) -> Measured:
    """Gains of all sources in [-1, 1] at decreasing times, averaged over noise draws, before any sampling.

    Without ``estimates``, the reconstructions themselves, static weights need no network. ``cost`` asks for the mean
    gain of each step, to place steps by it. Smoothing follows the noise level up to ``sigma_most``. Where ``dig.share``
    is set, ``total`` is how much of the residual's variance over ``valid`` pixels goes from the first time to the last.
    """
    b, k, _, h, w = sources.shape
    sigmas = noise_level(denoiser.alpha_bar)[times.cpu()].tolist()
    radii = [config.smoothing + config.smoothing_noise * min(sigma, sigma_most) for sigma in sigmas]
    grids = [coarseness(radius) for radius in radii]
    gains = [sources.new_zeros(b, k, 1, *(-(-side // grid) for side in (h, w))) for grid in grids]
    costs, total, means = sources.new_zeros(len(times)), sources.new_zeros(b, k), None
    shared = config.share > 0 and config.kind != "static"
    if shared:
        total = _unknown(sources, times[:1], denoiser, config, grids[:1], valid)
    alone = config.kind == "residual" and not cost  # else estimates of two times are compared, and must be as sharp
    for noise in noises if estimates or config.kind != "static" else []:
        draw = reconstruct(sources, noise, times, denoiser, config.reduce, grids if alone and not estimates else ())
        for i in range(len(times)) if config.kind != "static" else []:
            for one in grouped(k, sources.shape):
                here = resample(draw[i][:, one], h, w)
                following = here if alone else resample([*draw, sources][i + 1][:, one], h, w)
                gain = information_gain(here, following, sources[:, one], config.kind, config.loss)
                gains[i][:, one] += downsample(gain, grids[i]) / len(noises)
                if cost:
                    change = information_gain(here, following, sources[:, one])
                    costs[i] += change.abs().mean() * change.shape[1] / (k * len(noises))
        if shared:
            total -= _left([*draw, sources][max(1, len(times) - 1)], sources, valid) / len(noises)
        if estimates:
            each = (estimate / len(noises) for estimate in draw)
            means = [*each] if means is None else [a + b for a, b in zip(means, each, strict=True)]
    each = zip(gains, radii, grids, strict=True)
    gains = [normalise(smooth(gain, radius / grid), config.normalise) for gain, radius, grid in each]
    return Measured(times.cpu(), gains, means, costs if cost else None, total if config.share > 0 else None)


def _unknown(
    sources: Sources, time: Times, denoiser: Denoiser, config: DigConfig, grid: Sequence[int], valid: Valid | None
) -> Tensor:
    """Variance of the residual at the first time, (b, k): mean over draws, more of them for small images.

    What is seen through strong noise depends on its draw. All images have the same draws, so that the seed, and with
    it the name of a file, hardly changes the tone.
    """
    b, _, _, h, w = sources.shape
    count = min(max(SHARED // (h * w), 1), 4)
    noise = draw_noise((denoiser.channels, h, w), generators(range(count), count), sources)
    many = sources.repeat(count, 1, 1, 1, 1) if count > 1 else sources
    each = noise.repeat_interleave(b, 0) if b > 1 else noise
    (first,) = reconstruct(many, each, time, denoiser, config.reduce, grid)
    return torch.stack([_left(one, sources, valid) for one in first.split(b)]).mean(0)


def _left(estimates: Maps, sources: Sources, valid: Valid | None) -> Tensor:
    """Variance of the residual over the valid pixels of each source, mean of channels, (b, k); 0 where none is."""
    found = []
    for one in range(sources.shape[1]):
        residual = resample(estimates[:, one : one + 1], *sources.shape[-2:])[:, 0] - sources[:, one]
        shown = residual if valid is None else residual.masked_fill(~valid[:, one], torch.nan)
        spread = shown.sub(shown.nanmean((-2, -1), keepdim=True)).square_()
        found.append(spread.nanmean((-2, -1)).nan_to_num().mean(1))
    return torch.stack(found, 1)


def at_time(maps: list[Maps], times: Times, t: int, alpha_bar: AlphaBar) -> Maps:
    """Maps of decreasing times at any time: linear in the log of the noise level, at the finer of two resolutions.

    Beyond their times, the nearest one counts.
    """
    fineness, last = -noise_level(alpha_bar).log(), len(times) - 1
    known, wanted = fineness[times], fineness[t]
    right = int(torch.searchsorted(known, wanted).clamp(min(1, last), last))
    left = max(right - 1, 0)
    share = float(((wanted - known[left]) / (known[right] - known[left]).clamp(min=1e-12)).clamp(0, 1))
    if share in (0, 1):
        return maps[right if share else left]
    size = max(maps[left].shape[-2:], maps[right].shape[-2:])
    return resample(maps[left], *size).lerp(resample(maps[right], *size), share)
