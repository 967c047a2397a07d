"""Fusion against numbers: a second implementation of the whole loop in numpy, closed forms, and counted calls."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dig2dig.config import DigConfig, GuidanceConfig, ResearchConfig, SamplerConfig
from dig2dig.fusion.bands import restoring
from dig2dig.fusion.gain import LEAST, measure, normalise, pixel_loss, reconstruct
from dig2dig.fusion.guidance import Step, bands, make_guidance
from dig2dig.fusion.noise import denoise
from dig2dig.fusion.plan import REDUCE_ESTIMATES, Plan, Snapshot, gains, network_times
from dig2dig.fusion.resample import coarseness
from dig2dig.fusion.sampler import check_sources, fuse, opposite_pairs, sample
from dig2dig.fusion.statistics import dig_statistics
from dig2dig.fusion.weight import fusion_weight, scoped
from dig2dig.priors.build import build_prior
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import alpha_bar, draw_noise, gain_grid, generators
from tests.gaussian import GaussianDenoiser
from tests.pictures import random_sources

MEAN, VARIANCE = 0.1, 0.25  # of the Gaussian denoiser
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
LEVEL = np.sqrt((1 - ALPHA_BAR) / ALPHA_BAR)

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def nearest(sigma: float) -> int:
    return int(np.abs(np.log(LEVEL) - math.log(sigma)).argmin())


def posterior_mean(x: np.ndarray, t: int) -> np.ndarray:
    a = ALPHA_BAR[t]
    return MEAN + math.sqrt(a) * VARIANCE / (a * VARIANCE + 1 - a) * (x - math.sqrt(a) * MEAN)


def weights_by_hand(sources: np.ndarray, noise: np.ndarray, times: list[int], kind: str, tau: float) -> np.ndarray:
    """Weights of one image, (steps, k, h, w), from its sources (k, h, w): no smoothing, measured at each step."""
    noised = [np.sqrt(ALPHA_BAR[t]) * sources + np.sqrt(1 - ALPHA_BAR[t]) * noise for t in times]
    estimates = [*(posterior_mean(x, t) for x, t in zip(noised, times, strict=True)), sources]
    weights = []
    for now, following in pairwise(estimates):
        gain = {
            "static": 0 * sources,
            "residual": (now - sources) ** 2,
            "change": (following - now) ** 2,
            "gain": (now - sources) ** 2 - (following - sources) ** 2,
        }[kind]
        gain = gain / (2 * np.abs(gain).mean(0) + 0.01 * np.abs(gain).mean() + 1e-12)
        weights.append(np.exp(gain / tau) / np.exp(gain / tau).sum(0))
    return np.stack(weights)


def fuse_by_hand(sources: np.ndarray, seed: int, kind: str, sigma_n: float, noise: str, eta: float) -> np.ndarray:
    """One image, (k, h, w) in [0, 1]: three steps between the noise levels 8 and 0.03, blended, temperature 0.2."""
    random = torch.Generator().manual_seed(seed)

    def draw() -> np.ndarray:
        return torch.randn(1, *sources.shape[1:], generator=random).numpy()[0].astype(float)

    first, last = LEVEL[nearest(8.0)], LEVEL[nearest(0.03)]
    times = [nearest(sigma) for sigma in (first, math.sqrt(first * last), last)]
    clean = 2 * sources - 1
    weights = weights_by_hand(clean, draw(), times, kind, 0.2)
    a = [*ALPHA_BAR[times], 1.0]
    x = math.sqrt(a[0]) * clean.mean(0) + math.sqrt(1 - a[0]) * draw()
    for i, t in enumerate(times):
        x0 = posterior_mean(x, t)
        rho = sigma_n**2 * a[i] / (1 - a[i])
        guided = (rho * x0 + (weights[i] * clean).sum(0)) / (rho + 1)
        eps = (x - math.sqrt(a[i]) * (guided if noise == "recomputed" else x0)) / math.sqrt(1 - a[i])
        fresh = eta * math.sqrt((1 - a[i + 1]) / (1 - a[i])) * math.sqrt(1 - a[i] / a[i + 1])
        x = math.sqrt(a[i + 1]) * guided + math.sqrt(1 - a[i + 1] - fresh**2) * eps
        if eta and i < 2:
            x = x + fresh * draw()
    return ((guided + 1) / 2).clip(0, 1)


def exact(kind: str = "static", **changes) -> DigConfig:
    """Gains without smoothing, at full size, in each step."""
    plain = {"kind": kind, "smoothing": 0.0, "smoothing_noise": 0.0, "refresh": 1, "reduce": 0.0, "temperature": 0.2}
    return DigConfig(**(plain | changes))


@pytest.mark.parametrize("kind", ["static", "residual", "change", "gain"])
@pytest.mark.parametrize(
    ("sigma_n", "noise", "eta"),
    [(0.0, "recomputed", 0.0), (0.6, "recomputed", 0.0), (0.6, "network", 0.0), (0.6, "recomputed", 0.7)],
)
def test_the_whole_loop_is_that_of_a_second_implementation(gaussian, kind, sigma_n: float, noise, eta: float) -> None:
    sources = random_sources(1, 2, 3, 1, 6, 8)
    guidance, research = GuidanceConfig("blend", sigma_n), ResearchConfig(noise=noise, eta=eta)
    config = SamplerConfig(steps=3, dig=exact(kind), guidance=guidance, research=research)
    fused = fuse(sources, gaussian, config, seed=[3, 5])
    for i, seed in enumerate((3, 5)):
        expected = fuse_by_hand(sources[i, :, 0].numpy().astype(float), seed, kind, sigma_n, noise, eta)
        np.testing.assert_allclose(fused[i, 0].numpy(), expected, rtol=0, atol=2e-4)


def test_sampling_starts_from_the_noised_mean_of_the_sources(gaussian, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second noise of the seed at the first time, 999, around the mean of the sources."""
    states: list[torch.Tensor] = []
    outputs = GaussianDenoiser.outputs
    monkeypatch.setattr(GaussianDenoiser, "outputs", lambda self, x, t: states.append(x.clone()) or outputs(self, x, t))
    sources = random_sources(2, 1, 2, 1, 4, 4)
    config = SamplerConfig(
        steps=2, grid="uniform", sigma_start=0.5, sigma_end=None, dig=exact(), guidance=GuidanceConfig("blend", 0.5)
    )
    fuse(sources, gaussian, config, seed=9)
    random = torch.Generator().manual_seed(9)
    _, noise = (torch.randn(1, 4, 4, generator=random) for _ in range(2))
    a = float(ALPHA_BAR[nearest(0.5)])  # 0.8: most of the state is the mean
    expected = a**0.5 * (2 * sources - 1).mean(1) + (1 - a) ** 0.5 * noise
    assert a == pytest.approx(0.8, abs=0.01) and len(states) == 2
    torch.testing.assert_close(states[0], expected, rtol=0, atol=1e-5)


