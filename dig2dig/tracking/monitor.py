"""Fusions to look at while a run goes on: panels, metrics and gain statistics, for every logger and as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dig2dig.atomic import write_atomically
from dig2dig.modules.results import Result
from dig2dig.modules.scores import means, pair_scores, pair_statistics
from dig2dig.tracking.loggers import log_histogram, log_image, log_scalars
from dig2dig.tracking.panels import curves, fusion_panel, histogram_values, maps_panel, to_png


def show(trainer: Trainer, result: Result, folder: Path, step: int) -> None:
    """Sends one fused pair to all loggers, and writes its panels into ``folder``."""
    assert result.image is not None and result.sample is not None
    name, modalities = result.name, result.sample.modalities
    pictures = {
        "panel": fusion_panel(result.sample.sources, result.image, modalities),
        "maps": maps_panel(result.trace, modalities),
        "curves": curves(pair_statistics(result), modalities),
    }
    for kind, pixels in pictures.items():
        write_atomically(folder / f"{name}_{kind}.png", to_png(pixels))
        log_image(trainer.loggers, f"{kind}/{name}", pixels, step)
    for k, modality in enumerate(modalities):
        log_histogram(trainer.loggers, f"gain/{name}/{modality}", histogram_values(result.trace, k), step)


class FusionMonitor(Callback):
    """Shows fused pairs: in training at each validation, in inference the first ones as they are made.

    Args:
        folder: Where panels are written.
        limit: Inference: at most so many pairs.
        first: Inference: number of pairs that an earlier run has done.
    """

    def __init__(self, folder: Path, limit: int = 0, first: int = 0) -> None:
        self.folder, self.left, self.first = folder, limit, first

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Shows what the prior as it stands makes of the pairs."""
        for result in shown(outputs):
            show(trainer, result, self.folder / f"step{trainer.global_step:06d}", trainer.global_step)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Shows the next pairs that were fused, with their scores."""
        made = shown(outputs)[: self.left]
        self.left -= len(made)
        if made:
            found = means([pair_scores(result) for result in made])
            log_scalars(trainer.loggers, found, self.first + batch_idx)
        for result in made:
            show(trainer, result, self.folder, self.first + batch_idx)


def shown(outputs: Any) -> list[Result]:
    """The fused pairs of a batch whose steps were kept with the prior's estimates."""
    results: Sequence[Result] = outputs.get("results", []) if isinstance(outputs, dict) else outputs or []
    return [result for result in results if result.trace and result.trace[0].x0_hat is not None]
