import pytest
import torch
from torch import nn

from dig2dig.priors.denoiser import Denoiser, Layout
from dig2dig.priors.schedule import add_noise, at
from tests.gaussian import GaussianDenoiser


class Oracle(nn.Module):
    """Answers with what it was given, in the patch layout."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == self.answer.shape[1:]
        return torch.cat([self.answer, torch.full_like(self.answer, 9)], 1)  # a learned variance to be dropped


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("patch", [1, 2])
def test_every_prediction_gives_the_clean_image(prediction, patch: int, signal: torch.Tensor) -> None:
    x0, noise, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([10, 700])
    a = at(signal, t, x0)
    answer = {"epsilon": noise, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x0, "sample": x0}[prediction]
    network = Oracle(nn.functional.pixel_unshuffle(answer, patch))
    denoiser = Denoiser(network, signal, Layout(prediction, patch=patch))
    torch.testing.assert_close(denoiser(add_noise(x0, noise, t, signal), t), x0, rtol=1e-3, atol=1e-4)


def test_gaussian_denoiser_is_the_posterior_mean(signal: torch.Tensor) -> None:
    denoiser = GaussianDenoiser(0.3, 0.5, signal)
    t = torch.full((200_000,), 300)
    x0 = 0.3 + 0.5 * torch.randn(200_000, 1, 1, 1)
    x_t = add_noise(x0, torch.randn_like(x0), t, signal)
    error = denoiser(x_t, t) - x0
    # the posterior mean's error is orthogonal to every function of x_t, and has the posterior's variance
    a = float(signal[300])
    assert abs(float((error * x_t).mean())) < 3e-3
    assert float(error.var()) == pytest.approx(0.25 * (1 - a) / (0.25 * a + 1 - a), rel=0.01)


def test_gaussian_denoiser_agrees_with_azula(signal: torch.Tensor) -> None:
    from azula.denoise import GaussianDenoiser as Reference
    from azula.linalg.covariance import IsotropicCovariance

    class Discrete:
        def __call__(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            a = signal[t.long()]
            return a.sqrt(), (1 - a).sqrt()

    reference = Reference(torch.full((4,), 0.1).double(), IsotropicCovariance(torch.tensor(0.25).double()), Discrete())
    x_t = torch.randn(1, 4, 1, 1).double()
    for t in (0, 400, 999):
        expected = reference(x_t.flatten(1), torch.tensor(float(t))).mean
        ours = GaussianDenoiser(0.1, 0.5, signal)(x_t, torch.tensor([t]))
        torch.testing.assert_close(ours.flatten(1), expected, rtol=1e-6, atol=1e-7)
