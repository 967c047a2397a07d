"""What a run would do, before it does it: pairs with their sizes, and memory."""

from datamodules.folders import extra_files
from datamodules.pairing import Pair
from datamodules.pairs import reference_of
from datamodules.readers.source import source_size
from dig2dig.color import LUMINANCE_TASKS
from dig2dig.errors import ImageError, one_line
from dig2dig.inference.state import Run

MOST = 20  # names of extra files that are printed
BASE = 2.0  # GiB of Python, torch and one call of the bundled prior
BYTES = 64  # for each value of the sources at the peak, as python -m dig2dig.benchmark speed measured it


def list_pairs(run: Run) -> None:
    """Prints what would be fused, what is wrong with the rest, and how much memory it would take."""
    values = 0
    for pair in run.todo:
        told, pixels = describe(pair, run.config.reference, run.config.allow_missing)
        values = max(values, pixels * len(pair.files))
        print(one_line(told))
    if extra := extra_files(run.config.sources):
        names = ", ".join(str(path) for path in extra[:MOST])
        print(f"ignored, not images: {names}{' …' if len(extra) > MOST else ''} ({len(extra)})")
    print(f"{len(run.todo)} to fuse, {len(run.done)} done before, into {run.out}")
    if values:
        channels = 1 if run.config.task in LUMINANCE_TASKS else 3
        print(f"at most about {BASE + BYTES * values * channels / 2**30:.1f} GiB of memory with the bundled prior")


def describe(pair: Pair, reference: str, allow_missing: bool) -> tuple[str, int]:
    """One line on a pair, and its pixels; 0 where it cannot be fused."""
    files = ", ".join(map(str, pair.files.values()))
    if pair.problem:
        return f"{pair.name}  cannot be fused: {pair.problem}", 0
    if pair.incomplete(allow_missing):
        return f"{pair.name}  cannot be fused, missing: {', '.join(pair.missing)}", 0
    missing = f"  missing: {', '.join(pair.missing)}" if pair.missing else ""
    try:
        first = reference_of(pair, reference)
        height, width = source_size(pair.files[first], pair.frame, first)
    except ImageError as error:
        return f"{pair.name}  {error}{missing}", 0
    frame = "" if pair.frame is None else f" [{pair.frame}]"
    return f"{pair.name}  {width}x{height}  {files}{frame}{missing}", height * width
