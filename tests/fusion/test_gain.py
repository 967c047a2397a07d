from dataclasses import replace

import pytest
import torch

from dig2dig.config import DigConfig
from dig2dig.fusion.gain import at_time, information_gain, measure, pixel_loss, reconstruct
from dig2dig.fusion.noise import denoise
from dig2dig.fusion.resample import coarseness, downsample, resample, smooth
from dig2dig.fusion.weight import fusion_weight
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import add_noise, amplitudes, at, noise_level, time_grid
from tests.gaussian import GaussianDenoiser
from tests.pictures import crop_of


def test_gain_of_the_gaussian_denoiser_in_closed_form(gaussian: GaussianDenoiser, signal: torch.Tensor) -> None:
    """Without noise the estimate is linear in the source, so its loss is known at each time."""
    sources, times = torch.rand(1, 2, 1, 8, 8) * 2 - 1, torch.tensor([800, 300, 20])
    estimates = [*reconstruct(sources, torch.zeros(1, 1, 8, 8), times, gaussian), sources]
    a = at(signal, times, sources).view(3, 1, 1, 1, 1, 1)
    shrink = (1 - a) / (a * 0.25 + 1 - a)  # estimate = source + shrink * (mean - source)
    loss = (shrink * (0.1 - sources)).square()
    left = torch.cat([loss, torch.zeros(1, *sources.shape)])
    for i in range(3):
        gain, residual, change = (
            information_gain(estimates[i], estimates[i + 1], sources, kind) for kind in ("gain", "residual", "change")
        )
        torch.testing.assert_close(gain, left[i] - left[i + 1], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(residual, left[i], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(change, (estimates[i + 1] - estimates[i]).square())


def test_gains_sum_to_the_loss_at_the_first_time(gaussian: GaussianDenoiser) -> None:
    sources = torch.rand(2, 3, 1, 8, 8) * 2 - 1
    estimates = [*reconstruct(sources, torch.randn(2, 1, 8, 8), torch.tensor([900, 500, 100]), gaussian), sources]
    gains = [information_gain(estimates[i], estimates[i + 1], sources, "gain", "l1") for i in range(3)]
    torch.testing.assert_close(torch.stack(gains).sum(0), pixel_loss(estimates[0], sources, "l1"), rtol=1e-4, atol=1e-5)


def test_reconstruct_shares_noise_and_agrees_with_single_calls(gaussian: GaussianDenoiser, monkeypatch) -> None:
    sources, noise, times = torch.rand(2, 3, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.tensor([600, 50])
    monkeypatch.setattr(GaussianDenoiser, "pixels", 16 * 5)  # calls that cut across sources and times
    estimates = reconstruct(sources, noise, times, gaussian)
    for i, t in enumerate(times):
        for k in range(3):
            batch = t.expand(2)
            single = gaussian(add_noise(sources[:, k], noise, batch, gaussian.alpha_bar), batch)
            torch.testing.assert_close(estimates[i][:, k], single)


def test_estimates_from_smaller_images_are_near_those_of_whole_ones(bundled: Denoiser) -> None:
    """Measured where the noise is strong; weak noise takes the whole image either way."""
    sources = 2 * crop_of("infrared_visible", 150, 200, 128, "visible", "infrared") - 1
    noise, times = torch.randn(1, 3, 128, 128), time_grid("logsnr", 5, bundled.alpha_bar, 4.0, 0.05)
    seen: list[int] = []
    handle = bundled.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0].numel() * 4))
    with torch.no_grad():
        full, small = (reconstruct(sources, noise, times, bundled, reduce) for reduce in (0.0, 0.15))
    handle.remove()
    calls = seen.index(max(seen)) + 1
    assert sum(seen[calls:]) < 0.6 * sum(seen[:calls])
    mean = sources.mean((-2, -1), keepdim=True)
    for a, b in zip(full, small, strict=True):
        assert float((a - resample(b, 128, 128)).square().mean()) < 0.25 * float((a - mean).square().mean())
    torch.testing.assert_close(full[-1], small[-1], rtol=1e-4, atol=1e-4)


