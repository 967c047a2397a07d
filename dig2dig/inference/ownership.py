"""Which files of an output folder are a run's: it replaces and removes those that its record names, and no input."""

import json
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from datamodules.pairing import Pair
from datamodules.pairs import reference_of
from datamodules.readers.medical import files as files_of
from datamodules.readers.video import is_video
from dig2dig.atomic import LOCK, RECORD, is_file, mode_of, read_names, refuse_inputs, write_atomically
from dig2dig.config import InferConfig
from dig2dig.errors import RunError
from dig2dig.inference.encode import suffix_of

ALIGNED = "align.json"  # in OUT: registrations, so that fusing again finds them
PANELS = ("panel", "maps", "curves")
MAP = re.compile(r"(gain|weight)_[\w-]+_step\d{3,}_t\d{3,}\.png")
PART_TABLE = re.compile(r"summary\.\d+\.csv")  # of one process of several


def claim(
    out: Path, names: Collection[str], owned: Collection[str], overwrite: bool | None = None, dry: bool = False
) -> None:
    """Records the names as this run's; RunError if one is there that no run made, or if a folder of ours is a link.

    ``overwrite`` takes what is there; None where there is no such option. ``dry`` records nothing.
    """
    folders = {out / name.split("/")[0] for name in names if "/" in name}
    if link := next((folder for folder in sorted(folders) if stat.S_ISLNK(mode_of(folder))), None):
        raise RunError(f"{link} is a link; remove it, or give another folder")
    foreign = sorted(name for name in {RECORD, *names} - set(owned) if _is_there(out / name))
    if foreign and not overwrite:
        told = f"out={out} holds {foreign[0]}, which no run of dig2dig wrote"
        raise RunError(f"{told}; give another folder{'' if overwrite is None else ', or overwrite=true'}")
    if not dry:
        record(out, {*names, *(name for name in owned if _is_there(out / name))})


def record(out: Path, names: Iterable[str]) -> None:
    """Writes the record of what runs made in a folder."""
    content = json.dumps({"wrote": sorted({RECORD, *names})}, indent=0)
    write_atomically(out / RECORD, f"{content}\n".encode())


def settle(out: Path) -> None:
    """At the end of a run, leaves in the record what is there."""
    record(out, [name for name in read_names(out) if _is_there(out / name)])


def _is_there(path: Path) -> bool:
    """Whether there is a file, a link or a folder that is not empty."""
    mode = mode_of(path)
    return any(path.iterdir()) if stat.S_ISDIR(mode) else bool(mode)


def registers(config: InferConfig) -> bool:
    """Whether a run finds out how its sources lie."""
    return config.align in ("auto", "ecc", "phase")


def names_of(config: InferConfig, pairs: Sequence[Pair], shown: Collection[str] = ()) -> Iterator[str]:
    """All that a run writes into its folder, but for its report; ``shown`` are pairs with panels."""
    yield from ("run.yaml", "summary.csv", *([ALIGNED] if registers(config) else []))
    for pair in (pair for pair in pairs if pair.files):
        source = pair.files[reference_of(pair, config.reference)]
        suffix = suffix_of(config.save.format, source.suffix.lower())
        yield f"{pair.name}{suffix}"
        yield from [f"{pair.name}_maps/"] * config.save.weights
        if pair.series and (suffix == ".nii.gz" or is_video(source)):
            yield f"{pair.series}{suffix if suffix == '.nii.gz' else '.mp4'}"
    yield from (f"panels/{name}_{kind}.png" for name in shown for kind in PANELS)
    yield from ["log/metrics.csv", "log/hparams.yaml"] * config.logger.csv
    yield from ["tensorboard/"] * config.logger.tensorboard
    yield from ["wandb_id", "wandb/"] * (config.logger.wandb.mode != "disabled")


def refuse_to_replace_inputs(config: InferConfig, pairs: Sequence[Pair], given: Iterable[Path]) -> None:
    """RunError if a run would write over a file that it reads, or into a folder of its prior, adapter or weights.

    ``given`` are the configuration's files.
    """
    out, prior = Path(config.out), config.prior
    names = set(names_of(config, pairs, [pair.name for pair in pairs] if config.logger.pairs else ()))
    sources = [file for pair in pairs for source in pair.files.values() for file in files_of(source)]
    folders = [Path(text) for text in (prior.path, prior.adapter, config.sampler.weights) if text]
    options = [Path(text) for text in (config.manifest, config.stacks, *config.sources.values(), config.align) if text]
    own = ("report.html", RECORD, LOCK)
    read = [*sources, *given, *(path for path in (*folders, *options) if is_file(path))]
    refuse_inputs(config.out, [out / name for name in (*names, *own)], read)
    inner = {out / name.split("/")[0] for name in (*names, "report/", "panels/", "log/") if "/" in name}
    parts = [*options, *(folder / part for folder in folders for part in ("", "unet", "scheduler"))]
    refuse_inputs(config.out, [out, *inner], [part for part in parts if part.is_dir()])
    refuse_inputs(config.out, inner, {file.parent for file in sources})
