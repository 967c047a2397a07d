"""Fusions to look at while a run goes on: panels, metrics and gain statistics, for every logger and as files."""

import csv
import errno
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from dig2dig.atomic import write_atomically
from dig2dig.modules.results import Result
from dig2dig.modules.scores import pair_scores, pair_statistics
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

    In inference it shows the pairs that ``numbers`` names, each at its number, whatever else a run fuses.
    """

    def __init__(self, folder: Path, numbers: Mapping[str, int] | None = None) -> None:
        self.folder, self.numbers = folder, numbers or {}

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        """Shows the pairs as the prior of this step fuses them."""
        logged = max(trainer.global_step - 1, 0)  # the step of the scores: a resumed log keeps both, or neither
        for result in shown(outputs):
            show(trainer, result, self.folder / f"step{trainer.global_step:06d}", logged)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        """Shows pairs that were fused, with their scores."""
        for result in (result for result in shown(outputs) if result.name in self.numbers):
            number = self.numbers[result.name]
            log_scalars(trainer.loggers, pair_scores(result), number)
            try:
                show(trainer, result, self.folder, number)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:  # the picture itself may have a name that fits
                    raise


def shown(outputs: Any) -> list[Result]:
    """The fused pairs of a batch whose steps were kept with the prior's estimates."""
    results: Sequence[Result] = outputs.get("results", []) if isinstance(outputs, dict) else outputs or []
    return [result for result in results if result.trace and result.trace[0].x0_hat is not None]


def sort_log(path: Path) -> None:
    """Puts the rows of ``metrics.csv`` into the order of their steps; of repeated ones, as after a kill, the last."""
    with path.open(newline="") as file:
        table = csv.DictReader(file)
        rows = {int(row["step"]): row for row in table}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, table.fieldnames or [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    write_atomically(path, text.getvalue().encode())
