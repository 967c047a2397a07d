"""Writes pictures, maps and the table of what was done, each whole or not at all."""

import errno
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from datamodules.pairing import Pair
from datamodules.pairs import reference_of
from datamodules.readers.pixels import read_image
from datamodules.readers.video import is_video, opened, write_video
from dig2dig.atomic import write_atomically
from dig2dig.config import SaveConfig
from dig2dig.errors import first_line, one_line
from dig2dig.inference.encode import encode, lost, suffix_of
from dig2dig.inference.ownership import MAP
from dig2dig.inference.table import Rows, append_summary, read_summary, write_summary
from dig2dig.modules.results import Result
from dig2dig.tracking.panels import to_colours, to_png

UNNAMEABLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ, errno.EINVAL)  # one name cannot be used, others can


class FusionWriter(BasePredictionWriter):
    """Writes ``OUT/NAME.png``, maps if asked for, and rows of ``OUT/summary.csv`` after each batch.

    A thread, on one core, writes while the next batch is fused; what it could not write is raised with the batch after
    that. Rows of an earlier run that stay valid are kept. ``report`` is called with each fused result and its file's
    name before the table says that it is done. ``key`` and the sources tell DICOM results of one reference apart.
    """

    def __init__(
        self,
        out: Path,
        done: Rows | None = None,
        save: SaveConfig | None = None,
        report: Callable[[Result, str], None] | None = None,
        key: str = "",
    ) -> None:
        super().__init__(write_interval="batch")
        self.out, self.save, self.report, self.key = out, save or SaveConfig(), report, key
        self.rows: dict[str, dict[str, Any]] = dict(done or {})
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self.writing: Future[None] | None = None

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Iterable[Result], *_: Any, **__: Any
    ) -> None:
        """Has what ``predict_step`` gave written, once all before it is."""
        table = "summary.csv" if trainer.world_size == 1 else f"summary.{trainer.global_rank}.csv"
        before, self.writing = self.writing, self.thread.submit(self.write, list(prediction), self.out / table)
        if before:
            before.result()

    def write(self, results: list[Result], table: Path) -> None:
        """Pictures first, then the rows that say they are there."""
        for result in results:
            row = self._write_result(result)
            if self.report and row["status"] == "done":
                self.report(result, row["file"])
            self.rows[result.name] = row
        append_summary(table, [self.rows[result.name] for result in results])

    def _write_result(self, result: Result) -> dict[str, Any]:
        """Writes a fused picture; the row says what became of it."""
        sample = result.sample
        row: dict[str, Any] = {"name": result.name, "note": result.note, "run": self.key}
        row["inputs"] = sample.digest if sample else ""
        if result.image is None or sample is None:
            return row | {"status": "failed", "reason": result.reason}
        suffix, series = suffix_of(self.save.format, sample.suffix), f"{self.key} {sample.digest}"
        row["note"] = "; ".join(filter(None, [result.note, *lost(suffix, sample.metadata, result.valid)]))
        try:
            content = encode(result.image, suffix, sample.depth, sample.metadata, result.valid, series)
        except ValueError as error:
            return row | {"status": "failed", "reason": f"{result.name}: {first_line(error)}; take save.format=png"}
        file = f"{result.name}{suffix}"
        try:
            if self.save.weights:
                self._write_maps(result)
            write_atomically(self.out / file, content)
        except OSError as error:
            if error.errno not in UNNAMEABLE:
                raise
            return row | {"status": "failed", "reason": f"{result.name}: {error.strerror}: {error.filename}"}
        height, width = result.image.shape[-2:]
        done = {"seconds": f"{result.seconds:.3f}", "size": f"{width}x{height}", "seed": result.seed}
        return row | {"status": "done", "file": file} | done

    def finish(self, *_: Any, **__: Any) -> None:
        """Waits until everything is written, also when a run breaks off; OSError where something could not be."""
        if self.writing:
            self.writing.result()
        self.writing = None

    on_exception = finish

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the tables of all processes into one, sorted by name."""
        self.finish()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            parts = [self.out / f"summary.{n}.csv" for n in range(trainer.world_size)] * (trainer.world_size > 1)
            for part in parts:
                self.rows |= read_summary(part, self.key)
            write_summary(self.out / "summary.csv", self.rows)
            for part in parts:
                part.unlink(missing_ok=True)
        trainer.strategy.barrier()

    def _write_maps(self, result: Result) -> None:
        folder = self.out / f"{result.name}_maps"
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "is a link; remove it", str(folder))
        for map in folder.glob("*_step*_t*.png"):
            if MAP.fullmatch(map.name):
                map.unlink()
        for snapshot in result.trace:
            for k, modality in enumerate(result.sample.modalities if result.sample else ()):
                gain, weight = snapshot.gain[0, k, 0], snapshot.weight[0, k, 0]
                stem = f"{modality}_step{snapshot.index:03d}_t{snapshot.t:03d}.png"
                low, high = float(snapshot.gain[0].amin()), float(snapshot.gain[0].amax())  # one scale for a step
                write_atomically(folder / f"gain_{stem}", to_png(to_colours(gain, low, high)))
                write_atomically(folder / f"weight_{stem}", to_png(to_colours(weight, 0.0, 1.0)))


def join_series(out: Path, pairs: Sequence[Pair], rows: Mapping[str, Mapping[str, str]], reference: str) -> None:
    """Writes ``OUT/SERIES.mp4`` for each video, and ``OUT/SERIES.nii.gz`` for each volume in NIfTI, if complete.

    A video runs as fast as the reference source. Frames of one series follow each other in ``pairs``. OSError where
    it cannot be written.
    """
    for series, group in groupby(pairs, key=lambda pair: pair.series):
        frames = list(group)
        done = [rows[frame.name] for frame in frames if rows[frame.name]["status"] == "done"]
        if not series or not done:
            continue
        source = frames[0].files[reference_of(frames[0], reference)]
        volume, video = done[0]["file"].endswith(".nii.gz"), is_video(source)
        if len(done) < len(frames) and (volume or video):
            missing = f"{len(frames) - len(done)} of {len(frames)} failed, so they are not joined to one file"
            whole = out / f"{series}{'.nii.gz' if volume else '.mp4'}"
            before = f"; {whole} is an earlier run's" if whole.exists() else ""
            print(one_line(f"{series}: {missing}{before}"), file=sys.stderr)
        elif volume:
            from dig2dig.inference.medical import joined

            write_atomically(out / f"{series}.nii.gz", joined([out / row["file"] for row in done], source))
        elif video:
            pictures = (read_image(out / row["file"]) for row in done)
            write_video(out / f"{series}.mp4", pictures, opened(source).rate)
