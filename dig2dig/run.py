"""One run of ``infer.py``: what is to be done, what an earlier run has done, and the record of how."""

import io
import logging
import platform
import sys
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LambdaCallback, TQDMProgressBar

from datamodules.files import ImageError, image_size
from datamodules.pairs import Pair, PairingError
from dig2dig.adapters import adapter_file
from dig2dig.atomic import write_atomically
from dig2dig.backbone import weights_file
from dig2dig.callbacks import FusionWriter, read_summary, write_summary
from dig2dig.checkpoints import cluster
from dig2dig.cli import from_yaml, to_yaml
from dig2dig.config import InferConfig, TrainerConfig
from dig2dig.logs import make_loggers
from dig2dig.monitor import FusionMonitor
from dig2dig.weights import PriorError, file_sha256

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
        for part in self.out.glob("summary.*.csv"):
            part.unlink()
        write_atomically(self.out / "run.yaml", to_yaml(self.record).encode())

    @property
    def inputs(self) -> dict[str, str]:
        """What identifies the files of each pair."""
        return {pair.name: fingerprint(pair) for pair in self.todo}


def open_run(config: InferConfig, pairs: Sequence[Pair]) -> Run:
    """Finds what is left to do; nothing is written yet.

    Pairs that an earlier run into the same folder has done are skipped if their files are the same, and its
    configuration, as far as it shapes the result, its prior and its version of dig2dig.

    Raises:
        PriorError: The prior's weights are not there.
        PairingError: A result would replace one of the sources.
    """
    out = Path(config.out)
    for pair in pairs:
        if (out / f"{pair.name}.png").resolve() in {file.resolve() for file in pair.files.values()}:
            raise PairingError(f"out={out} holds sources: {pair.name}.png would be replaced; give another folder")
    record = resolve(config)
    earlier = None if config.overwrite else from_yaml(InferConfig, out / "run.yaml")
    rows: dict[str, dict[str, str]] = {}
    if earlier and shaping(earlier) == shaping(record):
        for table in (out / "summary.csv", *sorted(out.glob("summary.*.csv"))):  # parts of an interrupted run
            rows |= read_summary(table)
    done = {name: row for name, row in rows.items() if row["status"] == "done" and (out / f"{name}.png").is_file()}
    todo = [pair for pair in pairs if pair.name not in done or done[pair.name]["inputs"] != fingerprint(pair)]
    for pair in todo:
        done.pop(pair.name, None)
    return Run(out, record, todo, done)


def fingerprint(pair: Pair) -> str:
    """Changes when a file of the pair is replaced, added or taken away: from sizes and times of change."""
    stats = [(modality, file.stat()) for modality, file in pair.files.items()]
    told = "/".join(f"{modality}:{stat.st_size}:{stat.st_mtime_ns}" for modality, stat in stats)
    return f"{zlib.crc32(told.encode()):08x}"


def resolve(config: InferConfig) -> InferConfig:
    """The configuration with the prior's hash and the versions that a result depends on."""
    versions = {"python": platform.python_version()}
    for package in RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    prior = config.prior
    prior = replace(prior, sha256=prior.sha256 or file_sha256(weights_file(prior.path)))
    if prior.adapter:
        adapter = adapter_file(Path(prior.adapter))
        prior = replace(prior, adapter_sha256=prior.adapter_sha256 or file_sha256(adapter))
    return replace(config, prior=prior, versions=versions)


def shaping(config: InferConfig) -> tuple[object, ...]:
    """What a result depends on: two runs that agree on it give the same pictures."""
    p = config.prior
    prior = (p.sha256, p.adapter_sha256, p.precision, p.tile, p.memory, p.compile)
    ours = config.versions.get("dig2dig")
    return config.task, config.allow_missing, config.noise, prior, config.sampler, config.save, config.seed, ours


def build_trainer(devices: TrainerConfig, **options: Any) -> Trainer:
    """Lightning's trainer on the devices that a configuration names; what Lightning refuses is the user's to mend."""
    try:
        return Trainer(**asdict(devices), **options)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error


def make_trainer(config: InferConfig, run: Run, writer: FusionWriter) -> Trainer:
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
        callbacks=[LambdaCallback(on_predict_start=start), writer, TQDMProgressBar()],
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


def one_line(error: Exception) -> str:
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
    )
    for advice in advices:  # the last: our sampler starts where the run stands
        warnings.filterwarnings("ignore", f".*{advice}.*")


def list_pairs(run: Run) -> None:
    """Prints what would be fused."""
    for pair in run.todo:
        try:
            height, width = image_size(next(iter(pair.files.values())))
            size = f"{width}x{height}"
        except ImageError as error:
            size = str(error)
        missing = f"  missing: {', '.join(pair.missing)}" if pair.missing else ""
        print(f"{pair.name}  {size}  {', '.join(map(str, pair.files.values()))}{missing}")
    print(f"{len(run.todo)} to fuse, {len(run.done)} done before, into {run.out}")


def conclude(run: Run, rows: dict[str, dict[str, str]]) -> int:
    """Prints what was done and why the rest was not; the exit code is 1 if any pair failed."""
    failed = [row for row in rows.values() if row["status"] == "failed"]
    for row in failed:
        print(f"failed: {row['reason']}", file=sys.stderr)
    before = f" ({len(run.done)} by an earlier run)" if run.done else ""
    print(f"{len(rows) - len(failed)} fused{before}, {len(failed)} failed; pictures and summary.csv in {run.out}")
    return 1 if failed else 0
