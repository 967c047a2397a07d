"""What a run would do, before it does it: pairs with their sizes, memory and time."""

import time
from collections.abc import Sequence

import torch

from datamodules.pairing import Pair, extra_files
from datamodules.pairs import reference_of
from datamodules.readers.pixels import ImageError
from datamodules.readers.source import source_size
from dig2dig.color import LUMINANCE_TASKS
from dig2dig.config import InferConfig
from dig2dig.fusion.sampler import fuse
from dig2dig.inference.run import Run, one_line
from dig2dig.priors.lora import open_prior

PROBE = 256
"""Side of the noise that is fused to see how fast this machine is, pixels."""

MOST = 20
"""Names of extra files that are printed."""

BASE = 1.0
"""GiB of Python and torch themselves."""

BYTES = 64
"""For each value of the sources at the peak, as ``python -m dig2dig.benchmark speed`` measured it."""


def list_pairs(run: Run) -> None:
    """Prints what would be fused, what is wrong with the rest, and how much time and memory it would take."""
    areas: list[tuple[int, int]] = []
    for pair in run.todo:
        told, area = describe(pair, run.record.reference, run.record.allow_missing)
        areas += [(area, len(pair.files))] if area else []
        print(one_line(told))
    if extra := extra_files(run.record.sources):
        names = ", ".join(str(path) for path in extra[:MOST])
        print(f"ignored, not images: {names}{' …' if len(extra) > MOST else ''} ({len(extra)})")
    seconds, memory = forecast(run.record, areas)
    print(f"{len(run.todo)} to fuse, {len(run.done)} done before, into {run.out}")
    if areas:
        print(f"about {clock(seconds)} on this machine, at most about {memory:.1f} GiB of memory")


def describe(pair: Pair, reference: str, allow_missing: bool) -> tuple[str, int]:
    """One line on a pair, and its pixels; 0 where it cannot be fused."""
    files = ", ".join(map(str, pair.files.values()))
    if pair.problem:
        return f"{pair.name}  cannot be fused: {pair.problem}", 0
    if pair.incomplete(allow_missing):
        return f"{pair.name}  cannot be fused, missing: {', '.join(pair.missing)}", 0
    missing = f"  missing: {', '.join(pair.missing)}" if pair.missing else ""
    try:
        height, width = source_size(pair.files[reference_of(pair, reference)], pair.frame)
    except ImageError as error:
        return f"{pair.name}  {error}{missing}", 0
    frame = "" if pair.frame is None else f" [{pair.frame}]"
    return f"{pair.name}  {width}x{height}  {files}{frame}{missing}", height * width


def forecast(config: InferConfig, areas: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Seconds and GiB, from one small fusion here: time and memory grow with pixels and sources.

    Args:
        config: The run's configuration.
        areas: Pixels and number of sources of each pair.
    """
    if not areas:
        return 0.0, 0.0
    denoiser = open_prior(config.prior)
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    denoiser.to(device)
    probe = torch.rand(1, 2, 1, PROBE, PROBE, device=device)
    taken = []
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        fuse(probe, denoiser, config.sampler)
        taken.append(time.perf_counter() - started)
    channels = 1 if config.task in LUMINANCE_TASKS else denoiser.channels
    work = sum(pixels * k for pixels, k in areas) / (2 * PROBE**2)
    values = max(pixels * k for pixels, k in areas) * channels
    weights = sum(weight.numel() * weight.element_size() for weight in denoiser.parameters()) / 2**30
    memory = weights + BASE + max(config.prior.memory or 1.0, BYTES * values / 2**30)
    return taken[1] * work * (1 + 0.2 * (channels - 1)), memory


def clock(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
