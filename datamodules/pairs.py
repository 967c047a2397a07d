"""Which files belong together: K aligned sources of one scene, by file stem."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from datamodules.files import IMAGE_SUFFIXES, ImageError, image_size, is_image, list_images, read_image
from datamodules.transforms import PairTransform
from dig2dig.color import split


class PairingError(ValueError):
    """Sources that cannot be paired at all, told in one line."""


@dataclass(frozen=True)
class Pair:
    """The files of one scene.

    Attributes:
        name: Stem that the files share; the result is called NAME.png.
        files: File of each modality, in the order in which the sources were given.
        missing: Modalities that have no file of this name.
    """

    name: str
    files: dict[str, Path]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One scene, read.

    Attributes:
        name: Name of the pair.
        modalities: Names of the sources.
        sources: Channels that are fused, (k, c, h, w) in [0, 1].
        chroma: Colour that waits beside them, (2, h, w), or None.
    """

    name: str
    modalities: tuple[str, ...]
    sources: torch.Tensor
    chroma: torch.Tensor | None


@dataclass(frozen=True)
class Failure:
    """One scene that cannot be fused, with the line that says why."""

    name: str
    reason: str


def find_pairs(sources: dict[str, str]) -> list[Pair]:
    """Pairs the files of all sources by stem, sorted by name.

    Args:
        sources: A folder for each modality, or a text file that lists its images, or one image for each.

    Raises:
        PairingError: A source does not exist, single images and folders are mixed, a folder holds no image or two
            of one stem, or no name stands in two folders.
    """
    paths = {modality: Path(source) for modality, source in sources.items()}
    for modality, path in paths.items():
        if not path.exists():
            raise PairingError(f"sources.{modality}: no such file or folder: {path}")
    folders = [path.is_dir() or path.suffix == ".txt" for path in paths.values()]
    if not any(folders):
        return [Pair(next(iter(paths.values())).stem, paths)]
    if not all(folders):
        raise PairingError("sources: give a folder for every modality or a file for every modality, not both")
    by_stem = {modality: _by_stem(modality, folder) for modality, folder in paths.items()}
    pairs = []
    for name in sorted(set().union(*by_stem.values())):
        files = {modality: stems[name] for modality, stems in by_stem.items() if name in stems}
        pairs.append(Pair(name, files, tuple(modality for modality in paths if modality not in files)))
    if len(paths) > 1 and all(len(pair.files) == 1 for pair in pairs):
        raise PairingError(f"sources: no file name stands in two of {', '.join(map(str, paths.values()))}")
    return pairs


def _by_stem(modality: str, folder: Path) -> dict[str, Path]:
    try:
        listed = folder.is_file()
        files = list_images(str(folder)) if listed else [path for path in sorted(folder.iterdir()) if is_image(path)]
    except FileNotFoundError as error:
        raise PairingError(f"sources.{modality}: {error}") from error
    except OSError as error:
        raise PairingError(f"sources.{modality}: {folder} cannot be read ({error.strerror})") from error
    if not files:
        raise PairingError(f"sources.{modality}: {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    repeated = [stem for stem, count in Counter(path.stem for path in files).items() if count > 1]
    if repeated:
        raise PairingError(f"sources.{modality}: {folder} holds more than one file called {repeated[0]}")
    return {path.stem: path for path in files}


def read_pair(
    pair: Pair, task: str, allow_missing: bool = False, transform: PairTransform | None = None
) -> Sample | Failure:
    """Reads the sources of a pair, or says in one line why that cannot be.

    Args:
        pair: The files.
        task: Decides how colour is treated, see :mod:`dig2dig.color`.
        allow_missing: Fuse a stack that stops before the others; at least two sources must be there.
        transform: Applied to the sources together.
    """
    if pair.missing and not (allow_missing and len(pair.files) > 1):
        return Failure(pair.name, f"{pair.name}: no file of this name for {', '.join(pair.missing)}")
    try:
        arrays = [read_image(file) for file in pair.files.values()]
    except ImageError as error:
        return Failure(pair.name, str(error))
    sizes = {array.shape[:2] for array in arrays}
    if len(sizes) > 1:
        told = ", ".join(
            f"{file} {array.shape[1]}x{array.shape[0]}" for file, array in zip(pair.files.values(), arrays, strict=True)
        )
        return Failure(pair.name, f"{pair.name}: sources differ in size: {told}; bring them to one size")
    if transform:
        arrays = transform(arrays)
    tensors = [torch.tensor(array).view(*array.shape[:2], -1).permute(2, 0, 1) / 255 for array in arrays]
    sources, chroma = split(tensors, task)
    return Sample(pair.name, tuple(pair.files), sources, chroma)


def batch_key(pair: Pair) -> tuple[int, ...]:
    """What images must share to be fused in one batch: K, height and width; empty where a header is unreadable."""
    try:
        return (len(pair.files), *image_size(next(iter(pair.files.values()))))
    except ImageError:
        return ()
