"""The whole algorithm on one screen: gains, then either the weighted bands alone or a guided DDIM loop."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from dig2dig.color import to_channels
from dig2dig.config import ResearchConfig, SamplerConfig
from dig2dig.fusion.guidance import Guidance, Step, make_guidance, needs
from dig2dig.fusion.noise import NoiseLevels, denoise
from dig2dig.fusion.plan import Plan, Snapshot, gains, snapshot
from dig2dig.fusion.resample import filled
from dig2dig.fusion.stream import stream, streams
from dig2dig.fusion.weight import WeightNetwork, adopted, load_weights
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import add_noise, draw_noise, generators
from dig2dig.priors.windows import pad
from dig2dig.shapes import Image, Sources, State, Valid

TOLERANCE = 1e-3
"""How far sources may leave [0, 1]: resampling overshoots."""

Draw = Callable[[], State]
"""Gives the next noise of all images."""

Watch = Callable[[int, Step, Image | None, Image], None]
"""Called after each step with its number, what the guidance had, the network's estimate if any, and the result."""


def ddim_step(
    x0: State, eps: State, sigma: float, sigma_next: float, eta: float = 0.0, fresh: State | None = None
) -> State:
    r"""From the state at t to the state at the next time s.

    .. math:: x_s = \sqrt{\bar\alpha_s}\,\hat x_0 + \sqrt{1-\bar\alpha_s-v}\,\hat\varepsilon + \sqrt{v}\,z, \quad
              v = \eta^2 \frac{1-\bar\alpha_s}{1-\bar\alpha_t} \Big(1 - \frac{\bar\alpha_t}{\bar\alpha_s}\Big)

    ``sigma`` are the noise levels at t and at s, where zero gives the clean estimate itself. With them
    nothing is subtracted from one: :math:`\bar\alpha = 1 / (1 + \sigma^2)`. eta goes from 0 (DDIM) to 1 (DDPM), with
    ``fresh`` as the noise z.

    Reference: Song et al., "Denoising diffusion implicit models", 2021, eq. 12 and 16.
    """
    signal, left, now = 1 / (1 + sigma_next**2), *(level**2 / (1 + level**2) for level in (sigma_next, sigma))
    extra = eta**2 * left / now * (now - left) / signal
    x_next = signal**0.5 * x0 + max(left - extra, 0.0) ** 0.5 * eps
    return x_next if fresh is None else x_next + extra**0.5 * fresh


@torch.inference_mode(False)  # guidances may need gradients, also in Lightning's predict
@torch.no_grad()
def fuse(
    sources: Sources,
    denoiser: Denoiser,
    config: SamplerConfig | None = None,
    seed: int | Sequence[int] = 0,
    guidance: Guidance | None = None,
    observe: Callable[[Snapshot], None] | None = None,
    noise: NoiseLevels | None = None,
    estimates: bool = True,
    weights: WeightNetwork | None = None,
    valid: Valid | None = None,
    side: int | None = None,
) -> Image:
    """Fuses K aligned images of each scene with a pretrained denoiser.

    Args:
        sources: Aligned images in [0, 1], shape (b, k, c, h, w), k ≥ 2, grey or colour, of any size.
        denoiser: The prior.
        config: Steps, gains and guidance; the defaults if None.
        seed: One seed for all images, or one for each. An image's noise depends on its own seed alone.
        guidance: Replaces the guidance of the configuration.
        observe: Called after each step, for progress and traces: ``trace = []; fuse(..., observe=trace.append)``.
            Of tall stacks, whose sources are read one by one, only with ``estimates``: all sources are then held.
        noise: Standard deviation of the noise in each source, shape (b, k), for images in [0, 1]: the prior's
            estimates of the clean sources are fused. None where all are clean.
        estimates: Whether an observer gets the prior's estimates. If so, the network runs in every step, also where
            the guidance uses the sources alone. The result is the same.
        weights: Replaces the learned weights that the configuration names. They bring the steps, gains and bands that
            they were trained with.
        valid: Pixels of the sources that show the scene, shape (b, k, 1, h, w), bool. Others have no weight, and the
            other sources share it. Where no source is valid, the result continues its surroundings. None = all.
        side: Longest side of the pictures and maps that an observer gets, pixels. None = as large as the images.

    Returns:
        The fused images in [0, 1], shape (b, c, h, w), of the sources' size.

    Raises:
        ValueError: The sources have another shape, type or range, colour sources meet a grey prior, the number of
            seeds is not that of images, the steps do not fit the noise levels, or the grid is ``gain``, which places
            the steps of one image, and there are more.
        TypeError: The denoiser or the configuration is a name.

    Reference: Cao et al., "Dig2DIG", arXiv:2503.18627.
    """
    config = config or SamplerConfig()
    for given, kind, made in ((denoiser, Denoiser, "load_prior(NAME)"), (config, SamplerConfig, "preset('ivf')")):
        if not isinstance(given, kind):
            raise TypeError(f"{given!r}: give what {made} returns, not {type(given).__name__}")
    check_sources(sources, denoiser.channels, noisy=noise is not None)
    if weights is None and config.weights != "gain":
        weights = load_weights(config.weights)
    if weights is not None:  # one loaded network may serve several devices
        weights, config = weights.to(sources.device), adopted(config, weights.settings)
    if noise is not None and (noise.shape != sources.shape[:2] or not ((noise >= 0) & (noise <= 1)).all()):
        raise ValueError("noise must be a tensor of shape (batch, k), its values in [0, 1]")
    if valid is not None and (valid.dtype, valid.shape) != (torch.bool, (*sources.shape[:2], 1, *sources.shape[-2:])):
        raise ValueError(f"valid must be bool, (batch, k, 1, height, width), not {valid.dtype}, {tuple(valid.shape)}")
    if config.grid == "gain" and len(sources) > 1:
        raise ValueError("sampler.grid=gain places the steps by the gains of one image: fuse images one at a time")
    h, w = sources.shape[-2:]
    masks = None if valid is None else pad(valid, denoiser.multiple)

    def load(which: slice) -> Sources:
        some = sources[:, which].float()
        some = some if valid is None else filled(some, valid[:, which])
        return pad(some.mul(2).sub_(1), denoiser.multiple)

    whole = guidance is not None or noise is not None or (observe and estimates)
    tall = not whole and streams(config, sources.shape, weights is not None)
    clean = load(slice(0, 1) if tall else slice(None))
    draw = partial(draw_noise, (denoiser.channels, *clean.shape[-2:]), generators(seed, len(sources)), clean)
    guide = guidance or make_guidance(config)
    noises = opposite_pairs(draw, config.research.draws)
    if tall:
        del clean
        one_by_one = stream(lambda k: load(slice(k, k + 1)), sources.shape[1], noises, denoiser, config, masks)
        return ((one_by_one + 1) / 2).clamp_(0, 1)[..., :h, :w]
    clean = clean if noise is None else denoise(clean, noise, denoiser, draw())
    plan = gains(clean, noises, denoiser, config, needs(guide, "reconstructions"), weights, masks)
    del noises
    watch = observe and (lambda *step: observe(snapshot(plan, sources.shape[-2:], side or max(h, w), *step)))
    if needs(guide, "estimate") or (observe and estimates):
        guided = sample(clean, plan, denoiser, guide, draw, watch)
    else:
        guided = compose(clean, plan, guide, watch)
    return ((guided + 1) / 2).clamp_(0, 1)[..., :h, :w]


