"""Pairs of a folder of datasets, and what other methods made of them."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from datamodules.pairing import Pair, find_pairs
from datamodules.pairs import Failure, Reading, Sample, read_pair
from datamodules.readers.pixels import is_image, read_image
from dig2dig.color import luminance
from dig2dig.errors import ImageError, MethodError, PairingError, one_line

TASKS = {"infrared_visible": "ivf", "medical": "mif", "multi_exposure": "mef", "multi_focus": "mff"}
"""Folder of a task, and its preset."""

_NO_SIDES = ("peers", "published_metrics")


@dataclass(frozen=True)
class Case:
    """One pair or stack of a dataset.

    Attributes:
        task: ``ivf``, ``mif``, ``mef`` or ``mff``.
        dataset: Name of the dataset.
        pair: Its files.
        folder: The dataset's folder.
    """

    task: str
    dataset: str
    pair: Pair
    folder: Path

    def peers(self) -> dict[str, Path]:
        """What other methods made of this pair."""
        files = sorted((self.folder / "peers").glob("*/*"))
        return {file.parent.name: file for file in files if file.stem == self.pair.name and is_image(file)}


def find_cases(data: str, datasets: str = "", half: str = "all", limit: int = 0) -> list[Case]:
    """Every pair of ``data/TASK/DATASET/SIDE``, sorted.

    Args:
        data: The folder of the tasks.
        datasets: Names of datasets or tasks, separated by commas; all if empty.
        half: ``first`` (rounded up), ``second`` or ``all`` of each dataset in the order of names: slices of one
            patient have neighbouring names and fall into one half.
        limit: At most so many of each dataset.

    Raises:
        PairingError: There are none, or a dataset is unknown.
    """
    wanted = set(names(datasets))
    cases, known = [], set()
    for folder, task in TASKS.items():
        for dataset in sorted(path for path in (Path(data) / folder).glob("*") if path.is_dir()):
            known |= {dataset.name, folder, task}
            if not wanted or wanted & {dataset.name, folder, task}:
                sides = {path.name: str(path) for path in sorted(dataset.iterdir()) if _is_side(path)}
                pairs = [pair for pair in find_pairs(sides) if len(pair.files) > 1]
                middle = math.ceil(len(pairs) / 2)
                pairs = {"all": pairs, "first": pairs[:middle], "second": pairs[middle:]}[half]
                cases += [Case(task, dataset.name, pair, dataset) for pair in pairs[: limit or None]]
    if wanted - known or not cases:
        missing = ", ".join(sorted(wanted - known)) or "/".join(TASKS)
        raise PairingError(f"data: {data} has no {missing}; it has {', '.join(sorted(known)) or 'no dataset'}")
    return cases


class Failures:
    """Pairs and pictures that cannot be read or compared: told at once, and in the exit code at the end."""

    def __init__(self) -> None:
        self.exit_code = 0
        self.reasons: list[str] = []

    @contextmanager
    def told(self) -> Iterator[None]:
        """Prints what goes wrong inside in one line, and goes on."""
        try:
            yield
        except (PairingError, ImageError, MethodError) as error:
            self.exit_code = 1
            self.reasons.append(one_line(error))
            print(f"failed: {one_line(error)}", file=sys.stderr)


def names(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _is_side(path: Path) -> bool:
    return path.is_dir() and path.name not in _NO_SIDES


def read_case(case: Case, crop: int = 0) -> Sample:
    """The sources of a case, or a centre crop of them.

    Raises:
        PairingError: A file cannot be read.
    """
    sample = read_pair(case.pair, Reading(case.task, allow_missing=True))
    if isinstance(sample, Failure):
        raise PairingError(sample.reason)
    chroma = None if sample.chroma is None else centre(sample.chroma, crop)
    return Sample(sample.name, sample.modalities, centre(sample.sources, crop), chroma)


def read_luminance(path: Path) -> torch.Tensor:
    """BT.601 luminance (1, h, w) of a picture, in [0, 1]."""
    pixels = torch.from_numpy(read_image(path).copy())
    image = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return luminance(image.float() / 255)


def centre(images: torch.Tensor, side: int) -> torch.Tensor:
    """The middle of images (…, h, w), at most ``side`` pixels; all of it for 0."""
    if not side:
        return images
    for axis in (-2, -1):
        extra = max(images.shape[axis] - side, 0)
        images = images.narrow(axis, extra // 2, images.shape[axis] - extra)
    return images
