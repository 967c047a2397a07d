"""What a run leaves in the dashboards, read back with their own readers."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import infer
import train
from datamodules.pairing import Pair
from dig2dig.config import InferConfig, LoggerConfig, WandbConfig
from dig2dig.inference import state
from dig2dig.inference.run import make_trainer
from dig2dig.inference.writer import FusionWriter
from dig2dig.modules.prior import NOISE_BANDS
from dig2dig.priors.loss import VALIDATION_SIGMAS
from dig2dig.tracking.loggers import close, log_scalars, make_loggers
from tests.conftest import EXAMPLES, ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore::DeprecationWarning")
PAIR = [f"sources.{name}={EXAMPLES / 'infrared_visible' / name}" for name in ("visible", "infrared")]
DIG = {
    "dig/entropy",
    *(f"dig/{kind}/{name}" for kind in ("weight_mean", "gain_mean", "covariance") for name in ("visible", "infrared")),
}
FUSION = {f"fusion/{name}" for name in ("EN", "SD", "SF", "SCD", "VIF", "Qabf", "SSIM", "Nabf")}


def read_wandb(folder: Path) -> list[dict]:
    """The history of an offline run, as ``wandb leet inspect`` reads it."""
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = []
    for line in filter(None, printed.splitlines()):
        record = json.loads(line)
        if record["type"] == "history":
            rows.append(record["history"]["item"])
    return rows


def names(rows: list[dict]) -> set[str]:
    """What was logged; pictures and histograms are dictionaries, flattened as NAME.FIELD."""
    return {key.removesuffix("._type") for row in rows for key in row}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small training with every logger."""
    out = tmp_path_factory.mktemp("logged") / "run"
    places = [f"data.root={EXAMPLES}", f"data.val={EXAMPLES / 'multi_focus' / 'truth'}", f"out={out}"]
    more = [f"fusion.{pair}" for pair in PAIR] + ["logger.tensorboard=true", "trainer.accelerator=cpu"]
    assert train.main([str(ROOT / "configs/smoke.yaml"), *places, *more]) == 0
    return out


def test_wandb_has_losses_psnr_fusions_and_gains(run: Path) -> None:
    rows = read_wandb(run)
    keys = names(rows)
    expected = FUSION | DIG | {"train/loss", "lr-AdamW", "train/steps_per_sec"}
    expected |= {f"val/psnr_{sigma}" for sigma in VALIDATION_SIGMAS}
    expected |= {f"final/psnr_{sigma}" for sigma in VALIDATION_SIGMAS}
    expected |= {f"{kind}/00036N" for kind in ("panel", "maps", "curves")}
    expected |= {f"gain/00036N/{name}" for name in ("visible", "infrared")}
    assert expected <= keys
    assert keys & {f"train/loss_sigma_{band}" for band in NOISE_BANDS}
    for kind in ("panel", "maps", "curves"):
        key = f"{kind}/00036N"
        images = [row for row in rows if f"{key}._type" in row]
        assert len(images) == 3  # before training, and each ten steps
        for row in images:
            assert row[f"{key}._type"] == "images/separated" and row[f"{key}.width"] > 100
            (folder,) = run.glob("wandb/offline-run-*/files")
            assert all((folder / name).is_file() for name in row[f"{key}.filenames"])
    key = "gain/00036N/visible"
    histogram = next(row for row in rows if f"{key}._type" in row)
    assert histogram[f"{key}._type"] == "histogram" and sum(histogram[f"{key}.values"]) == 4 * 64 * 64


def test_csv_and_tensorboard_have_the_same_numbers(run: Path) -> None:
    with (run / "log" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    for name in ("val/psnr_25", "fusion/Qabf", "dig/covariance/infrared"):
        written = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert len(written) >= 2
        for event in events.Scalars(name):
            assert written[event.step] == pytest.approx(event.value, rel=1e-5)
    scored = [event.step for event in events.Scalars("fusion/Qabf")]  # pictures at later steps go when a run resumes
    assert [event.step for event in events.Images("panel/00036N")] == scored
    assert [event.step for event in events.Histograms("gain/00036N/visible")] == scored
    assert {"panel/00036N", "maps/00036N", "curves/00036N"} <= set(events.Tags()["images"])
    assert "gain/00036N/visible" in events.Tags()["histograms"]
    assert (run / "fusion" / "step000020" / "00036N_panel.png").is_file()


def test_inference_shows_the_same(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", ModuleType("openai"))  # W&B would advertise what traces its calls
    more = ["logger.wandb.mode=offline", "logger.csv=true", "logger.pairs=1"]
    config = [str(ROOT / "configs/ivf.yaml"), "trainer.accelerator=cpu", "batch_size=1"]
    small = tmp_path / "small"
    for source in PAIR:
        name, _, folder = source.removeprefix("sources.").partition("=")
        shrink(Path(folder) / "00036N.png", small / name / "00036N.png")
    pairs = [f"sources.{name}={small / name}" for name in ("visible", "infrared")]
    assert infer.main([*config, *pairs, *more, f"out={tmp_path / 'out'}"]) == 0
    printed = "".join(capfd.readouterr())
    assert "1/1" in printed and "anonymous" not in printed and "wandb" not in printed
    keys = names(read_wandb(tmp_path / "out"))
    assert FUSION | DIG | {"panel/00036N", "maps/00036N", "curves/00036N"} <= keys
    assert (tmp_path / "out" / "panels" / "00036N_panel.png").is_file()


def shrink(source: Path, target: Path) -> None:
    import cv2

    image = cv2.imread(str(source))
    assert image is not None
    target.parent.mkdir(parents=True)
    cv2.imwrite(str(target), image[200:264, 300:364])


def test_a_resumed_log_replaces_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    config = LoggerConfig(WandbConfig("disabled"))
    loggers = make_loggers(config, tmp_path, {})
    for step in range(5):
        log_scalars(loggers, {"loss": float(step)}, step)
    loggers[0].save()
    again = make_loggers(config, tmp_path, {}, start=3)
    log_scalars(again, {"loss": 30.0, "new": 1.0}, 3)
    again[0].save()
    close(again)
    with (tmp_path / "log" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [0, 1, 2, 30]
    assert [row["new"] for row in rows] == ["", "", "", "1.0"]


def test_a_resumed_run_keeps_its_wandb_id(tmp_path: Path) -> None:
    config = LoggerConfig(csv=False)
    first, second = (make_loggers(config, tmp_path, {}, start)[0] for start in (0, 7))
    assert first.version == second.version == (tmp_path / "wandb_id").read_text()
    assert make_loggers(config, tmp_path / "other", {})[0].version != first.version


def test_a_run_looks_once_for_the_panels_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each pair: 2000 pairs, of which half were done, took half a minute."""
    asked: list[str] = []
    monkeypatch.setattr(state, "is_file", lambda path: bool(asked.append(path.name)))
    pairs = [Pair(f"p{i}", {"a": tmp_path / f"{i}.png", "b": tmp_path / f"{i}.jpg"}) for i in range(20)]
    config = InferConfig(sources={"a": "a", "b": "b"}, logger=LoggerConfig(WandbConfig("disabled")), out=str(tmp_path))
    run = state.Run(tmp_path, config, {}, pairs, pairs[10:], {pair.name: {} for pair in pairs[:10]})
    nothing = dict.fromkeys(("start", "write", "conclude"), lambda *_: None)
    report = SimpleNamespace(names=(), estimates=(), side=1, written=(), **nothing)
    make_trainer(run, report, FusionWriter(tmp_path))
    assert 0 < len(asked) <= 3 * 10