def test_grey_sources_pass_a_colour_prior_as_three_channels(signal: torch.Tensor) -> None:
    """The state is the grey mean in each channel with a noise of its own; the estimate is the mean of the channels."""
    denoiser = GaussianDenoiser(MEAN, VARIANCE**0.5, signal, channels=3)
    seen: list[torch.Tensor] = []

    def guide(x0_hat: torch.Tensor, step: Step, state: None) -> tuple[torch.Tensor, None]:
        assert step.x_t is not None
        seen.extend((step.x_t, x0_hat))
        return x0_hat, None

    sources, noise = 2 * random_sources(3, 1, 2, 1, 4, 4) - 1, torch.randn(1, 3, 4, 4)
    config = SamplerConfig(steps=1, dig=exact())
    plan = gains(sources, [noise], denoiser, config)
    sample(sources, plan, denoiser, guide, lambda: noise)
    a = float(ALPHA_BAR[nearest(8.0)])
    x_t = a**0.5 * sources.mean(1) + (1 - a) ** 0.5 * noise
    torch.testing.assert_close(seen[0], x_t, rtol=0, atol=1e-5)
    expected = posterior_mean(x_t.double().numpy(), nearest(8.0)).mean(1, keepdims=True)
    np.testing.assert_allclose(seen[1].numpy(), expected, rtol=0, atol=1e-4)


