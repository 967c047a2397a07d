"""A training against one that is computed by hand: loss, clipping, AdamW, rate, average, validation, export."""

import csv
import math
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lightning import LightningModule
from safetensors.torch import load_file
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from torch.optim.optimizer import register_optimizer_step_post_hook

from datamodules.image_data import ImageDataModule, StepSampler, hold_out
from datamodules.transforms import training_crops
from dig2dig.config import LoggerConfig, TrainerConfig, WandbConfig
from dig2dig.config_train import AdaptConfig, ImageDataConfig, OptimConfig, TrainConfig
from dig2dig.errors import RunError
from dig2dig.modules.prior import PriorModule, choose_weights
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.files import weights_files
from dig2dig.priors.load import load_prior
from dig2dig.training.card import Facts, model_card
from dig2dig.training.checkpoints import WeightAverage, finish
from dig2dig.training.prior import device_of
from dig2dig.training.run import train
from tests.corpus import picture
from tests.counter import draws_by_hand

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:Checkpoint directory", "ignore:.*smaller than the logging interval"
)
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
LEVEL = np.sqrt((1 - ALPHA_BAR) / ALPHA_BAR)
CLIP = 1e-6  # gradients of one weight are then of the size of AdamW's epsilon: steps follow them, not their sign only
RATES = (0.5, 1.0, 1.0, 0.505)  # two steps of warm-up; in the middle of the cosine 0.01 + 0.99 / 2


def nearest(sigma: float) -> int:
    return int(np.abs(np.log(LEVEL) - math.log(sigma)).argmin())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> TrainConfig:
    folder = tmp_path_factory.mktemp("numbers")
    for part, seeds in (("train", range(4)), ("val", range(4, 6))):
        (folder / part).mkdir()
        for seed in seeds:
            cv2.imwrite(str(folder / part / f"{seed}.png"), picture(seed, 3))
    data = ImageDataConfig(
        root=str(folder / "train"), val=str(folder / "val"), crop=16, val_crop=16, scales=[1.0], batch_size=3, workers=0
    )
    optim = OptimConfig(
        steps=4, lr=0.02, warmup=2, weight_decay=2.0, clip=CLIP, ema=0.27, sigma_min=0.1, sigma_max=5.0,
        weighting="min_snr", gamma=2.0,
    )  # fmt: skip
    logger = LoggerConfig(WandbConfig("disabled"), every=1)
    return TrainConfig(
        data=data, optim=optim, trainer=TrainerConfig("cpu", "1"), logger=logger, out=str(folder / "run"),
        prior=str(tiny), val_every=2, save_every=3, seed=3,
    )  # fmt: skip


def loss_by_hand(denoiser: Denoiser, batch: list[dict], seed: int) -> torch.Tensor:
    """Weighted loss of a network on 2×2 patches that predicts v."""
    losses = []
    for item in batch:
        x0 = 2 * item["image"][None] - 1
        (position, choice), noise = draws_by_hand(seed, item["index"], x0.shape)
        t = int(position * 1000) if choice < 0.1 else nearest(0.1 * 50**position)
        a = float(ALPHA_BAR[t])
        noise = noise.float()
        x_t = a**0.5 * x0 + (1 - a) ** 0.5 * noise
        v = pixel_shuffle(denoiser.network(pixel_unshuffle(x_t, 2), torch.tensor([t])), 2)
        snr = a / (1 - a)
        losses.append(min(snr, 2.0) / (snr + 1) * (v - (a**0.5 * noise - (1 - a) ** 0.5 * x0)).square().mean())
    return sum(losses, torch.zeros(())) / len(batch)


def psnr_by_hand(denoiser: Denoiser, items: list[dict], weights: dict[str, torch.Tensor], sigma: float) -> float:
    """Mean over images in dB with other weights, which are taken back."""
    kept = {name: weight.detach().clone() for name, weight in denoiser.named_parameters()}
    t, found = nearest(2 * sigma / 255), []
    a = float(ALPHA_BAR[t])
    with torch.no_grad():
        for name, weight in denoiser.named_parameters():
            weight.copy_(weights[name])
        for item in items:
            x0 = 2 * item["image"][None] - 1
            noise = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(item["index"]))[None]
            x_t = a**0.5 * x0 + (1 - a) ** 0.5 * noise
            v = pixel_shuffle(denoiser.network(pixel_unshuffle(x_t, 2), torch.tensor([t])), 2)
            estimate = (a**0.5 * x_t - (1 - a) ** 0.5 * v).clamp(-1, 1)
            found.append(-10 * math.log10(float(((estimate - x0) / 2).square().mean())))
        for name, weight in denoiser.named_parameters():
            weight.copy_(kept[name])
    return sum(found) / len(found)


