import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dig2dig.config import DigConfig
from dig2dig.denoiser import Denoiser, GaussianDenoiser
from dig2dig.dig import (
    fusion_weight,
    information_gain,
    measure,
    normalise,
    pixel_loss,
    reconstruct,
    resample,
    scoped,
    to_channels,
)
from dig2dig.filters import smooth
from dig2dig.schedule import add_noise, at, noise_level, time_grid

from .test_sampler import crop_of


@given(st.integers(0, 100), st.integers(2, 5), st.floats(0.01, 10))
def test_weights_sum_to_one_and_follow_the_order_of_sources(seed: int, k: int, temperature: float) -> None:
    gain = torch.randn(2, k, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    weight = fusion_weight(gain, temperature)
    torch.testing.assert_close(weight.sum(1), torch.ones(2, 1, 5, 5))
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(fusion_weight(gain[:, order], temperature), weight[:, order])


def test_a_small_temperature_picks_the_larger_gain() -> None:
    gain = torch.tensor([0.1, 0.2]).view(1, 2, 1, 1, 1)
    assert fusion_weight(gain, 1e-3)[0, 1] == pytest.approx(1)
    assert fusion_weight(gain, 1e3)[0, 1] == pytest.approx(0.5, abs=1e-3)


def test_gain_of_the_gaussian_denoiser_in_closed_form(gaussian: GaussianDenoiser, signal: torch.Tensor) -> None:
    """Without noise the estimate is linear in the source, so its loss is known at each time."""
    sources, times = torch.rand(1, 2, 1, 8, 8) * 2 - 1, torch.tensor([800, 300, 20])
    estimates = reconstruct(sources, torch.zeros(1, 1, 8, 8), times, gaussian)
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
    estimates = reconstruct(sources, torch.randn(2, 1, 8, 8), torch.tensor([900, 500, 100]), gaussian)
    gains = [information_gain(estimates[i], estimates[i + 1], sources, "gain", "l1") for i in range(3)]
    torch.testing.assert_close(torch.stack(gains).sum(0), pixel_loss(estimates[0], sources, "l1"), rtol=1e-4, atol=1e-5)


def test_reconstruct_shares_noise_and_agrees_with_single_calls(gaussian: GaussianDenoiser, monkeypatch) -> None:
    sources, noise, times = torch.rand(2, 3, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.tensor([600, 50])
    monkeypatch.setattr("dig2dig.dig.PIXELS_PER_CALL", 16 * 5)  # calls that cut across sources and times
    estimates = reconstruct(sources, noise, times, gaussian)
    for i, t in enumerate(times):
        for k in range(3):
            batch = t.expand(2)
            single = gaussian(add_noise(sources[:, k], noise, batch, gaussian.alpha_bar), batch)
            torch.testing.assert_close(estimates[i, :, k], single)


def test_estimates_from_smaller_images_are_near_those_of_whole_ones(bundled: Denoiser) -> None:
    """Measured where the noise is strong; weak noise takes the whole image either way."""
    sources = 2 * crop_of("infrared_visible", 150, 200, 128, "visible", "infrared") - 1
    noise, times = torch.randn(1, 3, 128, 128), time_grid("logsnr", 5, bundled.alpha_bar, 4.0, 0.05)
    seen: list[int] = []
    handle = bundled.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0].numel() * 4))
    with torch.no_grad():
        whole, small = (reconstruct(sources, noise, times, bundled, reduce) for reduce in (0.0, 0.15))
    handle.remove()
    assert sum(seen[1:]) < 0.6 * seen[0]
    mean = sources.mean((-2, -1), keepdim=True)
    for a, b in zip(whole[:-1], small[:-1], strict=True):
        assert float((a - b).square().mean()) < 0.25 * float((a - mean).square().mean())
    torch.testing.assert_close(whole[-2:], small[-2:], rtol=1e-4, atol=1e-4)


def test_scopes_average_weights_over_time_or_space() -> None:
    weights = torch.rand(4, 2, 3, 1, 5, 6)
    spatial, temporal = scoped(weights, "spatial"), scoped(weights, "temporal")
    torch.testing.assert_close(spatial[2], weights.mean(0))
    torch.testing.assert_close(temporal[..., 1, 2], weights.mean((-2, -1)))
    assert scoped(weights, "full") is weights


@pytest.mark.parametrize(("kind", "value"), [("l2", 4.0), ("l1", 2.0)])
def test_pixel_loss_of_a_constant(kind: str, value: float) -> None:
    assert (pixel_loss(torch.full((1, 3, 4, 4), 3.0), torch.ones(1, 3, 4, 4), kind) == value).all()


def test_gradient_loss_sees_slopes_only() -> None:
    ramp = torch.arange(5.0).expand(1, 1, 5, 5)
    loss = pixel_loss(ramp + 7, torch.zeros_like(ramp), "gradient")
    assert (loss[..., :-1] == 1).all() and (loss[..., -1] == 0).all()