def planned(steps: int, denoiser: Denoiser, *, b: int = 1, reconstructions: bool = False, **changes) -> Plan:
    config = SamplerConfig(steps=steps, **({"grid": "uniform", "sigma_start": None, "sigma_end": None} | changes))
    sources = 2 * random_sources(4, b, 2, 1, 32, 32) - 1
    return gains(sources, [torch.randn(b, 1, 32, 32)], denoiser, config, reconstructions)


@pytest.mark.parametrize(
    ("refresh", "coarse"),
    [(1, [999, 799, 599, 400, 200, 0]), (2, [999, 599, 200, 0]), (4, [999, 200, 0]), (9, [999, 0])],
)
def test_gains_are_measured_at_every_so_many_times_and_at_the_last(gaussian, refresh: int, coarse: list[int]) -> None:
    plan = planned(6, gaussian, dig=DigConfig(refresh=refresh))
    assert plan.times.tolist() == [999, 799, 599, 400, 200, 0]  # 999 - 199.8 i, rounded
    assert plan.measured.times.tolist() == coarse and len(plan.measured.gains) == len(plan.weights) == len(coarse)


def test_a_step_knows_its_time_and_the_next(gaussian) -> None:
    plan = planned(3, gaussian, dig=exact())
    sources = 2 * random_sources(4, 1, 2, 1, 32, 32) - 1
    for i, t in enumerate((999, 500, 0)):
        step = plan.step(i, None, sources)
        assert step.t == t and step.sigma == pytest.approx(LEVEL[t])
        assert step.alpha_bar == pytest.approx(ALPHA_BAR[t], rel=1e-5)
        assert step.sigma_next == pytest.approx(0.0 if i == 2 else LEVEL[(999, 500, 0)[i + 1]])
        torch.testing.assert_close(step.weight, torch.full((1, 2, 1, 32, 32), 0.5))
        assert step.estimate is None and step.estimate_next is None


def test_steps_carry_the_estimates_of_their_time_and_of_the_next(gaussian) -> None:
    """Where a guidance uses the estimates themselves they are measured at a quarter of the size only far above 0.15."""
    sources, noise = 2 * random_sources(4, 1, 2, 1, 32, 32) - 1, torch.randn(1, 1, 32, 32)
    plan = gains(sources, [noise], gaussian, SamplerConfig(steps=3, dig=exact()), True)
    times = plan.times.tolist()
    for i in range(3):
        step = plan.step(i, None, sources)
        for found, t in ((step.estimate, times[i]), (step.estimate_next, times[i + 1] if i < 2 else None)):
            a = 1.0 if t is None else ALPHA_BAR[t]
            noised = a**0.5 * sources + (1 - a) ** 0.5 * noise[:, None]
            expected = sources if t is None else torch.tensor(posterior_mean(noised.double().numpy(), t)).float()
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert REDUCE_ESTIMATES == 0.15 and LEAST == 32
    for side, expected in ((64, [32, 64]), (128, [32, 128]), (32, [32, 32])):  # 32 pixels at least
        settings = SamplerConfig(steps=2, grid="uniform", dig=exact(reduce=0.007), sigma_start=1.0, sigma_end=0.1)
        shown = random_sources(1, 1, 2, 1, side, side)
        small = gains(2 * shown - 1, [torch.randn(1, 1, side, side)], gaussian, settings, True)
        assert [len(one[0, 0, 0]) for one in small.measured.estimates or []] == expected
    assert [len(one[0, 0, 0]) for one in reconstruct(sources, noise, torch.tensor([900]), gaussian, 0.0)] == [32]


def test_gain_grid_is_planned_from_the_measured_cost(gaussian) -> None:
    plan = planned(5, gaussian, grid="gain", sigma_start=8.0, sigma_end=0.03, dig=exact("residual"))
    assert plan.measured.cost is not None and plan.measured.cost.shape == (5,)
    expected = gain_grid(plan.measured.cost, plan.measured.times, 5)
    assert torch.equal(plan.times, expected) and plan.times[0] == nearest(8.0)


