"""One image as its file has it, and the lines that say why a file cannot be used."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datamodules.metadata import Metadata
from dig2dig.errors import ImageError, first_line

MIN_SIDE = 4  # pixels; a smaller image is a mistake
EXTRAS = {"medical": ("nibabel", "pydicom"), "formats": ("rawpy", "pillow_heif", "OpenEXR", "imagecodecs")}


@dataclass(frozen=True)
class Picture:
    """One image as its file has it.

    Its pixels are upright, (h, w) if grey and (h, w, 3) if RGB; uint8, uint16, int32 or float32. Three equal channels
    are one.
    """

    pixels: np.ndarray
    digest: str = ""  # hash of the file's bytes
    note: str = ""  # what a user may want to know about the reading
    valid: np.ndarray | None = None  # pixels that show the scene, (h, w), bool; None = all of them
    metadata: Metadata = field(default_factory=Metadata)  # what the file says beside its pixels
    inverted: bool = False  # large values are dark, as in DICOM's MONOCHROME1
    box: tuple[float, ...] | None = None  # x, y, width, height that it covers of the file's visible picture, in shares

    @property
    def depth(self) -> int:
        """Bits of a channel that a result needs to keep what is here: 8 or 16."""
        return 8 if self.pixels.dtype == np.uint8 else 16


def check_pixels(pixels: np.ndarray, path: Path, grey: bool = True) -> np.ndarray:
    """Pixels that can be fused, three equal channels as one if ``grey``; refuses other channels and sizes."""
    pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        channels = pixels.shape[2] if pixels.ndim == 3 else pixels.ndim
        raise ImageError(f"{path}: {channels} channels; grey and RGB are read, with or without alpha")
    if min(pixels.shape[:2]) < MIN_SIDE:
        raise ImageError(f"{path}: {pixels.shape[1]}x{pixels.shape[0]} pixels; at least {MIN_SIDE} a side are needed")
    return pixels[..., 0] if grey and pixels.ndim == 3 and (pixels == pixels[..., :1]).all() else pixels


@contextmanager
def one_line(path: Path, kind: str = "image") -> Iterator[None]:
    """Turns whatever a reader raises into an ImageError: a damaged file can raise any exception in a decoder."""
    try:
        yield
    except ImageError as error:
        if str(path) in str(error):
            raise
        raise ImageError(f"{path}: {error}") from error
    except MemoryError:
        raise
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), "")
        needed = f"needs {package.replace('_', '-')}; pip install 'dig2dig[{extra}]'" if extra else error
        raise ImageError(f"{path}: {needed}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise ImageError(f"{path}: cannot be read ({error.strerror})") from error
        said = error.args[0] if error.args else ""
        told = ValueError(said.decode(errors="replace")) if isinstance(said, bytes) else error  # LibRaw gives bytes
        raise ImageError(f"{path}: damaged {kind} ({first_line(told)}); copy it again") from error


def check_regular(path: Path) -> None:
    """Refuses pipes, sockets and devices unopened, for which a reader could wait for ever, and empty files."""
    with one_line(path):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise ImageError(f"{path}: is a pipe, a socket or a device; give a file")
        if stat.S_ISREG(found.st_mode) and not found.st_size:
            raise ImageError(f"{path}: empty file; copy it again")


def version(path: Path) -> tuple[int, int, int]:
    """A key for caches, which changes with the file and with the process: an open file is not shared.

    That of a folder changes with any file in it.
    """
    check_regular(path)
    with one_line(path):
        if path.is_dir():
            files = ((file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file())
            return 0, hash(tuple((name, found.st_size, found.st_mtime_ns) for name, found in files)), os.getpid()
        found = path.stat()
        return found.st_size, found.st_mtime_ns, os.getpid()
