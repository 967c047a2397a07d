"""Images of any size: seconds and memory per megapixel, and what windows change."""

import itertools
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from datamodules.readers.pixels import read_image
from dig2dig.api import preset
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import SpeedConfig
from dig2dig.benchmark.datasets import names
from dig2dig.benchmark.methods import Fuser, open_fuser
from dig2dig.tracking.panels import to_colours, to_png

Rows = list[dict[str, str | float]]
EXAMPLES = Path(__file__).parents[2] / "examples" / "infrared_visible"


def example_pair(height: int, width: int, channels: int = 1) -> Tensor:
    """The bundled infrared-visible pair, (1, 2, channels, height, width): its middle, or all of it enlarged."""
    images = []
    for kind in ("visible", "infrared"):
        pixels = read_image(sorted((EXAMPLES / kind).glob("*.png"))[0], "L")
        image = torch.from_numpy(pixels.copy()).view(1, 1, *pixels.shape[:2]).float() / 255
        scale = max(height / image.shape[-2], width / image.shape[-1])
        if scale > 1:
            image = interpolate(image, scale_factor=scale * 1.001, mode="bicubic").clamp(0, 1)
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        images.append(image[..., top : top + height, left : left + width])
    return torch.stack(images, 1).expand(-1, -1, channels, -1, -1).contiguous()


def sizes(config: SpeedConfig, fuser: Fuser) -> tuple[str, str, Rows]:
    """Seconds and peak memory of the preset on pairs of several areas, each in a process of its own."""
    rows: Rows = []
    jobs = [(float(area), channels) for channels in (1, 3) for area in names(config.megapixels)]
    for area, channels in jobs:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, before, peak = pool.apply(measure_size, (config, area, channels))
        rows.append(
            {
                "sources": "grey" if channels == 1 else "colour",
                "megapixels": area,
                "seconds": seconds,
                "seconds / MP": seconds / area,
                "peak GiB": peak,
                "GiB before": before,
            }
        )
    text = (
        "A 4:3 pair, the preset. Peak memory of a process of its own (on a GPU: of its tensors there), with what torch "
        "and the sources take before. Images larger than `prior.window` are processed in windows."
    )
    return "Sizes", text, rows


def measure_size(config: SpeedConfig, area: float, channels: int) -> tuple[float, float, float]:
    """Seconds of a fusion, median of three after one that warms up, and GiB before and at its peak."""
    fuser, setting = open_fuser(config.prior, 0, config.device), preset(config.task)
    fuser(example_pair(256, 256, channels), setting)
    height = 8 * round((area * 1e6 * 3 / 4) ** 0.5 / 8)
    sources = example_pair(height, round(area * 1e6 / height), channels)
    before = peak_memory(fuser.device)
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        fuser(sources, setting)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[1:])), before, peak_memory(fuser.device)


def peak_memory(device: torch.device) -> float:
    """GiB at the peak so far: of the process, or of its tensors on a GPU; NaN where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")  # getrusage counts what the parent of a new process had
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM")), float("nan"))


def windows(config: SpeedConfig, fuser: Fuser) -> tuple[str, str, Rows]:
    """A pair seen whole and in windows of 384 px: how far apart, and whether a seam shows."""
    out, rows = Path(config.out), []
    ours = preset(config.task)
    full = replace(ours, dig=replace(ours.dig, reduce=0.0))
    pulled = replace(ours, guidance=replace(ours.guidance, sigma_n=config.pull))
    settings = {"preset": ours, "gains at full size": full, "prior in the loop": pulled}
    for name, setting, side in [*((*one, 768) for one in settings.items()), ("preset", ours, 2048)]:
        sources = example_pair(side, side)
        images: dict[int, Tensor] = {}
        for window in (0, 384):
            images[window] = fuser.seeing(window)(sources, setting).image
        difference = 255 * (images[0] - images[384]).abs()[0].mean(0)
        write_atomically(out / f"windows_{name.replace(' ', '_')}_{side}.png", to_png(to_colours(difference, 0.0, 8.0)))
        rows.append({"setting": name, "pixels": f"{side} × {side}"} | seam(difference))
    text = (
        "Absolute difference in grey levels of 255, a pair seen whole and in windows of 384 px that overlap by 64. *At "
        "seams*: where windows of the full size are blended; *elsewhere*: the rest. The presets measure gains on "
        "images of a quarter of the size, which at 768 px fit one window. The pictures `windows_*.png` show the "
        "difference, from 0 to 8."
    )
    return "Windows", text, rows


def seam(difference: Tensor) -> dict[str, Any]:
    """Mean and largest difference, and the mean where windows of 384 px meet and elsewhere."""
    from dig2dig.priors.denoiser import OVERLAP
    from dig2dig.priors.windows import window_starts

    side = difference.shape[-1]
    starts, length = window_starts(side, 384, OVERLAP, 8)
    edge = torch.zeros(side, dtype=torch.bool)
    for left, right in itertools.pairwise(starts):
        edge[right : left + length] = True
    mask = edge[:, None] | edge[None]
    return {
        "mean": float(difference.mean()),
        "largest": float(difference.max()),
        "at seams": float(difference[mask].mean()),
        "elsewhere": float(difference[~mask].mean()),
    }
