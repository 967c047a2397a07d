"""One run of ``infer.py``: what is to be done, what an earlier run has done, and the record of how."""

import io
import json
import logging
import platform
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LambdaCallback, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only

from datamodules.pairing import Pair, PairingError
from datamodules.pairs import Reading, pair_digest
from datamodules.readers.pixels import ImageError
from datamodules.readers.source import real
from dig2dig.atomic import write_atomically
from dig2dig.cli import from_yaml, to_yaml
from dig2dig.config import InferConfig, TrainerConfig
from dig2dig.inference.encode import suffix_of
from dig2dig.inference.writer import read_summary, write_summary
from dig2dig.priors.files import PriorError, file_sha256
from dig2dig.priors.load import weights_file
from dig2dig.priors.lora import adapter_file
from dig2dig.report.fragments import prune
from dig2dig.tracking.loggers import make_loggers
from dig2dig.tracking.monitor import FusionMonitor
from dig2dig.training.checkpoints import cluster

REFUSALS = (PairingError, PriorError, ImageError, MisconfigurationException, OSError)
"""What a user can mend: told in one line. Anything else is a fault of ours and keeps its traceback."""

RECORDED = ("dig2dig", "torch", "lightning", "diffusers", "numpy")


@dataclass(frozen=True)
class Run:
    """Pairs to fuse and rows that an earlier run with the same configuration left.

    Attributes:
        out: The folder.
        record: The configuration with what it resolved to.
        todo: Pairs that are to be fused.
        done: Rows of ``summary.csv`` that stay valid, by name.
    """

    out: Path
    record: InferConfig
    todo: list[Pair]
    done: dict[str, dict[str, str]]

    def start(self) -> None:
        """Writes ``OUT/run.yaml``, and ``OUT/summary.csv`` with the rows that stay valid, no other."""
        write_summary(self.out / "summary.csv", self.done)
        ours = ("summary.*.csv", *(f"{folder}.*.part*" for folder in ("", "*_maps/", "report/", "panels/")))
        for part in (part for pattern in ours for part in self.out.glob(pattern)):  # of runs that were killed
            part.unlink(missing_ok=True)
        prune(self.out, list(self.done))
        write_atomically(self.out / "run.yaml", to_yaml(self.record).encode())

    @property
    def key(self) -> str:
        """Changes with whatever shapes a result."""
        parts = [asdict(part) if is_dataclass(part) else part for part in shaping(self.record)]  # pyright: ignore
        return f"{zlib.crc32(json.dumps(parts, sort_keys=True, default=str).encode()):08x}"


def reading(config: InferConfig) -> Reading:
    """How the configuration wants files to be read."""
    c = config
    return Reading(c.task, c.allow_missing, c.range, c.reference, c.align, c.align_score)


@contextmanager
def hold(folder: str) -> Iterator[None]:
    """Keeps other runs out of a folder as long as this process lives, however it ends.

    Raises:
        PairingError: Another run is at work there.
    """
    if rank_zero_only.rank:  # type: ignore[attr-defined]  # the first process holds it for all
        yield
        return
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise PairingError(f"out={out}: another run is at work there; wait for it or give another folder") from error
    try:
        yield
    finally:
        (out / ".lock").unlink(missing_ok=True)
        lock.release()


def open_run(config: InferConfig, pairs: Sequence[Pair]) -> Run:
    """Finds what is left to do; nothing is written yet.

    Pairs that an earlier run into the same folder has done are skipped if their files hold the same bytes, and its
    configuration, as far as it shapes the result, its prior and its version of dig2dig.

    Raises:
        PriorError: The prior's weights are not there.
        PairingError: A result would replace one of the sources.
    """
    out = Path(config.out)
    sources = {real(file) for pair in pairs for file in pair.files.values()}
    for pair in pairs:
        suffixes = {suffix_of(config.save.format, file.suffix.lower()) for file in pair.files.values()}
        written = {real(out / f"{pair.name}{suffix}") for suffix in suffixes}
        written |= {real(out / f"{pair.series}.mp4")} if pair.series else set()
        if hit := sources & written:
            raise PairingError(
                f"out={out} holds sources: {Path(hit.pop()).name} would be replaced; give another folder"
            )
    record = resolve(config)
    earlier = None if config.overwrite else from_yaml(InferConfig, out / "run.yaml")
    rows: dict[str, dict[str, str]] = {}
    if earlier and shaping(earlier) == shaping(record):
        for table in (out / "summary.csv", *sorted(out.glob("summary.*.csv"))):  # parts of an interrupted run
            rows |= read_summary(table)
    how = reading(config)
    done = {name: row for name, row in rows.items() if row["status"] == "done" and (out / row["file"]).is_file()}
    todo = [pair for pair in pairs if pair.name not in done or done[pair.name]["inputs"] != pair_digest(pair, how)]
    for pair in todo:
        done.pop(pair.name, None)
    return Run(out, record, todo, done)