def check_sources(sources: object, channels: int, noisy: bool = False) -> None:
    """Raises a ValueError if a prior of so many channels cannot fuse the sources; noisy ones may leave [0, 1]."""
    shape = "sources must be a floating-point tensor of shape (batch, k, channels, height, width) in [0, 1]"
    if not isinstance(sources, Tensor) or not sources.is_floating_point():
        raise ValueError(f"{shape}, not {sources.dtype if isinstance(sources, Tensor) else type(sources).__name__}")
    if sources.ndim != 5 or 0 in sources.shape:
        raise ValueError(f"{shape}, not {tuple(sources.shape)}")
    if sources.shape[1] < 2:
        raise ValueError("one source: at least two are needed, along the second axis")
    if sources.shape[2] not in (1, 3):
        raise ValueError(f"sources have {sources.shape[2]} channels; grey (1) and colour (3) are fused")
    if channels < sources.shape[2]:
        raise ValueError("the prior is for grey images, the sources have colour: take a colour prior")
    low, high = (float(value) for value in torch.aminmax(sources))
    if not (low > -1e9 and high < 1e9):  # also where one of them is NaN
        raise ValueError("sources hold values that are NaN or infinite")
    if not noisy and (low < -TOLERANCE or high > 1 + TOLERANCE):
        raise ValueError(f"sources must lie in [0, 1], not in [{low:g}, {high:g}]")


def opposite_pairs(draw: Draw, count: int) -> list[State]:
    """Noise draws with their negatives: first-order errors cancel."""
    noises = [draw() for _ in range((count + 1) // 2)]
    return [sign * noise for noise in noises for sign in (1, -1)][:count]


def compose(sources: Sources, plan: Plan, guide: Guidance, watch: Watch | None = None) -> Image:
    """Applies a guidance that uses the sources alone, step by step: the network does not run.

    Sources and result are in [-1, 1] and padded. The guidance gets its own last result as ``x0_hat``.
    """
    guided, state = sources[:, 0], None
    for i in range(len(plan.times)):
        step = plan.step(i, None, sources)
        guided, state = guide(guided, step, state)
        if watch:
            watch(i, step, None, guided)
    return guided


def sample(
    sources: Sources, plan: Plan, denoiser: Denoiser, guide: Guidance, draw: Draw, watch: Watch | None = None
) -> Image:
    """DDIM from the noised mean of the sources, each estimate of the network pulled by a guidance.

    Sources and result, the last guided estimate, are in [-1, 1] and padded. ``draw`` gives the noise.
    """
    guided, state, differentiate = sources.mean(1), None, needs(guide, "graph")
    times = plan.times.to(sources.device)[:, None].expand(-1, len(sources))
    x_t = add_noise(to_channels(guided, denoiser.channels), draw(), times[0], denoiser.alpha_bar)
    for i, t in enumerate(times):
        with torch.set_grad_enabled(differentiate):
            x_t = x_t.detach().requires_grad_(differentiate)
            x0_hat = to_channels(denoiser(x_t, t), sources.shape[2])
            step = plan.step(i, x_t, sources)
            guided, state = guide(x0_hat, step, state)
        with torch.no_grad():
            x_t = next_state(x_t, x0_hat, guided, step, plan.config.research, draw)
            if watch:
                watch(i, step, x0_hat, guided)
    return guided


def next_state(x_t: State, x0_hat: Image, guided: Image, step: Step, research: ResearchConfig, draw: Draw) -> State:
    """The state at the next time, with the noise recomputed from the guided estimate or kept from the network."""
    guided, x0_hat = (to_channels(image, x_t.shape[1]) for image in (guided, x0_hat))
    clean = guided if research.noise == "recomputed" else x0_hat
    eps = (x_t - step.alpha_bar**0.5 * clean) / step.variance**0.5
    fresh = draw() if research.eta > 0 and step.sigma_next > 0 else None
    return ddim_step(guided, eps, step.sigma, step.sigma_next, research.eta, fresh)
