"""What is known before the first step, gains and weights at each time, and what an observer gets of a step."""

from dataclasses import dataclass, replace

import torch
from torch import Size, Tensor

from dig2dig.config import SamplerConfig
from dig2dig.fusion.gain import Measured, at_time, measure
from dig2dig.fusion.guidance import Step
from dig2dig.fusion.resample import resample, resize
from dig2dig.fusion.weight import WeightNetwork, fusion_weight, masked, preferred, scale_space, scaled, scoped
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import AlphaBar, Times, gain_grid, noise_level, time_grid, time_of_noise_level
from dig2dig.shapes import Gains, Image, Maps, Sources, State, Weights

REDUCE_ESTIMATES = 0.15
"""Least ``dig.reduce`` where a guidance uses the sources' estimates themselves."""
SIGMA_TOP = 8.0
"""Noise level, above that of the first step, whose gains are features of every level of learned weights."""


@dataclass(frozen=True)
class Plan:
    """All that is known before the loop: where it steps, and what each source weighs there."""

    config: SamplerConfig  # the configuration
    measured: Measured  # gains, and estimates if a guidance needs them, at the times where they were measured
    weights: list[Maps]  # fusion weights at those times
    base: Maps | None  # weights of what is coarser than the first step; None for the plain mean
    factors: list[Tensor] | None  # factor on the band of each step, (b, 1, 1, h / f, w / f), of learned weights
    space: list[Maps] | None  # the sources blurred as at each step, where they were needed for the weights
    times: Times  # time index of each step
    schedule: AlphaBar  # the prior's schedule

    def at(self, maps: list[Maps], t: int) -> Maps:
        """Maps of the measured times at any time."""
        return at_time(maps, self.measured.times, t, self.schedule)

    def step(self, i: int, x_t: State | None, sources: Sources) -> Step:
        """What a guidance may use in step i."""
        size, estimates = sources.shape[-2:], self.measured.estimates
        t, *following = self.times[i : i + 2].tolist()
        shown = [resample(self.at(estimates, one), *size) for one in (t, *following)] if estimates else [None]
        sigmas = [*noise_level(self.schedule)[[t, *following]].tolist(), 0.0]
        return Step(
            t=t,
            sigma=sigmas[0],
            sigma_next=sigmas[1],
            x_t=x_t,
            sources=sources,
            weights=self.at(self.weights, t),
            estimate=shown[0],
            estimate_next=(*shown, sources)[1] if estimates else None,
            base=self.base,
            factor=None if self.factors is None else self.at(self.factors, t)[:, 0],
            space=None if self.space is None else self.space[i : i + 2],
        )


def gains(
    sources: Sources,
    noises: list[State],
    denoiser: Denoiser,
    config: SamplerConfig,
    reconstructions: bool = False,
    network: WeightNetwork | None = None,
    valid: Tensor | None = None,
) -> Plan:
    """Gains and weights of all sources, and the times of the steps, before any of them.

    Sources are in [-1, 1] and padded; gains are averaged over ``noises``. ``reconstructions`` says whether the guidance
    uses the sources' estimates themselves. A network makes the weights; without it, a softmax does. Where a source is
    not ``valid``, (b, k, 1, h, w), it weighs nothing.
    """
    dig = config.dig if network is None else replace(config.dig, share=0.0)  # a network weighs the base itself
    asked, skipped = gain_times(denoiser.alpha_bar, config, network is not None)
    if reconstructions and dig.reduce > 0:  # what enters the picture must be finer than what only weighs it
        dig = replace(dig, reduce=max(dig.reduce, REDUCE_ESTIMATES))
    widest = float(noise_level(denoiser.alpha_bar)[asked[skipped]])
    found = measure(sources, noises, asked, denoiser, dig, reconstructions, config.grid == "gain", widest, valid)
    if network is None:
        return planned(found, skipped, denoiser.alpha_bar, config, valid)
    sigmas = noise_level(denoiser.alpha_bar)[asked[skipped:]].tolist()
    space = scale_space(sources, sigmas, config.guidance.scale)
    with denoiser.autocast(sources.device):
        base, *levels = network(space, found.gains, sigmas)
    weights = said([level.weight for level in levels], config, valid)
    base, factors = masked(preferred(base.weight, config.prefer), valid), [level.factor[:, None] for level in levels]
    return Plan(config, found.after(skipped), weights, base, factors, space, asked[skipped:], denoiser.alpha_bar)


def said(weights: list[Maps], config: SamplerConfig, valid: Tensor | None) -> list[Maps]:
    """Weights as a configuration wants them: over space and time, with preferences, without what is not valid."""
    return [masked(preferred(maps, config.prefer), valid) for maps in scoped(weights, config.research.scope)]


