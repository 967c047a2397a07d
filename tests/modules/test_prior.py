"""PriorModule's losses, bands and validation against numbers, and what its checkpoints hold."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from datamodules.image_data import ImageDataModule
from datamodules.pairs import Sample
from dig2dig.cli import from_dict
from dig2dig.config import DigConfig, FusionConfig, GuidanceConfig, SamplerConfig, TrainerConfig
from dig2dig.config_train import AdaptConfig, FusionCheckConfig, ImageDataConfig, OptimConfig, TrainConfig
from dig2dig.modules.fusion import FusionModule
from dig2dig.modules.prior import NOISE_BANDS, PriorModule, choose_weights
from dig2dig.priors.adm import ADM_256
from dig2dig.priors.build import SCHEDULE, as_denoiser, build_prior, new_unet
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.files import weights_files
from dig2dig.tracking.trainer import build_trainer
from tests.conftest import ROOT
from tests.corpus import picture
from tests.counter import draws_by_hand
from tests.gaussian import GaussianDenoiser
from tests.pictures import random_sources

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:You defined a `validation_step` but have no",
    "ignore:Found keys that are in the model state dict",  # what an adaptation leaves frozen
)
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
LEVEL = np.sqrt((1 - ALPHA_BAR) / ALPHA_BAR)
SAMPLER = SamplerConfig(steps=3, dig=DigConfig(smoothing=1.0), guidance=GuidanceConfig("blend", 0.3))


def nearest(sigma: float) -> int:
    return int(np.abs(np.log(LEVEL) - math.log(sigma)).argmin())


def module_with(denoiser: Denoiser, seed: int = 0, **optim: Any) -> tuple[PriorModule, dict[str, float]]:
    """A module, and where its logged numbers go."""
    config = TrainConfig(data=ImageDataConfig(root="x"), optim=OptimConfig(**optim), seed=seed)
    module, logged = PriorModule(config, denoiser), dict[str, float]()
    module.log = lambda name, value, **_: logged.update({name: float(value)})  # pyright: ignore
    return module, logged


def by_hand(images: torch.Tensor, index: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Times, and losses of the Gaussian denoiser, which predicts the image, at sigma 0.02 to 10."""
    times, losses = [], []
    for image, i in zip(images, index, strict=True):
        (position, choice), noise = draws_by_hand(seed, i, image.shape)
        t = int(position * 1000) if choice < 0.1 else nearest(0.02 * 500**position)
        x0, a = 2 * image.double() - 1, ALPHA_BAR[t]
        x_t = math.sqrt(a) * x0 + math.sqrt(1 - a) * noise
        estimate = 0.1 + math.sqrt(a) * 0.25 / (a * 0.25 + 1 - a) * (x_t - math.sqrt(a) * 0.1)
        times.append(t)
        losses.append(float((estimate - x0).square().mean()))
    return np.array(times), np.array(losses)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("weighting", ["none", "min_snr"])
def test_a_training_step_is_the_weighted_mean_of_losses(gaussian: GaussianDenoiser, seed: int, weighting) -> None:
    """For a network that predicts the image, min-SNR multiplies each loss by min(SNR, gamma)."""
    module, logged = module_with(gaussian, seed, weighting=weighting, gamma=3.0)
    images, index = random_sources(1, 12, 1, 8, 8), list(range(20, 32))
    found = module.training_step({"image": images, "index": torch.tensor(index)}, 0)
    times, losses = by_hand(images, index, seed)
    snr = ALPHA_BAR[times] / (1 - ALPHA_BAR[times])
    weights = np.minimum(snr, 3.0) if weighting == "min_snr" else 1.0
    assert float(found) == pytest.approx(float((weights * losses).mean()), rel=1e-4)
    assert logged["train/loss"] == pytest.approx(float(found))


