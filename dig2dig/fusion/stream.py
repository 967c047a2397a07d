"""Tall stacks and large frames: each source is read three times, so that memory hardly grows with their number."""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from dig2dig.cli import release_freed_memory
from dig2dig.config import SamplerConfig
from dig2dig.fusion.bands import BandSum, around, blurred, within
from dig2dig.fusion.gain import Measured, measure, normalise
from dig2dig.fusion.guidance import TONES
from dig2dig.fusion.plan import Plan, gain_times, planned
from dig2dig.fusion.resample import resample
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import noise_level
from dig2dig.shapes import Image, Maps, State, is_tall

Load = Callable[[int], Maps]
"""Gives source k, (b, 1, c, h, w) in [-1, 1] and padded."""


def streams(config: SamplerConfig, shape: torch.Size, learned: bool) -> bool:
    """Whether sources of a shape (b, k, c, h, w) are streamed: three or more large ones, weighted by their gains."""
    plain = config.guidance.kind == "bands" and config.guidance.sigma_n == 0 and config.grid != "gain"
    return plain and not learned and is_tall(shape[1], shape.numel() // shape[1])


def stream(
    load: Load, count: int, noises: list[State], denoiser: Denoiser, config: SamplerConfig, valid: Tensor | None
) -> Image:
    """What composing all sources at once gives, (b, c, h, w) in [-1, 1]; each of ``count`` sources is loaded thrice.

    First its gains are measured; their maps are small, since they are smooth. When the weights are known, its bands are
    added to those of the others. Last, the result is held to what it shows around each pixel. ``noises`` are used up.
    """

    def fresh(k: int) -> Maps:
        release_freed_memory()  # else memory grows from source to source
        return load(k)

    asked, skipped = gain_times(denoiser.alpha_bar, config)
    widest = float(noise_level(denoiser.alpha_bar)[asked[skipped]])
    dig = replace(config.dig, normalise="none")
    shown = [None] * count if valid is None else valid.split(1, 1)
    parts = [measure(fresh(k), noises, asked, denoiser, dig, False, False, widest, one) for k, one in enumerate(shown)]
    noises.clear()
    gains = [normalise(torch.cat([part.gains.pop(0) for part in parts], 1), config.dig.normalise) for _ in asked]
    total = torch.cat([part.total for part in parts if part.total is not None], 1) if dig.share > 0 else None
    plan = planned(Measured(parts[0].times, gains, total=total), skipped, denoiser.alpha_bar, config, valid)
    plan.measured.gains.clear()
    gains.clear()
    return bounded(composed(fresh, count, plan), fresh, count)


def composed(load: Load, count: int, plan: Plan) -> Image:
    """The weighted bands of all sources, added source by source; see ``guidance.bands`` for the equation."""
    config, scale = plan.config, plan.config.guidance.scale
    sigmas = [*noise_level(plan.schedule)[plan.times].tolist(), 0.0]
    times = plan.times.tolist()
    sums = [BandSum(config.guidance.energy) for _ in times]

    def added(k: int) -> Tensor:
        """What source k gives to the base; its bands are added to the sums."""
        source = load(k)
        base = seen = blurred(source, sigmas[0], scale)
        for i, total in enumerate(sums):
            sharper = blurred(source, sigmas[i + 1], scale)
            total.add(sharper, seen, plan.at([maps[:, k : k + 1] for maps in plan.weights], times[i]))
            seen = sharper
        share = 1 / count if plan.base is None else resample(plan.base[:, k : k + 1], *base.shape[-2:])
        return (share * base)[:, 0]

    target = reduce(torch.add, map(added, range(count)))
    for sigma in sigmas[1:]:
        fused = sums.pop(0).restored(sigma, scale)
        target = resample(target[:, None], *fused.shape[-2:])[:, 0].add(fused, alpha=TONES[config.tone])
    return target


def bounded(image: Image, load: Load, count: int) -> Image:
    """An image held to what its sources show around each pixel."""
    low = load(0)[:, 0].clone()
    high = low.clone()
    for k in range(1, count):
        source = load(k)[:, 0]
        torch.minimum(low, source, out=low)
        torch.maximum(high, source, out=high)
    return within(image, around(low, torch.minimum), around(high, torch.maximum))