def planned(
    found: Measured, skipped: int, schedule: AlphaBar, config: SamplerConfig, valid: Tensor | None = None
) -> Plan:
    """The plan of weights from a softmax of the gains; the first ``skipped`` times are for the base alone.

    The base follows how much there is to learn of a whole source, to the power of ``dig.share``.
    """
    dig, measured, like = config.dig, found.after(skipped), found.gains[0]
    weights = said([fusion_weight(gain, dig.temperature) for gain in measured.gains], config, valid)
    base = None
    if skipped:
        base = fusion_weight(found.gains[0], dig.base)
    elif config.prefer or dig.share > 0 or valid is not None:
        size = weights[0].shape[-2:] if valid is not None else (1, 1)
        base = like.new_full((*like.shape[:3], *size), 1 / like.shape[1])
    if base is not None:
        if found.total is not None:
            base = scaled(base, found.total.clamp(min=1e-8)[..., None, None, None] ** dig.share)
        base = masked(preferred(base, config.prefer), valid)
    times = step_times(schedule, config)
    if measured.cost is not None and len(measured.times) > 1:
        times = gain_grid(measured.cost, measured.times, config.steps)
    return Plan(config, measured, weights, base, None, None, times, schedule)


def gain_times(alpha_bar: AlphaBar, config: SamplerConfig, learned: bool = False) -> tuple[Times, int]:
    """Times at which gains are measured, and how many of them come before the steps: for the base alone."""
    dig, times = config.dig, step_times(alpha_bar, config)
    if learned:
        return network_times(alpha_bar, config), 1
    coarse = torch.cat([times[:: dig.refresh], times[-1:]]).unique().flip(0)
    if dig.base > 0 and dig.kind != "static":
        return torch.cat([torch.tensor([len(alpha_bar) - 1]), coarse]), 1
    return coarse, 0


def step_times(alpha_bar: AlphaBar, config: SamplerConfig) -> Times:
    """The times of the steps, before gains move them."""
    grid = "uniform" if config.grid == "uniform" else "logsnr"
    return time_grid(grid, config.steps, alpha_bar, config.sigma_start, config.sigma_end)


def network_gains(sources: Sources, noises: list[State], denoiser: Denoiser, config: SamplerConfig) -> Measured:
    """The gains that learned weights use, of sources in [-1, 1]; differentiable where the prior learns."""
    times = network_times(denoiser.alpha_bar, config)
    widest = float(noise_level(denoiser.alpha_bar)[times[1]])
    return measure(sources, noises, times, denoiser, replace(config.dig, share=0.0), False, sigma_most=widest)


def network_times(alpha_bar: AlphaBar, config: SamplerConfig) -> Times:
    """Times whose gains learned weights use: one above all steps, and each step's."""
    times = step_times(alpha_bar, config)
    top = time_of_noise_level(alpha_bar, torch.tensor([SIGMA_TOP])).maximum(times[:1] + 1)
    return torch.cat([top.clamp(max=len(alpha_bar) - 1), times])


@dataclass(frozen=True)
class Snapshot:
    """One step for an observer, of the images' size or smaller; estimates in [0, 1].

    It is step ``index`` (from 0) of ``steps``, with the time index ``t`` and the noise level ``sigma``, for images in
    [-1, 1]. ``x0_hat`` is the prior's estimate before guidance, None where the network did not run, and
    ``guided`` the estimate after it. Gains are normalised.
    """

    index: int
    steps: int
    t: int
    sigma: float
    x0_hat: Image | None
    guided: Image
    gain: Gains
    weight: Weights

    def of(self, sample: int) -> "Snapshot":
        """The same step of one image of the batch, in main memory."""
        names = [name for name in ("x0_hat", "guided", "gain", "weight") if getattr(self, name) is not None]
        return replace(self, **{name: getattr(self, name)[sample : sample + 1].cpu() for name in names})


def snapshot(plan: Plan, size: Size, side: int, i: int, step: Step, x0_hat: Image | None, guided: Image) -> Snapshot:
    """Step i of images of ``size``, without padding and at most ``side`` pixels long; maps go there from their grid."""
    (h, w), (height, width) = size, guided.shape[-2:]
    images = [None if x is None else resize(x.detach()[..., :h, :w], side) for x in (x0_hat, guided)]
    x0_hat, shown = (None if x is None else ((x + 1) / 2).clamp(0, 1) for x in images)
    assert shown is not None
    rows, columns = shown.shape[-2:]
    padded = round(rows * height / h), round(columns * width / w)
    maps = plan.at(plan.measured.gains, step.t), step.weights
    gain, weight = (resample(one, *padded)[..., :rows, :columns] for one in maps)
    return Snapshot(i, len(plan.times), step.t, step.sigma, x0_hat, shown, gain, weight)
