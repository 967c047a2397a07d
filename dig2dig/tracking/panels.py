"""Pictures of one fusion for people to look at: sources beside the result, maps over time, curves over time."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dig2dig.color import to_pixels
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.statistics import DigStatistics

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of Okabe and Ito, for all kinds of sight
MARGIN = 4


def to_colours(values: Tensor, low: float, high: float) -> np.ndarray:
    """A map (h, w) as RGB pixels in viridis, which people with colour blindness can read."""
    scaled = ((values - low) / max(high - low, 1e-12)).clamp(0, 1)
    grey = (scaled * 255).round().byte().cpu().numpy()
    return cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)[..., ::-1]


def row(tiles: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Tiles of one height side by side on white, each under its title."""
    framed = []
    for tile, title in zip(tiles, titles, strict=True):
        head = np.full((18, tile.shape[1], 3), 255, np.uint8)
        cv2.putText(head, title, (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        tile = np.broadcast_to(tile, (*tile.shape[:2], 3))
        framed.append(np.pad(np.vstack([head, tile]), ((0, MARGIN), (0, MARGIN), (0, 0)), constant_values=255))
    return np.hstack(framed)


def fusion_panel(sources: Tensor, fused: Tensor, modalities: Sequence[str]) -> np.ndarray:
    """The sources (k, c, h, w) in [0, 1] and the fused image beside each other."""
    return row([*map(to_pixels, sources), to_pixels(fused)], [*modalities, "fused"])


def maps_panel(trace: Sequence[Snapshot], modalities: Sequence[str], columns: int = 6, side: int = 160) -> np.ndarray:
    """Maps of every source over time, of the first image: weights from 0 to 1, gains on one scale for each step."""
    chosen = sorted({round(i) for i in np.linspace(0, len(trace) - 1, min(columns, len(trace)))})
    rows = []
    for k, modality in enumerate(modalities):
        for kind in ("weight", "gain"):
            tiles = [_map(trace[i], kind, k, side) for i in chosen]
            rows.append(row(tiles, [f"{modality} {kind}, t {trace[i].t}" for i in chosen]))
    return np.vstack(rows)


def _map(step: Snapshot, kind: str, k: int, side: int) -> np.ndarray:
    maps = (step.weight if kind == "weight" else step.gain)[0, :, 0]
    low, high = (0.0, 1.0) if kind == "weight" else (float(maps.amin()), float(maps.amax()))
    size = [max(1, round(length * side / max(maps.shape[-2:]))) for length in maps.shape[-2:]]
    return to_colours(interpolate(maps[None, k : k + 1], size, mode="area")[0, 0], low, high)


def curves(statistics: DigStatistics, modalities: Sequence[str]) -> np.ndarray:
    """Mean weight and mean gain of each source, entropy, and covariance of weight and contribution, over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.8), dpi=100, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots(1, 4)
    steps = np.arange(len(statistics.t))
    plots = (
        ("mean weight", statistics.weight_mean),
        ("mean normalised gain", statistics.gain_mean),
        ("entropy of the weights", statistics.entropy[:, None]),
        ("Cov(weight, contribution)", statistics.covariance),
    )
    for axis, (title, values) in zip(axes, plots, strict=True):
        for k, column in enumerate(values.unbind(1)):
            label = modalities[k] if values.shape[1] > 1 else None
            axis.plot(steps, column.numpy(), marker=".", color=COLOURS[k % len(COLOURS)], label=label)
        axis.set_title(title, fontsize=9)
        axis.set_xticks(steps, [str(int(t)) for t in statistics.t], fontsize=7, rotation=90 if len(steps) > 12 else 0)
        axis.set_xlabel("t", fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
    axes[0].legend(fontsize=7)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def to_png(pixels: np.ndarray) -> bytes:
    """Pixels of 8 or 16 bits, grey or RGB with or without alpha, (h, w, 1 to 4), as a PNG file, fast as OpenCV's."""
    import imagecodecs

    values = np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    return bytes(imagecodecs.png_encode(values, level=1, strategy=3, filter=16))  # runs of differences


def histogram_values(trace: Sequence[Snapshot], k: int) -> np.ndarray:
    """Normalised gains of source k over all steps and pixels, for the first image of the batch."""
    return torch.stack([step.gain[0, k, 0].cpu() for step in trace]).flatten().numpy()
