"""The whole algorithm on one screen: gains, then a guided DDIM loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from dig2dig.color import to_channels
from dig2dig.config import SamplerConfig
from dig2dig.fusion.gain import Information, Lookup, measure
from dig2dig.fusion.guidance import Guidance, Step, listens, make_guidance, needs_graph
from dig2dig.fusion.noise import NoiseLevels, denoise
from dig2dig.fusion.resample import fit
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import AlphaBar, add_noise, draw_noise, gain_grid, generators, noise_level, time_grid
from dig2dig.priors.windows import crop, pad
from dig2dig.shapes import Gains, Image, Sources, State, Timestep, Weights

REDUCE_ESTIMATES = 0.15
"""Least ``dig.reduce`` where a guidance uses the sources' estimates themselves."""


@dataclass(frozen=True)
class Snapshot:
    """One step as an observer sees it, cropped to the images' size; estimates in [0, 1].

    Attributes:
        index: Number of the step, from 0.
        steps: Number of steps.
        t: Time index of each image.
        x0_hat: The prior's estimate before guidance; None where the loop ran without the prior.
        guided: The estimate after guidance.
        gain: Normalised gain of each source.
        weight: Fusion weight of each source.
    """

    index: int
    steps: int
    t: Timestep
    x0_hat: Image | None
    guided: Image
    gain: Gains
    weight: Weights

    def of(self, sample: int) -> "Snapshot":
        """The same step of one image of the batch, in main memory."""
        return self._each(lambda images: images[sample : sample + 1].cpu())

    def fitted(self, side: int) -> "Snapshot":
        """The same step, its pictures and maps no larger than ``side`` pixels: area means."""
        return self._each(lambda images: images if images.ndim == 1 else fit(images, side))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Snapshot":
        x0_hat = None if self.x0_hat is None else change(self.x0_hat)
        rest = (change(images) for images in (self.guided, self.gain, self.weight))
        return Snapshot(self.index, self.steps, change(self.t), x0_hat, *rest)


def ddim_step(
    x_t: State,
    x0: State,
    eps: State,
    signal: Tensor,
    signal_next: Tensor,
    eta: float = 0.0,
    fresh: State | None = None,
) -> State:
    r"""From the state at t to the state at the next time s.

    .. math:: x_s = \sqrt{\bar\alpha_s}\,\hat x_0 + \sqrt{1-\bar\alpha_s-\sigma^2}\,\hat\varepsilon + \sigma z, \quad
              \sigma = \eta \sqrt{\frac{1-\bar\alpha_s}{1-\bar\alpha_t}} \sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_s}}

    Args:
        x_t: State at t.
        x0: Estimate of the clean image.
        eps: Estimate of the noise in x_t.
        signal: alpha_bar at t, shape (b, 1, 1, 1).
        signal_next: alpha_bar at s; one gives the clean estimate itself.
        eta: Share of fresh noise, 0 (DDIM) to 1 (DDPM).
        fresh: The fresh noise z; needed where eta > 0.

    References:
        Song et al., "Denoising diffusion implicit models", 2021, eq. 12 and 16.
    """
    sigma = eta * ((1 - signal_next) / (1 - signal)).sqrt() * (1 - signal / signal_next).sqrt()
    x_next = signal_next.sqrt() * x0 + (1 - signal_next - sigma**2).clamp(min=0).sqrt() * eps
    return x_next if fresh is None else x_next + sigma * fresh