def test_estimates_from_smaller_images_see_their_noise_at_half_its_level(gaussian) -> None:
    """Means over 2 × 2 pixels; the mean of the noise, at twice its size, is unit noise again."""
    sources, noise = 2 * random_sources(9, 1, 2, 1, 64, 64) - 1, torch.randn(1, 1, 64, 64)
    t = nearest(1.0)
    (found,) = reconstruct(sources, noise, torch.tensor([t]), gaussian, reduce=0.4)
    half = nearest(LEVEL[t] / 2)
    a = ALPHA_BAR[half]
    small, small_noise = (
        one.double().numpy().reshape(-1, 32, 2, 32, 2).mean((2, 4)) for one in (sources[0, :, 0], noise[0])
    )
    expected = posterior_mean(math.sqrt(a) * small + math.sqrt(1 - a) * 2 * small_noise, half)
    np.testing.assert_allclose(found[0, :, 0].numpy(), expected, rtol=0, atol=1e-4)


def test_gains_and_estimates_are_means_over_draws(gaussian) -> None:
    """Of opposite draws; the cost of a step is the mean over sources, pixels and draws of the absolute gain."""
    sources, noise = 2 * random_sources(10, 1, 2, 1, 4, 4) - 1, torch.randn(1, 1, 4, 4)
    t = nearest(0.5)
    measured = measure(
        sources, [noise, -noise], torch.tensor([t]), gaussian, exact("residual", normalise="none"), cost=True
    )
    a, clean = ALPHA_BAR[t], sources[0, :, 0].double().numpy()
    estimates = [posterior_mean(math.sqrt(a) * clean + s * math.sqrt(1 - a) * noise[0].numpy(), t) for s in (1, -1)]
    gain = sum((estimate - clean) ** 2 for estimate in estimates) / 2
    np.testing.assert_allclose(measured.gains[0][0, :, 0].numpy(), gain, rtol=1e-3, atol=1e-5)
    assert measured.estimates is not None and measured.cost is not None
    np.testing.assert_allclose(measured.estimates[0][0, :, 0].numpy(), sum(estimates) / 2, rtol=0, atol=1e-4)
    assert float(measured.cost) == pytest.approx(float(np.mean(gain)), rel=1e-3)


def test_scopes_are_means_over_time_and_over_space() -> None:
    maps = [torch.tensor([0.2, 0.4]).view(1, 1, 1, 1, 2), torch.tensor([0.6, 1.0]).view(1, 1, 1, 1, 2)]
    assert scoped(maps, "full") == maps
    for found in scoped(maps, "spatial"):
        assert found.flatten().tolist() == pytest.approx([0.4, 0.7])
    for found, mean in zip(scoped(maps, "temporal"), (0.3, 0.8), strict=True):
        assert found.flatten().tolist() == pytest.approx([mean, mean])


def test_weights_are_a_softmax_over_sources() -> None:
    gain = torch.tensor([0.0, math.log(3) / 2]).view(1, 2, 1, 1, 1)
    assert fusion_weight(gain, 0.5).flatten().tolist() == pytest.approx([0.25, 0.75])


def test_gains_are_normalised_with_a_floor_of_a_hundredth_of_the_mean() -> None:
    """Two sources, two pixels; in the second image the gains are a thousandth, and so is the floor."""
    gain = torch.tensor([[3.0, 0.005], [-1.0, -0.005]]).view(1, 2, 1, 1, 2)
    both = torch.cat([gain, gain / 1000])
    mean = 4.01 / 4
    floor = 0.01 * mean
    expected = [3 / (4 + floor), 0.005 / (0.01 + floor), -1 / (4 + floor), -0.005 / (0.01 + floor)]
    for image in normalise(both, "sum"):
        assert image.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    for image in normalise(both, "mean"):
        assert image.flatten().tolist() == pytest.approx([3 / mean, 0.005 / mean, -1 / mean, -0.005 / mean], rel=1e-5)
    assert torch.equal(normalise(both, "none"), both) and not normalise(0 * both, "sum").any()


def test_no_time_of_learned_weights_lies_beyond_the_schedule() -> None:
    assert network_times(alpha_bar(steps=50), SamplerConfig(5, sigma_start=1.0)).max() == 49


def test_pixel_losses_by_hand() -> None:
    difference = torch.tensor([[1.0, 4.0], [1.0, 0.0]]).view(1, 1, 2, 2)
    two = torch.cat([difference, -difference], 1)
    for kind, expected in (("l2", [1, 16, 1, 0]), ("l1", [1, 4, 1, 0]), ("gradient", [3, 4, 1, 0])):
        assert pixel_loss(two, 0 * two, kind).flatten().tolist() == pytest.approx(expected)