def resolve(config: InferConfig) -> InferConfig:
    """The configuration with absolute paths, the prior's hash and the versions that a result depends on."""
    versions = {"python": platform.python_version()}
    for package in RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    prior = config.prior
    prior = replace(prior, sha256=prior.sha256 or file_sha256(weights_file(prior.path)))
    if Path(prior.path).exists():
        prior = replace(prior, path=absolute(prior.path))
    if prior.adapter:
        adapter = adapter_file(Path(prior.adapter))
        sha256 = prior.adapter_sha256 or file_sha256(adapter)
        prior = replace(prior, adapter=absolute(prior.adapter), adapter_sha256=sha256)
    return replace(
        config,
        sources={modality: absolute(source) for modality, source in config.sources.items()},
        manifest=absolute(config.manifest),
        stacks=absolute(config.stacks),
        out=absolute(config.out),
        prior=prior,
        versions=versions,
    )


def absolute(path: str) -> str:
    """A path that holds wherever a run is repeated from; empty stays empty."""
    return path and str(Path(path).absolute())


def shaping(config: InferConfig) -> tuple[object, ...]:
    """The options that a result depends on: on one machine, two runs that agree on them give the same pictures."""
    p = config.prior
    prior = (p.sha256, p.adapter_sha256, p.precision, p.tile, p.memory, p.compile)
    ours = config.versions.get("dig2dig")
    return (
        reading(config),
        config.sequence,
        config.exact or config.batch_size,
        config.noise,
        prior,
        config.sampler,
        config.save,
        config.seed,
        ours,
    )


def build_trainer(devices: TrainerConfig, **options: Any) -> Trainer:
    """Lightning's trainer on the devices that a configuration names; what Lightning refuses is the user's to mend."""
    try:
        return Trainer(**asdict(devices), **options)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error


def make_trainer(config: InferConfig, run: Run, *writers: Callback) -> Trainer:
    """Lightning's trainer with a progress bar and the loggers that the configuration names."""
    devices = config.trainer

    def start(trainer: Trainer, _: LightningModule) -> None:
        """When every process has read what is to be done, one of them writes that it begins."""
        if trainer.is_global_zero:
            run.start()
        trainer.strategy.barrier()

    trainer = build_trainer(
        devices,
        default_root_dir=run.out,
        plugins=cluster(),
        callbacks=[LambdaCallback(on_predict_start=start), *writers, TQDMProgressBar()],
        logger=False,
        inference_mode=False,  # posterior guidance needs gradients
        use_distributed_sampler=False,  # SizeBatches splits whole batches
    )
    if run.todo:
        trainer.loggers = make_loggers(config.logger, run.out, asdict(config), start=sys.maxsize)
    if trainer.loggers:
        monitor = FusionMonitor(run.out / "panels", config.logger.pairs, first=len(run.done))
        trainer.callbacks.insert(0, monitor)  # pyright: ignore[reportAttributeAccessIssue]
    return trainer


def one_line(error: Exception | str) -> str:
    """What an error says, of a worker's traceback the last line only."""
    text = str(error).strip()
    return " ".join((text.splitlines()[-1] if "Traceback" in text else text).split())


def quiet() -> None:
    """Silences what Lightning says about itself, not what it says about a user's mistakes; names print as they can."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    advices = (
        "does not have many workers",
        "LeafSpec",
        "batch sampler `SizeBatches`",
        "dataloader is not resumable",
        "flops_per_batch",
        "across ranks is zero",
    )
    for advice in advices:  # not resumable: our sampler starts where the run stands
        warnings.filterwarnings("ignore", f".*{advice}.*")


def conclude(run: Run, rows: dict[str, dict[str, str]]) -> int:
    """Prints what was done and why the rest was not; the exit code is 1 if any pair failed."""
    failed = [row for row in rows.values() if row["status"] == "failed"]
    for row in rows.values():
        if "seems shifted" in row.get("note", ""):
            print(f"warning: {one_line(row['name'])}: {row['note']}", file=sys.stderr)
    for row in failed:
        print(f"failed: {one_line(row['reason'])}", file=sys.stderr)
    before = f" ({len(run.done)} by an earlier run)" if run.done else ""
    print(f"{len(rows) - len(failed)} fused{before}, {len(failed)} failed; pictures and summary.csv in {run.out}")
    return 1 if failed else 0
