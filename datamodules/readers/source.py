"""One reader for all that a source may be: an image, a slice of a medical volume, a frame of a video."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from datamodules.picture import Picture, check_pixels, version
from datamodules.ranges import one_range
from datamodules.readers import medical, video
from datamodules.readers.palettes import palette_of, without_palette
from datamodules.readers.pixels import image_size, is_image, read_picture
from datamodules.readers.thermal import is_infrared, is_radiometric, read_thermal, thermal_size
from datamodules.validity import check_finite, without_data
from dig2dig.errors import ImageError
from dig2dig.options import parse_range

Probes = tuple[tuple[Path, int | None], ...]  # some frames of a series, as files or as numbers in a file


def is_source(path: Path) -> bool:
    """Whether a name looks like something that can be fused."""
    return is_image(path) or medical.is_medical(path) or video.is_video(path)


def stem(path: Path) -> str:
    """The name without its suffix; .nii.gz is one, and the last number of a DICOM identifier is none."""
    if path.suffix[1:].isdigit():
        return path.name
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def real(path: Path) -> str:
    """The path without links; a loop of links is no error here, as it would be in ``Path.resolve``."""
    return os.path.realpath(path)


def medical_grid(files: Mapping[str, Path], reference: str) -> medical.Onto | None:
    """The medical source whose grid the others take: the reference, or the first; None without any."""
    order = [modality for modality in (reference, *files) if modality in files]
    return next(((modality, files[modality]) for modality in order if medical.is_medical(files[modality])), None)


def frame_count(path: Path, onto: medical.Onto | None = None) -> int | None:
    """Frames of a video, slices of a volume or of that whose grid it takes; None for an image and for one slice."""
    if medical.is_medical(path):
        count = medical.slice_count(path, onto)
        return count if count > 1 else None
    return video.opened(path).count if video.is_video(path) else None


def read_source(
    path: Path, frame: int | None = None, onto: medical.Onto | None = None, modality: str = "", probes: Probes = ()
) -> Picture:
    """An image, or one frame or slice; what cannot be used is refused as in ``read_picture``.

    Of a volume, it is what lies where slice ``frame`` of ``onto`` does. Of a thermal camera's JPEG, ``modality`` says
    whether the temperatures or the visible picture are read. An infrared picture is grey, see ``without_palette``; that
    of a series by the palette of its ``probes``.
    """
    if medical.is_medical(path):
        picture = medical.read_slice(path, frame or 0, onto)
        picture = replace(picture, pixels=check_pixels(picture.pixels, path, False), digest=source_digest(path))
    elif video.is_video(path):
        picture = Picture(check_pixels(video.opened(path).read(frame or 0), path), source_digest(path))
    elif thermal := read_thermal(path, modality):
        picture = replace(thermal, digest=source_digest(path))
    else:
        picture = read_picture(path)
    colourful = is_infrared(modality) and picture.pixels.ndim == 3
    return without_palette(picture, series_palette(probes) if probes else None) if colourful else picture


def shows_heat(path: Path) -> bool:
    """Whether a file says of itself that it is infrared: by temperatures, or by the false colours of a palette."""
    return is_radiometric(path) or "false colour" in read_source(path, modality="infrared").note


def source_digest(path: Path) -> str:
    """Hash of a file's bytes, as :class:`Picture` has it; empty if it cannot be read."""
    try:
        return _digest(path, version(path))
    except (ImageError, OSError):
        return ""


@lru_cache(maxsize=64)  # each frame of a video asks again
def _digest(path: Path, version: tuple[int, int, int]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in medical.files(path):
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: found)
    return found.hexdigest()


def source_size(path: Path, frame: int | None = None, modality: str = "") -> tuple[int, int]:
    """(height, width) of a source; of an image only the header is read."""
    if video.is_video(path):
        return video.opened(path).size
    if medical.is_medical(path):
        return read_source(path, frame).pixels.shape[:2]
    return thermal_size(path, modality) or image_size(path)


@lru_cache(maxsize=64)
def series_palette(probes: Probes) -> str:
    """The palette of most of the frames by which the range of a series is found; empty where they have none."""
    found: list[str] = []
    for path, frame in probes:
        with suppress(ImageError):  # reported when the frame itself is read
            found.append(palette_of(read_source(path, frame).pixels))
    return max(found, key=found.count, default="")


@lru_cache(maxsize=64)
def series_range(probes: Probes, wanted: str, modality: str = "") -> str:
    """One range for all frames of a series, from some of them: ``full``, or LOW-HIGH around all their percentiles."""
    pictures, valids = [], []
    for path, frame in probes:
        try:
            picture = read_source(path, frame, modality=modality, probes=probes)
            valid, _ = without_data(picture.pixels, picture.valid, parse_range(wanted)[1])
            check_finite(picture.pixels, valid, str(path))
        except ImageError:  # reported when the frame itself is read
            continue
        if valid is None or valid.any():
            pictures.append(picture.pixels)
            valids.append(valid)
    return one_range(pictures, valids, wanted)
