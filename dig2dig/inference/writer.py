"""What a run leaves on disk: pictures, maps and the table of what was done, each written whole or not at all."""

import csv
import io
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from dig2dig.atomic import write_atomically
from dig2dig.config import SaveConfig
from dig2dig.inference.encode import encode, suffix_of
from dig2dig.modules import Result
from dig2dig.tracking.panels import to_colours, to_png

COLUMNS = ("name", "status", "file", "seconds", "size", "seed", "inputs", "note", "reason")


def read_summary(path: Path) -> dict[str, dict[str, str]]:
    """Rows of an earlier ``summary.csv`` by name; none if there is no such file or it is not one of ours."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        return {row["name"]: row for row in reader} if reader.fieldnames == list(COLUMNS) else {}


def write_summary(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Writes ``summary.csv``, sorted by name."""
    text = io.StringIO(newline="")
    writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows))
    write_atomically(path, text.getvalue().encode("utf-8", errors="surrogateescape"))


class FusionWriter(BasePredictionWriter):
    """Writes ``OUT/NAME.png``, maps if asked for, and ``OUT/summary.csv`` after each batch.

    A thread writes while the next batch is fused; what it could not write is raised with the batch after that.

    Args:
        out: The folder.
        done: Rows of an earlier run that stay valid.
        save: Format, and whether weight and gain maps of each step are written.
        report: Called with each fused result and its file's name before the table says that it is done.
    """

    def __init__(
        self,
        out: Path,
        done: dict[str, dict[str, str]] | None = None,
        save: SaveConfig | None = None,
        report: Callable[[Result, str], None] | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        self.out, self.save, self.report = out, save or SaveConfig(), report
        self.rows: dict[str, dict[str, Any]] = dict(done or {})
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Sequence[Result],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Has what ``predict_step`` gave written, once all before it is."""
        table = "summary.csv" if trainer.world_size == 1 else f"summary.{trainer.global_rank}.csv"
        before, self.writing = self.writing, self.thread.submit(self.write, list(prediction), self.out / table)
        if before:
            before.result()

    def write(self, results: list[Result], table: Path) -> None:
        """Pictures first, then the table that says they are there."""
        for result in results:
            row = self._write_result(result)
            if self.report and row["status"] == "done":
                self.report(result, row["file"])
            self.rows[result.name] = row
        write_summary(table, self.rows)

    def _write_result(self, result: Result) -> dict[str, Any]:
        """Writes a fused picture; the row says what became of it."""
        row: dict[str, Any] = {"name": result.name, "inputs": result.digest, "note": result.note}
        if result.image is None:
            return row | {"status": "failed", "reason": result.reason}
        suffix = suffix_of(self.save.format, result.suffix)
        try:
            content = encode(result.image, suffix, result.depth, self.save.quality)
        except ValueError as error:
            reason = f"{result.name}: {str(error).splitlines()[0]}; take save.format=png"
            return row | {"status": "failed", "reason": reason}
        if self.save.weights:
            self._write_maps(result)
        file = f"{result.name}{suffix}"
        write_atomically(self.out / file, content)
        height, width = result.image.shape[-2:]
        done = {"seconds": f"{result.seconds:.3f}", "size": f"{width}x{height}", "seed": result.seed}
        return row | {"status": "done", "file": file} | done

    def finish(self) -> None:
        """Waits until everything is written.

        Raises:
            OSError: Something could not be.
        """
        if self.writing:
            self.writing.result()
        self.writing = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What was fused before a run broke off is kept."""
        self.finish()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the tables of all processes into one."""
        self.finish()
        if trainer.world_size == 1:
            return
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            for part in sorted(self.out.glob("summary.*.csv")):
                self.rows |= read_summary(part)
                part.unlink()
            write_summary(self.out / "summary.csv", self.rows)
        trainer.strategy.barrier()

    def _write_maps(self, result: Result) -> None:
        folder = self.out / f"{result.name}_maps"
        shutil.rmtree(folder, ignore_errors=True)
        for snapshot in result.trace:
            for k, modality in enumerate(result.modalities):
                gain, weight = snapshot.gain[0, k, 0], snapshot.weight[0, k, 0]
                stem = f"{modality}_step{snapshot.index:03d}_t{int(snapshot.t[0]):03d}.png"
                high = float(snapshot.gain[0].amax())  # one scale for all modalities of a step
                write_atomically(
                    folder / f"gain_{stem}", to_png(to_colours(gain, float(snapshot.gain[0].amin()), high))
                )
                write_atomically(folder / f"weight_{stem}", to_png(to_colours(weight, 0.0, 1.0)))