def test_no_interval_of_the_gain_grid_is_left_without_steps() -> None:
    """A twentieth of the mean gain is added: (0, 1) becomes (0.025, 1.025)."""
    for cost, middle in ([0.0, 1.0, 7.0], 305), ([1.0, 1.0, 7.0], 500):  # 500 - 400 * 0.5 / 1.025
        assert gain_grid(torch.tensor(cost), torch.tensor([900, 500, 100]), 3).tolist() == [900, middle, 100]


@pytest.mark.parametrize(
    ("promised", "k", "energy", "factor"),
    [(1.44, 2, 1.0, 1.2), (1.44, 2, 0.5, 1.2**0.5), (9.0, 2, 1.0, 2**0.5), (2.25, 3, 1.0, 1.5), (0.25, 2, 1.0, 1.0)],
)
def test_the_factor_of_the_bands_is_the_root_of_the_energies(promised: float, k: int, energy, factor: float) -> None:
    energies = torch.full((1, 1, 8, 8), promised), torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(restoring(*energies, 0.1, 4.0, 2.0, k) ** energy, torch.full((1, 1, 8, 8), factor))


def band_step(sources: torch.Tensor, weight: tuple[float, float], sigma: float, sigma_next: float) -> Step:
    flat = torch.tensor(weight).view(1, 2, 1, 1, 1).expand(1, 2, 1, *sources.shape[-2:])
    return Step(0, sigma, sigma_next, None, sources, flat, None, None)


@pytest.mark.parametrize(("energy", "factor"), [(0.0, 0.8), (1.0, 0.8 * 1.25**0.5), (0.5, 0.8 * 1.25**0.25)])
def test_bands_add_what_each_source_has_between_two_blurs(energy: float, factor: float) -> None:
    """Only the first source has a band. Weighted 0.8, it keeps 0.64 of its energy where 0.8 was promised: a² = 1.25."""
    sources = torch.zeros(1, 2, 1, 24, 24)
    sources[:, 0] = 2 * random_sources(5, 1, 1, 24, 24) - 1
    step = band_step(sources, (0.8, 0.2), 0.6, 0.2)
    guided, state = bands(sources[:, 0], step, None, sigma_n=0.0, scale=5.0, energy=energy, tone=1.0)
    wide, narrow = (
        gaussian_filter(sources[0, 0, 0].double().numpy(), 5.0 * sigma, mode="mirror", radius=math.ceil(15 * sigma))
        for sigma in (0.6, 0.2)
    )
    expected = wide / 2 + factor * (narrow - wide)
    np.testing.assert_allclose(state.target[0, 0].numpy(), expected, rtol=0, atol=2e-4)
    low, high = float(sources.min()), float(sources.max())
    np.testing.assert_allclose(guided[0, 0].numpy(), expected.clip(low, high), rtol=0, atol=2e-4)


def test_a_map_is_as_coarse_as_the_power_of_two_below_its_blur() -> None:
    assert [coarseness(sigma) for sigma in (0.0, 1.9, 2.0, 7.9, 8.0)] == [1, 1, 2, 4, 8]


def test_noise_comes_in_opposite_pairs() -> None:
    values = iter((1.0, 5.0))
    found = opposite_pairs(lambda: torch.full((1, 1, 1, 1), next(values)), 3)
    assert [float(one) for one in found] == [1, -1, 5]


def test_grey_noisy_sources_in_a_colour_prior_have_their_level_times_the_root_of_three(signal: torch.Tensor) -> None:
    """The fresh noise's chromatic part cancels in the mean: what is left is the source shrunk to the prior's mean."""
    denoiser = GaussianDenoiser(MEAN, VARIANCE**0.5, signal, channels=3)
    noisy = 2 * random_sources(6, 1, 2, 1, 4, 4) - 1
    found = denoise(noisy, torch.tensor([[0.1, 0.0]]), denoiser, torch.randn(1, 3, 4, 4))
    level = LEVEL[nearest(0.2 * 3**0.5)]
    expected = MEAN + (noisy[:, 0] - MEAN) * VARIANCE / (VARIANCE + level**2)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[:, 1], noisy[:, 1])


