"""What writes checkpoints, and ends a training in order: a signal, or a loss that is not finite."""

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dig2dig.errors import UserError
from dig2dig.inference.interrupts import Interrupted, handle, heed_signals
from dig2dig.training.checkpoints import Diverged, finite, learning

LATE = 16  # steps that a device computes ahead, at most, before its losses are read


class Guard(Callback):
    """Writes a checkpoint to ``path`` after each of ``every`` steps, and ends a training in order.

    A loss, weight or state of the optimiser that is not finite ends it before a checkpoint is written. A signal ends it
    with a checkpoint: one process alone after the step at work, several at most :data:`LATE` steps later. All processes
    of a run end at the same step. Losses stay on the device until a checkpoint is due, :data:`LATE` steps at most.
    """

    def __init__(self, path: Path | None, every: Sequence[int] = (), start: int = 0) -> None:
        self.path, self.every, self.saved, self.seen = path, every, start, start
        self.number = 0  # of the signal that came
        self.lost: Any = False  # on the device: whether any loss that was not yet read is not finite

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """Notes signals inside, of which the first one counts; one that is ignored, as under nohup, stays so."""
        try:
            with heed_signals(self._note):
                yield
        except Exception as error:
            if self.number and not isinstance(error, UserError):  # the signal also ended a process that reads images
                raise Interrupted(self.number) from error
            raise

    def _note(self, number: int, _: FrameType | None) -> None:
        if not multiprocessing.parent_process():  # processes that read images go on until this one ends them
            self.number = self.number or number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back from Lightning, which would end the training amid an accumulation."""
        handle(self._note)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        """Ends a training whose loss is not finite, writes what is due, and ends it after a signal."""
        step = trainer.global_step
        self.lost = ~outputs["loss"].detach().isfinite().all() | self.lost
        if step == self.seen:  # a batch that only accumulates
            return
        self.seen, alone = step, trainer.world_size == 1
        due = any(step % count == 0 for count in (*self.every, LATE)) or step == trainer.max_steps
        if not due and not (alone and self.number):
            return
        number = self._agreed(trainer)
        if self.path and (number or any(step % count == 0 for count in self.every)):
            trainer.save_checkpoint(self.path)
            self.saved = step
        if number:
            raise Interrupted(number)

    def _agreed(self, trainer: Trainer) -> int:
        """The signal that any process was given; Diverged if a loss of any since the last call is not finite."""
        found: Any = torch.stack([self.lost.float(), torch.full_like(self.lost, self.number, dtype=torch.float)])
        if trainer.world_size > 1:
            found = trainer.strategy.reduce(found, reduce_op="max")
        lost, number = found.tolist()
        if lost:
            raise Diverged(f"a loss is not finite, in step {trainer.global_step} or up to {LATE} before")
        self.lost = False
        return int(number)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Ends one process alone at once: the checkpoint of this step is there. Several end after the next step."""
        if self.number and trainer.world_size == 1 and self.saved == trainer.global_step:
            raise Interrupted(self.number)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses to replace a good checkpoint by one that is lost, though its loss may have been finite."""
        learned = [checkpoint["state_dict"].get(name) for name in learning(pl_module)]
        if not finite([learned, checkpoint.get("callbacks"), checkpoint.get("optimizer_states")]):
            raise Diverged(f"weights or the optimiser's state are not finite after step {trainer.global_step}")
