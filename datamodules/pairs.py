"""One scene, read: its sources aligned and scaled, with all that the result needs beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import cv2
import numpy as np
import torch

from datamodules.aside import aside, room
from datamodules.ghosts import SLACK, without_ghosts
from datamodules.metadata import Metadata
from datamodules.pairing import Pair
from datamodules.picture import Picture
from datamodules.placing import Placing
from datamodules.profiles import in_profile_of
from datamodules.ranges import Valid, one_range, to_unit
from datamodules.readers.source import medical_grid, read_source, real, series_range, source_digest, source_size
from datamodules.readers.thermal import both_from_one
from datamodules.rig import boxed
from datamodules.validity import check_finite, left_border, without_data
from dig2dig.color import split
from dig2dig.errors import AlignmentError, ImageError, first_line
from dig2dig.options import parse_range

Images = dict[str, np.ndarray]  # by modality
Valids = dict[str, Valid]  # pixels of each that show the scene
STACKS = ("mef", "mff")  # tasks whose sources share one range: the brightness between exposures is the information


@dataclass(frozen=True)
class Reading:
    """How the files of a scene become its sources."""

    task: str = "ivf"  # decides how colour is treated, see dig2dig.color
    allow_missing: bool = False  # fuse a stack that stops before the others; at least two sources must be there
    range: Mapping[str, str] = field(default_factory=dict)  # which values are black and white, see to_unit
    reference: str = ""  # modality whose size, depth and format the result keeps; empty for the first
    align: str = "none"  # what to do with sources of another size or place than the reference
    border: Literal["auto", "keep"] = "auto"  # uniform borders of a registration are no data, or are kept
    ghosts: Literal["remove", "keep"] = "keep"  # what moves within a stack is shown once, or as it is
    metadata: bool = True  # whether the result keeps what the reference's file says beside its pixels
    memory: str = ""  # file that keeps registrations from run to run


@dataclass(frozen=True)
class Sample:
    """One scene, read."""

    name: str
    modalities: tuple[str, ...]
    sources: torch.Tensor  # channels that are fused, (k, c, h, w) in [0, 1]
    chroma: torch.Tensor | None  # colour that waits beside them, (2, h, w)
    valid: torch.Tensor | None = None  # pixels of each source that show the scene, (k, 1, h, w), bool; None = all
    coloured: tuple[str, ...] = ()  # modalities that have colour
    depth: int = 8  # bits of a channel of the result
    suffix: str = ".png"  # format of the reference's file
    series: str = ""  # name of the sequence that shares its noise; empty if none
    digest: str = ""  # what identifies the files' bytes
    note: str = ""  # what a user may want to know about the reading
    metadata: Metadata = field(default_factory=Metadata)  # what the reference's file says beside its pixels


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
        reference = reference_of(pair, reading.reference)
        onto = medical_grid(pair.files, reference)
        pictures = {
            m: kept(read_source(file, pair.frame, onto, m, pair.probes.get(m, ())), len(pair.files))
            for m, file in pair.files.items()
        }
        pictures, notes = prepared(pair, pictures, reference, reading)
        images, valids, found = scaled(pair, pictures, reading)
        digests = {modality: picture.digest for modality, picture in pictures.items()}
        known = stated(pair, pictures, reference)
        images, valids, moved = aligned(pair, images, valids, reference, reading, known)
        if reading.ghosts == "remove" and reading.task in STACKS:
            images, told = without_ghosts(images, valids, reading.reference, SLACK[reading.task])
            moved += told
    except (ImageError, AlignmentError) as error:
        return Failure(pair.name, str(error))
    except MemoryError:
        return Failure(pair.name, f"{pair.name}: not enough memory to read its sources")
    arrays = map(np.ascontiguousarray, images.values())
    tensors = [torch.from_numpy(np.atleast_3d(array).transpose(2, 0, 1)) for array in arrays]
    valid = stacked(list(valids.values()), tensors[0].shape[-2:])
    sources, chroma = split(tensors, reading.task, valid, room)
    picture = pictures[reference]
    return Sample(
        name=pair.name,
        modalities=tuple(pair.files),
        sources=sources,
        chroma=chroma,
        valid=valid,
        coloured=tuple(modality for modality, image in images.items() if image.ndim == 3),
        depth=picture.depth,
        suffix=pair.files[reference].suffix.lower(),
        series=pair.series,
        digest=pair_digest(pair, reading, digests),
        note="; ".join(notes + found + moved),
        metadata=picture.metadata if reading.metadata else Metadata(),
    )


def kept(picture: Picture, count: int) -> Picture:
    """One of ``count`` pictures, its pixels on disk if that are too many."""
    return replace(picture, pixels=aside(picture.pixels, count))


def stacked(valids: Sequence[Valid], size: Sequence[int]) -> torch.Tensor | None:
    """Valid pixels of all sources, (k, 1, h, w); None if all pixels are."""
    if all(valid is None for valid in valids):
        return None
    every = room((len(valids), 1, *size), bool)
    for k, valid in enumerate(valids):
        every[k] = True if valid is None else torch.from_numpy(valid)
    return every


def pair_digest(pair: Pair, reading: Reading, digests: Mapping[str, str] | None = None) -> str:
    """What identifies all files of a pair, in their order; of frames also the range that their series shares."""
    digests = digests or {modality: source_digest(file) for modality, file in pair.files.items()}
    ranges = {modality: f" {wanted_range(pair, modality, reading)}" if pair.series else "" for modality in digests}
    return "/".join(f"{modality}:{digest}{ranges[modality]}" for modality, digest in digests.items())


def reference_of(pair: Pair, reference: str) -> str:
    """The modality whose size and format a pair's result has: the one asked for, where it is there, or the first."""
    return reference if reference in pair.files else next(iter(pair.files))