def snapshot(t: int, x0_hat: float, weight: list[float], gain: list[float], guided: float = 0.5) -> Snapshot:
    """One step on an image of two pixels: maps of the first source and the second, pixel by pixel."""
    weights, gain_maps = (torch.tensor(one).view(1, 2, 1, 1, 2) for one in (weight, gain))
    image = torch.full((1, 1, 1, 2), x0_hat)
    return Snapshot(0, 2, t, 1.0, image, torch.full_like(image, guided), gain_maps, weights)


def test_statistics_of_two_pixels_by_hand() -> None:
    """Sources 0 and 1, estimate 0.75, ideal 0.5; in [-1, 1] the contributions are 2 · 1.5 · 0.5 and 2 · -0.5 · 0.5."""
    sources = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).view(1, 2, 1, 1, 2)
    trace = [snapshot(900, 0.75, [1.0, 0.5, 0.0, 0.5], [0.2, 0.4, 0.6, 1.0])]
    found = dig_statistics(trace, sources)
    assert found.t.tolist() == [900] and found.weight_mean[0].tolist() == pytest.approx([0.75, 0.25])
    assert found.gain_mean[0].tolist() == pytest.approx([0.3, 0.8])
    assert float(found.entropy) == pytest.approx(0.5)  # certain at one pixel, even at the other
    assert found.covariance[0].tolist() == pytest.approx([0, 0])  # contributions are flat
    sources[..., 1] = 0.25  # now both sources are 0.25 at the second pixel: contributions 2 · 1 · 0.5 = 1
    found = dig_statistics(trace, sources)
    by_hand = [0.25 * (1.5 - 1.25) / 2 - 0.25 * (1.0 - 1.25) / 2, -0.25 * (-0.5 - 0.25) / 2 + 0.25 * (1.0 - 0.25) / 2]
    assert found.covariance[0].tolist() == pytest.approx(by_hand)  # 0.0625 and 0.1875
    ideal = dig_statistics(trace, sources, torch.full((1, 1, 1, 2), 0.25))
    assert ideal.covariance[0].tolist() == pytest.approx([2 * value for value in by_hand])  # twice as far away


