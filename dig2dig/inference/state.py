"""Where a run stands: what is to do, what an earlier run into the same folder has done, and the record of how."""

import json
import platform
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

from datamodules.pairing import Pair
from datamodules.pairs import Reading, pair_digest
from datamodules.rig import is_rig, read_rig
from dig2dig.atomic import is_file, read_names, sweep, write_atomically
from dig2dig.cli import from_yaml, read_record, to_yaml
from dig2dig.config import InferConfig
from dig2dig.errors import RunError
from dig2dig.fusion.weight import weights_sha256
from dig2dig.inference.ownership import ALIGNED, PART_TABLE, claim, names_of, refuse_to_replace_inputs, registers
from dig2dig.inference.table import Rows, read_summary, write_summary
from dig2dig.priors.files import file_sha256, prior_sha256
from dig2dig.priors.lora import adapter_file

RECORDED = ("dig2dig", "torch", "lightning", "diffusers", "numpy")  # packages whose versions are recorded
OPTIONS = {"prior_sha256": "prior.path", "adapter_sha256": "prior.adapter", "weights_sha256": "sampler.weights"}


@dataclass(frozen=True)
class Run:
    """Pairs to fuse and rows that an earlier run with the same configuration left."""

    out: Path  # the folder
    config: InferConfig  # the configuration, with absolute paths
    record: dict[str, Any]  # SHA-256 of prior, adapter and learned weights, and versions
    pairs: Sequence[Pair]  # all pairs
    todo: list[Pair]  # pairs that are to be fused
    done: Rows  # rows of ``summary.csv`` that stay valid, by name
    owned: Collection[str] = ()  # what earlier runs wrote into the folder, as its record names it

    def claim(self, report: Collection[str], processes: int = 1) -> None:
        """Records what the run will write; RunError if that would replace something that no run wrote."""
        tables = [f"summary.{number}.csv" for number in range(processes)] if processes > 1 else []
        names = {*names_of(self.config, self.pairs, self.shown), *report, *tables}
        claim(self.out, names, self.owned, self.config.overwrite, self.config.dry_run)

    def start(self) -> None:
        """Writes ``OUT/run.yaml``, and ``OUT/summary.csv`` with the rows that stay valid, no other."""
        write_summary(self.out / "summary.csv", self.done)
        for name in filter(PART_TABLE.fullmatch, self.owned):  # of runs that were killed
            (self.out / name).unlink(missing_ok=True)
        for folder in ("", "report", "panels", "log", *(name for name in self.owned if name.endswith("_maps/"))):
            sweep(self.out.resolve() / folder)
        write_atomically(self.out / "run.yaml", self.yaml)

    @property
    def yaml(self) -> bytes:
        """What ``OUT/run.yaml`` holds."""
        return to_yaml(self.config, self.record).encode()

    @property
    def key(self) -> str:
        """Changes with whatever shapes a result."""
        return key_of(self.config, self.record)

    @property
    def shown(self) -> list[str]:
        """Pairs whose panels are drawn: with those of an earlier run as many as ``logger.pairs``."""
        wanted = self.config.logger.pairs if self.config.logger.active else 0
        drawn = [name for name in self.done if is_file(self.out / f"panels/{name}_panel.png")] if wanted else []
        return [pair.name for pair in self.todo[: max(wanted - len(drawn), 0)]]


def key_of(config: InferConfig, record: dict[str, Any]) -> str:
    """Changes with whatever shapes a result: on one machine, runs of one key give the same pictures."""
    prior = config.prior
    shaping = (
        reading(config),
        config.sequence,
        config.batch_size,
        config.noise,
        config.prefer,
        record.get("weights_sha256"),
        (record.get("prior_sha256"), record.get("adapter_sha256"), prior.precision, prior.window, prior.compile),
        config.sampler,
        config.save,
        config.seed,
        record.get("versions", {}).get("dig2dig"),
        *([record["rig_sha256"]] if record.get("rig_sha256") else []),
    )
    return f"{zlib.crc32(json.dumps(shaping, sort_keys=True, default=asdict).encode()):08x}"


def reading(config: InferConfig) -> Reading:
    """How the configuration wants files to be read."""
    c = config
    return Reading(c.task, c.allow_missing, c.range, c.reference, c.align, c.border, c.ghosts, c.save.metadata)