def test_normalised_gains_have_no_unit() -> None:
    gain = torch.rand(2, 3, 1, 6, 6) + 0.1
    for kind in ("sum", "mean"):
        torch.testing.assert_close(normalise(gain * 1e-4, kind), normalise(gain, kind), rtol=1e-4, atol=1e-6)
    assert (normalise(gain, "sum").sum(1) - 1).abs().max() < 0.1
    torch.testing.assert_close(normalise(gain, "mean").mean((1, 2, 3, 4)), torch.ones(2))
    assert normalise(gain, "none") is gain


def test_nothing_gained_means_equal_weights() -> None:
    gain = torch.zeros(1, 2, 1, 4, 4)
    gain[0, 0, 0, 0, 0] = 1.0
    weight = fusion_weight(normalise(gain, "sum"), 0.1)
    assert weight[0, 0, 0, 0, 0] > 0.99
    torch.testing.assert_close(weight[..., 2:, 2:], torch.full((1, 2, 1, 2, 2), 0.5))


@pytest.mark.parametrize("sigma", [2.0, 7.0, 13.0, 40.0])
def test_smoothing_keeps_constants_and_matches_a_gaussian(sigma: float) -> None:
    torch.testing.assert_close(smooth(torch.full((1, 2, 1, 9, 3), 0.7), sigma), torch.full((1, 2, 1, 9, 3), 0.7))
    side = 2 * int(5 * sigma) + 1
    impulse = torch.zeros(1, 1, 1, side, side)
    impulse[..., side // 2, side // 2] = 1
    spread = smooth(impulse, sigma)[0, 0, 0]
    offset = torch.arange(float(side)) - side // 2
    for axis in (0, 1):
        variance = float((spread.sum(axis) * offset**2).sum() / spread.sum())
        assert variance == pytest.approx(sigma**2, rel=0.1)


def test_grey_and_colour() -> None:
    grey = torch.rand(2, 1, 3, 3)
    torch.testing.assert_close(to_channels(to_channels(grey, 3), 1), grey)
    with pytest.raises(ValueError, match="channels"):
        to_channels(torch.rand(1, 2, 3, 3), 3)


def test_static_weights_run_no_network(gaussian: GaussianDenoiser, monkeypatch) -> None:
    monkeypatch.setattr(GaussianDenoiser, "outputs", lambda *_: pytest.fail("network was run"))
    sources = torch.rand(1, 4, 1, 8, 8)
    config = DigConfig(kind="static")
    information = measure(sources, [torch.randn(1, 1, 8, 8)], torch.tensor([5, 2]), gaussian, config, estimates=False)
    assert (information.weights == 0.25).all() and information.estimates is None


def test_more_draws_average_gains(gaussian: GaussianDenoiser) -> None:
    sources, times = torch.rand(1, 2, 1, 64, 64) - 0.5, torch.tensor([700, 200])
    config = DigConfig(kind="residual", smoothing=0.0, smoothing_noise=0.0, normalise="none")
    noises = [torch.randn(1, 1, 64, 64) for _ in range(8)]
    one, many = (measure(sources, noise, times, gaussian, config) for noise in (noises[:1], noises))
    assert many.gains.var() < one.gains.var()


def test_resample_is_identity_on_its_own_grid_and_linear_between(gaussian: GaussianDenoiser, signal) -> None:
    sources = torch.rand(2, 2, 1, 8, 8)
    times = torch.tensor([900, 400, 100])
    information = measure(sources, [torch.randn(2, 1, 8, 8)], times, gaussian, DigConfig())
    assert resample(information, times[:, None].expand(-1, 2), signal) is information
    finer = resample(information, torch.tensor([900, 600, 400, 200, 100])[:, None].expand(-1, 2), signal)
    torch.testing.assert_close(finer.gains[[0, 2, 4]], information.gains)
    assert finer.estimates is not None and information.estimates is not None
    torch.testing.assert_close(finer.estimates[[0, 2, 4, 5]], information.estimates)
    low, high = torch.minimum(*information.gains[:2]), torch.maximum(*information.gains[:2])
    assert ((finer.gains[1] >= low - 1e-6) & (finer.gains[1] <= high + 1e-6)).all()
    torch.testing.assert_close(finer.weights.sum(2), torch.ones(5, 2, 1, 8, 8))


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
        torch.testing.assert_close(wide.gains[i], smooth(sharp.gains[i], 3.0 * level[i]))


def test_cost_is_the_gain_whatever_the_weights(gaussian: GaussianDenoiser) -> None:
    sources, noise, times = torch.rand(2, 2, 1, 16, 16), torch.randn(2, 1, 16, 16), torch.tensor([900, 300, 20])
    costs = [measure(sources, [noise], times, gaussian, DigConfig(kind=kind)).cost for kind in ("gain", "residual")]
    torch.testing.assert_close(costs[0], costs[1])
    estimates = reconstruct(sources, noise, times, gaussian)
    expected = information_gain(estimates[1], estimates[2], sources).abs().mean((1, 2, 3, 4))
    torch.testing.assert_close(costs[0][1], expected)
