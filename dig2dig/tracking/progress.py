"""A progress bar in pictures or steps, with the time left."""

import sys
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from dig2dig.tracking.loggers import log_scalars


class Progress(Callback):
    """Shows on the first process how many pictures are fused, or how many steps are trained.

    ``total`` counts the pictures or steps of the whole run, ``start`` the steps that an interrupted run has done.
    """

    def __init__(self, total: int, unit: str, start: int = 0) -> None:
        self.total, self.unit, self.start = total, unit, start
        self.bar: tqdm[Any] | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Opens the bar."""
        if trainer.is_global_zero and stage in ("fit", "predict"):
            if self.start:
                print(f"resumed at {self.unit} {self.start}", file=sys.stderr)
            shown: dict[str, Any] = {"unit": self.unit, "file": sys.stderr, "dynamic_ncols": True, "mininterval": 0.5}
            self.bar = tqdm(total=self.total, initial=self.start, **shown)

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any, **__: Any) -> None:
        """Counts the pictures of a batch, and as many for each other process."""
        if self.bar is not None:
            self.bar.update(min(len(batch) * trainer.world_size, self.total - self.bar.n))

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Counts steps and logs their mean rate; shows loss and validation where the bar is drawn: reading waits."""
        if self.bar is None or trainer.global_step == self.bar.n:
            return
        if self.bar.update(trainer.global_step - self.bar.n):
            self.bar.set_postfix({name: f"{float(v):.3g}" for name, v in trainer.progress_bar_metrics.items()})
        if self.bar.n % trainer.log_every_n_steps == 0:
            rate = (self.bar.n - self.start) / self.bar.format_dict["elapsed"]
            log_scalars(trainer.loggers, {"train/steps_per_sec": rate}, self.bar.n - 1)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    on_exception = teardown