def remembering(config: InferConfig, out: Path) -> Reading:
    """How it wants them to be read, with what runs into the folder ``out`` have registered."""
    return replace(reading(config), memory=str(out / ALIGNED) if registers(config) else "")


def find_run(config: InferConfig, pairs: Sequence[Pair], given: Sequence[Path] = ()) -> Run:
    """Finds what is left to do; nothing is written yet.

    RunError if an input, or a ``given`` file, would be replaced, or if a network's bytes are not those of a record.
    Pairs that an earlier run into the same folder has done are skipped if their files hold the same bytes, and its
    configuration, as far as it shapes the result, its prior and its version of dig2dig are the same.
    """
    out = Path(config.out)
    config, record = resolve(config), make_record(config)
    owned = read_names(out)
    ours = [out / "run.yaml"] * ("run.yaml" in owned and not config.overwrite)
    refuse_other_bytes(config, record, [*given, *ours])
    rows: Rows = {}
    for table in () if config.overwrite else ("summary.csv", *sorted(filter(PART_TABLE.fullmatch, owned))):
        rows |= read_summary(out / table, key_of(config, record))  # parts are an interrupted run's
    how = reading(config)
    done = {name: row for name, row in rows.items() if row["status"] == "done" and is_file(out / row["file"])}
    todo = [pair for pair in pairs if pair.name not in done or done[pair.name]["inputs"] != pair_digest(pair, how)]
    for pair in todo:
        done.pop(pair.name, None)
    run = Run(out, config, record, pairs, todo, done, owned)
    changed = [file for file in given if file.read_bytes() != run.yaml]  # a run.yaml may repeat its own run
    refuse_to_replace_inputs(config, pairs, changed)
    return run


def make_record(config: InferConfig) -> dict[str, Any]:
    """SHA-256 of prior, adapter and learned weights, and the versions that a result depends on."""
    prior, versions = config.prior, {package: version(package) for package in RECORDED}
    versions["python"] = platform.python_version()
    adapter = file_sha256(adapter_file(prior.adapter)) if prior.adapter else ""
    hashes = {"prior_sha256": prior_sha256(prior.path), "adapter_sha256": adapter}
    if is_rig(config.align):
        read_rig(Path(config.align))  # refused before anything is written
        hashes["rig_sha256"] = file_sha256(Path(config.align))
    return hashes | {"weights_sha256": weights_sha256(config.sampler.weights), "versions": versions}


def refuse_other_bytes(config: InferConfig, record: dict[str, Any], files: Iterable[Path]) -> None:
    """RunError if a record in one of the files names a network of this run with another SHA-256."""
    for file in filter(read_record, files):
        earlier, facts = from_yaml(InferConfig, file), read_record(file)
        for name, option in OPTIONS.items() if earlier else ():
            path, before, now = attrgetter(option), facts.get(name), record[name]
            if before not in (None, now) and path(earlier) == path(config):
                told = f"{path(config)}: its SHA-256 is {now[:12]}…, that in the record {file} is {str(before)[:12]}…"
                raise RunError(f"{told}: get it again, or fuse anew without the record, with overwrite=true")


def resolve(config: InferConfig) -> InferConfig:
    """The configuration with absolute paths."""
    prior = replace(config.prior, path=existing(config.prior.path), adapter=existing(config.prior.adapter))
    sources = {modality: absolute(source) for modality, source in config.sources.items()}
    paths = {name: absolute(getattr(config, name)) for name in ("manifest", "stacks", "out")}
    sampler, learned = config.sampler, config.sampler.weights
    if learned != "gain" and not learned.startswith("bundled/"):
        sampler = replace(sampler, weights=existing(learned))
    align = absolute(config.align) if is_rig(config.align) else config.align
    return replace(config, sources=sources, prior=prior, sampler=sampler, align=align, **paths)


def absolute(path: str) -> str:
    """A path that holds wherever a run is repeated from; empty stays empty."""
    return path and str(Path(path).absolute())


def existing(path: str) -> str:
    """The absolute path of what is on this disk; other names, as hub ids, stay as they are."""
    return absolute(path) if Path(path).exists() else path
