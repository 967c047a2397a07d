"""One run of ``infer.py``: what is to be done, what an earlier run has done, and the record of how."""

import logging
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from datamodules.files import ImageError, image_size
from datamodules.pairs import Pair
from dig2dig.backbone import file_sha256, weights_file
from dig2dig.callbacks import read_summary, write_atomically
from dig2dig.cli import from_yaml, to_yaml
from dig2dig.config import InferConfig

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
        """Writes ``OUT/run.yaml``."""
        write_atomically(self.out / "run.yaml", to_yaml(self.record).encode())


def open_run(config: InferConfig, pairs: Sequence[Pair]) -> Run:
    """Finds what is left to do; nothing is written yet.

    Pairs that an earlier run into the same folder has done are skipped if its configuration, as far as it
    shapes the result, and its prior are the same.

    Raises:
        PriorError: The prior's weights are not there.
    """
    out = Path(config.out)
    record = resolve(config)
    earlier = None if config.overwrite else from_yaml(InferConfig, out / "run.yaml")
    rows = read_summary(out / "summary.csv") if earlier and shaping(earlier) == shaping(record) else {}
    done = {name: row for name, row in rows.items() if row["status"] == "done" and (out / f"{name}.png").is_file()}
    return Run(out, record, [pair for pair in pairs if pair.name not in done], done)


def resolve(config: InferConfig) -> InferConfig:
    """The configuration with the prior's hash and the versions that a result depends on."""
    versions = {"python": platform.python_version()}
    for package in RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    sha256 = config.prior.sha256 or file_sha256(weights_file(config.prior.path))
    return replace(config, prior=replace(config.prior, sha256=sha256), versions=versions)


def shaping(config: InferConfig) -> tuple[object, ...]:
    """What a result depends on: two runs that agree on it give the same pictures."""
    prior = (config.prior.sha256, config.prior.precision)
    return config.task, config.sources, config.allow_missing, prior, config.sampler, config.save, config.seed


def quiet() -> None:
    """Silences what Lightning says about itself, not what it says about a user's mistakes."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for advice in ("does not have many workers", "LeafSpec", "custom batch sampler `SizeBatches`"):
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
