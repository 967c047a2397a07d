"""Pairs of a folder of datasets with the pictures of other methods, and the bundled pair."""

import glob
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from datamodules.pairing import Pair, find_pairs
from datamodules.pairs import Failure, Reading, Sample, read_pair
from datamodules.readers.pixels import read_image
from dig2dig.cli import shipped
from dig2dig.color import luminance
from dig2dig.errors import ImageError, PairingError, note, one_line

# folder of a task, and its preset
TASKS = {"infrared_visible": "ivf", "medical": "mif", "multi_exposure": "mef", "multi_focus": "mff"}
NO_SIDES = ("peers", "published_metrics", "mask", "labels")  # folders of a dataset that hold no source


@dataclass(frozen=True)
class Case:
    """One pair or stack of a dataset."""

    task: str  # ivf, mif, mef or mff
    dataset: str
    pair: Pair
    folder: Path  # of the dataset

    @property
    def targets(self) -> Path | None:
        """The file that marks targets: a mask, or boxes in YOLO's format, ``class x y width height`` in shares."""
        files = [*(self.folder / "mask").glob(f"{glob.escape(self.pair.name)}.*")]
        return next(iter([*files, *(self.folder / "labels").glob(f"{glob.escape(self.pair.name)}.txt")]), None)


def find_cases(data: str, datasets: str = "", half: str = "all", limit: int = 0) -> list[Case]:
    """Every pair of ``data/TASK/DATASET/SIDE``, sorted, at most ``limit`` of each dataset.

    The first half is rounded up. Slices of one patient have neighbouring names and fall into one half. A PairingError
    says that there are none, or that a dataset is unknown.
    """
    wanted = set(names(datasets))
    cases, known = [], set()
    for folder, task in TASKS.items():
        for dataset in sorted((Path(data) / folder).glob("*/")):
            known |= {dataset.name, folder, task}
            if not wanted or wanted & {dataset.name, folder, task}:
                sides = {path.name: str(path) for path in sorted(dataset.glob("*/")) if path.name not in NO_SIDES}
                found = find_pairs(sides) if len(sides) > 1 else []
                pairs = [pair for pair in found if len(pair.files) > 1]
                if alone := [pair.name for pair in found if len(pair.files) == 1]:
                    note(f"{dataset.name}: {len(alone)} left out, with one source alone, as {alone[0]}")
                split = math.ceil(len(pairs) / 2)
                pairs = {"all": pairs, "first": pairs[:split], "second": pairs[split:]}[half]
                if pairs and dataset.name in (case.dataset for case in cases):  # pictures and rows go by this name
                    raise PairingError(f"data: two tasks have a {dataset.name}: rename one, or give datasets={folder}")
                cases += [Case(task, dataset.name, pair, dataset) for pair in pairs[: limit or None]]
    if wanted - known or not cases:
        missing = ", ".join(sorted(wanted - known)) or "/".join(TASKS)
        raise PairingError(f"data: {data} has no {missing}; it has {', '.join(sorted(known)) or 'no dataset'}")
    return cases


@contextmanager
def noted(failed: list[str]) -> Iterator[None]:
    """Prints and collects, in one line, that a file cannot be read or compared, and goes on."""
    try:
        yield
    except (PairingError, ImageError) as error:
        failed.append(one_line(error))
        print(f"failed: {failed[-1]}", file=sys.stderr)


def names(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def read_case(case: Case, crop: int = 0, colour: bool = False) -> Sample:
    """The sources of a case, or a centre crop of them; a PairingError if a file cannot be read.

    ``colour`` keeps the colours in the sources: OpenCV's exposure fusion weighs by saturation.
    """
    sample = read_pair(case.pair, Reading("mff" if colour else case.task, allow_missing=True))
    if isinstance(sample, Failure):
        raise PairingError(sample.reason)
    chroma = None if sample.chroma is None else centre(sample.chroma, crop)
    return replace(sample, sources=centre(sample.sources, crop), chroma=chroma)


def read_targets(path: Path, height: int, width: int) -> Tensor:
    """A mask (1, h, w) in {0, 1} from a picture or from boxes."""
    if path.suffix != ".txt":
        return (read_luminance(path) > 0.5).float()
    mask = torch.zeros(1, height, width)
    for line in filter(str.strip, path.read_text().splitlines()):
        try:
            x, y, w, h = np.array(line.split()[1:5], float) * (width, height, width, height)
        except ValueError as error:
            raise ImageError(f"{path}: '{line}' is no box: give class, x, y, width and height") from error
        mask[:, max(0, round(y - h / 2)) : round(y + h / 2), max(0, round(x - w / 2)) : round(x + w / 2)] = 1
    return mask


def read_luminance(path: Path) -> Tensor:
    """BT.601 luminance (1, h, w) of a picture, in [0, 1]."""
    return luminance(torch.from_numpy(np.atleast_3d(read_image(path)).copy()).permute(2, 0, 1).float() / 255)


def centre(images: Tensor, height: int, width: int = 0) -> Tensor:
    """The middle of images (…, h, w), at most of this size, square without a width; the whole images for 0."""
    h, w = images.shape[-2:]
    height, width = height or h, width or height or w
    top, left = max(h - height, 0) // 2, max(w - width, 0) // 2
    return images[..., top : top + height, left : left + width]


def example_pair(height: int, width: int, channels: int = 1) -> Tensor:
    """The bundled infrared-visible pair, (1, 2, channels, height, width): its middle, or all of it enlarged."""
    files = [shipped("examples") / "infrared_visible" / kind / "00036N.png" for kind in ("visible", "infrared")]
    pair = torch.from_numpy(np.stack([read_image(file, "L") for file in files]))[None].float() / 255
    scale = max(height / pair.shape[-2], width / pair.shape[-1])
    if scale > 1:
        pair = interpolate(pair, scale_factor=scale * 1.001, mode="bicubic").clamp(0, 1)
    return centre(pair, height, width)[:, :, None].expand(-1, -1, channels, -1, -1).contiguous()