def prepared(
    pair: Pair, pictures: Mapping[str, Picture], reference: str, reading: Reading
) -> tuple[dict[str, Picture], list[str]]:
    """Pictures with all that is no data marked, and in the reference's colours; and notes on it.

    Refuses constant sources, those given twice, numbers that are not finite, and maps of different places.
    """
    found: dict[str, Picture] = {}
    notes: list[str] = []
    for modality, picture in pictures.items():
        file = pair.files[modality]
        twin = next((m for m in found if real(pair.files[m]) == real(file) and found[m].digest == picture.digest), None)
        if twin and not both_from_one(file, twin, modality):
            raise ImageError(f"{file}: given twice, as {twin} and as {modality}")
        valid, note = without_data(picture.pixels, picture.valid, parse_range(reading.range.get(modality, "auto"))[1])
        shown = picture.pixels if valid is None else picture.pixels[valid]
        if not shown.size:
            raise ImageError(f"{file}: no pixel holds data; leave it out")
        check_finite(picture.pixels, valid, str(file), f"mend the file, or give range.{modality}=nodata=nan")
        if shown.min() == shown.max() and not pair.series:  # which may have empty slices and black frames
            raise ImageError(f"{file}: every pixel is {shown.flat[0]}: nothing to fuse; leave it out")
        pixels, told = in_profile_of(picture, pictures[reference])
        found[modality] = replace(picture, pixels=pixels, valid=valid)
        notes += [f"{modality}: {one}" for one in (picture.note, note, told) if one]
    geo = {modality: picture.metadata.grid for modality, picture in found.items() if picture.metadata.geo}
    if len(set(geo.values())) > 1 and reading.align == "none":
        told = ", ".join(str(pair.files[modality]) for modality in geo)
        raise ImageError(f"{pair.name}: maps of different grids: {told}; warp them to one (gdalwarp), or give align=")
    return found, notes


def scaled(pair: Pair, pictures: Mapping[str, Picture], reading: Reading) -> tuple[Images, Valids, list[str]]:
    """Pixels in [0, 1], which are valid, and notes on the ranges."""
    images: Images = {}
    notes: dict[str, str] = {}
    ranges = wanted_ranges(pair, pictures, reading)
    for modality, picture in pictures.items():
        image, notes[modality] = to_unit(picture.pixels, ranges[modality], picture.valid, picture.inverted)
        images[modality] = aside(image, len(pictures))
    if reading.task in STACKS and len({*notes.values()}) > 1:  # mixed rules are never silent
        notes = {modality: note or "its whole range is black to white" for modality, note in notes.items()}
    valids = {modality: picture.valid for modality, picture in pictures.items()}
    if len({*notes.values()}) == 1:
        return images, valids, [f"all: {note}" for note in {*notes.values()} if note]
    return images, valids, [f"{modality}: {note}" for modality, note in notes.items() if note]


def wanted_ranges(pair: Pair, pictures: Mapping[str, Picture], reading: Reading) -> dict[str, str]:
    """Which stored values are black and white in each source.

    Frames of a series share theirs, so that the result does not flicker. Sources of a stack share one where none is
    asked for, if their types and their values of no data are the same.
    """
    ranges = {modality: wanted_range(pair, modality, reading) for modality in pictures}
    asked = {modality: reading.range.get(modality, "auto") for modality in pictures}
    shared = [modality for modality, text in asked.items() if parse_range(text)[0] == "auto"]
    kinds = {(asked[modality], pictures[modality].pixels.dtype) for modality in shared}
    if reading.task not in STACKS or len(shared) < 2 or len(kinds) > 1:  # no range of values is common to them
        return ranges
    if pair.series:
        probes = tuple(probe for modality in shared for probe in pair.probes[modality])
        return ranges | dict.fromkeys(shared, series_range(probes, asked[shared[0]]))
    stack = [pictures[modality] for modality in shared]
    one = one_range([picture.pixels for picture in stack], [picture.valid for picture in stack], "auto")
    return ranges | dict.fromkeys(shared, one)


