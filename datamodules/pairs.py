"""One scene, read: its sources aligned and scaled, with all that the result needs beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from datamodules.align import misregistration, register, rescale
from datamodules.pairing import Pair
from datamodules.picture import Picture
from datamodules.ranges import to_unit
from datamodules.readers.source import read_source, real, series_range, source_digest, source_size
from dig2dig.color import split
from dig2dig.errors import AlignmentError, ImageError

Align = Literal["none", "resize", "ecc", "phase"]
Images = dict[str, np.ndarray]  # by modality


@dataclass(frozen=True)
class Reading:
    """How the files of a scene become its sources."""

    task: str = "ivf"  # decides how colour is treated, see dig2dig.color
    allow_missing: bool = False  # fuse a stack that stops before the others; at least two sources must be there
    range: Mapping[str, str] = field(default_factory=dict)  # which values are black and white, see to_unit
    reference: str = ""  # modality whose size, depth and format the result keeps; empty for the first
    align: Align = "none"  # what to do with sources of another size or place than the reference
    transform: Callable[[Sequence[np.ndarray]], list[np.ndarray]] | None = None  # applied to the sources together


@dataclass(frozen=True)
class Sample:
    """One scene, read."""

    name: str
    modalities: tuple[str, ...]
    sources: torch.Tensor  # channels that are fused, (k, c, h, w) in [0, 1]
    chroma: torch.Tensor | None  # colour that waits beside them, (2, h, w)
    depth: int = 8  # bits of a channel of the result
    suffix: str = ".png"  # format of the reference's file
    series: str = ""  # name of the sequence that shares its noise; empty if none
    digest: str = ""  # what identifies the files' bytes
    note: str = ""  # what a user may want to know about the reading


@dataclass(frozen=True)
class Failure:
    """One scene that cannot be fused, with the line that says why."""

    name: str
    reason: str


def read_pair(pair: Pair, reading: Reading) -> Sample | Failure:
    """Reads the sources of a pair, or says in one line why that cannot be."""
    if pair.incomplete(reading.allow_missing):
        return Failure(pair.name, f"{pair.name}: no file of this name for {', '.join(pair.missing)}")
    if pair.problem:
        return Failure(pair.name, pair.problem)
    try:
        pictures = {modality: read_source(file, pair.frame) for modality, file in pair.files.items()}
        images, notes = scaled(pair, pictures, reading)
        reference = reference_of(pair, reading.reference)
        images, told = aligned(pair, images, reference, reading)
    except (ImageError, AlignmentError) as error:
        return Failure(pair.name, str(error))
    except MemoryError:
        return Failure(pair.name, f"{pair.name}: not enough memory to read its sources")
    arrays = reading.transform(list(images.values())) if reading.transform else images.values()
    tensors = [torch.from_numpy(np.atleast_3d(array).transpose(2, 0, 1).copy()) for array in arrays]
    sources, chroma = split(tensors, reading.task)
    depth, suffix = pictures[reference].depth, pair.files[reference].suffix.lower()
    digest = pair_digest(pair, reading, {modality: picture.digest for modality, picture in pictures.items()})
    note = "; ".join(notes + told)
    return Sample(pair.name, tuple(pair.files), sources, chroma, depth, suffix, pair.series, digest, note)


def pair_digest(pair: Pair, reading: Reading, digests: Mapping[str, str] | None = None) -> str:
    """What identifies all files of a pair, in their order; of frames also the range that their series shares."""
    digests = digests or {modality: source_digest(file) for modality, file in pair.files.items()}
    ranges = {modality: f" {wanted_range(pair, modality, reading)}" if pair.series else "" for modality in digests}
    return "/".join(f"{modality}:{digest}{ranges[modality]}" for modality, digest in digests.items())


def reference_of(pair: Pair, reference: str) -> str:
    """The modality whose size and format a pair's result has: the one asked for, where it is there, or the first."""
    return reference if reference in pair.files else next(iter(pair.files))


def scaled(pair: Pair, pictures: Mapping[str, Picture], reading: Reading) -> tuple[Images, list[str]]:
    """Pixels in [0, 1], and notes on how they got there; refuses constant sources and those given twice."""
    images: Images = {}
    notes: list[str] = []
    for modality, picture in pictures.items():
        file = pair.files[modality]
        if picture.pixels.min() == picture.pixels.max():
            raise ImageError(f"{file}: every pixel is {picture.pixels.flat[0]}: nothing to fuse; leave it out")
        if twin := next((m for m in images if real(pair.files[m]) == real(file)), None):
            raise ImageError(f"{file}: given twice, as {twin} and as {modality}")
        images[modality], note = to_unit(picture.pixels, wanted_range(pair, modality, reading))
        notes += [f"{modality}: {one}" for one in (picture.note, note) if one]
    return images, notes


def wanted_range(pair: Pair, modality: str, reading: Reading) -> str:
    """Which stored values are black and white; frames of a series share theirs, so that the result does not flicker."""
    wanted = reading.range.get(modality, "auto")
    shared = pair.series and wanted in ("auto", "percentile")
    return series_range(pair.probes[modality], wanted) if shared else wanted


def aligned(pair: Pair, images: Images, reference: str, reading: Reading) -> tuple[Images, list[str]]:
    """All sources in the reference's frame, and notes on them; refuses what cannot be brought there."""
    sizes = {modality: image.shape[:2] for modality, image in images.items()}
    if reading.align == "none" and len(set(sizes.values())) > 1:
        told = ", ".join(f"{pair.files[m]} {w}x{h}" for m, (h, w) in sizes.items())
        raise ImageError(f"{pair.name}: sources differ in size: {told}; align=resize, ecc or phase brings them to one")
    moved, notes = dict(images), []
    for modality in (modality for modality in images if modality != reference):
        try:
            moved[modality], found = placed(images[reference], images[modality], reading.align)
        except AlignmentError as error:
            raise AlignmentError(f"{pair.files[modality]}: {error}") from error
        notes += [f"{modality}: {note}" for note in found]
    return moved, notes


def placed(fixed: np.ndarray, image: np.ndarray, align: Align) -> tuple[np.ndarray, list[str]]:
    """An image in the frame of another, and what was done or seems to be needed."""
    notes = []
    if align in ("ecc", "phase"):
        found = register(fixed, image, align)
        image, notes = found.image, [str(found)]
    elif image.shape[:2] != fixed.shape[:2]:
        notes = [f"resized from {image.shape[1]}x{image.shape[0]}"]
        image = rescale(image, fixed.shape[:2])
    if shift := misregistration(fixed, image):
        notes.append(f"seems shifted by {round(shift[0])}, {round(shift[1])} px; align=ecc registers")
    return image, notes


def batch_key(pair: Pair, reference: str = "") -> tuple[int, ...]:
    """What images must share to be fused in one batch: K, height and width; empty where a header is unreadable."""
    try:
        return (len(pair.files), *source_size(pair.files[reference_of(pair, reference)], pair.frame))
    except (ImageError, StopIteration):
        return ()
