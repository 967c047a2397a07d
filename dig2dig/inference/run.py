"""One run of ``infer.py``: from a configuration to files in a folder."""

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from datamodules.pair_data import FusionDataModule
from datamodules.pairing import scenes
from dig2dig.atomic import is_file, lock
from dig2dig.config import InferConfig
from dig2dig.errors import RunError, exits_in_one_line, note, one_line
from dig2dig.inference.interrupts import Interrupted, heed_signals
from dig2dig.inference.listing import list_pairs
from dig2dig.inference.ownership import settle
from dig2dig.inference.state import Run, find_run, make_record, reading, remembering
from dig2dig.inference.table import Rows
from dig2dig.inference.writer import FusionWriter, join_series
from dig2dig.modules.fusion import FusionModule
from dig2dig.modules.results import Result, Tracing
from dig2dig.tracking.loggers import close, make_loggers
from dig2dig.tracking.monitor import FusionMonitor, sort_log
from dig2dig.tracking.progress import Progress
from dig2dig.tracking.trainer import build_trainer, prepare


@runtime_checkable
class Report(Protocol):
    """A page about a run."""

    names: Collection[str]  # pairs whose steps it shows
    estimates: Collection[str]  # of them, those whose estimates by the prior it shows
    side: int  # longest side of what it shows of a step, pixels

    written: Collection[str]  # names of the files that it writes into the run's folder

    def start(self) -> None:
        """Removes what an earlier run showed of pairs that are fused anew."""

    def write(self, result: Result, file: str) -> None:
        """Keeps what it shows of a fused pair; called from the thread that writes."""

    def conclude(self, rows: Rows, command: Sequence[str]) -> None:
        """Writes the page, with the command line that made the run."""


@exits_in_one_line
def infer(config: InferConfig, command: Sequence[str], open_report: Callable[[Run], Report]) -> int:
    """Fuses every pair that the configuration names, and gives the exit code: 1 if any pair failed.

    ``command`` is the command line, for the page that ``open_report`` makes; files in it are inputs of the run.
    """
    prepare()
    given = [Path(argument) for argument in command if "=" not in argument and is_file(Path(argument))]
    try:
        pairs = scenes(config, note)
        if config.validate:
            return validate(config, FusionDataModule(pairs, reading(config), config.batch_size, config.workers))
        if is_file(Path(config.out)):
            raise RunError(f"out={config.out} is a file; give a folder for the results")
        if config.dry_run:
            run = find_run(config, pairs, given)
            run.claim(open_report(run).written)
            list_pairs(run)
            return 0
        with heed_signals(), lock(Path(config.out)):
            run = find_run(config, pairs, given)
            return fuse_pairs(run, open_report(run), command)
    except Interrupted as signal:
        print(f"interrupted: what is fused is kept, the same command goes on ({signal})", file=sys.stderr)
        return signal.exit_code


def fuse_pairs(run: Run, report: Report, command: Sequence[str]) -> int:
    """Fuses what is to do, writes it, concludes; the exit code is 1 if any pair failed."""
    config = run.config
    writer = FusionWriter(run.out, run.done, config.save, report.write, run.key)
    trainer = make_trainer(run, report, writer)
    logged = set(run.shown)
    large = config.save.weights or bool(logged)
    traced = None if config.save.weights else logged | set(report.names)
    tracing = Tracing(traced, logged | set(report.estimates), None if large else report.side)
    module = FusionModule(config, tracing=tracing)
    if make_record(config) != run.record:  # its hashes are those of what was opened
        raise RunError("prior, adapter, weights or rig were written while they were read: type the command again")
    if run.todo:
        data = FusionDataModule(run.todo, remembering(config, run.out), config.batch_size, config.workers)
        trainer.predict(module, data, return_predictions=False)
    elif trainer.is_global_zero:
        run.start()
        report.start()
        if config.logger.active:
            note("nothing is left to fuse, so nothing is logged; overwrite=true fuses anew")
    close(trainer.loggers)
    if not trainer.is_global_zero:
        return 0
    if (log := run.out / "log" / "metrics.csv").is_file():
        sort_log(log)
    join_series(run.out, run.pairs, writer.rows, config.reference)
    report.conclude(writer.rows, command)
    settle(run.out)
    return conclude(run, writer.rows)


def validate(config: InferConfig, data: FusionDataModule) -> int:
    """Prints metrics and statistics of the gains, means over all pairs; the exit code is 1 if any pair failed."""
    trainer = build_trainer(config.trainer, len(data.dataset), logger=False, enable_checkpointing=False)
    module = FusionModule(config)
    (means,) = trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        for name, value in means.items():
            print(f"{name:<32} {value:.4g}")
    return int(module.scores.count < len(data.dataset))


def make_trainer(run: Run, report: Report, writer: FusionWriter) -> Trainer:
    """Lightning's trainer with a progress bar and the loggers that the configuration names."""
    config = run.config

    def start(trainer: Trainer, _: LightningModule) -> None:
        """When every process has read what is to be done, one of them writes that it begins."""
        if trainer.is_global_zero:
            run.start()
            report.start()
        trainer.strategy.barrier()

    shown = run.shown
    numbers = {pair.name: number for number, pair in enumerate(run.pairs) if pair.name in shown}
    monitor, begin = FusionMonitor(run.out / "panels", numbers), LambdaCallback(on_predict_start=start)
    callbacks = [monitor, begin, Progress(len(run.todo), "picture"), writer]
    trainer = build_trainer(config.trainer, len(run.todo), default_root_dir=run.out, callbacks=callbacks, logger=False)
    if trainer.is_global_zero:
        run.claim(report.written, trainer.world_size)
    if run.todo:
        trainer.loggers = make_loggers(config.logger, run.out, asdict(config), start=sys.maxsize)
    return trainer


def conclude(run: Run, rows: Rows) -> int:
    """Prints what was done and why the rest was not; the exit code is 1 if any pair failed."""
    failed = [row for row in rows.values() if row["status"] == "failed"]
    for row in rows.values():
        if "seems shifted" in row.get("note", ""):
            print(f"warning: {one_line(row['name'])}: {row['note']}", file=sys.stderr)
    left = {Path(file).stem: file for file in run.owned if "/" not in file} if failed else {}
    for row in failed:
        file = left.get(row["name"], "")
        before = f" ({file} is an earlier run's)" if file and is_file(run.out / file) else ""
        print(f"failed: {one_line(row['reason'])}{before}", file=sys.stderr)
    before = f" ({len(run.done)} by an earlier run)" if run.done else ""
    print(f"{len(rows) - len(failed)} fused{before}, {len(failed)} failed; pictures and summary.csv in {run.out}")
    return 1 if failed else 0
