"""Cards of pictures that lie on disk: sources, and what one or several methods made of them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from datamodules.ranges import to_unit
from datamodules.readers.source import read_source
from dig2dig.color import luminance
from dig2dig.errors import ImageError
from dig2dig.metrics import fusion_metrics
from dig2dig.report.thumbs import Detail, data_uri, small, within_budget
from dig2dig.report.views import PairView, Panel, finite

Shown = tuple[Panel, Tensor | None]
"""A panel that has no thumbnail yet, and its picture."""


MEASURED = 2**22
"""Pixels of the largest pictures that are measured: metrics of larger ones need more memory than their fusion."""


def load_picture(file: Path, scale: str = "auto") -> Tensor | None:
    """A source as (1 or 3, h, w) in [0, 1], of a video or volume the first frame; None where it cannot be read."""
    try:
        pixels = torch.from_numpy(to_unit(read_source(file).pixels, scale)[0])
    except ImageError:
        return None
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def relative(file: Path, folder: Path) -> str:
    """The way from a folder to a file; the file's whole path where there is none."""
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # on another drive
        return file.absolute().as_posix()


def scores(fused: Tensor, sources: Tensor) -> dict[str, float]:
    """Metrics of a fused image (c, h, w) with its sources (k, c, h, w), as far as numbers; none of large images."""
    if fused[0].numel() > MEASURED:
        return {}
    return finite(fusion_metrics(fused[None].cpu(), sources[None].cpu()))


def encoded(shown: Sequence[Shown], detail: Detail) -> list[Panel]:
    """The panels with their thumbnails."""
    return [
        panel if image is None else replace(panel, image=data_uri(image, detail.picture, detail.quality))
        for panel, image in shown
    ]


def size_facts(height: int, width: int) -> list[str]:
    """What is told of a pair's size."""
    return [f"{width}×{height}", *(["too large for metrics"] if height * width > MEASURED else [])]


def view_of_files(
    name: str,
    sources: Mapping[str, Path],
    results: Mapping[str, Path],
    folder: Path,
    facts: Sequence[str] = (),
    known: Mapping[str, dict[str, float]] | None = None,
    ours: Sequence[str] = (),
    prepare: Callable[[Tensor], Tensor] = lambda image: image,
) -> PairView:
    """The card of one pair from files; what cannot be read is shown as missing.

    Args:
        name: Name of the pair.
        sources: File of each modality.
        results: File of each method or run.
        folder: Where the page will lie.
        facts: What is told beside the name.
        known: Metrics that need not be computed, by method.
        ours: Methods that are not baselines; all if empty.
        prepare: Done to each picture first, say a crop.
    """
    read = {label: _prepared(file, prepare) for label, file in sources.items()}
    there = [luminance(image) for image, _ in read.values() if image is not None]
    size = there[0].shape[-2:] if there else None
    comparable = len(there) == len(read) > 1 and all(image.shape[-2:] == size for image in there)
    shown: list[Shown] = [
        (
            Panel(label, "source", file=relative(sources[label], folder) if whole else "", note=_note(image, size)),
            small(image),
        )
        for label, (image, whole) in read.items()
    ]
    for label, file in results.items():
        image, whole = _prepared(file, prepare, "full")
        size = size or (image.shape[-2:] if image is not None else None)
        found = (known or {}).get(label)
        if found is None:
            fits = comparable and image is not None and image.shape[-2:] == size
            found = scores(luminance(image), torch.stack(there)) if fits and image is not None else {}
        role = "result" if not ours or label in ours else "baseline"
        path = relative(file, folder) if whole else ""
        shown.append((Panel(label, role, "", path, found, _note(image, size)), small(image)))
    height, width = size or (3, 4)
    told = size_facts(height, width) if size else []
    card = PairView(name, [*told, *facts], width, height, [])
    return within_budget(lambda detail: replace(card, panels=encoded(shown, detail)))


def _prepared(file: Path, prepare: Callable[[Tensor], Tensor], scale: str = "auto") -> tuple[Tensor | None, bool]:
    """A picture, and whether it is the whole one of the file."""
    whole = load_picture(file, scale)
    image = None if whole is None else prepare(whole)
    return image, whole is None or image is None or image.shape == whole.shape


def _note(image: Tensor | None, size: torch.Size | None) -> str:
    if image is None:
        return "cannot be read"
    height, width = image.shape[-2:]
    return "" if size is None or image.shape[-2:] == size else f"of another size: {width}×{height}"