def fuse(
    sources: Sources,
    denoiser: Denoiser,
    config: SamplerConfig | None = None,
    seed: int | Sequence[int] = 0,
    guidance: Guidance | None = None,
    observe: Callable[[Snapshot], None] | None = None,
    noise: NoiseLevels | None = None,
    estimates: bool = True,
) -> Image:
    """Fuses K aligned images of each scene with a pretrained denoiser.

    Args:
        sources: Aligned images in [0, 1], shape (b, k, c, h, w), grey or colour, of any size.
        denoiser: The prior.
        config: Steps, gains and guidance; the defaults if None.
        seed: One seed for all images, or one for each. An image's noise depends on its own seed alone.
        guidance: Replaces the guidance that the config names.
        observe: Called after each step, for progress and traces: ``trace = []; fuse(..., observe=trace.append)``.
        noise: Standard deviation of the noise in each source, shape (b, k), for images in [0, 1]: what the prior
            believes beneath it is fused. None where all are clean.
        estimates: Whether the observer needs the prior's estimates. Without them, a guidance that trusts the sources
            alone is watched for free; with them, the network runs in every step.

    Returns:
        The fused images in [0, 1], shape (b, c, h, w), of the sources' size.

    Raises:
        ValueError: Colour sources meet a grey prior, the number of seeds is not that of images, or the steps do
            not fit the noise levels.

    References:
        Cao et al., "Dig2DIG", arXiv:2503.18627.
    """
    config = config or SamplerConfig()
    b, _, c, h, w = sources.shape
    if denoiser.channels < c:
        raise ValueError(f"the prior knows {denoiser.channels} channels, the sources have {c}: take a colour prior")
    clean = pad(sources.float().mul(2).sub_(1), denoiser.multiple)
    draw = partial(draw_noise, (denoiser.channels, *clean.shape[-2:]), generators(seed, b), clean)
    guide = guidance or make_guidance(config.guidance)

    noises = [draw() for _ in range((config.dig.draws + 1) // 2)]
    noises = [sign * noise for noise in noises for sign in (1, -1)][: config.dig.draws]  # first-order errors cancel
    with torch.no_grad():
        clean = clean if noise is None else denoise(clean, noise, denoiser, draw())
        course = plan(clean, noises, denoiser, config, guidance is not None)
    del noises

    # a guidance that trusts its target alone needs neither estimate nor state; an observer may want them nevertheless
    differentiate, heard = needs_graph(guide), (observe is not None and estimates) or listens(guide)
    guided, state = clean.mean(1) if heard else clean[:, 0], None  # where nobody looks, no room is taken
    x_t = to_channels(guided, denoiser.channels)
    x_t = add_noise(x_t, draw(), course.t[0], denoiser.alpha_bar) if heard else x_t
    for i in range(config.steps):
        with torch.set_grad_enabled(differentiate):
            x_t = x_t.detach().requires_grad_(differentiate)
            x0_hat = to_channels(denoiser(x_t, course.t[i]), c) if heard else guided
            step = make_step(course, i, x_t, clean)
            guided, state = guide(x0_hat, step, state)
        with torch.no_grad():
            x_t = next_state(x_t, x0_hat, guided, step, config, draw) if heard else x_t
            if observe:
                observe(snapshot(course, i, x0_hat if heard else None, guided, step.weight, h, w))
    return crop(((guided + 1) / 2).clamp_(0, 1), h, w)


@dataclass(frozen=True)
class Course:
    """All that is known before sampling.

    Attributes:
        information: Gains and weights, at the times where they were measured.
        times: Time indices of each step, (steps, b), on the CPU.
        t: The same on the device of the sources.
        signal: alpha_bar at each step and 1 after the last, (steps + 1, b, 1, 1, 1).
        alpha_bar: The schedule.
    """

    information: Information
    times: Int[Tensor, "steps b"]
    t: Int[Tensor, "steps b"]
    signal: Tensor
    alpha_bar: AlphaBar


def plan(
    sources: Sources, noises: list[State], denoiser: Denoiser, config: SamplerConfig, estimates: bool = False
) -> Course:
    """The times of the sampling grid, and gains and weights measured before sampling.

    Args:
        sources: Clean sources in [-1, 1], padded.
        noises: Noise draws that gains are averaged over.
        denoiser: The prior.
        config: Grid and gains.
        estimates: Whether the sources' estimates are needed by a guidance other than ``increments``.
    """
    by_gain = config.grid == "gain"
    grid = "uniform" if config.grid == "uniform" else "logsnr"
    times = time_grid(grid, config.steps, denoiser.alpha_bar, config.sigma_start, config.sigma_end)
    coarse = torch.cat([times[:: config.dig.refresh], times[-1:]]).unique().flip(0)
    estimates, dig = estimates or config.guidance.kind == "increments", config.dig
    if estimates and dig.reduce > 0:  # what enters the picture must be finer than what only weighs it
        dig = replace(dig, reduce=max(dig.reduce, REDUCE_ESTIMATES))
    information = measure(sources, noises, coarse, denoiser, dig, estimates, by_gain)
    times = times[:, None].expand(-1, len(sources))
    if information.cost is not None and len(coarse) > 1:
        times = gain_grid(information.cost, coarse, config.steps)
    signal = denoiser.alpha_bar[times].to(sources)
    signal = torch.cat([signal, torch.ones_like(signal[:1])])[..., None, None, None]
    return Course(information, times, times.to(sources.device), signal, denoiser.alpha_bar)


def make_step(course: Course, i: int, x_t: State, sources: Sources) -> Step:
    """What a guidance sees in step i."""
    size, estimates = sources.shape[-2:], course.information.estimates
    now = Lookup(course.information, course.times[i], course.alpha_bar, size)
    estimate, estimate_next = None, None
    if estimates is not None:
        estimate, estimate_next = now(estimates), sources
        if i + 1 < len(course.times):
            estimate_next = Lookup(course.information, course.times[i + 1], course.alpha_bar, size)(estimates)
    levels = noise_level(course.alpha_bar)[course.times[i : i + 2]].tolist()
    return Step(
        t=course.t[i],
        signal=course.signal[i],
        signal_next=course.signal[i + 1],
        level=tuple(levels[0]),
        level_next=tuple(levels[1]) if len(levels) > 1 else (0.0,) * len(sources),
        x_t=x_t,
        sources=sources,
        weight=now(course.information.weights),
        estimate=estimate,
        estimate_next=estimate_next,
    )


def next_state(
    x_t: State, x0_hat: Image, guided: Image, step: Step, config: SamplerConfig, draw: Callable[[], Tensor]
) -> State:
    """The state at the next time, with the noise recomputed from the guided estimate or kept from the network."""
    guided, x0_hat = (to_channels(image, x_t.shape[1]) for image in (guided, x0_hat))
    believed = guided if config.noise == "recomputed" else x0_hat
    eps = (x_t - step.signal.sqrt() * believed) / (1 - step.signal).sqrt()
    fresh = draw() if config.eta > 0 and max(step.level_next) > 0 else None
    return ddim_step(x_t, guided, eps, step.signal, step.signal_next, config.eta, fresh)


def snapshot(course: Course, i: int, x0_hat: Image | None, guided: Image, weight: Weights, h: int, w: int) -> Snapshot:
    """Step i for an observer."""
    gain = Lookup(course.information, course.times[i], course.alpha_bar, weight.shape[-2:])
    maps = (crop(one, h, w) for one in (gain(course.information.gains), weight))
    images = [None if x is None else crop(((x.detach() + 1) / 2).clamp(0, 1), h, w) for x in (x0_hat, guided)]
    assert images[1] is not None
    return Snapshot(i, len(course.times), course.t[i], images[0], images[1], *maps)
