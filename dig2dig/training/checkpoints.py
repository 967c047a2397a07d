"""What survives of a training: averaged weights, and checkpoints that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from dig2dig.priors.files import PriorError, first_line


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them: a run that is killed leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Temporary name, fsync, rename."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")  # one writer, so that leftovers are replaced
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)


def cluster() -> list[Any]:
    """SLURM without Lightning's own checkpoints on signals: it would take them for any run that starts beside them."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of an earlier run.

    Raises:
        PriorError: It is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged pickle or archive raises
        raise PriorError(f"{path}: damaged checkpoint ({first_line(error)}); delete it to start anew") from error


class WeightAverage(Callback):
    r"""Exponential moving average of the weights that learn, used in validation and kept in the end.

    .. math:: \bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta, \qquad
              d = \min\big(\text{decay},\; \tfrac{1 + n}{10 + n}\big)

    after step n. Unlike Lightning's ``EMAWeightAveraging`` it leaves frozen weights alone, so that adapters of a
    large prior cost no second copy of it, and it forgets the first weights soon.

    Args:
        decay: Decay d in the long run, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: list[Tensor] = []
        self.steps = 0
        self.swapped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from the weights as they are, or from an interrupted run's average."""
        self.steps = trainer.global_step
        self.average = [average.to(pl_module.device) for average in self.average]
        self.average = self.average or [weight.detach().clone() for weight in learning(pl_module).values()]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Averages after each optimiser step, not after batches that only accumulate."""
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = [weight.detach() for weight in learning(pl_module).values()]
        torch._foreach_lerp_(self.average, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validates the average."""
        if self.average and not self.swapped:
            self.swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on training the weights themselves."""
        if self.swapped:
            self.swap(pl_module)

    def swap(self, module: LightningModule) -> None:
        """Exchanges the weights that learn with their average."""
        with torch.no_grad():
            for average, weight in zip(self.average, learning(module).values(), strict=True):
                kept = average.clone()
                average.copy_(weight)
                weight.copy_(kept)
        self.swapped = not self.swapped

    def state_dict(self) -> dict[str, Any]:
        """The average, in the order of the weights that learn."""
        return {"average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the average of an interrupted run."""
        self.average = state_dict["average"]


@contextmanager
def averaged_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """The averaged weights, for a look in the midst of training; without an average the weights as they are."""
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    average = next((callback for callback in callbacks if isinstance(callback, WeightAverage)), None)
    was_training = module.training
    module.eval()
    if average:
        average.swap(module)
    try:
        yield
    finally:
        if average:
            average.swap(module)
        module.train(was_training)


def learning(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn, by name, in the module's order."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def finish(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Gives a module the weights that a training ended with: their average if there is one.

    Raises:
        PriorError: The checkpoint belongs to another network or another mode of adaptation.
    """
    found, wanted = checkpoint["state_dict"], learning(module)
    average = checkpoint["callbacks"].get(WeightAverage.__qualname__, {}).get("average")
    if not wanted.keys() <= found.keys() or any(found[name].shape != wanted[name].shape for name in wanted):
        raise PriorError("the checkpoint in out= belongs to another network or mode: give another folder")
    with torch.no_grad():
        for i, (name, weight) in enumerate(wanted.items()):
            weight.copy_(average[i] if average else found[name])
