import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import max_pool2d, pad

from dig2dig.api import preset
from dig2dig.config import DigConfig, GuidanceConfig, ResearchConfig, SamplerConfig
from dig2dig.fusion import bands
from dig2dig.fusion.bands import surroundings
from dig2dig.fusion.guidance import Step
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.sampler import ddim_step, fuse
from dig2dig.fusion.stream import streams
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import alpha_bar, at, noise_level, time_grid
from tests.conftest import ROOT
from tests.gaussian import GaussianDenoiser
from tests.pictures import crop_of, random_sources

KINDS = ["bands", "blend", "increments", "em", "posterior"]


def config(kind="increments", dig="change", **changes) -> SamplerConfig:
    guidance = GuidanceConfig(kind=kind, sigma_n=0.02)
    research = ResearchConfig(**{name: changes.pop(name) for name in ("noise", "eta", "draws") if name in changes})
    gains = DigConfig(kind=dig, refresh=1)
    return SamplerConfig(steps=6, dig=gains, guidance=guidance, research=research, **changes)


def test_ddim_converges_to_the_exact_solution_for_a_gaussian(signal: torch.Tensor) -> None:
    """The probability flow of a Gaussian is linear: x_0 = mean + x_T * std / std_T; the error falls with the step."""
    denoiser = GaussianDenoiser(0.1, 0.5, signal)
    x_start = torch.randn(1, 1, 50, 50).double()
    a = signal[999]
    exact = 0.1 + (x_start - a.sqrt() * 0.1) * 0.5 / (a * 0.25 + 1 - a).sqrt()
    errors = []
    for steps in (10, 40, 160):
        x_t, times = x_start, time_grid("logsnr", steps, signal)
        for i, t in enumerate(times):
            x0_hat = denoiser(x_t, t[None])
            now = at(signal, t[None], x_t)
            following = at(signal, times[i + 1][None], x_t) if i + 1 < steps else torch.ones_like(now)
            levels = [float(noise_level(one)) for one in (now, following)]
            x_t = ddim_step(x0_hat, (x_t - now.sqrt() * x0_hat) / (1 - now).sqrt(), *levels)
        errors.append(float((x_t - exact).abs().max()))
    assert errors[0] > 2.5 * errors[1] > 2.5**2 * errors[2]
    assert errors[2] < 0.05


def test_ddim_step_keeps_the_marginal_variance(signal: torch.Tensor) -> None:
    """With exact estimates, the next state is again signal plus unit noise of its level, whatever eta is."""
    x0 = torch.zeros(1, 1, 400, 400)
    eps, fresh = torch.randn_like(x0), torch.randn_like(x0)
    now, following = signal[700], signal[400]
    levels = [float(noise_level(one)) for one in (now, following)]
    for eta in (0.0, 0.5, 1.0):
        x_next = ddim_step(x0, eps, *levels, eta, fresh if eta else None)
        assert float(x_next.var()) == pytest.approx(float(1 - following), rel=0.02)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_step_agrees_with_diffusers(signal: torch.Tensor, eta: float) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(10)  # steps of 100 indices
    x_t, eps, fresh = torch.randn(3, 1, 3, 4, 4).unbind(0)
    now = at(signal, torch.tensor([500]), x_t)
    theirs = scheduler.step(eps, 500, x_t, eta=eta, variance_noise=fresh).prev_sample
    x0_hat = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    levels = [float(noise_level(signal[t])) for t in (500, 400)]
    ours = ddim_step(x0_hat, eps, *levels, eta, fresh if eta else None)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [2, 3])
def test_identical_sources_return_themselves(bundled: Denoiser, kind, k: int) -> None:
    """Equal sources give the source back, up to what the prior takes for noise."""
    source = crop_of("infrared_visible", 200, 300, 64, "visible")
    fused = fuse(source.expand(-1, k, -1, -1, -1), bundled, config(kind))
    assert float((fused - source[:, 0]).square().mean()) ** 0.5 < 0.02


@pytest.mark.parametrize("kind", ["blend", "increments"])
def test_a_trusted_source_comes_back_exactly(gaussian: GaussianDenoiser, kind) -> None:
    source = random_sources(0, 1, 1, 1, 9, 13)
    options = config(kind)
    options.guidance.sigma_n = 0.0
    twice = source.expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(fuse(twice, gaussian, options), source[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99), k=st.integers(2, 4))
