"""One reader for all that a source may be: an image, a slice of a medical volume, a frame of a video."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from datamodules.picture import Picture, check_pixels, version
from datamodules.ranges import fills, limits
from datamodules.readers import medical, video
from datamodules.readers.pixels import image_size, is_image, read_picture
from dig2dig.errors import ImageError

Probes = tuple[tuple[Path, int | None], ...]  # some frames of a series, as files or as numbers in a file


def is_source(path: Path) -> bool:
    """Whether a name looks like something that can be fused."""
    return is_image(path) or medical.is_medical(path) or video.is_video(path)


def stem(path: Path) -> str:
    """The name without its suffix; .nii.gz is one."""
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def real(path: Path) -> str:
    """The path without links; a loop of links is no error here, as it would be in ``Path.resolve``."""
    return os.path.realpath(path)


def frame_count(path: Path) -> int | None:
    """Frames of a video, slices of a volume; None for an image and for a single slice."""
    if medical.is_medical(path):
        count = medical.slice_count(path)
        return count if count > 1 else None
    return video.frame_count(path) if video.is_video(path) else None


def read_source(path: Path, frame: int | None = None) -> Picture:
    """An image, or one frame or slice; what cannot be used is refused as in ``read_picture``."""
    if is_image(path) or not is_source(path):
        return read_picture(path)
    read = medical.read_slice if medical.is_medical(path) else video.read_frame
    return Picture(check_pixels(read(path, frame or 0), path), source_digest(path))


def source_digest(path: Path) -> str:
    """Hash of a file's bytes, as :class:`Picture` has it; empty if it cannot be read."""
    try:
        return _digest(path, version(path))
    except (ImageError, OSError):
        return ""


@lru_cache(maxsize=64)  # each frame of a video asks again
def _digest(path: Path, version: tuple[int, int, int]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def source_size(path: Path, frame: int | None = None) -> tuple[int, int]:
    """(height, width) of a source; of an image only the header is read."""
    if is_image(path) or not is_source(path):
        return image_size(path)
    return read_source(path, frame).pixels.shape[:2]


@lru_cache(maxsize=64)
def series_range(probes: Probes, wanted: str) -> str:
    """One range for all frames of a series, from some of them: ``full``, or LOW-HIGH around all their percentiles."""
    pictures = []
    for path, frame in probes:
        try:
            pictures.append(read_source(path, frame).pixels)
        except ImageError:  # reported when the frame itself is read
            continue
    if not pictures or (wanted == "auto" and all(map(fills, pictures))):
        return "full"
    low, high = zip(*map(limits, pictures), strict=True)
    return f"{min(low):.6f}-{max(high):.6f}" if max(high) > min(low) else "full"
