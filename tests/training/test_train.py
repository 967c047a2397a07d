import csv
import os
import re
import signal as signals
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from lightning import LightningModule, Trainer
from safetensors.torch import load_file

import infer
import train
from datamodules.image_data import StepSampler
from dig2dig.atomic import lock
from dig2dig.cli import read_record
from dig2dig.config_train import AdaptConfig, ImageDataConfig, TrainConfig
from dig2dig.modules.prior import PriorModule, choose_weights
from dig2dig.priors.build import build_prior
from dig2dig.priors.files import weights_files
from dig2dig.priors.load import load_prior
from dig2dig.priors.lora import adapter_file
from dig2dig.priors.loss import denoising_psnr
from dig2dig.training.checkpoints import WeightAverage
from tests.conftest import EXAMPLES, ROOT
from tests.corpus import picture
from tests.gaussian import GaussianDenoiser

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:Checkpoint directory", "ignore:.*smaller than the logging interval"
)
SMALL = [
    "network.channels=[32]",
    "data.crop=16",
    "data.val_crop=32",
    "data.batch_size=2",
    "data.workers=0",
    "trainer.accelerator=cpu",
    "logger.wandb.mode=disabled",
]
STEPS = ["optim.steps=10", "optim.warmup=2", "optim.ema=0.5", "val_every=100", "save_every=1"]


def arguments(out: Path, *more: str) -> list[str]:
    data = [f"data.root={EXAMPLES}", f"data.val={EXAMPLES / 'multi_focus' / 'truth'}", "val_every=2", "save_every=1"]
    return [str(ROOT / "configs/prior.yaml"), *SMALL, *data, f"out={out}", *more]


def fit(out: Path, *more: str) -> dict[str, torch.Tensor]:
    assert train.main(arguments(out, *more)) == 0
    return load_file(weights_files(out / "prior")[0])


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-6)


def alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> None:
    """Equal up to what Adam makes of rounding: a hundredth of the way that the weights went."""

    def distance(other: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([(ours[name] - other[name]).flatten() for name in ours]).norm()

    assert distance(theirs) < 0.02 * distance(start)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights before the first step."""
    return fit(tmp_path_factory.mktemp("start") / "run", "optim.steps=1", "optim.lr=0.0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of ten uninterrupted steps."""
    return fit(tmp_path_factory.mktemp("whole") / "run", *STEPS)


def test_psnr_of_a_denoiser_that_does_nothing(signal: torch.Tensor) -> None:
    wide = GaussianDenoiser(0.0, 1e3, signal)  # a prior so wide that the estimate is the noisy image
    images = torch.full((1, 1, 200, 200), 0.5)
    psnr = denoising_psnr(wide, images, torch.randn_like(images), 25.0)
    assert float(psnr) == pytest.approx(20.17, abs=0.2)  # 20 log10(255 / 25)


def repeat_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    each = StepSampler.__iter__
    monkeypatch.setattr(StepSampler, "__iter__", lambda self: (index % self.batch_size for index in each(self)))


def test_overfits_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repeat_the_first_batch(monkeypatch)
    fit(tmp_path, "optim.steps=80", "optim.lr=3e-3", "optim.warmup=1", "logger.every=1")
    with (tmp_path / "log" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 80 and losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("mode", ["full", "lora", "last"])
def test_each_mode_lets_its_weights_learn(mode: str) -> None:
    denoiser = choose_weights(load_prior(), AdaptConfig(mode=mode, rank=2))  # pyright: ignore[reportArgumentType]
    learning = {name for name, weight in denoiser.named_parameters() if weight.requires_grad}
    count = len(list(denoiser.parameters()))
    if mode == "full":
        assert len(learning) == count
    elif mode == "lora":
        assert 0 < len(learning) < count and all("lora_" in name for name in learning)
    else:
        parts = ("up_blocks.2.", "conv_norm_out.", "conv_out.")
        assert learning and all(any(part in name for part in parts) for name in learning)


def test_average_follows_the_weights_and_forgets_the_first_ones_soon() -> None:
    class Clock(Trainer):
        global_step = 0  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

        def __init__(self) -> None:
            pass

    module, trainer, average = LightningModule(), Clock(), WeightAverage(0.9)
    module.weight = torch.nn.Parameter(torch.zeros(1))
    average.on_train_start(trainer, module)
    expected = 0.0
    for step in range(1, 200):
        trainer.global_step = step  # pyright: ignore[reportAttributeAccessIssue]
        torch.nn.init.constant_(module.weight, float(step))
        for _ in range(2):  # a batch that only accumulates changes nothing
            average.on_train_batch_end(trainer, module, None, None, 0)
        decay = min(0.9, step / (9 + step)) if step > 1 else 0.0  # after step - 1 averaged ones
        expected = decay * expected + (1 - decay) * step
    (kept,) = average.average
    assert float(kept) == pytest.approx(expected)
    average.on_validation_start(trainer, module)
    assert module.weight.item() == pytest.approx(expected) and float(kept) == 199
    average.on_validation_end(trainer, module)
    assert module.weight.item() == 199 and float(kept) == pytest.approx(expected)


class Cut(Exception):
    pass


def fit_until(cut_at: int, out: Path, *more: str) -> None:
    """A training that breaks off in the batch after so many steps."""
    original = PriorModule.training_step

    def cut(self: PriorModule, batch: dict, index: int) -> torch.Tensor:
        if self.trainer.global_step == cut_at:
            raise Cut
        return original(self, batch, index)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(PriorModule, "training_step", cut)
        fit(out, *more)


@pytest.mark.parametrize("cut_at", [2, 6])
def test_an_interrupted_training_ends_where_an_unbroken_one_does(
    cut_at: int, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Stopped early or late, the same command again ends with the same weights; then the prior is usable."""
    fit_until(cut_at, tmp_path, *STEPS)
    parts = fit(tmp_path, *STEPS)
    same(whole, parts)
    again = fit(tmp_path, *STEPS)  # a finished run, repeated, keeps the averaged weights
    assert all(torch.equal(again[name], parts[name]) for name in parts)
    assert load_prior(tmp_path / "prior").patch == 2


@pytest.mark.slow
def test_accumulation_goes_on_exactly_when_interrupted_twice(tmp_path: Path) -> None:
    more = [*STEPS, "data.batch_size=1", "optim.accumulate=2", "save_every=2"]
    unbroken = fit(tmp_path / "unbroken", *more)
    fit_until(4, tmp_path / "parts", *more)
    fit_until(5, tmp_path / "parts", *more)
    same(unbroken, fit(tmp_path / "parts", *more))


@pytest.mark.slow
def test_a_killed_training_goes_on_with_its_logs(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """SIGKILL in mid-epoch, a half-written checkpoint left behind: the same command ends with the same weights."""
    command = [sys.executable, "train.py", *arguments(tmp_path, *STEPS, "logger.wandb.mode=offline", "logger.every=1")]
    log, last = tmp_path / "log" / "metrics.csv", tmp_path / "checkpoints" / "last.ckpt"
    # W&B's service of this process would outlive the killed one and hold its run
    alone = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_SERVICE")}
    running = subprocess.Popen(command, cwd=ROOT, env=alone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not last.is_file() and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.01)
    os.kill(running.pid, signals.SIGKILL)
    assert running.wait() == -signals.SIGKILL
    reached = int(torch.load(last, weights_only=True)["global_step"])
    assert 1 <= reached < 10
    (last.parent / ".last.ckpt.part").write_bytes(last.read_bytes()[:1000])
    again = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-3000:]
    same(whole, load_file(weights_files(tmp_path / "prior")[0]))
    name = (tmp_path / "wandb_id").read_text()
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert folders and all(folder.name.endswith(name) for folder in folders)
    with log.open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == sorted(set(steps)) and steps[-1] == 9 and len(steps) >= 10 - 1


@pytest.mark.slow
def test_two_processes_train_like_one(
    whole: dict[str, torch.Tensor], start: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    more = ["data.batch_size=1", "trainer.devices=2", "trainer.strategy=ddp"]
    command = [sys.executable, "train.py", *arguments(tmp_path, *STEPS, *more)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    alike(whole, load_file(weights_files(tmp_path / "prior")[0]), start)


@pytest.mark.slow
def test_two_processes_log_and_validate_like_one(tmp_path: Path) -> None:
    """Three images, and one pair that the second process has no share of: each is measured once, none waits for ever.

    Numbers of the first step are the same, because the weights still are: losses are means over both processes.
    """
    for i in range(3):
        (tmp_path / "val").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "val" / f"{i}.png"), picture(i, 3))
    pair = [f"fusion.sources.{side}={EXAMPLES / 'infrared_visible' / side}" for side in ("visible", "infrared")]
    more = ["fusion.crop=48", "fusion.sampler.steps=2", "logger.pairs=1", "logger.every=1", "optim.steps=2"]
    more += [f"data.val={tmp_path / 'val'}", "data.workers=1", *pair]
    rows = {}
    for name, size, devices in (("one", 4, []), ("two", 2, ["trainer.devices=2", "trainer.strategy=ddp"])):
        command = [sys.executable, "train.py", *arguments(tmp_path / name, *STEPS, *more), "val_every=1"]
        command += [f"data.batch_size={size}", *devices]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "sync_dist" not in done.stderr and "Warning" not in done.stderr
        with (tmp_path / name / "log" / "metrics.csv").open() as file:
            table = list(csv.DictReader(file))
        rows[name] = {key: float(next(row[key] for row in table if row[key])) for key in table[0] if key != "step"}
        assert len(list((tmp_path / name / "fusion").rglob("*_panel.png"))) == 3
    for key in ("train/steps_per_sec", "epoch"):
        assert rows["one"].pop(key) is not None and rows["two"].pop(key) is not None
    assert rows["one"].keys() == rows["two"].keys()
    assert {"val/psnr_25", "fusion/VIF", "train/loss", "final/psnr_25"} <= rows["one"].keys()
    for name, value in rows["one"].items():
        loose = name.startswith("final/")  # the second step's weights differ by rounding
        assert rows["two"][name] == pytest.approx(value, rel=1e-2 if loose else 1e-4, abs=1e-6), name


@pytest.mark.slow
def test_accumulated_batches_are_one_large_batch(
    whole: dict[str, torch.Tensor], start: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    alike(whole, fit(tmp_path / "same", *STEPS, "data.batch_size=1", "optim.accumulate=2"), start)
    with pytest.raises(AssertionError):  # other crops are another way
        alike(whole, fit(tmp_path / "other", *STEPS, "data.grey=0.9"), start)


def test_the_logged_loss_of_a_step_is_that_of_all_its_batches(tmp_path: Path) -> None:
    losses = []
    for size, batches in ((2, 1), (1, 2)):
        out = tmp_path / str(size)
        fit(out, *STEPS, "optim.steps=1", f"data.batch_size={size}", f"optim.accumulate={batches}")
        with (out / "log" / "metrics.csv").open() as file:
            losses += [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_a_prior_is_adapted_and_used(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """LoRA: a small checkpoint, an adapter with a card, and an infer.py that uses it."""
    more = ["prior=bundled", "adapt.mode=lora", "adapt.rank=2", "optim.steps=2", "optim.lr=1e-2", "optim.warmup=1"]
    assert train.main(arguments(tmp_path, *more)) == 0
    assert (tmp_path / "checkpoints" / "last.ckpt").stat().st_size < 2**21
    assert adapter_file(str(tmp_path / "adapter")).stat().st_size < 2**19
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "rank 2" in card and re.search(r"\| before \| \d\d\.\d\d", card) and "11 images" in card
    for seed, side in enumerate(("visible", "infrared")):
        cv2.imwrite(str(tmp_path / f"{side}.png"), picture(seed))
    pair = [f"sources.{side}={tmp_path / f'{side}.png'}" for side in ("visible", "infrared")]
    adapter = f"prior.adapter={tmp_path / 'adapter'}"
    for out, prior in (("plain", []), ("adapted", [adapter])):
        assert infer.main([*pair, *prior, "sampler.steps=2", f"out={tmp_path / out}", "trainer.accelerator=cpu"]) == 0
    assert len(read_record(tmp_path / "adapted" / "run.yaml")["adapter_sha256"]) == 64
    capfd.readouterr()


def test_training_starts_from_a_prior_and_validation_measures_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    more = [f"data.val={EXAMPLES / 'multi_focus' / 'truth'}", "data.val_crop=64", f"out={tmp_path / 'none'}"]
    pairs = [f"fusion.sources.{name}={EXAMPLES / 'infrared_visible' / name}" for name in ("visible", "infrared")]
    fusion = [*pairs, "fusion.crop=48", "fusion.sampler.steps=2", "logger.pairs=1"]
    assert train.main(["validate=true", "prior=bundled", "trainer.accelerator=cpu", *more, *fusion]) == 0
    printed = capsys.readouterr().out
    assert float(re.search(r"psnr_25 +(\S+)", printed)[1]) > 25  # pyright: ignore[reportOptionalSubscript]
    assert "fusion/Qabf" in printed and "dig/weight_mean/infrared" in printed
    assert not (tmp_path / "none").exists()
    still = fit(tmp_path / "still", "prior=bundled", "optim.steps=1", "optim.lr=0.0")
    for name, tensor in load_file(weights_files()[0]).items():
        torch.testing.assert_close(still[name], tensor.float())


def test_half_precision_clips_and_steps_with_one_kernel(tmp_path: Path) -> None:
    """The mixed precision of a GPU, on the CPU; weights stay in float32."""
    weights = fit(tmp_path, "precision=bf16-mixed", "optim.steps=2", "optim.clip=0.5", "optim.warmup=1")
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights.values())
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]
    assert state["param_groups"][0]["fused"] and state["state"][0]["exp_avg"].dtype == torch.float32


def test_training_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fit(tmp_path / "run", "optim.steps=1")
    (tmp_path / "foreign" / "checkpoints").mkdir(parents=True)
    (tmp_path / "foreign" / "checkpoints" / "last.ckpt").write_bytes(b"PK cut")
    capsys.readouterr()
    base = [f"data.root={EXAMPLES}", *SMALL]
    for more, line in (
        ([f"data.root={tmp_path / 'none'}"], "none: no such folder"),
        ([f"prior={tmp_path}"], "no such file; a prior is"),
        ([f"out={tmp_path / 'foreign'}"], "holds checkpoints/, which no run of dig2dig wrote"),
        (["data.val_share=0.999"], "all are held out"),
        (["trainer.strategy=nonsense"], "nonsense"),
        (["data.crop=15"], "data.crop=15: this network takes multiples of 2"),
        (arguments(tmp_path / "run", "optim.steps=1", "optim.lr=1.0"), "other options (optim.lr was 0.0008, now 1.0)"),
    ):
        assert train.main([*base, f"out={tmp_path / 'out'}", *more]) == 2
        printed = capsys.readouterr().err.strip()
        assert printed.startswith("error: ") and line in printed and "\n" not in printed


@pytest.mark.parametrize("good", [0, 4])
def test_held_out_images_that_cannot_be_read_stop_no_export(good: int, tmp_path: Path) -> None:
    """The only one, and one that is a batch of its own."""
    for i in range(good):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture(i, 3))
    (tmp_path / "z.png").write_bytes(b"cut")
    fit(tmp_path / "run", f"data.val={tmp_path}", "optim.steps=2")
    assert ("| after |" in (tmp_path / "run" / "prior" / "README.md").read_text()) == bool(good)


def test_two_trainings_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with lock(tmp_path / "run"):
        assert train.main(arguments(tmp_path / "run", "optim.steps=1")) == 2
    assert "another run is at work there" in capsys.readouterr().err
    assert not (tmp_path / "run" / "prior").exists()


def test_noise_of_a_sample_depends_on_its_index_and_the_seed_alone() -> None:
    torch.manual_seed(0)
    config = TrainConfig(data=ImageDataConfig(root="x"))
    module = PriorModule(config, build_prior([32], 1, 2))
    other = PriorModule(replace(config, seed=1), module.denoiser)
    module.log = other.log = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    image, index = torch.rand(2, 3, 8, 8), torch.tensor([4, 9])
    with torch.no_grad():
        both = module.training_step({"image": image, "index": index}, 0)
        each = [module.training_step({"image": image[i : i + 1], "index": index[i : i + 1]}, 0) for i in range(2)]
        assert float(other.training_step({"image": image, "index": index}, 0)) != pytest.approx(float(both), rel=1e-3)
    assert float(both) == pytest.approx(float(sum(each)) / 2, rel=1e-5)
