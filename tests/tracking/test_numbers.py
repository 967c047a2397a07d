"""Panels, histograms and counters against the numbers that they show."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from datamodules.pairs import Sample
from dig2dig.color import to_pixels
from dig2dig.fusion.plan import Snapshot
from dig2dig.modules.results import Result
from dig2dig.modules.scores import pair_scores
from dig2dig.tracking import monitor
from dig2dig.tracking.loggers import log_scalars
from dig2dig.tracking.monitor import FusionMonitor, shown, sort_log
from dig2dig.tracking.panels import fusion_panel, histogram_values, maps_panel, to_colours, to_png
from dig2dig.tracking.progress import Progress
from tests.pictures import random_sources

VIRIDIS = np.asarray(matplotlib.colormaps["viridis"].colors)  # pyright: ignore[reportAttributeAccessIssue]
HEAD, MARGIN = 18, 4


def snapshot(index: int, weight: float = 0.25, gain: float = 2.0) -> Snapshot:
    """Flat maps: the first source has these, the second what is left to one and minus the gain."""
    pairs = torch.tensor([[weight, 1 - weight], [gain, -gain]])
    weights, gains = pairs.view(2, 1, 2, 1, 1, 1).expand(-1, -1, -1, -1, 44, 44)
    image = torch.full((1, 1, 44, 44), 0.4)
    return Snapshot(index, 8, 900 - index, 1.0, image, image, gains, weights)


def result(name: str = "a", **changes: Any) -> Result:
    sources, fused = random_sources(1, 2, 1, 44, 44), random_sources(2, 1, 44, 44)
    sample = Sample(name, ("visible", "infrared"), sources, None)
    made = Result(name, sample, fused, fused, trace=[snapshot(0, 0.25, 2.0), snapshot(1, 0.75, 6.0)])
    return replace(made, **changes)


def test_pixels_are_rounded() -> None:
    assert to_pixels(torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 1.5]).view(1, 2, 2)).ravel().tolist() == [0, 0, 1, 255]


def test_colours_run_through_viridis_as_rgb() -> None:
    made = to_colours(torch.tensor([[-9.0, 2.0, 3.0, 4.0, 9.0]]), 2.0, 4.0)
    np.testing.assert_allclose(made[0], VIRIDIS[[0, 0, 128, 255, 255]] * 255, rtol=0, atol=2)
    flat = to_colours(torch.tensor([[2.0]]), 2.0, 2.0)
    np.testing.assert_allclose(flat[0, 0], VIRIDIS[0] * 255, rtol=0, atol=2)


def test_a_panel_shows_the_sources_in_their_order_and_then_the_picture() -> None:
    sources, fused = random_sources(3, 2, 1, 6, 10), random_sources(4, 3, 6, 10)
    panel = fusion_panel(sources, fused, ("visible", "infrared"))
    assert panel.shape == (HEAD + 6 + MARGIN, 3 * (10 + MARGIN), 3)
    for i, image in enumerate((sources[0].expand(3, -1, -1), sources[1].expand(3, -1, -1), fused)):
        tile = panel[HEAD : HEAD + 6, i * 14 : i * 14 + 10]
        assert np.abs(tile / 255.0 - image.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    assert (panel[:, 10:14] == 255).all() and (panel[HEAD + 6 :] == 255).all()


def test_maps_are_rows_of_weight_and_gain_for_each_source() -> None:
    """Weights from 0 to 1, gains from the least to the largest of the step; the first step and the last are shown."""
    trace = [snapshot(i, weight=0.1 * i, gain=1.0) for i in range(8)]
    panel = maps_panel(trace, ("visible", "infrared"), columns=3, side=22)
    height, width = HEAD + 22 + MARGIN, 22 + MARGIN
    assert panel.shape == (4 * height, 3 * width, 3)
    weights = (0.0, 0.4, 0.7)  # of steps 0, 4 (3.5 is rounded to even) and 7
    rows = (weights, (1.0, 1.0, 1.0), tuple(1 - weight for weight in weights), (0.0, 0.0, 0.0))
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            tile = panel[i * height + HEAD : i * height + HEAD + 22, j * width : j * width + 22]
            expected = VIRIDIS[round(255 * value)] * 255
            np.testing.assert_allclose(tile, np.broadcast_to(expected, tile.shape), rtol=0, atol=3)


def test_histograms_hold_the_gains_of_one_source_over_steps() -> None:
    values = histogram_values([snapshot(0, gain=2.0), snapshot(1, gain=6.0)], 1)
    assert values.shape == (2 * 44 * 44,) and sorted(set(values.tolist())) == [-6, -2]


def test_a_png_holds_its_pixels() -> None:
    for pixels in (np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.arange(4, dtype=np.uint8).reshape(2, 2, 1)):
        read = cv2.imdecode(np.frombuffer(to_png(pixels), np.uint8), cv2.IMREAD_UNCHANGED)
        assert read is not None
        assert (read.reshape(pixels.shape) == (pixels[..., ::-1] if pixels.shape[2] == 3 else pixels)).all()


class Log(DummyLogger):
    """A logger that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:  # pyright: ignore
        self.kept.append((values, step))