def test_bands_have_the_losses_of_their_noise_levels(gaussian: GaussianDenoiser) -> None:
    """Unweighted, by name; a second batch joins the running mean."""
    assert {
        "0-0.1": (0.0, 0.1), "0.1-0.3": (0.1, 0.3), "0.3-1": (0.3, 1.0), "1-3": (1.0, 3.0), "3-inf": (3.0, math.inf),
    } == NOISE_BANDS  # fmt: skip
    module, logged = module_with(gaussian, 2, weighting="min_snr")
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in NOISE_BANDS}
    for first in (0, 24):
        images, index = random_sources(first, 24, 1, 8, 8), list(range(first, first + 24))
        logged.clear()
        module.config.logger.every = 1 if first else 50  # the first batch is read with the next one
        module.training_step({"image": images, "index": torch.tensor(index)}, 0)
        times, losses = by_hand(images, index, 2)
        for name, (low, high) in NOISE_BANDS.items():
            share = 1.0 if first else 0.98
            seen[name] += [(share, one) for one in losses[(LEVEL[times] >= low) & (LEVEL[times] < high)]]
    assert set(logged) == {"train/loss", *(f"train/loss_sigma_{name}" for name in seen if seen[name])}
    for name, rows in seen.items():
        share, loss = np.array(rows).T
        assert logged[f"train/loss_sigma_{name}"] == pytest.approx((share * loss).sum() / share.sum(), rel=1e-3)
    alone, logged = module_with(gaussian, 2, sigma_min=0.5, sigma_max=0.5)  # all but a tenth in one band
    index = [i for i in range(40) if draws_by_hand(2, i, (1,))[0][1] > 0.1][:4]
    alone.config.logger.every = 1
    alone.training_step({"image": random_sources(3, 4, 1, 8, 8), "index": torch.tensor(index)}, 0)
    assert set(logged) == {"train/loss", "train/loss_sigma_0.3-1"}
    assert logged["train/loss"] == pytest.approx(logged["train/loss_sigma_0.3-1"])


def sample(name: str, seed: int) -> Sample:
    return Sample(name, ("visible", "infrared"), random_sources(seed, 2, 1, 44, 44), None)


def test_validation_fuses_pairs_with_the_step_of_the_fusion_module(gaussian: GaussianDenoiser) -> None:
    """The same pictures, scores and traces, with the sampler of ``fusion`` and the training's seed."""
    config = TrainConfig(data=ImageDataConfig(root="x"), fusion=FusionCheckConfig(sampler=SAMPLER), seed=7)
    module, other = PriorModule(config, gaussian), FusionModule(FusionConfig(sampler=SAMPLER, seed=7), gaussian)
    for name, seed in (("a", 1), ("b", 2)):
        ours, theirs = (one.validation_step([sample(name, seed)], 0)["results"][0] for one in (module, other))  # pyright: ignore
        assert ours.fused is not None and torch.equal(ours.fused, theirs.fused) and ours.seed == theirs.seed
        assert len(ours.trace) == len(theirs.trace) == 3 and all(step.x0_hat is not None for step in ours.trace)
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours.trace, theirs.trace, strict=True))
    assert module.scores.means() == other.scores.means() != {}


def trainer(**options: Any) -> Trainer:
    return build_trainer(TrainerConfig("cpu", "1"), logger=False, enable_checkpointing=False, **options)


