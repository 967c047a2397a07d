"""Reading image files: pixels as they are stored, or one clear line that says what is wrong with which file."""

import csv
import hashlib
import io
import os
import re
import threading
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from datamodules.metadata import Metadata, exif_of, metadata_of, orientation_of
from datamodules.picture import Picture, check_pixels, check_regular, one_line
from datamodules.readers import raw, tiff
from dig2dig.atomic import RECORD, is_file, read_names
from dig2dig.errors import ImageError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", *raw.SUFFIXES}
MAX_PIXELS = 2**28  # a larger header is taken for a decompression bomb
_PILLOW = threading.Lock()  # held while Pillow's own limit is lifted


def is_image(path: Path) -> bool:
    """Whether a name looks like an image's; hidden files do not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(root: str, exclude: list[str] | None = None) -> list[Path]:
    """All images under a folder, sorted, or those that a text file names, a path a line, relative to its folder.

    Paths with an excluded part and what runs wrote are left out. No image, or a lost file, is a FileNotFoundError.
    """
    place = Path(root)
    if place.is_file():
        try:
            lines = filter(None, map(str.strip, text_of(place)))
        except UnicodeError as error:
            raise FileNotFoundError(f"{place}: neither a folder of images nor a list of them in UTF-8") from error
        found = [located(place, line) for line in lines if not line.startswith("#")]
        if lost := next((path for path in found if not path.is_file()), None):
            raise FileNotFoundError(f"{place}: names {lost}, which does not exist")
    elif place.is_dir():
        found = [path for path in sorted(place.rglob("*")) if is_image(path) and path.is_file()]
        found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(place).parts)]
        made = {mark.parent / name for mark in place.glob(f"*/**/{RECORD}") for name in read_names(mark.parent)}
        found = [path for path in found if not made & {path, *path.parents}]
    else:
        raise FileNotFoundError(f"{place}: no such folder of images, or list of them")
    base, out = place if place.is_dir() else place.parent, set(exclude or [])
    kept = [path for path in found if not set(Path(os.path.relpath(path, base)).parts) & out]
    if not kept:
        raise FileNotFoundError(f"{place}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return kept


def text_of(path: Path, errors: str = "strict") -> io.StringIO:
    """The text of a file in UTF-8, or in UTF-16 with its mark, as Excel's "Unicode text" is; a UnicodeError else."""
    content = path.read_bytes()
    wide = content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE)
    return io.StringIO(content.decode("utf-16" if wide else "utf-8-sig", errors), newline="")


def table_of(path: Path) -> csv.DictReader:
    """The rows of a table that is parted by commas, semicolons or tabs; Excel's line ``sep=;`` is left out.

    Bytes that are not UTF-8 stay as they are, see :func:`located`.
    """
    file = text_of(path, "surrogateescape")
    lines = file.getvalue().splitlines()
    before = list(takewhile(re.compile(r'"?(sep=.)?"?[\s,;]*$', re.IGNORECASE).match, lines))
    first = "".join(lines[len(before) :][:1])
    table = csv.DictReader(file, delimiter=max(",;\t", key=first.count), skipinitialspace=True)
    for _ in before:
        next(table.reader)
    return table


def located(listing: Path, name: str) -> Path:
    """The file that a list names, from the list's folder; separators and letters (cp1252) may be those of Windows."""
    letters = name.encode("utf-8", "surrogateescape").decode("cp1252", "replace")  # as Excel saves CSV
    paths = [listing.parent / one for text in (name, letters) for one in (text, text.replace("\\", "/"))]
    return next((path for path in paths if is_file(path)), paths[1])


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as ``read_picture`` gives it, from the file's header."""
    check_regular(path)
    with one_line(path), path.open("rb") as file:
        start = file.read(16)
        file.seek(0)
        if kind := raw.kind_of(path, start):
            with raw.silent():
                return raw.OPEN[kind](file.read())[:2]
        if start[:4] in tiff.STARTS:
            return tiff.tiff_size(file)
        with open_header(file, path) as image:
            return image.size if orientation_of(image) >= 5 else (image.height, image.width)


def read_picture(path: Path) -> Picture:
    """The pixels of an image file, of 8 or 16 bits, 32-bit integers or floating point, upright.

    Transparent pixels and those of GDAL's no-data value are not valid.

    ImageError: the file is missing, damaged, no image, too small or too large, or of other channels than grey or RGB
    with or without alpha.
    """
    check_regular(path)
    with one_line(path):
        content = path.read_bytes()
        if kind := raw.kind_of(path, content[:16]):
            pixels, valid, metadata, notes = raw.read_photo(content, kind, MAX_PIXELS)
        elif content[:4] in tiff.STARTS:
            pixels, valid, metadata, notes = tiff.read_tiff(content, MAX_PIXELS)
            metadata = replace(metadata, exif=exif_of(content))
        else:
            pixels, valid, metadata, notes = _decode(content, path)
    pixels = check_pixels(pixels, path)
    if valid is not None and valid.any():
        notes.append(f"{100 * (1 - valid.mean()):.1f} % of the pixels are transparent or no data")
    if valid is not None and not valid.any():
        raise ImageError(f"{path}: no pixel is valid: all are transparent or no data; leave it out")
    return Picture(pixels, hashlib.blake2b(content, digest_size=16).hexdigest(), ", ".join(notes), valid, metadata)