class Still(Trainer):
    """A trainer that only stands somewhere."""

    is_global_zero, world_size, global_step, loggers, progress_bar_metrics = True, 1, 0, [], {}  # pyright: ignore

    def __init__(self, **state: Any) -> None:
        self.__dict__ |= state


MODULE = LightningModule()


def test_scalars_go_to_every_logger_with_their_step() -> None:
    loggers = [Log(), Log()]
    log_scalars(loggers, {"a": 1.0}, 7)
    assert all(log.kept == [({"a": 1.0}, 7)] for log in loggers)


@pytest.fixture
def steps_shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Names, folders and steps of what would be drawn."""
    kept: list[tuple[str, str, int]] = []
    monkeypatch.setattr(
        monitor, "show", lambda trainer, result, folder, step: kept.append((result.name, folder.name, step))
    )
    return kept


def test_inference_shows_chosen_pairs_with_their_scores(steps_shown, tmp_path: Path) -> None:
    """Each at its number, in whatever order they come; pairs without a trace or that failed do not count."""
    log = Log()
    trainer = Still(loggers=[log])
    shows = FusionMonitor(tmp_path / "panels", {"a": 10, "c": 12, "d": 13, "e": 3})
    batches = [
        [result("a"), result("b"), Result("c", reason="c: gone"), replace(result("d"), trace=[])],
        [result("e"), result("f")],
    ]
    for i, batch in enumerate(batches):
        shows.on_predict_batch_end(trainer, MODULE, batch, None, i)
    assert steps_shown == [("a", "panels", 10), ("e", "panels", 3)]
    assert [step for _, step in log.kept] == [10, 3]
    assert log.kept[0][0] == pytest.approx(pair_scores(batches[0][0]))
    assert log.kept[1][0]["dig/weight_mean/visible"] == pytest.approx(0.5)  # 0.25 in one step, 0.75 in the next
    assert log.kept[1][0]["dig/gain_mean/infrared"] == pytest.approx(-4)
    entropy = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert log.kept[1][0]["dig/entropy"] == pytest.approx(entropy, rel=1e-5)


def test_a_log_is_in_order_and_of_repeated_steps_the_last_counts(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,step\n1,5\n2,0\n3,5\n")
    sort_log(tmp_path / "metrics.csv")
    assert (tmp_path / "metrics.csv").read_text() == "a,step\n2,0\n3,5\n"


def test_training_shows_pairs_at_its_step(steps_shown, tmp_path: Path) -> None:
    trainer = Still(global_step=40)
    shows = FusionMonitor(tmp_path / "fusion")
    shows.on_validation_batch_end(trainer, MODULE, {"results": [result("a")]}, None, 0)
    shows.on_validation_batch_end(trainer, MODULE, None, None, 1)
    assert steps_shown == [("a", "step000040", 39)]  # where Lightning logs the scores
    assert shown({"loss": 1}) == [] and shown([Result("a", reason="no")]) == []
    assert shown([replace(result(), trace=[replace(snapshot(0), x0_hat=None)])]) == []


def test_progress_counts_pictures_of_all_processes_and_steps_that_were_done() -> None:
    bar = Progress(10, "picture")
    trainer = Still(world_size=3)
    bar.setup(trainer, MODULE, "predict")
    counted = []
    for _ in range(3):
        bar.on_predict_batch_end(trainer, MODULE, None, [1, 2], 0)
        assert bar.bar is not None
        counted.append(bar.bar.n)
    assert counted == [6, 10, 10]
    bar.teardown(trainer, MODULE, "predict")
    assert bar.bar is None
    steps = Progress(100, "step", start=30)
    steps.setup(trainer, MODULE, "fit")
    assert steps.bar is not None
    steps.bar.mininterval, log = 0.0, Log()
    shown = {"train/loss": torch.tensor(0.12345)}
    trainer = Still(global_step=34, progress_bar_metrics=shown, log_every_n_steps=17, loggers=[log])
    for _ in range(2):  # a batch that only accumulates counts no step
        steps.on_train_batch_end(trainer, MODULE, None, None, 0)
    assert steps.bar.n == 34 and "train/loss=0.123" in str(steps.bar)
    ((rates, step),) = log.kept
    assert rates["train/steps_per_sec"] > 0 and step == 33
    steps.teardown(trainer, MODULE, "fit")