def test_validation_logs_psnr_of_images_and_means_of_pairs(tmp_path: Path, tiny: Path) -> None:
    """Five images in batches of four and one count alike."""
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture(i, 3))
    data = ImageDataConfig(val=str(tmp_path), val_crop=16, workers=0)
    optim, fusion = OptimConfig(steps=1), FusionCheckConfig(sampler=SAMPLER)
    config = TrainConfig(data=data, optim=optim, fusion=fusion, prior=str(tiny), validate=True, seed=7)
    module, samples = PriorModule(config), [sample("a", 1), sample("b", 2)]
    images = ImageDataModule(data, 7, 1, samples=samples)
    found = trainer().validate(module, images, verbose=False)
    logged = {name: value for part in found for name, value in part.items()}
    assert images.val is not None
    crops, t = [images.val[i] for i in range(5)], nearest(2 * 50 / 255)
    psnr = []
    for crop in crops:
        x0, a = 2 * crop["image"][None] - 1, float(ALPHA_BAR[t])
        noise = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(crop["index"]))[None]
        with torch.no_grad():
            estimate = module.denoiser(a**0.5 * x0 + (1 - a) ** 0.5 * noise, torch.tensor([t])).clamp(-1, 1)
        psnr.append(-10 * math.log10(float((estimate - x0).square().mean()) / 4))
    assert logged["val/psnr_50"] == pytest.approx(sum(psnr) / 5, rel=1e-4)
    other = FusionModule(FusionConfig(sampler=SAMPLER, seed=7), module.denoiser)
    for one in samples:
        other.validation_step([one])
    for name, value in other.scores.means().items():
        assert logged[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def trained(config: TrainConfig, path: Path) -> PriorModule:
    """Two steps on noise, and a checkpoint."""
    module = PriorModule(config)
    items = [{"image": random_sources(i, 3, 16, 16), "index": i} for i in range(4)]
    running = trainer(max_steps=2)
    running.fit(module, DataLoader(items, 2))  # pyright: ignore[reportArgumentType]
    running.save_checkpoint(path)
    return module.eval()


@pytest.mark.parametrize("mode", ["full", "lora", "last"])
def test_a_module_comes_back_from_its_checkpoint_and_estimates_the_same(mode, tiny: Path, tmp_path: Path) -> None:
    optim = OptimConfig(steps=2, lr=0.05, warmup=0)
    config = TrainConfig(
        data=ImageDataConfig(root="x"), optim=optim, adapt=AdaptConfig(mode, 2, 4.0), prior=str(tiny), seed=3
    )
    module = trained(config, tmp_path / "prior.ckpt")
    checkpoint = torch.load(tmp_path / "prior.ckpt", map_location="cpu", weights_only=True)
    assert from_dict(TrainConfig, checkpoint["hyper_parameters"]["config"]) == config
    assert checkpoint["hyper_parameters"]["config"]["optim"]["lr"] == 0.05 and checkpoint["processes"] == 1
    learning = {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert checkpoint["state_dict"].keys() == learning
    assert all("lora_" in name for name in learning) == (mode == "lora")
    again = PriorModule.load_from_checkpoint(tmp_path / "prior.ckpt", map_location="cpu").eval()
    assert again.config == config
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([300])
    with torch.no_grad():
        before, after, untrained = (one.denoiser(x, t) for one in (module, again, PriorModule(config).eval()))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    assert float((before - untrained).abs().max()) > 1e-3


def test_a_new_network_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    """From scratch: shape and prediction are those of the configuration."""
    config = TrainConfig(data=ImageDataConfig(root="x"), optim=OptimConfig(steps=2, lr=0.05, warmup=0))
    config.network.channels, config.network.prediction = [32], "sample"
    module = trained(config, tmp_path / "prior.ckpt")
    again = PriorModule.load_from_checkpoint(tmp_path / "prior.ckpt", map_location="cpu").eval()
    assert again.denoiser.prediction == "sample" and again.denoiser.patch == 2
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([300])
    with torch.no_grad():
        torch.testing.assert_close(again.denoiser(x, t), module.denoiser(x, t), rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_training_step_on_cuda_is_that_on_the_cpu(precision) -> None:
    torch.manual_seed(0)
    denoiser = build_prior([32], 1, 2)
    module, logged = module_with(denoiser)
    images, index = random_sources(1, 4, 3, 16, 16), torch.arange(4)
    here = float(module.training_step({"image": images, "index": index}, 0).detach())
    module.cuda().bands = 0.0  # those of the first step lie on the CPU: a run stays on one device
    with torch.autocast("cuda", torch.bfloat16, enabled=precision != "32-true"):
        loss = module.training_step({"image": images.cuda(), "index": index.cuda()}, 0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(here, rel=1e-3 if precision == "32-true" else 0.05)
    assert all(weight.grad is not None and weight.grad.is_cuda for weight in denoiser.parameters())
    assert module.bands.is_cuda and logged.keys() == {"train/loss"}


@pytest.mark.huge
def test_a_compiled_network_learns_the_same_under_the_same_names(tmp_path: Path) -> None:
    """In processes of their own: the checks of shapes in tests cannot be compiled."""
    photos = ROOT / "examples" / "multi_focus" / "truth"
    command = [sys.executable, "-m", "dig2dig", "train", "configs/prior.yaml", f"data.root={photos}", "data.crop=32"]
    command += ["network.channels=[32,32]", "optim.steps=2", "data.batch_size=2", "logger.wandb.mode=disabled"]
    found = []
    for option in ("false", "true"):
        out = tmp_path / option
        subprocess.run([*command, f"compile={option}", f"out={out}"], cwd=ROOT, check=True)
        found.append(load_file(weights_files(out / "prior")[0]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_features_that_are_computed_again_give_the_same_gradients_and_take_less_memory(mode, tiny: Path) -> None:
    """In a network with residual blocks and attention; the loss is the same."""
    small = ADM_256 | {"block_out_channels": (32,) * 6, "attention_head_dim": 32, "layers_per_block": 1}
    torch.manual_seed(0)
    state = new_unet(small).state_dict()
    found = []
    for again in (False, True):
        torch.manual_seed(1)
        denoiser = as_denoiser(new_unet(small), SCHEDULE)
        denoiser.network.unet.load_state_dict(state)
        adapt = AdaptConfig(mode, 2, 4.0)
        config = TrainConfig(data=ImageDataConfig(root="x"), adapt=adapt, prior=str(tiny), recompute=again)
        module = PriorModule(config, choose_weights(denoiser, adapt))
        module.log = lambda *_, **__: None  # pyright: ignore
        held = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += tensor.nbytes
            return tensor

        batch = {"image": random_sources(0, 2, 3, 64, 64), "index": torch.arange(2)}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = module.training_step(batch, 0)
        loss.backward()
        learn = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        assert all(weight.grad is not None for weight in learn.values())
        found.append((loss.detach(), held, {name: weight.grad for name, weight in learn.items()}))
    (loss, whole, gradients), (other, less, others) = found
    assert torch.equal(loss, other) and less < whole / 3 and gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, msg=name)
