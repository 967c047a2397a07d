from pathlib import Path

import pytest
import torch
from torch import nn

from dig2dig.config import PriorConfig
from dig2dig.priors.build import offload
from dig2dig.priors.denoiser import Denoiser, Layout, pick_device
from dig2dig.priors.load import open_prior
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


@pytest.mark.parametrize(("cuda", "mps", "found"), [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_one_device_is_picked_for_all(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: int, found: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert pick_device() == pick_device("gpu") == torch.device(found)
    assert pick_device("cpu") == torch.device("cpu") and pick_device("cuda:1") == torch.device("cuda", 1)


def test_offloaded_weights_travel_layer_by_layer(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks are set once, on the device that is known last, and whoever moves the denoiser moves no weight."""
    set_on: list[torch.device] = []
    kept = lambda unet, device, *_, **__: set_on.append(device)  # noqa: E731
    monkeypatch.setattr("diffusers.hooks.group_offloading.apply_group_offloading", kept)
    denoiser, meta = open_prior(PriorConfig(str(tiny), offload=True)), torch.device("meta")
    assert denoiser.device == torch.device("cpu") and not set_on
    for _ in "12":  # as in a validation after a prediction
        offload(denoiser.to(meta), meta)
    assert set_on == [meta] and denoiser.device == denoiser.in_windows(64).device == meta
    assert {weight.device for weight in denoiser.to(meta).parameters()} == {torch.device("cpu")}