def test_weights_from_small_images_are_near_those_of_whole_ones(bundled: Denoiser) -> None:
    """At the presets' resolution, against every time at full size: they agree on which source counts where."""
    sources = 2 * crop_of("infrared_visible", 150, 200, 128, "visible", "infrared") - 1
    noise, times = torch.randn(1, 3, 128, 128), time_grid("logsnr", 4, bundled.alpha_bar, 2.0, 0.03)
    seen: list[int] = []
    handle = bundled.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0].numel() * 4))
    found, cost = [], []
    with torch.no_grad():
        for reduce in (0.0, DigConfig().reduce):
            measured = measure(sources, [noise], times, bundled, DigConfig(reduce=reduce), estimates=False)
            maps = [fusion_weight(gain, DigConfig().temperature) for gain in measured.gains]
            weights = [resample(at_time(maps, measured.times, int(t), bundled.alpha_bar), 128, 128) for t in times]
            found.append(torch.stack(weights)[:, 0, 0].flatten())
            cost.append(sum(seen))
            seen.clear()
    handle.remove()
    assert cost[1] < cost[0] / 15
    assert float(torch.corrcoef(torch.stack(found))[0, 1]) > 0.7


@pytest.mark.parametrize("side", [255, 256, 257])
def test_smaller_images_have_the_noise_of_their_level(gaussian: GaussianDenoiser, monkeypatch, side: int) -> None:
    """Also where the factor does not divide their side."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    outputs = GaussianDenoiser.outputs
    monkeypatch.setattr(GaussianDenoiser, "outputs", lambda self, x, t: seen.append((x, t)) or outputs(self, x, t))
    noise = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(1))
    reconstruct(torch.zeros(1, 2, 1, side, side), noise, torch.tensor([900]), gaussian, reduce=0.1)
    ((x_t, t),) = seen
    assert x_t.shape[-1] == -(-side // 4) and 0 < int(t[0]) < 900
    level = float(x_t.std()) / float(amplitudes(gaussian.alpha_bar, t[:1], noise)[1])
    assert level == pytest.approx(1.0, abs=0.05)


def test_static_weights_run_no_network(gaussian: GaussianDenoiser, monkeypatch) -> None:
    monkeypatch.setattr(GaussianDenoiser, "outputs", lambda *_: pytest.fail("network was run"))
    sources = torch.rand(1, 4, 1, 8, 8)
    config = DigConfig(kind="static")
    measured = measure(sources, [torch.randn(1, 1, 8, 8)], torch.tensor([5, 2]), gaussian, config, estimates=False)
    assert all((fusion_weight(maps) == 0.25).all() for maps in measured.gains) and measured.estimates is None


def test_more_draws_average_gains(gaussian: GaussianDenoiser) -> None:
    sources, times = torch.rand(1, 2, 1, 64, 64) - 0.5, torch.tensor([700, 200])
    config = DigConfig(kind="residual", smoothing=0.0, smoothing_noise=0.0, normalise="none")
    noises = [torch.randn(1, 1, 64, 64) for _ in range(8)]
    one, many = (measure(sources, noise, times, gaussian, config) for noise in (noises[:1], noises))
    assert all(a.var() < b.var() for a, b in zip(many.gains, one.gains, strict=True))


def test_lookup_gives_what_was_measured_and_is_linear_between(gaussian: GaussianDenoiser, signal) -> None:
    """Whatever the resolution of the maps; beyond the ends the nearest counts."""
    times = torch.tensor([900, 400, 100])
    maps = [torch.rand(2, 2, 1, side, side) for side in (1, 4, 8)]

    def found(t: int) -> torch.Tensor:
        return resample(at_time(maps, times, t, signal), 8, 8)

    for i, t in enumerate(times.tolist()):
        torch.testing.assert_close(found(t), resample(maps[i], 8, 8))
    torch.testing.assert_close(found(999), resample(maps[0], 8, 8))
    torch.testing.assert_close(found(10), maps[2])
    level = noise_level(signal).log()
    share = float((level[900] - level[600]) / (level[900] - level[400]))
    expected = resample(maps[0], 8, 8).lerp(resample(maps[1], 8, 8), share)
    torch.testing.assert_close(found(600), expected, rtol=1e-4, atol=1e-4)


def test_early_gains_are_smoothed_more(gaussian: GaussianDenoiser) -> None:
    """The radius grows with the noise level of the step, by ``smoothing_noise`` pixels per unit."""
    sources, times = torch.rand(1, 2, 1, 64, 64) - 0.5, torch.tensor([600, 100])
    options = {"kind": "residual", "normalise": "none", "smoothing": 0.0}
    sharp, wide = (
        measure(
            sources, [torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))], times, gaussian, config
        )
        for config in (DigConfig(**options, smoothing_noise=0.0), DigConfig(**options, smoothing_noise=3.0))
    )
    level = noise_level(gaussian.alpha_bar)[times].tolist()
    for i in range(2):
        coarse = coarseness(3.0 * level[i])
        torch.testing.assert_close(wide.gains[i], smooth(downsample(sharp.gains[i], coarse), 3.0 * level[i] / coarse))


def test_cost_is_the_gain_whatever_the_weights(gaussian: GaussianDenoiser) -> None:
    sources, noise, times = torch.rand(2, 2, 1, 16, 16), torch.randn(2, 1, 16, 16), torch.tensor([900, 300, 20])
    costs = [
        measure(sources, [noise], times, gaussian, DigConfig(kind=kind, reduce=0.0), cost=True).cost
        for kind in ("gain", "residual")
    ]
    torch.testing.assert_close(costs[0], costs[1])
    assert costs[0] is not None
    estimates = reconstruct(sources, noise, times, gaussian)
    expected = information_gain(estimates[1], estimates[2], sources).abs().mean()
    torch.testing.assert_close(costs[0][1], expected)


def test_gains_on_coarse_grids_come_from_images_of_an_eighth(bundled: Denoiser) -> None:
    """Shares of the sources differ about as much from those of images of a quarter as these from noise to noise."""
    sources = 2 * crop_of("infrared_visible", 0, 0, 256, "visible", "infrared") - 1
    first, second = torch.randn(2, 1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    times = time_grid("logsnr", 4, bundled.alpha_bar, 1.0, 0.125)
    seen: list[int] = []
    handle = bundled.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0].numel() * 4))
    config = DigConfig(kind="residual", loss="l1", normalise="none", smoothing=1.0, smoothing_noise=16.0)

    def shares(noise: torch.Tensor, estimates: bool) -> list[torch.Tensor]:
        with torch.no_grad():
            found = measure(sources, [noise], times, bundled, config, estimates)
        return [gain[:, 0] / gain.sum(1) for gain in found.gains]

    eighth, quarter, other = shares(first, False), shares(first, True), shares(second, True)
    handle.remove()
    assert seen == [2 * 2 * 64**2, 2 * 2 * 32**2, *[4 * 2 * 64**2] * 2]  # two of four times, at sigma 0.5 and above
    for a, b, c in zip(eighth, quarter, other, strict=True):
        assert a.shape == b.shape and (a - b).abs().mean() < 1.25 * (c - b).abs().mean()


def test_estimates_that_are_compared_are_equally_sharp(bundled: Denoiser) -> None:
    """A gain or a change between two times, and the cost of a step, must not show a difference of resolution."""
    sources = 2 * crop_of("infrared_visible", 0, 0, 256, "visible", "infrared") - 1
    times = time_grid("logsnr", 4, bundled.alpha_bar, 1.0, 0.125)
    seen: list[int] = []
    handle = bundled.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0].numel() * 4))
    for kind, cost in (("gain", False), ("change", False), ("residual", True)):
        with torch.no_grad():
            measure(sources, [torch.randn(1, 3, 256, 256)], times, bundled, DigConfig(kind=kind), False, cost)
    handle.remove()
    assert seen == [4 * 2 * 64**2] * 3


@pytest.mark.parametrize("times", [[800, 300, 20], [800]])
def test_the_total_gain_is_the_variance_removed(
    gaussian: GaussianDenoiser, signal: torch.Tensor, times: list[int], monkeypatch
) -> None:
    """Whatever the loss of the gains; of one time, all that is left there."""
    monkeypatch.setattr("dig2dig.fusion.gain.draw_noise", lambda shape, given, like: like.new_zeros(len(given), *shape))
    sources, config = torch.rand(2, 3, 1, 8, 8) * 2 - 1, DigConfig(loss="l1", share=1.0, reduce=0.0)
    total = measure(sources, [torch.zeros(2, 1, 8, 8)], torch.tensor(times), gaussian, config).total
    a = at(signal, torch.tensor([times[0], times[-1]]), sources).flatten()
    left = ((1 - a) / (a * 0.25 + 1 - a)).square()
    removed = left[0] - left[1] if len(times) > 1 else left[0]
    torch.testing.assert_close(total, removed * sources.var((-2, -1), correction=0).mean(2), rtol=1e-3, atol=1e-6)
    valid = torch.zeros(2, 3, 1, 8, 8, dtype=torch.bool)
    valid[:, :2, :, 2:, :5] = True
    settings = [torch.zeros(2, 1, 8, 8)], torch.tensor(times), gaussian, config
    seen, crop = measure(sources, *settings, valid=valid).total, sources[:, :2, :, 2:, :5]
    assert seen is not None and not seen[:, 2].any()  # pixels without data do not count
    torch.testing.assert_close(seen[:, :2], removed * crop.var((-2, -1), correction=0).mean(2), rtol=1e-3, atol=1e-6)


def test_the_total_gain_of_an_image_is_the_same_in_a_batch(bundled: Denoiser) -> None:
    both = 2 * torch.cat([crop_of("multi_focus", 0, top, 64, "far", "near") for top in (0, 64)]) - 1
    times, config = time_grid("logsnr", 4, bundled.alpha_bar, 8.0, 0.03), DigConfig(loss="l1", share=1.0)
    draw = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        batch, *single = (
            measure(one, [draw.expand(len(one), -1, -1, -1)], times, bundled, config, estimates=False).total
            for one in (both, both[:1], both[1:])
        )
    torch.testing.assert_close(batch, torch.cat(single), rtol=1e-3, atol=1e-6)


def test_noise_is_no_gain(bundled: Denoiser) -> None:
    """What no level predicts, the noise of a sensor, leaves the total gain; so does its removal."""
    clean = 2 * crop_of("multi_focus", 0, 0, 128, "far", "near") - 1
    draw, fresh = (torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    times, config = time_grid("logsnr", 4, bundled.alpha_bar, 8.0, 0.03), DigConfig(loss="l1", share=1.0)

    def ratio(sources: torch.Tensor, **changes) -> float:
        with torch.no_grad():
            found = measure(sources, [draw], times, bundled, replace(config, **changes), estimates=False)
        return float(found.total[0, 0] / found.total[0, 1]) if found.total is not None else torch.nan

    noisy = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(2)) * 2 * 5 / 255
    strong = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(3)) * 2 * 25 / 255
    with torch.no_grad():
        cleaned = denoise(strong, torch.full((1, 2), 25 / 255), bundled, fresh)
    assert ratio(noisy) == pytest.approx(ratio(clean), rel=0.01)
    assert ratio(cleaned) == pytest.approx(ratio(clean), rel=0.03)