def test_order_of_sources_does_not_matter(kind, seed: int, k: int) -> None:
    sources = random_sources(seed, 1, k, 1, 8, 8)
    denoiser = GaussianDenoiser(0.0, 0.3, alpha_bar())
    permuted = sources[:, torch.randperm(k, generator=torch.Generator().manual_seed(seed))]
    a, b = fuse(sources, denoiser, config(kind), seed), fuse(permuted, denoiser, config(kind), seed)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(9, 7), (1, 5), (4, 1)])
def test_surroundings_are_the_extremes_of_three_by_three_pixels(size: tuple[int, int]) -> None:
    sources = random_sources(3, 2, 3, 3, *size)
    low, high = surroundings(sources)
    assert torch.equal(low, -max_pool2d(-sources.amin(1), 3, 1, 1))
    assert torch.equal(high, max_pool2d(sources.amax(1), 3, 1, 1))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 5), tone=st.sampled_from(["natural", "vivid"]))
@pytest.mark.parametrize("task", ["ivf", "mef"])
def test_no_pixel_leaves_its_surroundings_by_more_than_a_twentieth(task: str, seed: int, k: int, tone: str) -> None:
    sources = random_sources(seed, 1, k, 1, 24, 17).pow(1 + 3 * (seed % 2))
    chosen = replace(preset(task, "sampler.weights=gain"), tone=tone)
    fused = fuse(sources, GaussianDenoiser(0.0, 0.3, alpha_bar()), chosen, seed)
    around = pad(sources[0], (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    low, high = around.amin((0, 4, 5)), around.amax((0, 4, 5))
    assert bool(((fused[0] >= low - 0.05001) & (fused[0] <= high + 0.05001)).all())
    assert sources.min() - 1e-5 <= fused.min() and fused.max() <= sources.max() + 1e-5


@pytest.mark.parametrize("grid", ["uniform", "logsnr", "gain"])
@pytest.mark.parametrize("noise", ["recomputed", "network"])
@pytest.mark.parametrize("dig", ["gain", "change", "residual"])
def test_every_grid_convention_and_kind_of_gain(bundled: Denoiser, grid, noise, dig) -> None:
    sources = crop_of("infrared_visible", 200, 250, 40, "visible", "infrared")
    fused = fuse(sources, bundled, config(dig=dig, grid=grid, noise=noise))
    low, high = sources.amin(1), sources.amax(1)
    outside = (low - fused).clamp(min=0) + (fused - high).clamp(min=0)
    assert fused.shape == (1, 1, 40, 40)
    assert float(outside.mean()) < 0.02  # a fused picture stays near what the sources span


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_images_alone(bundled: Denoiser, kind) -> None:
    sources = torch.cat([crop_of("infrared_visible", top, 200, 32, "visible", "infrared") for top in (100, 220, 300)])
    options = config(kind, eta=0.5)
    together = fuse(sources, bundled, options, seed=[3, 4, 5])
    for i, seed in enumerate((3, 4, 5)):
        alone = fuse(sources[i : i + 1], bundled, options, seed=seed)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


def test_seeds_decide_the_noise(bundled: Denoiser) -> None:
    sources = crop_of("infrared_visible", 200, 250, 32, "visible", "infrared")
    a, b, c = (fuse(sources, bundled, config(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(("height", "width"), [(37, 50), (8, 8), (3, 21), (1, 1)])
def test_any_size_comes_back_in_its_size(bundled: Denoiser, height: int, width: int) -> None:
    fused = fuse(random_sources(1, 1, 2, 3, height, width), bundled, config())
    assert fused.shape == (1, 3, height, width)
    assert fused.min() >= 0 and fused.max() <= 1


def test_gains_cost_nothing_after_the_plan(bundled: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network calls: steps for sampling, K times the measured times for gains, none for static weights."""
    images = []
    forward = Denoiser.outputs
    monkeypatch.setattr(Denoiser, "outputs", lambda self, x, t: images.append(len(x)) or forward(self, x, t))
    sources = random_sources(2, 1, 3, 1, 16, 16)
    fuse(sources, bundled, config("blend", "static"))
    assert sum(images) == 6
    images.clear()
    fuse(sources, bundled, config("blend"))
    assert sum(images) == 6 + 3 * 6
    images.clear()
    research = ResearchConfig(draws=2)
    refreshed = SamplerConfig(
        steps=7, dig=DigConfig(refresh=3), guidance=GuidanceConfig(kind="blend"), research=research
    )
    fuse(sources, bundled, refreshed)
    assert sum(images) == 2 * 3 * 3  # two draws; sigma_n is 0, and the loop needs no estimates


def test_every_option_of_the_loop_has_its_effect(bundled: Denoiser) -> None:
    """Noise convention, eta, grid and the sign of the second draw each change the result."""
    sources = crop_of("infrared_visible", 200, 250, 32, "visible", "infrared")
    soft = GuidanceConfig(kind="blend", sigma_n=0.3)
    plain = {"steps": 6, "guidance": soft}
    base = fuse(sources, bundled, SamplerConfig(**plain))
    changed = [{"research": ResearchConfig(**one)} for one in ({"noise": "network"}, {"eta": 1.0}, {"draws": 2})]
    for changes in (*changed, {"grid": "uniform"}):
        assert float((fuse(sources, bundled, SamplerConfig(**plain, **changes)) - base).abs().max()) > 1e-3


def test_gain_grid_follows_the_measured_gain(bundled: Denoiser) -> None:
    sources = crop_of("infrared_visible", 200, 250, 32, "visible", "infrared")
    times = {}
    for grid in ("logsnr", "gain"):
        trace: list[Snapshot] = []
        fuse(sources, bundled, config(grid=grid), observe=trace.append)
        times[grid] = [snapshot.t for snapshot in trace]
    assert times["gain"] != times["logsnr"] and times["gain"][0] == times["logsnr"][0]
    with pytest.raises(ValueError, match="one at a time"):
        fuse(sources.repeat(2, 1, 1, 1, 1), bundled, config(grid="gain"))


def test_draws_come_in_opposite_pairs(bundled: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measure(sources, noises, *rest):
        seen.extend(noises)
        return original(sources, noises, *rest)

    from dig2dig.fusion import plan

    original = plan.measure
    monkeypatch.setattr(plan, "measure", measure)
    fuse(random_sources(6, 1, 2, 1, 8, 8), bundled, SamplerConfig(steps=2, research=ResearchConfig(draws=3)))
    assert len(seen) == 3
    assert torch.equal(seen[0], -seen[1]) and not torch.equal(seen[2].abs(), seen[0].abs())


def test_a_users_guidance_may_differentiate(gaussian: GaussianDenoiser) -> None:
    def downhill(x0_hat, step, state):
        (gradient,) = torch.autograd.grad(x0_hat.sum(), step.x_t)
        return x0_hat.detach() - 0 * gradient, state

    downhill.needs_graph = True  # pyright: ignore[reportFunctionMemberAccess]
    fuse(random_sources(7, 1, 2, 1, 8, 8), gaussian, config(), guidance=downhill)


@pytest.mark.parametrize("kind", ["bands", "blend", "increments"])
def test_who_watches_changes_nothing_and_no_estimate_is_made_for_nobody(bundled: Denoiser, kind: str) -> None:
    """Where the sources alone are trusted, the loop needs no network; an observer sees estimates all the same."""
    options = config(kind, dig="static")
    options.guidance.sigma_n = 0.0
    sources = crop_of("infrared_visible", 200, 250, 32, "visible", "infrared")
    calls: list[int] = []
    handle = bundled.network.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    try:
        alone = fuse(sources, bundled, options)
        unwatched = len(calls)
        trace: list[Snapshot] = []
        watched = fuse(sources, bundled, options, observe=trace.append)
        with_estimates = len(calls) - unwatched
        glances: list[Snapshot] = []
        glanced = fuse(sources, bundled, options, observe=glances.append, estimates=False)
        without = len(calls) - unwatched - with_estimates
    finally:
        handle.remove()
    assert torch.equal(alone, watched) and torch.equal(alone, glanced)
    assert with_estimates == unwatched + options.steps and without == unwatched
    x0_hat = trace[-1].x0_hat
    assert x0_hat is not None and float((x0_hat - trace[-1].guided).abs().mean()) > 1e-4
    assert all(glance.x0_hat is None and glance.of(0).x0_hat is None for glance in glances)
    for step, glance in zip(trace, glances, strict=True):
        assert torch.equal(step.weight, glance.weight) and torch.equal(step.guided, glance.guided)


def test_one_seed_or_one_for_each(gaussian: GaussianDenoiser) -> None:
    with pytest.raises(ValueError, match="3 seeds for 2 images"):
        fuse(random_sources(8, 2, 2, 1, 8, 8), gaussian, config(), seed=[1, 2, 3])


def test_observer_sees_every_step(bundled: Denoiser) -> None:
    trace, small = [], []
    options, sources = config(), random_sources(3, 2, 3, 1, 20, 30)
    options.dig.smoothing = options.dig.smoothing_noise = 0.0  # else maps are coarser, and stay so
    fused = fuse(sources, bundled, options, observe=trace.append)
    assert torch.equal(fuse(sources, bundled, options, observe=small.append, side=15), fused)
    assert [snapshot.index for snapshot in trace] == list(range(6))
    assert all(earlier.t > later.t for earlier, later in itertools.pairwise(trace))
    last = trace[-1]
    assert last.gain.shape == last.weight.shape == (2, 3, 1, 20, 30)
    torch.testing.assert_close(last.weight.sum(1), torch.ones(2, 1, 20, 30))
    torch.testing.assert_close(last.guided, fused)
    assert torch.equal(last.of(1).weight, last.weight[1:])
    assert small[-1].guided.shape == (2, 1, 10, 15) and small[-1].gain.shape == (2, 3, 1, 10, 15)
    for name in ("weight", "gain", "guided"):
        means = getattr(last, name).unfold(-2, 2, 2).unfold(-2, 2, 2).mean((-1, -2))
        torch.testing.assert_close(getattr(small[-1], name), means)


def test_an_observer_of_a_guidance_that_listens_sees_estimates_in_any_case(gaussian: GaussianDenoiser) -> None:
    trace: list[Snapshot] = []
    options = config("blend")
    options.guidance.sigma_n = 0.1
    fuse(random_sources(3, 1, 2, 1, 16, 16), gaussian, options, observe=trace.append, estimates=False)
    assert all(step.x0_hat is not None for step in trace)


def test_a_guidance_of_ones_own(bundled: Denoiser) -> None:
    """A user's function decides, with its state carried from step to step."""
    seen = []

    def darkest(x0_hat, step, state):
        seen.append(state)
        assert step.estimate is not None
        return step.sources.amin(1), (state or 0) + 1

    sources = random_sources(4, 1, 2, 1, 16, 16)
    torch.testing.assert_close(fuse(sources, bundled, config(), guidance=darkest), sources.amin(1))
    assert seen == [None, 1, 2, 3, 4, 5]


def test_grey_prior_refuses_colour(gaussian: GaussianDenoiser) -> None:
    with pytest.raises(ValueError, match="take a colour prior"):
        fuse(random_sources(5, 1, 2, 3, 8, 8), gaussian, config())


def test_multi_focus_example_beats_the_mean(bundled: Denoiser) -> None:
    """On the made pair the ideal image is known: weights from gains come nearer to it than static ones."""
    near_far = crop_of("multi_focus", 150, 60, 128, "near", "far", mode="RGB")
    truth = crop_of("multi_focus", 150, 60, 128, "truth", mode="RGB")[:, 0]
    options = SamplerConfig(steps=8, dig=DigConfig(kind="residual", temperature=0.05, smoothing=6.0))
    gained, mean = fuse(near_far, bundled, options), near_far.mean(1)
    error = [float((image - truth).square().mean()) for image in (gained, mean)]
    assert error[0] < 0.6 * error[1]


def test_result_on_the_example_has_not_moved(bundled: Denoiser) -> None:
    """A seeded result on real crops: change it knowingly, after looking at the pictures."""
    sources = crop_of("infrared_visible", 200, 250, 64, "visible", "infrared")
    fused = fuse(sources, bundled, config(), seed=7)[0, 0, ::16, ::16]
    golden = np.load(ROOT / "tests" / "fusion" / "golden_fuse.npy")
    torch.testing.assert_close(fused, torch.tensor(golden), rtol=0, atol=2e-3)


@pytest.mark.parametrize("task", ["ivf", "mef", "mff"])
def test_streamed_sources_give_the_same_picture(bundled: Denoiser, monkeypatch, task: str) -> None:
    sources = torch.nn.functional.avg_pool2d(random_sources(3, 5, 3, 96, 120), 5, 1, 2)[None]
    sources = sources if task == "mff" else sources[:, :, :1]
    valid = torch.ones_like(sources[:, :, :1], dtype=torch.bool)
    valid[:, 2, :, 20:50, 30:60] = False
    config = preset(task, "sampler.weights=gain")
    for mask in (None, valid):
        whole = fuse(sources, bundled, config, valid=mask)
        with monkeypatch.context() as patched:
            patched.setattr("dig2dig.shapes.TALL", 1)
            seen = []
            one_by_one = fuse(sources, bundled, config, valid=mask, observe=seen.append, estimates=False)
            assert (whole - one_by_one).abs().max() < 1e-6 and not seen
            together = fuse(sources, bundled, config, valid=mask, observe=seen.append)
        assert (whole - together).abs().max() < 1e-6 and len(seen) == config.steps


def test_what_is_streamed() -> None:
    tall, pair, small = (torch.Size((1, k, 1, side, side)) for k, side in ((30, 2000), (2, 9000), (30, 100)))
    assert streams(preset("mff"), tall, learned=False)
    assert not streams(preset("mff"), pair, learned=False) and not streams(preset("mff"), small, learned=False)
    assert not streams(preset("mff"), tall, learned=True)
    assert not streams(preset("mff", "sampler.guidance.sigma_n=0.1"), tall, learned=False)


def test_the_least_noise_level_loses_no_digits(signal: torch.Tensor) -> None:
    """At t = 0 a float32 ``1 - alpha_bar`` is off by 1e-4 of itself; the variance of a step is not."""
    sources = torch.zeros(1, 2, 1, 2, 2)
    step = Step(0, float(noise_level(signal[0])), 0.0, None, sources, torch.full_like(sources, 0.5), None, None)
    assert step.variance == pytest.approx(float(1 - signal[0]), rel=1e-6)
    assert float(1 - signal[0].float()) != pytest.approx(float(1 - signal[0]), rel=1e-6)


def test_weights_of_bands_alone_run_no_network(bundled: Denoiser) -> None:
    sources, calls = crop_of("infrared_visible", 100, 60, 64, "visible", "infrared"), list[int]()
    with bundled.network.register_forward_pre_hook(lambda *_: calls.append(1)):
        alone = fuse(sources, bundled, preset("ivf", "sampler.weights=bundled/bands"))
        assert not calls
        learned = fuse(sources, bundled, preset("ivf", "sampler.weights=bundled/ivf"))
    assert calls and 0 < (alone - learned).abs().mean() < 0.05 and (alone - sources.mean(1)).abs().mean() > 0.02


@pytest.mark.parametrize("weights", ["gain", "bundled/ivf", "bundled/bands"])
def test_sources_at_once_and_one_by_one_give_the_same_picture(bundled: Denoiser, monkeypatch, weights: str) -> None:
    """Large images are worked on source by source, which tests on small ones would not see."""
    sources = torch.cat([crop_of("infrared_visible", 100, 60, 64, "visible", "infrared")] * 2, 1)
    sources[:, 2:] = sources[:, 2:].flip(-1)  # four sources
    seen: list[int] = []
    original = bands.blurred
    spy = lambda images, *rest, **more: seen.append(images.shape[1]) or original(images, *rest, **more)  # noqa: E731
    monkeypatch.setattr("dig2dig.fusion.guidance.blurred", spy)
    config = preset("ivf", f"sampler.weights={weights}")
    together = fuse(sources, bundled, config)
    assert weights != "gain" or set(seen) == {4}
    monkeypatch.setattr("dig2dig.fusion.resample.SMALL", 0)
    seen.clear()
    alone = fuse(sources, bundled, config)
    assert weights != "gain" or set(seen) == {1}
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
