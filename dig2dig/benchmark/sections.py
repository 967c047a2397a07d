"""Sections of ``benchmark speed`` on larger images and real data, and the tools of all sections."""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dig2dig.api import preset
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import SpeedConfig
from dig2dig.benchmark.datasets import example_pair, names
from dig2dig.benchmark.methods import GAIN, Fuser, open_fuser
from dig2dig.cli import keep_freed_memory
from dig2dig.config import SamplerConfig
from dig2dig.priors.denoiser import OVERLAP
from dig2dig.priors.windows import window_starts
from dig2dig.tracking.panels import to_colours, to_png

WINDOW = 384  # side of the windows in windows, pixels

Contenders = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Section:
    """One part of the report."""

    title: str
    text: str  # the quantities, and how to read them
    rows: Sequence[Mapping[Any, Any]]  # lines of the table: text or numbers, the same keys in all


def in_loop(config: SpeedConfig, *overrides: str) -> SamplerConfig:
    """The training-free preset with the network in its loop."""
    return preset(config.task, GAIN, f"sampler.guidance.sigma_n={config.pull}", *" ".join(overrides).split())


def naive(sampler: SamplerConfig, refresh: int = 1) -> SamplerConfig:
    """The same sampling, training-free, with gains at full size, in every step."""
    return replace(sampler, weights="gain", dig=replace(sampler.dig, reduce=0.0, refresh=refresh))


def in_turn(contenders: Contenders, repeats: int, device: torch.device) -> dict[str, np.ndarray]:
    """Seconds of each contender in each round; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def ratio(a: np.ndarray, b: np.ndarray) -> str:
    """Median over rounds of a / b, with the smallest and largest."""
    values = a / b
    return f"{np.median(values):.3g} ({values.min():.3g} to {values.max():.3g})"


def sizes(config: SpeedConfig, fuser: Fuser) -> Section:
    """Seconds of the preset on pairs of several areas, in turn, and its peak memory on each in a process of its own."""
    rows, areas = [], names(config.megapixels)
    for channels, kind in ((1, "grey"), (3, "colour")):
        runs: Contenders = {area: partial(fuser, sized(area, channels), preset(config.task)) for area in areas}
        each = {area: seconds / float(area) for area, seconds in in_turn(runs, 3, fuser.device).items()}
        for area, taken in each.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peak = pool.apply(measure_memory, (config, area, channels))
            row = {"sources": kind, "megapixels": area, "seconds / MP": float(np.median(taken))}
            rows.append(row | {"× the last": ratio(taken, each[areas[-1]]), "peak GiB": peak})
    text = (
        "A 4:3 pair, the preset. Peak memory of three fusions in a process of its own; on a GPU, of its tensors there."
    )
    return Section("Sizes", text, rows)


def sized(area: str, channels: int) -> Tensor:
    """A pair of so many megapixels, 4:3."""
    height = 8 * round((float(area) * 1e6 * 3 / 4) ** 0.5 / 8)
    return example_pair(height, round(float(area) * 1e6 / height), channels)


def measure_memory(config: SpeedConfig, area: str, channels: int) -> float:
    """GiB at the peak of three fusions, after a small one."""
    keep_freed_memory()  # as commands do
    fuser, sources = open_fuser(config), sized(area, channels)
    for one in (example_pair(256, 256, channels), *[sources] * 3):
        fuser(one, preset(config.task))
    return peak_memory(fuser.device)


def peak_memory(device: torch.device) -> float:
    """GiB at the peak so far: of the process, or of its tensors on a GPU; NaN where the system does not tell."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else of_process("VmHWM")


def of_process(what: str) -> float:
    """GiB that the system tells of this process, by its name in ``/proc``; NaN where it does not tell."""
    status = Path("/proc/self/status")  # getrusage counts what the parent of a new process had
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith(what)), float("nan"))


def windows(config: SpeedConfig, fuser: Fuser) -> Section:
    """Differences between a pair processed whole and in windows, at seams and elsewhere."""
    ours, rows = preset(config.task), []
    full = naive(ours, ours.dig.refresh)
    settings = {"preset": ours, "gains at full size": full, "prior in the loop": in_loop(config)}
    fusers = [Fuser(fuser.denoiser.in_windows(window), fuser.seed, fuser.device) for window in (0, WINDOW)]
    for name, setting, side in [*((*one, 768) for one in settings.items()), ("preset", ours, 2048)]:
        sources = example_pair(side, side)
        whole, parts = (one(sources, setting).image for one in fusers)
        difference = 255 * (whole - parts).abs()[0].mean(0)
        picture = Path(config.out) / f"windows_{name.replace(' ', '_')}_{side}.png"
        write_atomically(picture, to_png(to_colours(difference, 0.0, 8.0)))
        rows.append({"setting": name, "pixels": f"{side} × {side}"} | seams(difference, fuser.denoiser.multiple))
    text = (
        f"Absolute difference in grey levels of 255, a pair processed whole and in windows of {WINDOW} px that overlap "
        f"by {OVERLAP}. *At seams*: where windows of the full size are blended; *elsewhere*: the rest. The presets "
        "measure gains on images of a quarter of the size or less, which at 768 px fit one window. The pictures "
        "`windows_*.png` show the difference, from 0 to 8."
    )
    return Section("Windows", text, rows)


def seams(difference: Tensor, multiple: int) -> dict[str, float]:
    """Mean and largest difference, and the mean where windows meet and elsewhere."""
    side = difference.shape[-1]
    starts, length = window_starts(side, WINDOW, OVERLAP, multiple)
    edge = torch.zeros(side, dtype=torch.bool)
    for left, right in itertools.pairwise(starts):
        edge[right : left + length] = True
    mask = edge[:, None] | edge[None]
    parts = {"mean": difference.mean(), "largest": difference.max()}
    parts |= {"at seams": difference[mask].mean(), "elsewhere": difference[~mask].mean()}
    return {name: float(value) for name, value in parts.items()}
