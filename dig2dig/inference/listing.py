"""What a run would do, before it does it: pairs with their sizes, and memory."""

from collections.abc import Sequence

from torch import Size

from datamodules.folders import extra_files
from datamodules.pairing import Pair
from datamodules.pairs import Reading, differing, reference_of
from datamodules.readers.medical import is_medical
from datamodules.readers.source import real, source_size
from datamodules.readers.volume import memory
from dig2dig.color import LUMINANCE_TASKS
from dig2dig.config import InferConfig
from dig2dig.errors import ImageError, one_line
from dig2dig.fusion.stream import streams
from dig2dig.inference.state import Run, reading

MOST = 20  # names that are printed
BASE = 2.0  # GiB of Python, torch and one call of the bundled prior
BYTES = 128  # for each pixel of the sources at the peak, grey or colour, as speed sections=sizes measured it
GIB = 2**30


def list_pairs(run: Run) -> None:
    """Prints what would be fused, what is wrong with the rest, and how much memory it would take."""
    needs: dict[str, float] = {}
    for pair in run.todo:
        told, pixels = describe(pair, reading(run.config))
        needs |= {pair.name: needed(run.config, len(pair.files), pixels)} if pixels else {}
        print(one_line(told))
    if extra := extra_files(run.config.sources):
        print(f"ignored, not images: {some([str(path) for path in extra])} ({len(extra)})")
    refused = f", {len(run.todo) - len(needs)} that cannot be fused" if len(needs) < len(run.todo) else ""
    print(f"{len(needs)} to fuse, {len(run.done)} done before{refused}, into {run.out}")
    if needs:
        print(f"at most about {max(needs.values()):.1f} GiB of memory with the bundled prior")
    if large := [name for name, need in needs.items() if need * GIB > memory()]:
        print(f"larger than this machine's {memory() / GIB:.1f} GiB, make them smaller: {some(large)} ({len(large)})")


def needed(config: InferConfig, count: int, pixels: int) -> float:
    """GiB that the fusion of so many sources takes at most; of a tall stack, one source is in memory at a time."""
    channels = 1 if config.task in LUMINANCE_TASKS else 3
    shape = Size((1, count, channels, 1, pixels))
    together = 1.5 if streams(config.sampler, shape, config.sampler.weights != "gain") else count
    return BASE + BYTES * together * pixels / GIB


def some(names: Sequence[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:MOST]) + (" …" if len(names) > MOST else "")


def describe(pair: Pair, how: Reading) -> tuple[str, int]:
    """One line on a pair, and its pixels; 0 where it cannot be fused."""
    files = ", ".join(map(str, pair.files.values()))
    if pair.problem:
        return f"{pair.name}  cannot be fused: {pair.problem}", 0
    if pair.incomplete(how.allow_missing):
        return f"{pair.name}  cannot be fused, missing: {', '.join(pair.missing)}", 0
    missing = f"  missing: {', '.join(pair.missing)}" if pair.missing else ""
    try:
        first = reference_of(pair, how.reference)
        height, width = source_size(pair.files[first], pair.frame, first)
        own = {m: file for m, file in pair.files.items() if real(file) != real(pair.files[first])}
        free = {m: source_size(file, pair.frame, m) for m, file in own.items() if not is_medical(file)}
    except ImageError as error:
        return f"{pair.name}  {error}{missing}", 0
    if told := differing(pair, {first: (height, width)} | free, how):
        return f"{pair.name}  cannot be fused: {told}", 0
    frame = "" if pair.frame is None else f" [{pair.frame}]"
    return f"{pair.name}  {width}x{height}  {files}{frame}{missing}", height * width
