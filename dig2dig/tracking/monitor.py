"""Fusions to look at while a run goes on: panels, metrics and gain statistics, for every logger and as files."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from datamodules.pairs import Sample
from dig2dig.atomic import write_atomically
from dig2dig.config import SamplerConfig
from dig2dig.fusion.statistics import DigStatistics, dig_statistics
from dig2dig.metrics import fusion_metrics
from dig2dig.modules import FusionModule, PriorModule, Result, Tracing
from dig2dig.priors.denoiser import Denoiser
from dig2dig.tracking.loggers import log_histogram, log_image, log_scalars
from dig2dig.tracking.panels import curves, fusion_panel, histogram_values, maps_panel, to_png
from dig2dig.training.checkpoints import averaged_weights


@dataclass(frozen=True)
class Shown:
    """One fused pair with what is said about it."""

    sample: Sample
    result: Result
    metrics: dict[str, float]
    statistics: DigStatistics


def describe(sample: Sample, result: Result) -> Shown:
    """Metrics on luminance and gain statistics of a fused pair that was traced."""
    assert result.fused is not None
    fused, sources = result.fused[None].cpu(), sample.sources[None].cpu()
    metrics = {name: float(value) for name, value in fusion_metrics(fused, sources).items()}
    return Shown(sample, result, metrics, dig_statistics(result.trace, sources))


def fuse_and_describe(
    samples: Sequence[Sample], denoiser: Denoiser, sampler: SamplerConfig, seed: int, device: torch.device
) -> list[Shown]:
    """Fuses pairs one by one with a prior as it stands; pairs that do not fit the options are left out."""
    fusion = FusionModule(denoiser, sampler, seed, Tracing()).to(device)
    shown = []
    with torch.no_grad():
        for sample in samples:
            result = fusion.fuse_samples([sample])[0]
            if result.fused is not None:
                shown.append(describe(sample, result))
            else:
                print(f"not fused: {result.reason}", file=sys.stderr)
    return shown


def scalars(shown: Sequence[Shown]) -> dict[str, float]:
    """Means over pairs: ``fusion/METRIC``, ``dig/entropy``, and per modality weight, gain and covariance."""
    collected: dict[str, list[float]] = {}
    for one in shown:
        values = {f"fusion/{name}": value for name, value in one.metrics.items()}
        values["dig/entropy"] = float(one.statistics.entropy.mean())
        for k, modality in enumerate(one.sample.modalities):
            values[f"dig/weight_mean/{modality}"] = float(one.statistics.weight_mean[:, k].mean())
            values[f"dig/gain_mean/{modality}"] = float(one.statistics.gain_mean[:, k].mean())
            values[f"dig/covariance/{modality}"] = float(one.statistics.covariance[:, k].sum())
        for name, value in values.items():
            collected.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in collected.items()}


def show(trainer: Trainer, shown: Sequence[Shown], folder: Path, step: int) -> None:
    """Sends pairs to all loggers, and writes their panels into ``folder``."""
    if shown:
        log_scalars(trainer.loggers, scalars(shown), step)
    for one in shown:
        name, modalities = one.result.name, one.sample.modalities
        assert one.result.image is not None
        pictures = {
            "panel": fusion_panel(one.sample.sources, one.result.image, modalities),
            "maps": maps_panel(one.result.trace, modalities),
            "curves": curves(one.statistics, modalities),
        }
        for kind, pixels in pictures.items():
            write_atomically(folder / f"{name}_{kind}.png", to_png(pixels))
            log_image(trainer.loggers, f"{kind}/{name}", pixels, step)
        for k, modality in enumerate(modalities):
            log_histogram(trainer.loggers, f"gain/{name}/{modality}", histogram_values(one.result.trace, k), step)


class FusionMonitor(Callback):
    """Shows fusions of a few pairs: during training every N steps, during inference as they are made.

    Args:
        folder: Where panels are written.
        limit: At most so many pairs.
        samples: Training: the pairs to fuse.
        sampler: Training: how.
        every: Training: steps between fusions; the first one comes before any training.
        seed: Seed of the noise.
        first: Inference: number of pairs that an earlier run has done.
    """

    def __init__(
        self,
        folder: Path,
        limit: int,
        samples: Sequence[Sample] = (),
        sampler: SamplerConfig | None = None,
        every: int = 1,
        seed: int = 0,
        first: int = 0,
    ) -> None:
        self.folder, self.left = folder, limit
        self.samples = samples[:limit]
        self.sampler, self.every, self.seed = sampler or SamplerConfig(), every, seed
        self.shown_at, self.first = -1, first

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows what the prior does before it learns, or again where an interrupted run stands."""
        self.shown_at = trainer.global_step
        if trainer.global_step % self.every == 0:
            self._fuse(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Fuses after each so many steps, with the averaged weights."""
        step = trainer.global_step
        if step != self.shown_at and (step % self.every == 0 or step == trainer.max_steps):
            self.shown_at = step
            self._fuse(trainer, pl_module)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Shows the next pairs that were fused."""
        samples = {sample.name: sample for sample in batch if isinstance(sample, Sample)}
        made = [result for result in outputs if result.image is not None and result.trace][: self.left]
        if made:
            self.left -= len(made)
            shown = [describe(samples[result.name], result) for result in made]
            show(trainer, shown, self.folder, self.first + batch_idx)

    def _fuse(self, trainer: Trainer, module: LightningModule) -> None:
        if not (self.samples and trainer.is_global_zero):
            return
        assert isinstance(module, PriorModule)
        with averaged_weights(trainer, module):
            shown = fuse_and_describe(self.samples, module.denoiser, self.sampler, self.seed, module.device)
        step = trainer.global_step
        show(trainer, shown, self.folder / f"step{step:06d}", step)