def read_image(path: Path, mode: Literal["auto", "L", "RGB"] = "auto") -> np.ndarray:
    """8-bit pixels of a file, (h, w) if grey and (h, w, 3) if RGB; ``L`` or ``RGB`` convert. More bits are refused."""
    pixels = read_picture(path).pixels
    if pixels.dtype != np.uint8:
        raise ImageError(f"{path}: more than 8 bits a channel; only 8-bit images are read here")
    return pixels if mode == "auto" else convert(pixels, mode)


def convert(pixels: np.ndarray, mode: Literal["L", "RGB"]) -> np.ndarray:
    """Grey to RGB by repetition, RGB to grey by BT.601."""
    if (pixels.ndim == 2) == (mode == "L"):
        return pixels
    if mode == "RGB":
        return np.repeat(pixels[..., None], 3, 2)
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def open_header(file: Any, path: Path) -> Image.Image:
    """An image of which only the header is read."""
    try:
        with _PILLOW, patch.object(Image, "MAX_IMAGE_PIXELS", None):  # it only warns up to its double
            image = Image.open(file)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image file, or of a kind that is not read") from error
    if image.width * image.height > MAX_PIXELS:
        megapixels = image.width * image.height / 1e6
        raise ImageError(f"{path}: claims {megapixels:.0f} megapixels; at most {MAX_PIXELS / 1e6:.0f} are read")
    return image


def _decode(content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray | None, Metadata, list[str]]:
    """Upright pixels, which of them are valid (None = all), metadata, and notes."""
    with open_header(io.BytesIO(content), path) as image:
        pages = getattr(image, "n_frames", 1)
        notes = [f"first of {pages} pages"] if pages > 1 else []
        tiles = list(getattr(image, "tile", []))
        image.load()  # all of it: a truncated file is refused
        metadata = metadata_of(image)
        deep = _deep(image, tiles, content)
        pixels, alpha = _shallow(image) if deep is None else raw.split(deep)
        turn = orientation_of(image)
        pixels, alpha = tiff.upright(pixels, turn), None if alpha is None else tiff.upright(alpha, turn)
        if image.format == "JPEG" and (lost := lost_rows(pixels)):
            what = f"its last {lost} rows are lost: the file was cut; copy it again, or save it as PNG if they are grey"
            raise ImageError(f"{path}: {what}")
    return pixels, None if alpha is None else tiff.opaque(alpha), metadata, notes


def _deep(image: Image.Image, tiles: list[Any], content: bytes) -> np.ndarray | None:
    """16-bit pixels, the header's white at 65535, where Pillow would cut them to 8 bits; else None."""
    bits = _bits(image.format, content)
    if image.format == "PPM" and image.mode == "RGB" and tiles[0][0] != "raw" and (white := tiles[0][3][1]) > 255:
        start, count = tiles[0][2], 3 * image.width * image.height
        plain = tiles[0][0] == "ppm_plain"
        text = re.sub(rb"#[^\r\n]*", b"", content[start:]) if plain else b""
        values = text.split()[:count] if plain else np.frombuffer(content, ">u2", count, start)
        values = np.asarray(values, np.uint16).reshape(image.height, image.width, 3)
    elif bits > 8:
        import imagecodecs

        codec = {"PNG": imagecodecs.png_decode, "AVIF": imagecodecs.avif_decode}
        values, white = codec.get(str(image.format), imagecodecs.jpeg2k_decode)(content), 2**bits - 1
        if values.dtype.kind == "i":
            raise ImageError("holds signed values; save it as TIFF")
    else:
        return None
    return values if white == 65535 else (values.astype(np.uint32) * 65535 // white).astype(np.uint16)


def _bits(kind: str | None, content: bytes) -> int:
    """Bits of a channel, by the header; 8 of kinds that hold no more, or that Pillow reads in full."""
    if kind == "PNG":
        return content[24]
    if kind == "JPEG2000":
        return content[content.find(b"\xff\x4f\xff\x51") + 42] % 128 + 1
    flags = content[content.find(b"av1C") + 6] if kind == "AVIF" else 0
    return 8 + 2 * (flags >> 6 & 1) + 2 * (flags >> 5 & 1)


def _shallow(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels as stored, and alpha where there is one; of more than 8 bits are Netpbm's grey ones."""
    if image.format == "PPM" and image.mode in ("I", "F"):
        return np.asarray(image).astype(np.float32 if image.mode == "F" else np.uint16), None
    alpha = np.asarray(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
    if image.mode not in ("L", "LA", "1", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        raise ValueError(f"pixels of kind {image.mode}")
    return np.asarray(image.convert("L" if image.mode in ("L", "LA", "1") else "RGB")), alpha


def lost_rows(pixels: np.ndarray) -> int:
    """Rows at the end that a JPEG decoder filled with its middle grey, for want of data; 0 if fewer than 8."""
    filled = (pixels == 128).reshape(len(pixels), -1).all(1)
    count = len(filled) if filled.all() else int(filled[::-1].argmin())
    return count if 8 <= count < len(filled) else 0
