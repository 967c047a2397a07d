"""What survives of a training: averaged weights, and checkpoints that are whole or not there."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn import ParameterList
from torch.optim.swa_utils import AveragedModel

from dig2dig.atomic import replacing
from dig2dig.errors import RunError, first_line


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them: a run that is killed leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Temporary name, fsync, rename; what a killed run left goes."""
        for part in Path(path).parent.glob(".*.part*"):
            part.unlink(missing_ok=True)
        with replacing(Path(path)) as part:
            torch.save(checkpoint, part)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of an earlier run; a damaged one is a RunError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged pickle or archive raises
        raise RunError(f"{path}: damaged checkpoint ({first_line(error)}); delete it to start anew") from error


class WeightAverage(Callback):
    r"""Exponential moving average of the weights that learn, used in validation and kept in the end.

    .. math:: \bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta, \qquad
              d = \min\big(\text{decay},\; \tfrac{1 + n}{10 + n}\big)

    after n averaged steps; the first step is copied. Frozen weights have no average: adapters of a large prior cost
    no second copy of it. Lightning's ``EMAWeightAveraging`` would copy the whole module, and knows no warm-up of d.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: AveragedModel | None = None
        self.saved: dict[str, Any] = {}
        self.steps, self.swapped = 0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from the weights as they are, or from an interrupted run's average."""
        self.steps = trainer.global_step

        def lerp(averages: Any, weights: Any, count: Any) -> None:
            decay = min(self.decay, (1 + int(count)) / (10 + int(count)))
            torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

        weights = ParameterList(learning(pl_module).values())
        self.average = AveragedModel(weights, multi_avg_fn=lerp).to(pl_module.device).requires_grad_(False)
        if self.saved:
            self.average.load_state_dict(self.saved)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Averages after each optimiser step, not after batches that only accumulate."""
        if self.average is not None and trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.average.update_parameters(ParameterList(learning(pl_module).values()))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validates the average."""
        if self.average is not None and not self.swapped:
            self.swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on training the weights themselves."""
        if self.swapped:
            self.swap(pl_module)

    @torch.no_grad()
    def swap(self, module: LightningModule) -> None:
        """Exchanges the weights that learn with their average."""
        assert self.average is not None
        for average, weight in zip(self.average.parameters(), learning(module).values(), strict=True):
            kept = average.clone()
            average.copy_(weight)
            weight.copy_(kept)
        self.swapped = not self.swapped

    def state_dict(self) -> dict[str, Any]:
        """The average, in the order of the weights that learn, and the number of averaged steps."""
        return self.average.state_dict() if self.average is not None else self.saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the average of an interrupted run."""
        self.saved = state_dict


def learning(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn, by name, in the module's order."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def finish(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Gives a module the weights that a training ended with, or their average; RunError if they do not fit it."""
    found, wanted = checkpoint["state_dict"], learning(module)
    average = checkpoint["callbacks"].get(WeightAverage.__qualname__, {})
    if not wanted.keys() <= found.keys() or any(found[name].shape != wanted[name].shape for name in wanted):
        raise RunError("the checkpoint in out= belongs to another network or mode: give another folder")
    with torch.no_grad():
        for i, (name, weight) in enumerate(wanted.items()):
            weight.copy_(average.get(f"module.{i}", found[name]))
