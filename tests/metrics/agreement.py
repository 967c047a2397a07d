"""Differences of the metrics to values that others computed.

python -m tests.metrics.agreement golden GOLDEN_CSV DATA   values of reference implementations, image by image
python -m tests.metrics.agreement vifb DATA                values that the benchmark VIFB published, image by image
"""

import csv
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor

from dig2dig.metrics import METRICS

GOLDEN: dict[str, tuple[str, str]] = {
    "EN": ("EN", "standard"),
    "SD": ("SD", "standard"),
    "SF": ("SF", "standard"),
    "AG": ("AG", "standard"),
    "AG_matlab": ("AG", "tang"),
    "MI_nats": ("MI", "cddfuse"),
    "MI_bits": ("MI", "tang"),
    "MSE": ("MSE", "standard"),
    "CC": ("CC", "standard"),
    "PSNR_peak_max": ("PSNR", "cddfuse"),
    "SCD": ("SCD", "standard"),
    "VIF_sum": ("VIF", "standard"),
    "Qabf": ("Qabf", "standard"),
    "Nabf": ("Nabf", "standard"),
    "Nabf_tang": ("Nabf", "tang"),
    "SSIM_sum": ("SSIM", "cddfuse"),
}
"""Our metric and its convention for each column of the reference values."""

VIFB = {
    "Entropy": "EN",
    "Variance": "SD",
    "Spatial_frequency": "SF",
    "Avg_gradient": "AG",
    "Edge_intensity": "EI",
    "Mutinf": "MI",
    "Rmse": "MSE",
    "Psnr": "PSNR",
    "Ssim": "SSIM",
    "Qabf": "Qabf",
    "Qcb": "Qcb",
    "Qcv": "Qcv",
}
"""Our metric for each of VIFB's."""

Difference = tuple[str, float, dict[str, str]]


def read(folder: Path, name: str) -> Tensor:
    """An 8-bit image file by its stem, grey or RGB, (c, h, w) in [0, 1]."""
    with Picture.open(next(folder.glob(f"{name}.*"))) as picture:
        pixels = np.atleast_3d(np.asarray(picture.convert("L" if picture.mode == "L" else "RGB")))
    return torch.from_numpy(pixels.copy()).movedim(-1, 0) / 255


def fusion(folder: Path, name: str, sides: Sequence[str], method: str) -> tuple[Tensor, Tensor]:
    """A fused image and its sources as a batch of one; all are in colour if one of them is."""
    images = [read(folder / side, name) for side in (*sides, f"peers/{method}")]
    channels = max(len(image) for image in images)
    *sources, fused = (image.expand(channels, -1, -1) for image in images)
    return fused[None], torch.stack(sources)[None]


def golden(table: Path, data: Path) -> Iterator[Difference]:
    """Relative differences to each column of a table of reference values."""
    for row in csv.DictReader(table.read_text().splitlines()):
        folder = data / row["task"] / row["dataset"]
        images = fusion(folder, row["name"], (row["source_a"], row["source_b"]), row["method"])
        for column, (name, convention) in GOLDEN.items():
            yield column, relative(METRICS[name](*images, convention), row[column]), row


def vifb(data: Path) -> Iterator[Difference]:
    """Relative differences to VIFB's values of each image and method."""
    folder = data / "infrared_visible" / "VIFB"
    for row in csv.DictReader((folder / "published_metrics" / "per_image.csv").read_text().splitlines()):
        images = fusion(folder, row["image"], ("vi", "ir"), row["method"])
        for column, name in VIFB.items():
            yield column, relative(METRICS[name](*images, "vifb"), row[column]), row


def relative(found: Tensor, expected: str) -> float:
    """Relative difference of one value."""
    return abs(float(found) / float(expected) - 1)


def report(differences: Iterator[Difference]) -> None:
    """Prints the median, the 95 % quantile and the maximum of the differences in each column."""
    columns: dict[str, list[float]] = {}
    for column, difference, _ in differences:
        columns.setdefault(column, []).append(difference)
    print(f"{'column':18}{'images':>7}{'median':>10}{'95 %':>10}{'worst':>10}")
    for column, values in columns.items():
        high = sorted(values)[round(0.95 * (len(values) - 1))]
        print(f"{column:18}{len(values):7}{statistics.median(values):10.1e}{high:10.1e}{max(values):10.1e}")


def main(arguments: Sequence[str]) -> None:
    """Runs one of the commands."""
    match list(arguments):
        case ["golden", table, data]:
            report(golden(Path(table), Path(data)))
        case ["vifb", data]:
            report(vifb(Path(data)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
