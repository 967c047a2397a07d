"""One reader for all that a source may be: an image, a slice of a medical volume, a frame of a video."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from datamodules.picture import Picture, check_pixels
from datamodules.ranges import fills, limits
from datamodules.readers import medical
from datamodules.readers import video as frames
from datamodules.readers.pixels import image_size, is_image, read_picture
from dig2dig.errors import ImageError

Probes = tuple[tuple[Path, int | None], ...]
"""Some frames of a series, as files or as numbers in a file."""


def is_source(path: Path) -> bool:
    """Whether a name looks like something that can be fused."""
    return is_image(path) or medical.is_medical(path) or frames.is_video(path)


def stem(path: Path) -> str:
    """The name without its suffix; .nii.gz is one."""
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def real(path: Path) -> str:
    """Where a path leads; of a loop of links as far as it goes, where ``Path.resolve`` would raise."""
    return os.path.realpath(path)


def frame_count(path: Path) -> int | None:
    """Frames of a video, slices of a volume; None for an image and for a single slice.

    Raises:
        ImageError: The file cannot be read.
    """
    if medical.is_medical(path):
        count = medical.slice_count(path)
        return count if count > 1 else None
    return frames.frame_count(path) if frames.is_video(path) else None


def read_source(path: Path, frame: int | None = None) -> Picture:
    """An image, or one frame or slice.

    Raises:
        ImageError: It cannot be used, see :func:`datamodules.readers.pixels.read_picture`.
    """
    if not (medical.is_medical(path) or frames.is_video(path)):
        return read_picture(path)
    read = medical.read_slice if medical.is_medical(path) else frames.read_frame
    return Picture(check_pixels(read(path, frame or 0), path), source_digest(path))


def source_digest(path: Path) -> str:
    """Hash of a file's bytes, as :class:`Picture` has it; empty if it cannot be read."""
    try:
        stat = path.stat()
        return _digest(path, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return ""


@lru_cache(maxsize=64)  # each frame of a video asks again
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def source_size(path: Path, frame: int | None = None) -> tuple[int, int]:
    """(height, width) of a source.

    Raises:
        ImageError: The file cannot be read.
    """
    if medical.is_medical(path) or frames.is_video(path):
        height, width = read_source(path, frame).pixels.shape[:2]
        return height, width
    return image_size(path)


@lru_cache(maxsize=64)
def series_range(probes: Probes, wanted: str) -> str:
    """One range for all frames of a series, from some of them: ``full``, or LOW-HIGH around all their percentiles."""
    pictures = []
    for path, frame in probes:
        try:
            pictures.append(read_source(path, frame).pixels)
        except ImageError:  # told when its own turn comes
            continue
    if not pictures or (wanted == "auto" and all(map(fills, pictures))):
        return "full"
    low, high = zip(*map(limits, pictures), strict=True)
    return f"{min(low):.6f}-{max(high):.6f}" if max(high) > min(low) else "full"
