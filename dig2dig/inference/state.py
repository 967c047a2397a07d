"""Where a run stands: what is to do, what an earlier run into the same folder has done, and the record of how."""

import json
import platform
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datamodules.pairing import Pair
from datamodules.pairs import Reading, pair_digest
from datamodules.readers.source import real
from dig2dig.atomic import write_atomically
from dig2dig.cli import from_yaml, read_record, to_yaml
from dig2dig.config import InferConfig
from dig2dig.errors import PairingError
from dig2dig.fusion.weight import weights_sha256
from dig2dig.inference.encode import suffix_of
from dig2dig.inference.table import Rows, read_summary, write_summary
from dig2dig.priors.files import file_sha256, prior_sha256
from dig2dig.priors.lora import adapter_file

RECORDED = ("dig2dig", "torch", "lightning", "diffusers", "numpy")  # packages whose versions are recorded


@dataclass(frozen=True)
class Run:
    """Pairs to fuse and rows that an earlier run with the same configuration left."""

    out: Path  # the folder
    config: InferConfig  # the configuration, with absolute paths
    record: dict[str, Any]  # SHA-256 of prior, adapter and learned weights, and versions
    pairs: Sequence[Pair]  # all pairs
    todo: list[Pair]  # pairs that are to be fused
    done: Rows  # rows of ``summary.csv`` that stay valid, by name

    def start(self) -> None:
        """Writes ``OUT/run.yaml``, and ``OUT/summary.csv`` with the rows that stay valid, no other."""
        write_summary(self.out / "summary.csv", self.done)
        ours = ("summary.*.csv", *(f"{folder}.*.part*" for folder in ("", "*_maps/", "report/", "panels/")))
        for part in (part for pattern in ours for part in self.out.glob(pattern)):  # of runs that were killed
            part.unlink(missing_ok=True)
        write_atomically(self.out / "run.yaml", to_yaml(self.config, self.record).encode())

    @property
    def key(self) -> str:
        """Changes with whatever shapes a result."""
        parts = [asdict(part) if is_dataclass(part) else part for part in shaping(self.config, self.record)]  # pyright: ignore
        return f"{zlib.crc32(json.dumps(parts, sort_keys=True, default=str).encode()):08x}"


def reading(config: InferConfig) -> Reading:
    """How the configuration wants files to be read."""
    return Reading(
        config.task, config.allow_missing, config.range, config.reference, config.align, border=config.border
    )


def find_run(config: InferConfig, pairs: Sequence[Pair]) -> Run:
    """Finds what is left to do; nothing is written yet.

    Pairs that an earlier run into the same folder has done are skipped if their files hold the same bytes, and its
    configuration, as far as it shapes the result, its prior and its version of dig2dig are the same.
    """
    out = Path(config.out)
    refuse_to_replace_sources(config, pairs)
    config, record = resolve(config), make_record(config)
    earlier = None if config.overwrite else from_yaml(InferConfig, out / "run.yaml")
    rows: Rows = {}
    if earlier and shaping(earlier, read_record(out / "run.yaml")) == shaping(config, record):
        for table in (out / "summary.csv", *sorted(out.glob("summary.*.csv"))):  # parts of an interrupted run
            rows |= read_summary(table)
    how = reading(config)
    done = {name: row for name, row in rows.items() if row["status"] == "done" and (out / row["file"]).is_file()}
    todo = [pair for pair in pairs if pair.name not in done or done[pair.name]["inputs"] != pair_digest(pair, how)]
    for pair in todo:
        done.pop(pair.name, None)
    return Run(out, config, record, pairs, todo, done)


def refuse_to_replace_sources(config: InferConfig, pairs: Sequence[Pair]) -> None:
    """Raises PairingError if a result has the path of a source."""
    out = Path(config.out)
    sources = {real(file) for pair in pairs for file in pair.files.values()}
    for pair in pairs:
        suffixes = {suffix_of(config.save.format, file.suffix.lower()) for file in pair.files.values()}
        written = {real(out / f"{pair.name}{suffix}") for suffix in suffixes}
        written |= {real(out / f"{pair.series}.mp4")} if pair.series else set()
        if hit := sources & written:
            name = Path(hit.pop()).name
            raise PairingError(f"out={out} holds sources: {name} would be replaced; give another folder")


def make_record(config: InferConfig) -> dict[str, Any]:
    """SHA-256 of prior, adapter and learned weights, and the versions that a result depends on."""
    prior, versions = config.prior, {package: version(package) for package in RECORDED}
    versions["python"] = platform.python_version()
    adapter = file_sha256(adapter_file(Path(prior.adapter))) if prior.adapter else ""
    hashes = {"prior_sha256": prior_sha256(prior.path), "adapter_sha256": adapter}
    return hashes | {"weights_sha256": weights_sha256(config.sampler.weights), "versions": versions}


def resolve(config: InferConfig) -> InferConfig:
    """The configuration with absolute paths."""
    prior = replace(config.prior, adapter=absolute(config.prior.adapter))
    if Path(prior.path).exists():
        prior = replace(prior, path=absolute(prior.path))
    sources = {modality: absolute(source) for modality, source in config.sources.items()}
    paths = {name: absolute(getattr(config, name)) for name in ("manifest", "stacks", "out")}
    sampler, learned = config.sampler, config.sampler.weights
    if learned != "gain" and not learned.startswith("bundled/"):
        sampler = replace(sampler, weights=absolute(learned))
    return replace(config, sources=sources, prior=prior, sampler=sampler, **paths)


def absolute(path: str) -> str:
    """A path that holds wherever a run is repeated from; empty stays empty."""
    return path and str(Path(path).absolute())


def shaping(config: InferConfig, record: dict[str, Any]) -> tuple[object, ...]:
    """What a result depends on: on one machine, two runs that agree on it give the same pictures."""
    prior = config.prior
    return (
        reading(config),
        config.sequence,
        config.exact or config.batch_size,
        config.noise,
        config.prefer,
        record.get("weights_sha256"),
        (record.get("prior_sha256"), record.get("adapter_sha256"), prior.precision, prior.window, prior.compile),
        config.sampler,
        config.save,
        config.seed,
        record.get("versions", {}).get("dig2dig"),
    )