REFUSED = {
    "an array": (np.zeros((1, 2, 1, 4, 4)), "not ndarray"),
    "integers": (torch.zeros(1, 2, 1, 4, 4, dtype=torch.uint8), "not torch.uint8"),
    "four dimensions": (torch.zeros(2, 1, 4, 4), r"not \(2, 1, 4, 4\)"),
    "nothing": (torch.zeros(1, 2, 1, 0, 4), r"not \(1, 2, 1, 0, 4\)"),
    "one source": (torch.zeros(1, 1, 1, 4, 4), "one source: at least two are needed, along the second axis"),
    "two channels": (torch.zeros(1, 2, 2, 4, 4), "sources have 2 channels; grey"),
    "colour": (
        torch.zeros(1, 2, 3, 4, 4),
        "the prior is for grey images, the sources have colour: take a colour prior",
    ),
    "too dark": (torch.full((1, 2, 1, 4, 4), -0.1), r"must lie in \[0, 1\], not in \[-0.1, -0.1\]"),
    "too bright": (torch.full((1, 2, 1, 4, 4), 255.0), r"must lie in \[0, 1\], not in \[255, 255\]"),
    "NaN": (torch.full((1, 2, 1, 4, 4), math.nan), "NaN or infinite"),
    "one NaN": (torch.tensor([0.0, math.nan, 0.5, 1.0]).view(1, 2, 1, 1, 2), "NaN or infinite"),
    "infinite": (torch.tensor([0.0, math.inf]).view(1, 2, 1, 1, 1), "NaN or infinite"),
    "minus infinite": (torch.tensor([0.0, -math.inf]).view(1, 2, 1, 1, 1), "NaN or infinite"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_fused_is_refused_in_one_line(what: str) -> None:
    sources, message = REFUSED[what]
    with pytest.raises(ValueError, match=message) as raised:
        check_sources(sources, 1)
    assert "\n" not in str(raised.value)


def test_what_can_be_fused_is_not_refused() -> None:
    """Resampling overshoots by a little, noise by much; every floating-point type is taken."""
    for low, high, kind in ((0, 1, torch.float16), (-9e-4, 1 + 9e-4, torch.float32), (0, 1, torch.float64)):
        check_sources(torch.tensor([low, high], dtype=kind).view(1, 2, 1, 1, 1), 3)
    check_sources(torch.tensor([-0.3, 1.4]).view(1, 2, 1, 1, 1), 1, noisy=True)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        check_sources(torch.tensor([0, 1.002]).view(1, 2, 1, 1, 1), 1)
    with pytest.raises(ValueError, match="NaN"):
        check_sources(torch.tensor([0, math.nan]).view(1, 2, 1, 1, 1), 1, noisy=True)


def fixed(x0_hat: torch.Tensor, step: Step, state: None) -> tuple[torch.Tensor, None]:
    return step.sources.mean(1), state


def blind(x0_hat: torch.Tensor, step: Step, state: None) -> tuple[torch.Tensor, None]:
    return fixed(x0_hat, step, state)


blind.needs_estimate = False  # pyright: ignore[reportFunctionMemberAccess]
blind.needs_reconstructions = False  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize(
    ("kind", "sigma_n", "loop", "measured"),
    [
        ("bands", 0.0, 0, 0), ("bands", 0.1, 5, 0), ("blend", 0.0, 0, 0), ("blend", 0.1, 5, 0),
        ("increments", 0.0, 0, 10), ("increments", 0.1, 5, 10), ("em", 0.0, 5, 0), ("posterior", 0.0, 5, 0),
        (fixed, 0.0, 5, 10), (blind, 0.0, 0, 0), (partial(blind), 0.0, 0, 0),
    ],
)  # fmt: skip
def test_the_network_runs_in_the_loop_only_for_a_guidance_that_needs_estimates(
    gaussian, kind, sigma_n: float, loop: int, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted images; static weights need no network, reconstructions run each of two sources at each of five times."""
    count: list[int] = []
    outputs = GaussianDenoiser.outputs
    monkeypatch.setattr(GaussianDenoiser, "outputs", lambda self, x, t: count.append(len(x)) or outputs(self, x, t))
    own = kind if isinstance(kind, Callable) else None
    guidance = GuidanceConfig("blend" if own else kind, sigma_n)
    config = SamplerConfig(steps=5, dig=exact(), guidance=guidance)
    sources = random_sources(7, 1, 2, 1, 8, 8)
    for observe, estimates, expected in (
        (None, True, loop + measured),
        (lambda _: None, True, 5 + measured),
        (lambda _: None, False, loop + measured),
    ):
        count.clear()
        fuse(sources, gaussian, config, guidance=own, observe=observe, estimates=estimates)
        assert sum(count) == expected
    if own is None:
        guide = make_guidance(config)
        assert guide.keywords.get("sigma_n", 0.0) == sigma_n  # pyright: ignore[reportFunctionMemberAccess]


@cuda
@pytest.mark.parametrize("guidance", ["bands", "blend", "increments", "em", "posterior"])
@pytest.mark.parametrize("grid", ["logsnr", "gain"])
def test_fusion_on_cuda_is_fusion_on_the_cpu(guidance, grid) -> None:
    """Noise is drawn on the CPU: the same picture up to rounding."""
    torch.manual_seed(0)
    denoiser = build_prior([32], 1, 2).requires_grad_(False).eval()
    sources = random_sources(8, 2, 2, 1, 32, 32)
    config = SamplerConfig(steps=3, grid=grid, guidance=GuidanceConfig(guidance, 0.05))
    trace: list[Snapshot] = []
    here = fuse(sources, denoiser, config, seed=[1, 2])
    there = fuse(sources.cuda(), denoiser.cuda(), config, seed=[1, 2], observe=trace.append)
    assert there.is_cuda and trace[0].weight.is_cuda and not trace[0].of(0).weight.is_cuda
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=5e-3)


@cuda
def test_noise_on_cuda_is_that_of_the_cpu() -> None:
    here, there = (draw_noise((1, 4, 4), generators([1, 2], 2), torch.zeros(1, device=d)) for d in ("cpu", "cuda"))
    assert there.is_cuda and torch.equal(here, there.cpu())