class ByHand:
    """Four steps of AdamW with betas 0.9 and 0.99 on clipped gradients, and the average of the weights."""

    def __init__(self, config: TrainConfig) -> None:
        data = ImageDataModule(config.data, config.seed, 4)
        data.setup("fit")
        assert data.train is not None and data.val is not None
        denoiser = load_prior(config.prior, precision="fp32").requires_grad_(True)
        weights = dict(denoiser.named_parameters())
        first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.psnr: list[dict[str, float]] = []
        self.average: dict[str, torch.Tensor] = {}
        o = config.optim
        held = [data.val[i] for i in range(2)]
        for step in range(4):
            loss = loss_by_hand(denoiser, [data.train[3 * step + i] for i in range(3)], config.seed)
            gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
            norm = float(torch.cat([g.flatten() for g in gradients.values()]).double().norm())
            self.losses.append(loss.item())
            self.norms.append(norm)
            for name, weight in weights.items():
                g = gradients[name] * CLIP / norm
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.99 * second[name] + 0.01 * g**2
                m, v = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.99 ** (step + 1))
                rate = o.lr * RATES[step]
                with torch.no_grad():
                    weight.copy_(weight * (1 - rate * o.weight_decay) - rate * m / (v.sqrt() + 1e-8))
                decay = (0.0, 2 / 11, 3 / 12, 0.27)[step]  # (1 + n) / (10 + n), at most 0.27: 4 / 13 is more
                self.average[name] = decay * self.average.get(name, 0) + (1 - decay) * weight.detach()
            if step % 2:
                names = {"psnr_25": 25.0, "psnr_100": 100.0}
                self.psnr.append({n: psnr_by_hand(denoiser, held, self.average, s) for n, s in names.items()})
        self.raw = {name: weight.detach() for name, weight in weights.items()}
        self.raw_psnr = psnr_by_hand(denoiser, held, self.raw, 25.0)


@pytest.fixture(scope="module")
def by_hand(config: TrainConfig) -> ByHand:
    return ByHand(config)


