"""What survives of a training: averaged weights, and the last two checkpoints, each whole or not there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import Any
from zipfile import ZipFile

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from torch import Tensor, nn

from dig2dig.atomic import replacing, sweep
from dig2dig.errors import RunError, UserError, first_line, note
from dig2dig.priors.files import CHECKSUMS

HEX = "[0-9a-f]" * 16  # in names of folders that are being written


class Diverged(UserError):
    """A training that has lost its way: a loss or weights that are not finite."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them: a run that is killed leaves the ones before.

    The checkpoint before is kept as :func:`previous`, if ``whole`` says that it can be read.
    """

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Temporary name, fsync, rename; what a killed run left goes."""
        path = Path(path)
        try:
            sweep(path.parent)
            with replacing(path) as part:
                with part.open("wb") as file:
                    torch.save(checkpoint, file)
                if self.whole and path.is_file():
                    path.replace(previous(path))
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__  # torch covers it with its own complaint
            if not isinstance(cause, OSError):  # as where a process that reads images was ended
                raise
            raise RunError(f"{path}: cannot be written ({first_line(cause)}); the checkpoint before is kept") from error
        self.whole = True


def previous(path: Path) -> Path:
    """The checkpoint before the last one."""
    return path.with_name(f"previous{path.suffix}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of an earlier run whose checksums are right; a damaged one is a RunError."""
    try:
        with ZipFile(path) as archive:  # torch reads by mmap, which skips the archive's checksums
            if damaged := archive.testzip():
                raise ValueError(f"wrong checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged pickle or archive raises
        raise RunError(f"{path}: damaged checkpoint ({first_line(error)}); delete it to start anew") from error


def newest_checkpoint(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The last checkpoint, or where it is damaged the one before, with a note; None if there is none."""
    damage: RunError | None = None
    for file in (path, previous(path)):
        try:
            if file.is_file():
                found = read_checkpoint(file)
                if damage:
                    note(f"{path}: damaged checkpoint; goes on from the one before, step {found['global_step']}")
                return file, found
        except RunError as error:
            damage = damage or error
    if damage:
        raise damage
    return None


def finite(value: Any) -> bool:
    """Whether all numbers of all tensors in nested lists and mappings are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return all(map(finite, inner))


@contextmanager
def export_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write an export to. Its files take their places at the end, all of them or none.

    So a full disk leaves an earlier export as it is. Files of other names stay where they are.
    """
    for part in folder.parent.glob(f".{folder.name}.{HEX}.part"):  # of runs that were killed
        rmtree(part)
    new = folder.with_name(f".{folder.name}.{token_hex(8)}.part")
    try:
        yield new
        (folder / CHECKSUMS).unlink(missing_ok=True)  # a kill amid the renames must not look like a whole export
        files = (file for file in new.rglob("*") if file.is_file())
        for file in sorted(files, key=lambda file: file.name == CHECKSUMS):
            place = folder / file.relative_to(new)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder}: cannot be written ({first_line(error)}); what was there is kept") from error
    finally:
        rmtree(new, ignore_errors=True)


class WeightAverage(Callback):
    r"""Exponential moving average of the weights that learn, used in validation and kept in the end.

    .. math:: \bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta, \qquad
              d = \min\big(\text{decay},\; \tfrac{1 + n}{10 + n}\big)

    after n averaged steps; the first step is copied. Frozen weights have no average: adapters of a large prior cost
    no second copy of it. Lightning's ``EMAWeightAveraging`` would copy the whole module, and knows no warm-up of d.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: list[Tensor] = []
        self.saved: dict[str, Any] = {}
        self.count, self.steps = 0, 0  # count is no tensor: to read one would wait for the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from the weights as they are, or from an interrupted run's average."""
        self.steps, self.count = trainer.global_step, int(self.saved.get("n_averaged", 0))
        weights = enumerate(learning(pl_module).values())
        self.average = [self.saved.get(f"module.{i}", one).detach().to(one, copy=True) for i, one in weights]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Averages after each optimiser step, not after batches that only accumulate."""
        if trainer.global_step > self.steps:
            decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
            weights: list[Tensor] = [*learning(pl_module).values()]
            torch._foreach_lerp_(self.average, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
            self.steps, self.count = trainer.global_step, self.count + 1

    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchanges the weights that learn with their average, which is validated, and back at the end."""
        for average, weight in zip(self.average, learning(pl_module).values() if self.average else (), strict=True):
            kept = average.clone()
            average.copy_(weight)
            weight.copy_(kept)

    on_validation_end = on_validation_start

    def state_dict(self) -> dict[str, Any]:
        """The average, in the order of the weights that learn, and the number of averaged steps."""
        kept = {f"module.{i}": value for i, value in enumerate(self.average)}
        return {"n_averaged": self.count} | kept if self.average else self.saved

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
    if not finite([*found.values(), average]):
        raise Diverged("the weights of the last checkpoint are not finite")
    with torch.no_grad():
        for i, (name, weight) in enumerate(wanted.items()):
            weight.copy_(average.get(f"module.{i}", found[name]))
