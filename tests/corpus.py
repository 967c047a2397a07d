"""Files as archives hold them: every kind of bad input, each with the line that a user gets."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tifffile

SIDE = 24


def picture(seed: int = 0, channels: int = 1, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Smooth noise, 8 bits, (h, w) or (h, w, channels)."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 1.5).reshape(noise.shape)
    return cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8).squeeze()  # pyright: ignore


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def tiff(pixels: np.ndarray) -> bytes:
    tifffile.imwrite(buffer := io.BytesIO(), pixels, photometric="minisblack", planarconfig="contig")
    return buffer.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size: a decompression bomb."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def holed() -> bytes:
    pixels = picture().astype(np.float32) / 255
    pixels[3, 4] = np.nan
    return tiff(pixels)


def as_file(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.png": (as_file(png(picture())[:200]), "damaged image"),
    "truncated16.png": (as_file(png(picture().astype(np.uint16) * 257)[:400]), "damaged image"),
    "cut.jpg": (as_file(cv2.imencode(".jpg", picture())[1].tobytes()[:300]), "image"),
    "empty.png": (as_file(b""), "empty file; copy it again"),
    "text.png": (as_file(b"these are not pixels\n" * 30), "not an image file"),
    "one.png": (as_file(png(picture(height=1, width=1))), "1x1 pixels; at least 4 a side"),
    "thin.png": (as_file(png(picture(height=1, width=5000))), "5000x1 pixels; at least 4 a side"),
    "black.png": (as_file(png(picture() * 0)), "every pixel is 0: nothing to fuse"),
    "white.png": (as_file(png(picture() * 0 + 255)), "every pixel is 255: nothing to fuse"),
    "nan.tif": (as_file(holed()), "1 pixels are NaN or infinite"),
    "five.tif": (as_file(tiff(picture(channels=5))), "5 channels; grey and RGB are read"),
    "bomb.png": (as_file(claiming(60000, 60000)), "claims 3600 megapixels; at most 268 are read"),
    "folder.png": (lambda path: path.mkdir(), "Is a directory"),
    "loop.png": (loop, "cannot be read"),
    "dangling.png": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "other size.png": (as_file(png(picture(height=30))), "sources differ in size"),
}
"""Per file name what makes it, and part of the line that says what is wrong with it."""

ODD = ["with space", "two\nlines", "emoji 🩻", "quote\"s and 'comma, s", "latin \udce9", "-dash", "a=b", "%s"]
"""Names that file systems hold and that must be fused like any other."""


def make(folder: Path) -> None:
    """Pairs under ``visible`` and ``infrared``: good ones of odd names, and one for each kind of bad file."""
    for seed, side in enumerate(("visible", "infrared")):
        (folder / side).mkdir(parents=True)
        for name in ODD:
            (folder / side / f"{name}.png").write_bytes(png(picture(seed)))
    for seed, (name, (build, _)) in enumerate(BAD.items()):
        build(folder / "visible" / name)
        (folder / "infrared" / f"{Path(name).stem}.png").write_bytes(png(picture(seed + 9)))
    (folder / "visible" / "twice.png").write_bytes(png(picture(1)))
    (folder / "visible" / "twice.jpg").write_bytes(cv2.imencode(".jpg", picture(1))[1].tobytes())
    (folder / "infrared" / "twice.png").write_bytes(png(picture(2)))
    (folder / "visible" / "alone.png").write_bytes(png(picture(1)))
    (folder / "visible" / "notes.txt").write_text("no picture")
