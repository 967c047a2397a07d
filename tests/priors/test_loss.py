import math

import pytest
import torch
from diffusers import DDPMScheduler

from dig2dig.priors.build import SCHEDULE, as_denoiser, build_prior
from dig2dig.priors.loss import diffusion_loss, draw_times, loss_weight, variational_loss
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


def test_variational_term_is_the_divergence_of_two_gaussians(signal: torch.Tensor) -> None:
    """Against torch's own divergence, and diffusers' posterior variances."""
    t, shape = torch.tensor([1, 40, 700]), (3, 3, 6, 6)
    x0, x0_hat, noise = 2 * torch.rand(shape) - 1, 2 * torch.rand(shape) - 1, torch.randn(shape)
    share = torch.rand(shape)
    x_t = add_noise(x0, noise, t, signal)
    found = variational_loss(x0, x0_hat, x_t, 2 * share - 1, t, signal)
    scheduler = DDPMScheduler(**SCHEDULE, variance_type="fixed_small")
    for i, time in enumerate(t.tolist()):
        a, before = float(signal[time]), float(signal[time - 1])
        beta = 1 - a / before
        low = beta * (1 - before) / (1 - a)
        assert low == pytest.approx(float(scheduler._get_variance(time)), rel=5e-3)  # computed in float32 there
        means = [
            before**0.5 * beta / (1 - a) * image[i] + (1 - beta) ** 0.5 * (1 - before) / (1 - a) * x_t[i]
            for image in (x0, x0_hat)
        ]
        std = (share[i] * math.log(beta) + (1 - share[i]) * math.log(low)).exp().sqrt()
        true = torch.distributions.Normal(means[0].double(), low**0.5)
        learned = torch.distributions.Normal(means[1].double(), std.double())
        bits = torch.distributions.kl_divergence(true, learned).mean() / math.log(2) * 1000
        assert float(found[i]) == pytest.approx(float(bits), rel=1e-3, abs=3e-4)  # it is computed in float32


def test_variational_term_at_the_first_time_is_the_likelihood_of_pixels(signal: torch.Tensor) -> None:
    t = torch.tensor([0])
    x0 = torch.full((1, 1, 4, 4), 7 / 255)
    exact = variational_loss(x0, x0, add_noise(x0, torch.zeros_like(x0), t, signal), torch.zeros_like(x0), t, signal)
    wrong = variational_loss(x0, x0 + 0.1, x0, torch.zeros_like(x0), t, signal)
    assert 0 < float(exact) < float(wrong)


def test_variational_term_teaches_learned_variances_alone() -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False}
    unet = UNet2DModel(in_channels=3, out_channels=6, block_out_channels=(32,), layers_per_block=1, **kinds)
    denoiser = as_denoiser(unet, SCHEDULE)
    x0, noise, t = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([5, 500])

    def gradient(weight: float) -> torch.Tensor:
        unet.zero_grad()
        diffusion_loss(denoiser, x0, noise, t, weight).mean().backward()
        return unet.conv_out.weight.grad.clone()  # of the last layer: three rows predict, three give variances

    simple, hybrid = gradient(0.0), gradient(0.001)
    torch.testing.assert_close(simple[:3], hybrid[:3])
    assert simple[3:].abs().max() == 0 and hybrid[3:].abs().max() > 0
