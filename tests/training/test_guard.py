"""What the guard reads and when: losses stay on the device until they are due, and no process ends alone."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer

from dig2dig.errors import RunError
from dig2dig.inference.interrupts import Interrupted
from dig2dig.tracking.progress import Progress
from dig2dig.training.checkpoints import AtomicCheckpointIO, Diverged, WeightAverage
from dig2dig.training.guard import LATE, Guard


def clock(**values: Any) -> Any:
    """A trainer that stands at a step."""
    return type("Clock", (Trainer,), {"__init__": lambda _: None, "global_step": 0, "world_size": 1, **values})()


def run(
    guard: Guard, losses: Callable[[int], torch.Tensor], steps: int, reduce: Callable | None = None, batches: int = 1
) -> list[int]:
    """Ends so many steps of several batches; gives the steps at which a checkpoint was written."""
    saved: list[int] = []
    trainer = clock(world_size=2 if reduce else 1, max_steps=1000, strategy=SimpleNamespace(reduce=reduce))
    trainer.save_checkpoint = lambda _: saved.append(trainer.global_step)
    for step in range(1, steps + 1):
        for batch in range(1, batches + 1):
            trainer.global_step = step if batch == batches else step - 1
            guard.on_train_batch_end(trainer, LightningModule(), {"loss": losses(step)}, None, batch)
    return saved


def good(_: int) -> torch.Tensor:
    return torch.tensor(1.0)


def test_a_loss_is_not_read_until_it_is_due() -> None:
    """A meta tensor has no numbers: to read one is an error."""
    for every, first in (((), LATE), ((5, 7), 5)):
        for batches in (1, 3):
            run(Guard(None, every), lambda _: torch.ones((), device="meta"), first - 1, batches=batches)
            with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
                run(Guard(None, every), lambda _: torch.ones((), device="meta"), first, batches=batches)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_lost_is_found_before_the_next_checkpoint(value: float, tmp_path: Path) -> None:
    """One bad batch among good ones."""
    for lost, stands in ((3, 0), (LATE + 2, LATE + 4), (24, 20)):
        guard = Guard(tmp_path / "x", (20,))
        with pytest.raises(Diverged, match="a loss is not finite, in step"):
            run(guard, lambda step, lost=lost: torch.tensor(value if step == lost else 1.0), 100)
        assert guard.saved == (20 if stands >= 20 and lost > 20 else 0)
    trainer = clock(global_step=2, max_steps=3)
    guard = Guard(None, (), 2)
    guard.on_train_batch_end(trainer, LightningModule(), {"loss": torch.tensor(value)}, None, 0)
    trainer.global_step = 3  # the last step of a run, whatever it is
    with pytest.raises(Diverged):
        guard.on_train_batch_end(trainer, LightningModule(), {"loss": torch.tensor(1.0)}, None, 1)


def test_checkpoints_are_written_where_they_are_due(tmp_path: Path) -> None:
    assert run(Guard(tmp_path / "x", (4, 6)), good, 13, batches=2) == [4, 6, 8, 12]
    assert run(Guard(None, (4, 6)), good, 13) == []


def test_a_signal_ends_one_process_at_once_and_several_at_the_same_step(tmp_path: Path) -> None:
    def noted(guard: Guard) -> Callable[[int], torch.Tensor]:
        def loss(step: int) -> torch.Tensor:
            guard.number = 15 if step == 3 else guard.number
            return torch.tensor(1.0)

        return loss

    alone = Guard(tmp_path / "x")
    with pytest.raises(Interrupted):
        run(alone, noted(alone), 10)
    assert alone.saved == 3
    asked: list[list[float]] = []

    def reduce(found: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "max"
        asked.append(found.tolist())
        return found

    for signalled in (True, False):  # the process that was given the signal, and the other one
        guard = Guard(tmp_path / "x", (10,))
        asked.clear()

        def agree(found: torch.Tensor, reduce_op: str) -> torch.Tensor:
            found = reduce(found, reduce_op)
            return torch.maximum(found, torch.tensor([0.0, 15.0]))

        with pytest.raises(Interrupted):
            run(guard, noted(guard) if signalled else good, 100, agree)
        assert asked == [[0.0, 15.0 if signalled else 0.0]] and guard.saved == 10


def test_one_process_that_is_lost_ends_all(tmp_path: Path) -> None:
    """This process has good losses, the other one has not."""

    def agree(found: torch.Tensor, reduce_op: str) -> torch.Tensor:
        return torch.maximum(found, torch.tensor([1.0, 0.0]))

    with pytest.raises(Diverged, match=f"step {LATE} "):
        run(Guard(tmp_path / "x"), good, 100, agree)


def test_what_else_watches_a_step_reads_nothing_of_the_device() -> None:
    """Averaged weights, and the bar between two drawings."""
    module = LightningModule()
    module.weight = torch.nn.Parameter(torch.zeros(3, device="meta"))
    trainer = clock(
        is_global_zero=True, log_every_n_steps=50, progress_bar_metrics={"train/loss": torch.ones((), device="meta")}
    )
    average, bar = WeightAverage(0.9), Progress(100, "step")
    bar.setup(trainer, module, "fit")
    assert bar.bar is not None
    bar.bar.mininterval = 1000.0
    average.on_train_start(trainer, module)
    for step in range(1, 50):
        trainer.global_step = step
        for callback in (average, bar):
            callback.on_train_batch_end(trainer, module, {}, None, step)
    bar.bar.close()
    assert average.count == 49


@pytest.mark.parametrize(
    ("error", "kind"), [(RuntimeError("a worker was ended"), RuntimeError), (OSError(28, "full"), RunError)]
)
def test_only_a_disk_fails_a_checkpoint_in_words(error: Exception, kind: type, tmp_path: Path, monkeypatch) -> None:
    """A process that reads images and is ended amid the write is no fault of the disk: a signal came."""

    def save(*_: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(kind):
        AtomicCheckpointIO(whole=True).save_checkpoint({}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())
