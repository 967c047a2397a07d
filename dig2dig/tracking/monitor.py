"""Fusions to look at while a run goes on: panels, metrics and gain statistics, for every logger and as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from dig2dig.atomic import write_atomically
from dig2dig.modules.results import Result
from dig2dig.modules.scores import means, pair_scores, pair_statistics
from dig2dig.tracking.loggers import log_maps, log_scalars
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
    gains = {f"gain/{name}/{modality}": histogram_values(result.trace, k) for k, modality in enumerate(modalities)}
    log_maps(trainer.loggers, {f"{kind}/{name}": pixels for kind, pixels in pictures.items()}, gains, step)


class FusionMonitor(Callback):
    """Shows fused pairs, with panels in ``folder``: in training at each validation, in inference as they are made.

    In inference it shows at most ``limit`` pairs, and counts on from the ``first`` pairs of an earlier run.
    """

    def __init__(self, folder: Path, limit: int = 0, first: int = 0) -> None:
        self.folder, self.left, self.first = folder, limit, first

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        """Shows the pairs as the prior of this step fuses them."""
        for result in shown(outputs):
            show(trainer, result, self.folder / f"step{trainer.global_step:06d}", trainer.global_step)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any, **__: Any
    ) -> None:
        """Shows the next pairs that were fused, with their scores."""
        made = shown(outputs)[: self.left]
        self.left -= len(made)
        if made:
            log_scalars(trainer.loggers, means([pair_scores(result) for result in made]), self.first + batch_idx)
        for result in made:
            show(trainer, result, self.folder, self.first + batch_idx)


def shown(outputs: Any) -> list[Result]:
    """The fused pairs of a batch whose steps were kept with the prior's estimates."""
    results: Sequence[Result] = outputs.get("results", []) if isinstance(outputs, dict) else outputs or []
    return [result for result in results if result.trace and result.trace[0].x0_hat is not None]
