import pytest
import torch

from dig2dig.priors.build import build_prior
from dig2dig.priors.loss import diffusion_loss, draw_times, loss_weight
from dig2dig.priors.schedule import add_noise, noise_level
from tests.gaussian import GaussianDenoiser


def choice(count: int, second: float) -> torch.Tensor:
    """Random positions; the second number decides whether a time is uniform in sigma (1) or in its index (0)."""
    return torch.stack([torch.rand(count), torch.full((count,), second)], 1)


def test_times_are_uniform_in_log_noise_level(signal: torch.Tensor) -> None:
    times = draw_times(choice(20000, 1.0), signal, 0.05, 5.0)
    logs = noise_level(signal)[times].log()
    assert float(logs.mean()) == pytest.approx(float(torch.tensor([0.05, 5.0]).log().mean()), abs=0.03)
    quarters = torch.histc(logs.float(), 4) / len(logs)
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), rtol=0, atol=0.02)
    assert draw_times(choice(5000, 0.0), signal, 0.05, 5.0).float().mean() == pytest.approx(500, abs=15)


def test_loss_of_the_exact_denoiser_is_the_posterior_variance(signal: torch.Tensor) -> None:
    denoiser = GaussianDenoiser(0.1, 0.5, signal)
    x0, noise, t = 0.1 + 0.5 * torch.randn(1, 1, 500, 500), torch.randn(1, 1, 500, 500), torch.tensor([250])
    a = float(signal[250])
    assert float(diffusion_loss(denoiser, x0, noise, t)) == pytest.approx(0.25 * (1 - a) / (0.25 * a + 1 - a), rel=0.02)


def test_min_snr_weights_are_one_loss_on_the_image_in_every_parametrisation(signal: torch.Tensor) -> None:
    """Whatever a network predicts, weight times loss is min(SNR, gamma) times the error of its image."""
    t = torch.tensor([3, 120, 400, 950])
    snr = signal[t] / (1 - signal[t])
    x0, noise = torch.rand(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    for prediction in ("epsilon", "v_prediction", "sample"):
        denoiser = build_prior([32], 1, 2, prediction)
        with torch.no_grad():
            error = (denoiser(add_noise(x0, noise, t, signal), t) - x0).square().mean((1, 2, 3))
            weighted = loss_weight("min_snr", 5.0, denoiser, t) * diffusion_loss(denoiser, x0, noise, t)
        torch.testing.assert_close(weighted, (snr.clamp(max=5) * error).float(), rtol=2e-3, atol=1e-6)
        assert torch.equal(loss_weight("none", 5.0, denoiser, t), torch.ones(4))