@pytest.fixture(scope="module")
def seen(config: TrainConfig) -> tuple[list[float], list[int]]:
    """Runs the training; at each step of the optimiser the gradient's norm, and the step of the last checkpoint."""
    found: list[float] = []
    stored: list[int] = []
    last = Path(config.out) / "checkpoints" / "last.ckpt"

    def see(optimizer: torch.optim.Optimizer, *_: object) -> None:
        used = [w.grad.flatten() for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
        found.append(float(torch.cat(used).double().norm()))
        stored.append(torch.load(last, weights_only=True)["global_step"] if last.is_file() else 0)

    handle = register_optimizer_step_post_hook(see)
    try:
        assert train(config) == 0
    finally:
        handle.remove()
    return found, stored


@pytest.fixture(scope="module")
def norms(seen: tuple[list[float], list[int]]) -> list[float]:
    return seen[0]


def test_checkpoints_are_written_every_so_many_steps_before_validations_and_in_the_end(config, seen) -> None:
    assert seen[1] == [0, 0, 2, 3]
    assert torch.load(Path(config.out) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def logged(config: TrainConfig, name: str) -> list[float]:
    with (Path(config.out) / "log" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm())


def test_an_exported_prior_is_the_average_of_weights_trained_by_hand(config, norms, by_hand: ByHand) -> None:
    exported = load_file(weights_files(Path(config.out) / "prior")[0])
    ours = {name.removeprefix("network.unet."): weight for name, weight in by_hand.average.items()}
    raw = {name.removeprefix("network.unet."): weight for name, weight in by_hand.raw.items()}
    assert exported.keys() == ours.keys()
    assert distance(ours, exported) < 1e-3 * distance(raw, exported)
    for name, weight in ours.items():
        torch.testing.assert_close(exported[name], weight, rtol=1e-4, atol=2e-5)
    trained = torch.load(Path(config.out) / "checkpoints" / "last.ckpt", weights_only=True)
    kept = {name.removeprefix("denoiser."): weight for name, weight in trained["state_dict"].items()}
    assert kept.keys() == by_hand.raw.keys() and distance(kept, by_hand.raw) < 1e-3 * distance(raw, exported)


def test_each_step_uses_a_clipped_gradient(norms: list[float], by_hand: ByHand) -> None:
    assert min(by_hand.norms) > 100 * CLIP
    assert norms == pytest.approx([CLIP] * 4, rel=1e-3)


def test_losses_and_rates_are_logged_as_they_are(config, norms, by_hand: ByHand) -> None:
    assert logged(config, "train/loss") == pytest.approx(by_hand.losses, rel=1e-4)
    assert logged(config, "lr-AdamW") == pytest.approx([0.02 * rate for rate in RATES], rel=1e-6)


def test_validation_measures_the_average_and_so_does_the_end(config, norms, by_hand: ByHand) -> None:
    for name in ("psnr_25", "psnr_100"):
        assert logged(config, f"val/{name}") == pytest.approx([row[name] for row in by_hand.psnr], abs=2e-3)
        assert logged(config, f"final/{name}") == pytest.approx([by_hand.psnr[-1][name]], abs=2e-3)
    assert abs(by_hand.psnr[-1]["psnr_25"] - by_hand.raw_psnr) > 0.01  # the weights themselves are told apart
    card = (Path(config.out) / "prior" / "README.md").read_text()
    assert f"| after | {logged(config, 'final/psnr_15')[0]:.2f} |" in card and "4 images of" in card


def scheduled(**options) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimiser of a module, and its rates in 30 steps."""
    module = LightningModule()
    module.weight = torch.nn.Parameter(torch.ones(1))
    module.config = TrainConfig(data=ImageDataConfig(root="x"), optim=OptimConfig(**options))  # pyright: ignore
    module.rates = partial(PriorModule.rates, module)  # pyright: ignore[reportArgumentType]
    made = PriorModule.configure_optimizers(module)  # pyright: ignore[reportArgumentType]
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return optimizer, rates


def test_the_rate_warms_up_and_falls_to_a_hundredth() -> None:
    """Steps 0, 3, 4, then the quarters of a cosine over 16 steps, and what comes after the last step."""
    _, rates = scheduled(lr=2.0, warmup=4, steps=20)
    half = 0.5**0.5 / 2
    cosine = [0.01 + 0.99 * share for share in (1, 0.5 + half, 0.5, 0.5 - half, 0)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert [rates[i] for i in (4, 8, 12, 16, 20)] == pytest.approx([2 * share for share in cosine])
    assert rates[20] == pytest.approx(0.02) and rates[29] == pytest.approx(0.02)
    assert scheduled(lr=2.0, warmup=0, steps=20)[1][0] == pytest.approx(2.0)


def test_the_optimiser_has_the_options_of_the_configuration() -> None:
    optimizer, _ = scheduled(lr=0.1, weight_decay=0.3)
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW) and group["weight_decay"] == 0.3
    assert group["betas"] == (0.9, 0.99) and group["initial_lr"] == 0.1


def test_an_average_is_taken_in_the_order_of_the_weights_and_a_run_without_one_ends_with_the_weights() -> None:
    module = torch.nn.ParameterDict({"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)})
    module["b"].requires_grad_(False)
    state = {"a": torch.tensor([1.0]), "c": torch.tensor([3.0])}
    finish(module, {"state_dict": state, "callbacks": {}})
    assert [module[name].item() for name in "abc"] == [1, 0, 3]
    average = {"n_averaged": 5, "module.0": torch.tensor([10.0]), "module.1": torch.tensor([30.0])}
    finish(module, {"state_dict": state, "callbacks": {WeightAverage.__qualname__: average}})
    assert [module[name].item() for name in "abc"] == [10, 0, 30]
    with pytest.raises(RunError, match="another network or mode"):
        finish(module, {"state_dict": {"a": state["a"]}, "callbacks": {}})


def test_samples_are_shared_batch_by_batch() -> None:
    """Two processes, batches of two: each global batch of four is split; a run goes on where it stood."""
    assert list(StepSampler(0, 8, 2, 0, 2)) == [0, 1, 4, 5] and list(StepSampler(0, 8, 2, 1, 2)) == [2, 3, 6, 7]
    assert list(StepSampler(4, 8, 2, 1, 2)) == [6, 7] and len(StepSampler(4, 8, 2, 1, 2)) == 4


def test_images_are_held_out_by_their_stems() -> None:
    """By the CRC-32 of seed and stem over 2^32; the least is held out at any share above 0."""
    place = {stem: zlib.crc32(f"7/{stem}".encode()) / 2**32 for stem in "abcd"}
    paths = [Path(f"{folder}/{stem}.png") for folder in "xy" for stem in "abcd"]
    ranked = sorted(place, key=place.__getitem__)
    for share, count in ((0.0, 0), (1e-9, 1), ((place[ranked[1]] + place[ranked[2]]) / 2, 2)):
        left, held = hold_out(paths, share, 7)
        assert {path.stem for path in held} == set(ranked[:count]) and len(held) == 2 * count
        assert sorted(left + held) == sorted(paths)


def test_a_share_of_the_crops_is_grey() -> None:
    """None, all, or three in ten; a crop at twice the size is the mean over 2 × 2 pixels."""
    pixels = picture(1, 3)
    for share, low, high in ((0.0, 0, 0), (1.0, 60, 60), (0.3, 8, 30)):
        crops = training_crops(8, [1.0], share)
        crops.set_random_seed(5)
        made = [crops(image=pixels)["image"] for _ in range(60)]
        assert low <= sum(bool((crop == crop[..., :1]).all()) for crop in made) <= high
    halved = training_crops(12, [2.0], 0.0)(image=np.full((24, 24, 3), 200, np.uint8))["image"]
    assert halved.shape == (12, 12, 3) and halved.std() == 0


def test_the_card_tells_the_run(config: TrainConfig, tiny: Path) -> None:
    lora = AdaptConfig("lora", 2, 6.0)
    data, optim = replace(config.data, licence="CC0"), OptimConfig(steps=7, accumulate=5, clip=0.0, ema=0.0)
    other = TrainConfig(data=data, optim=optim, adapt=lora, prior="p", out="a/b")
    facts = Facts(11, 2, 4, {"before": {"psnr_25": 20.0}, "after": {"psnr_25": 21.456}})
    denoiser = load_prior(tiny)
    parameters = f"{sum(weight.numel() for weight in denoiser.parameters()):,} parameters"
    card = model_card(other, choose_weights(denoiser, lora), facts)
    for text in (
        "# b\n", "7 of 60 crops of 16 px", "rank 2, alpha 6", "prior.path=p prior.adapter=a/b/adapter",
        "| before | 20.00 |\n| after | 21.46 |", "on 2 held-out images", "10% uniform in time", "| weighting | none |",
        "predicts v |", "2×2 patches, 3 image channel(s)", "| CC0 |", "no EMA; not clipped |", parameters,
    ):  # fmt: skip
        assert text in card
    merged = TrainConfig(data=config.data, prior="p", adapter="q")
    assert "adapted from `p` with the adapter `q`." in model_card(merged, load_prior(tiny), facts)


@pytest.mark.parametrize(
    ("devices", "rank", "place"), [("auto", 0, "cuda:0"), ("1", 0, "cuda:0"), ("2,", 0, "cuda:2"), ("1,3", 1, "cuda:3")]
)
@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_a_run_measures_where_it_trains(config: TrainConfig, devices, rank, place, monkeypatch) -> None:
    """On a machine whose four cards are made up: the device of this process, and not the first card."""
    from lightning.fabric.accelerators import cuda
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 0)  # taken back in the end
    monkeypatch.setattr(cuda, "_get_all_visible_cuda_devices", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(cuda, "num_cuda_devices", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    strategy = "auto" if devices in ("1", "2,") else "ddp"
    assert device_of(replace(config, trainer=TrainerConfig("gpu", devices, 1, strategy))) == torch.device(place)
    assert device_of(replace(config, trainer=TrainerConfig("cpu", "2", 1, "ddp"))) == torch.device("cpu")


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_2", "model_parallel"])
def test_strategies_that_share_out_the_weights_are_refused(config: TrainConfig, strategy: str) -> None:
    with pytest.raises(ValueError, match=f"trainer.strategy={strategy}: exports need whole weights; take ddp"):
        replace(config, trainer=TrainerConfig(strategy=strategy))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_one_training_step_on_cuda(config: TrainConfig, tiny: Path, tmp_path: Path, precision) -> None:
    """The loss of the first batch is that by hand on the CPU, and the prior is exported."""
    out = tmp_path / "run"
    optim = replace(config.optim, steps=1)
    changed = replace(config, out=str(out), optim=optim, trainer=TrainerConfig("gpu", "1"), precision=precision)
    assert train(changed) == 0
    data = ImageDataModule(config.data, config.seed, 1)
    data.setup("fit")
    assert data.train is not None
    expected = float(loss_by_hand(load_prior(tiny, precision="fp32"), [data.train[i] for i in range(3)], config.seed))
    assert logged(changed, "train/loss") == pytest.approx([expected], rel=5e-3 if precision == "32-true" else 0.1)
    assert load_file(weights_files(out / "prior")[0]).keys() == load_file(weights_files(tiny)[0]).keys()