def wanted_range(pair: Pair, modality: str, reading: Reading) -> str:
    """Which stored values of a source are black and white, as LOW-HIGH for frames of a series."""
    wanted = reading.range.get(modality, "auto")
    shared = pair.series and wanted.startswith(("auto", "nodata", "percentile"))
    return series_range(pair.probes[modality], wanted, modality) if shared else wanted


def stated(pair: Pair, pictures: Mapping[str, Picture], reference: str) -> Images:
    """Homographies from the reference's pixels to those of a source that lies in the same file of a thermal camera."""
    sizes = {modality: picture.pixels.shape[:2] for modality, picture in pictures.items()}
    found: Images = {}
    for modality in (m for m in pictures if m != reference and real(pair.files[m]) == real(pair.files[reference])):
        inner = modality if pictures[modality].box else reference
        outer = reference if inner == modality else modality
        if box := pictures[inner].box:
            matrix = boxed(np.multiply(box, 2 * sizes[outer][::-1]), sizes[inner])
            found[modality] = matrix if outer == reference else np.linalg.inv(matrix)
    return found


def differing(pair: Pair, sizes: Mapping[str, tuple[int, ...]], reading: Reading) -> str:
    """What is wrong with sources of these sizes, (height, width); empty if nothing is."""
    if reading.align != "none" or len(set(sizes.values())) < 2:
        return ""
    told = ", ".join(f"{pair.files[m]} {w}x{h}" for m, (h, w) in sizes.items())
    return f"sources differ in size: {told}; align=resize or auto brings them to one"


def aligned(
    pair: Pair, images: Images, valids: Valids, reference: str, reading: Reading, known: Images
) -> tuple[Images, Valids, list[str]]:
    """All sources in the reference's frame, which pixels are valid there, and notes; refuses what cannot be brought."""
    sizes = {modality: image.shape[:2] for modality, image in images.items()}
    if told := differing(pair, {modality: size for modality, size in sizes.items() if modality not in known}, reading):
        raise ImageError(f"{pair.name}: {told}")
    moved, valid, notes = dict(images), dict(valids), list[str]()
    chained, bends = reading.task in STACKS, reading.task == "mef"
    placing = Placing(images, valids, reference, reading.align, chained, bends, known, reading.memory)
    for modality in (modality for modality in images if modality != reference):
        two = [images[m] for m in (reference, modality)]
        empty = pair.series and reading.align in ("auto", "ecc", "phase") and any(one.min() == one.max() for one in two)
        if empty and two[0].shape[:2] == two[1].shape[:2]:
            continue  # a slice or frame without edges to register stays where it lies
        try:
            image, covered, found = placing.place(modality)
        except (AlignmentError, cv2.error) as error:  # OpenCV warps no side of 32767 pixels
            frame = f"{pair.name}: " if pair.series else ""
            raise AlignmentError(f"{frame}{pair.files[modality]}: {first_line(error)}") from error
        moved[modality] = aside(image, len(images))
        valid[modality] = None if covered is None else aside(covered, len(images))
        notes += [f"{modality}: {note}" for note in found]
    return moved, valid, notes + (cut_borders(moved, valid) if reading.border == "auto" else [])


def cut_borders(images: Images, valids: Valids) -> list[str]:
    """Marks borders that a registration left, where another source shows something; notes say which."""
    notes = []
    for modality, image in images.items():
        inside, known = left_border(image), valids[modality]
        others = [other for m, other in images.items() if m != modality]
        if inside is None or not any(other[~inside].std() > 2 / 255 for other in others):
            continue
        valids[modality] = inside if known is None else known & inside
        if known is None or (inside | ~known).mean() < 0.999:
            share = f"{100 * (1 - inside.mean()):.1f} %"
            notes.append(f"{modality}: a uniform border is no data ({share}); border=keep keeps it")
    return notes


def batch_key(pair: Pair, reference: str = "") -> tuple[int, ...]:
    """What images must share to be fused in one batch: K, height and width; empty where a header is unreadable."""
    try:
        first = reference_of(pair, reference)
        return (len(pair.files), *source_size(pair.files[first], pair.frame, first))
    except (ImageError, StopIteration):
        return ()
