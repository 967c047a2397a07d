from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from dig2dig.backbone import build_prior, load_prior, weights_file
from dig2dig.config_train import OptimConfig
from dig2dig.denoiser import GaussianDenoiser
from dig2dig.losses import diffusion_loss, draw_times
from dig2dig.modules import PriorModule, denoising_psnr
from dig2dig.schedule import noise_level

from .conftest import EXAMPLES, ROOT

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:Checkpoint directory", "ignore:.*smaller than the logging interval"
)
SMALL = ["network.channels=[32]", "data.crop=16", "data.batch_size=2", "data.workers=0", "accelerator=cpu"]


def fit(out: Path, *arguments: str) -> dict[str, torch.Tensor]:
    data = [
        f"data.root={EXAMPLES}",
        f"data.val={EXAMPLES / 'multi_focus' / 'truth'}",
        "val_every=2",
        "save_every=1",
    ]
    train.main([str(ROOT / "configs/prior.yaml"), *SMALL, *data, f"out={out}", *arguments])
    return load_file(weights_file(out / "prior"))


def test_times_are_uniform_in_log_noise_level(signal: torch.Tensor) -> None:
    times = draw_times(torch.rand(20000, 2), signal, 0.05, 5.0, 0.0)
    logs = noise_level(signal)[times].log()
    assert float(logs.mean()) == pytest.approx(float(torch.tensor([0.05, 5.0]).log().mean()), abs=0.03)
    quarters = torch.histc(logs.float(), 4) / len(logs)
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), rtol=0, atol=0.02)
    assert draw_times(torch.rand(5000, 2), signal, 0.05, 5.0, 1.0).float().mean() == pytest.approx(500, abs=15)


def test_loss_of_the_exact_denoiser_is_the_posterior_variance(signal: torch.Tensor) -> None:
    denoiser = GaussianDenoiser(0.1, 0.5, signal)
    x0, noise, t = 0.1 + 0.5 * torch.randn(1, 1, 500, 500), torch.randn(1, 1, 500, 500), torch.tensor([250])
    a = float(signal[250])
    assert float(diffusion_loss(denoiser, x0, noise, t)) == pytest.approx(0.25 * (1 - a) / (0.25 * a + 1 - a), rel=0.02)


def test_psnr_of_a_denoiser_that_does_nothing(signal: torch.Tensor) -> None:
    wide = GaussianDenoiser(0.0, 1e3, signal)  # a prior so wide that the estimate is the noisy image
    images = torch.full((1, 1, 200, 200), 0.5)
    psnr = denoising_psnr(wide, images, torch.randn_like(images), 25.0)
    assert float(psnr) == pytest.approx(20.17, abs=0.2)  # 20 log10(255 / 25)


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    module = PriorModule(build_prior([32], 1, 2), OptimConfig(lr=3e-3, warmup=1, steps=60))
    module.log = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = module.configure_optimizers()["optimizer"]
    batch = {"image": torch.rand(2, 3, 8, 8).expand(2, 3, 8, 8), "index": torch.tensor([0, 1])}
    losses = []
    for _ in range(60):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("cut_at", [2, 6])
def test_an_interrupted_training_ends_where_an_unbroken_one_does(cut_at: int, tmp_path: Path, monkeypatch) -> None:
    """Stopped early or late, the same command again ends with the same weights; then the prior is usable."""
    steps = ["optim.steps=10", "optim.warmup=2", "optim.ema=0.5", "val_every=100"]
    whole = fit(tmp_path / "whole", *steps)

    class Cut(Exception):
        pass

    original = PriorModule.training_step

    def cut(self: PriorModule, batch: dict, index: int) -> torch.Tensor:
        if self.trainer.global_step == cut_at:
            raise Cut
        return original(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(PriorModule, "training_step", cut)
        with pytest.raises(Cut):
            fit(tmp_path / "parts", *steps)
    parts = fit(tmp_path / "parts", *steps)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-5, atol=1e-6)
    again = fit(tmp_path / "parts", *steps)  # a finished run, repeated, keeps the averaged weights
    assert all(torch.equal(again[name], parts[name]) for name in parts)
    denoiser = load_prior(tmp_path / "parts" / "prior")
    assert denoiser(torch.zeros(1, 3, 16, 16), torch.tensor([5])).shape == (1, 3, 16, 16)


def test_training_starts_from_a_prior_and_validation_measures_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["accelerator=cpu", f"data.val={EXAMPLES / 'multi_focus' / 'truth'}"]
    assert train.main(["validate=true", "prior=bundled", *arguments, f"out={tmp_path / 'none'}"]) == 0
    assert "val/psnr_25" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    still = fit(tmp_path / "still", "prior=bundled", "optim.steps=1", "optim.lr=0.0")
    for name, tensor in load_file(weights_file()).items():
        torch.testing.assert_close(still[name], tensor)


def test_training_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, line in (
        ([f"data.root={tmp_path / 'none'}"], "none: no such folder"),
        ([f"data.root={EXAMPLES}", f"prior={tmp_path}"], "no such file; a prior is"),
    ):
        assert train.main([*arguments, f"out={tmp_path / 'out'}"]) == 2
        printed = capsys.readouterr().err.strip()
        assert printed.startswith("error: ") and line in printed and "\n" not in printed
