"""Tall stacks and large frames: each source is read twice, so that memory hardly grows with their number."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dig2dig.config import SamplerConfig
from dig2dig.fusion.bands import BandSum, blurred, surroundings, within
from dig2dig.fusion.gain import Lookup, Measured, measure, normalise
from dig2dig.fusion.guidance import TONES
from dig2dig.fusion.plan import Plan, gain_times, planned
from dig2dig.fusion.resample import resample, upsample
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
    """What composing all sources at once gives, (b, c, h, w) in [-1, 1]; each of ``count`` sources is loaded twice.

    First its gains are measured; their maps are small, since they are smooth. When the weights are known, its bands are
    added to those of the others.
    """
    asked, skipped = gain_times(denoiser.alpha_bar, config)
    widest = float(noise_level(denoiser.alpha_bar)[asked[skipped]])
    plain = replace(config.dig, normalise="none")
    parts = [measure(load(k), noises, asked, denoiser, plain, estimates=False, sigma_most=widest) for k in range(count)]
    gains = []
    for i in range(len(asked)):
        gains.append(normalise(torch.cat([part.gains[i] for part in parts], 1), config.dig.normalise))
    found = Measured(parts[0].times, gains)
    del parts
    return composed(load, count, planned(found, skipped, denoiser.alpha_bar, config, valid))


def composed(load: Load, count: int, plan: Plan) -> Image:
    """The weighted bands of all sources, added source by source; see ``guidance.bands`` for the equation."""
    config, scale = plan.config, plan.config.guidance.scale
    sigmas = [tuple(row) for row in noise_level(plan.schedule)[plan.times].tolist()]
    sigmas.append((0.0,) * len(sigmas[0]))
    now = [Lookup(plan.measured, t, plan.schedule) for t in plan.times]
    sums = [BandSum(config.guidance.energy) for _ in now]
    target: Tensor | float = 0.0
    ends: tuple[Image, Image] | None = None
    for k in range(count):
        source = load(k)
        low, high = surroundings(source)
        ends = (low, high) if ends is None else (ends[0].minimum(low), ends[1].maximum(high))
        seen = blurred(source, sigmas[0], scale)
        share = 1 / count if plan.base is None else resample(plan.base[:, k : k + 1], *seen.shape[-2:])
        target = target + (share * seen)[:, 0]
        for i, total in enumerate(sums):
            sharper = blurred(source, sigmas[i + 1], scale)
            total.add(sharper, seen, now[i]([maps[:, k : k + 1] for maps in plan.weights]))
            seen = sharper
    assert isinstance(target, Tensor) and ends
    for i, total in enumerate(sums):
        fused = total.restored(sigmas[i + 1], scale)
        target = TONES[config.tone] * fused + upsample(target[:, None], *fused.shape[-2:])[:, 0]
        sums[i] = BandSum(0.0)  # its memory is free
    return within(target, *ends)
