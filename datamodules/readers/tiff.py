"""TIFF files of every depth and layout that cameras, scanners and mapping tools write, in one path."""

import io
import logging
from typing import Any, BinaryIO

import numpy as np

from datamodules.metadata import Metadata, upright_xmp
from datamodules.ranges import full_scale
from datamodules.validity import without_data
from dig2dig.errors import ImageError

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)  # scale, tie points, transformation and reference system
REDUCED, MASK = 1, 4  # pages that are a smaller copy of another, and its transparency
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is told in one line of ours


def read_tiff(content: bytes, most: int) -> tuple[np.ndarray, np.ndarray | None, Metadata, list[str]]:
    """Upright pixels (h, w) or (h, w, 3), which of them are valid (None = all), metadata, and notes.

    Alpha, a page that is a mask, and GDAL's no-data value decide what is valid. More than ``most`` pixels, and
    photographs of a raw sensor, are an ImageError, as are channels other than grey and RGB; of a damaged file tifffile
    raises what it likes.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page, orientation = _shown(file)
        refuse(page, most)
        stored = _stored(page)
        pixels, valid, notes = _channels(page, stored)
        for mask in (one for one in file.pages if _subfile(one) & (MASK | REDUCED) == MASK):
            if mask.shape == (page.imagelength, page.imagewidth):
                shown = np.asarray(mask.asarray()) > 0
                valid = shown if valid is None else valid & shown
        pages = sum(not _subfile(one) & (MASK | REDUCED) for one in file.pages)
        notes += [f"first of {pages} pages"] if pages > 1 else []
        if (empty := nodata(page)) is not None:
            measured = stored[..., 0] if int(page.photometric) == 0 else pixels  # white is zero: not inverted yet
            valid, _ = without_data(measured, valid, empty)
        metadata = Metadata(
            icc=bytes(getattr(page.tags.get(34675), "value", b"") or b""),
            xmp=upright_xmp(bytes(getattr(page.tags.get(700), "value", b"") or b"")),
            dpi=resolution(page),
            geo=tuple((tag.code, int(tag.dtype), tag.count, tag.value) for tag in page.tags if tag.code in GEO_TAGS),
        )
    return upright(pixels, orientation), None if valid is None else upright(valid, orientation), metadata, notes


def tiff_size(file: BinaryIO) -> tuple[int, int]:
    """(height, width) of the picture that ``read_tiff`` gives, from its header."""
    import tifffile

    with tifffile.TiffFile(file) as opened:
        page, orientation = _shown(opened)
        height, width = int(page.imagelength), int(page.imagewidth)
        return (width, height) if orientation >= 5 else (height, width)


def _shown(file: Any) -> tuple[Any, int]:
    """The first page that is no smaller copy of another, and its orientation."""
    page = next((page for page in file.pages if not _subfile(page) & (MASK | REDUCED)), file.pages[0])
    return page, int(getattr(page.tags.get(274), "value", 1) or 1)


def _subfile(page: Any) -> int:
    """What a page is to another, in bits: ``REDUCED``, ``MASK``."""
    return int(getattr(page, "subfiletype", 0) or 0)


def refuse(page: Any, most: int) -> None:
    """Raises an ImageError for pages that are too large or no picture; nothing is decoded yet."""
    if page.imagewidth * page.imagelength > most:
        raise ImageError(f"claims {page.imagewidth * page.imagelength / 1e6:.0f} megapixels; at most {most / 1e6:.0f}")
    if page.size > 3 * most:
        raise ImageError(f"claims {page.size / 1e6:.0f} million values; at most {3 * most / 1e6:.0f} are read")
    if int(page.photometric) in (32803, 34892):
        raise ImageError("holds the raw mosaic of a sensor; develop it, or name it .dng")


def _stored(page: Any) -> np.ndarray:
    """Values with the channels last, (h, w, s), of the whole range of their type."""
    values = np.asarray(page.asarray())
    axes = page.axes
    if set(axes) - set("YXS"):
        raise ImageError(f"holds a volume of axes {axes}; pictures of two axes are read")
    if values.dtype.kind not in "buif":
        raise ImageError(f"holds {values.dtype} values; integers and floating point are read")
    values = np.moveaxis(values, axes.index("S"), -1) if "S" in axes else values[..., None]
    bits = int(np.min(page.bitspersample))
    if int(page.photometric) == 3:  # places in a palette
        return values.astype(np.uint16)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind == "u" and bits not in (8, 16, 32, 64) and values.dtype.itemsize <= 2:  # 1 to 15 bits, packed
        full = np.iinfo(values.dtype).max
        values = (values.astype(np.uint32) * full // (2**bits - 1)).astype(values.dtype)
    if values.dtype.kind in "iu" and values.dtype not in (np.uint8, np.uint16):
        values = values.astype(np.int32 if values.dtype.itemsize <= 2 else np.float32)
    return values.astype(np.float32) if values.dtype in (np.float16, np.float64) else values


def _channels(page: Any, values: Any) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Grey or RGB, which pixels an alpha channel leaves, and notes."""
    kind, samples = int(page.photometric), values.shape[2]
    extra = [int(one) for one in page.extrasamples]
    if kind == 3:  # palette: 16-bit colours
        table = np.asarray(page.colormap).T
        pixels = table[values[..., 0]]
        return ((pixels // 257).astype(np.uint8) if (table % 257 == 0).all() else pixels), None, []
    if kind == 5:
        full = np.iinfo(values.dtype).max
        light = full - values[..., :4].astype(np.float32)  # that each ink lets pass
        pixels = (light[..., :3] * light[..., 3:] / full).round().astype(values.dtype)
        return pixels, None, ["CMYK turned to RGB without its profile"]
    if kind not in (0, 1, 2, 6) or (kind == 6 and int(page.compression) not in (6, 7)):  # JPEG comes as RGB
        raise ImageError(f"colours are {page.photometric.name}; grey, RGB, CMYK and palettes are read")
    colours = 3 if kind in (2, 6) or (kind == 1 and samples == 3) else 1
    if samples < colours or (kind in (0, 1) and samples > 2 and colours == 1):
        raise ImageError(f"{samples} channels; grey and RGB are read, with or without alpha")
    if kind == 0:  # white is zero
        top = np.iinfo(values.dtype).max if values.dtype.kind == "u" else values.max() + values.min()
        values = np.asarray(top - values)
    extra = (extra + [0] * samples)[: samples - colours] if samples > colours else []
    pixels = values[..., :colours]
    position = next((i for i, one in enumerate(extra) if one in (1, 2)), None)
    left_out = len(extra) - (position is not None)
    notes = [f"{left_out} of {samples} bands left out: not said to be alpha"] if left_out else []
    if position is None:
        return pixels, None, notes
    alpha = values[..., colours + position]
    return divided(pixels, alpha) if extra[position] == 1 else pixels, opaque(alpha), notes


def divided(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours that were stored multiplied by alpha, as they were before."""
    full = full_scale(pixels)
    share = np.maximum(alpha[..., None].astype(np.float32) / full, 1e-6)
    return (pixels / share).clip(0, full).round(0 if full > 1 else 6).astype(pixels.dtype)


def opaque(alpha: np.ndarray) -> np.ndarray | None:
    """Pixels (h, w) whose alpha is at least half, or that are not wholly transparent if none is; None if all are."""
    valid = alpha >= full_scale(alpha) / 2
    valid = valid if valid.any() else alpha > 0
    return None if valid.all() else valid


def nodata(page: Any) -> float | None:
    """GDAL's no-data value; None where there is none, or none that is a number."""
    try:
        return float(str(page.tags.valueof(42113, "")).strip("\0 \n"))
    except ValueError:
        return None


def resolution(page: Any) -> tuple[float, float] | None:
    """Dots per inch; None where the file has no unit for them."""
    unit = {2: 1.0, 3: 2.54}.get(int(getattr(page.tags.get(296), "value", 2)))
    found = [page.tags.get(code) for code in (282, 283)]
    if unit is None or None in found or not all(tag.value[1] for tag in found):
        return None
    across, down = (unit * tag.value[0] / tag.value[1] for tag in found)
    return (across, down) if across > 1 and down > 1 else None


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels turned as EXIF's orientation, 1 to 8, says."""
    pixels = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return np.ascontiguousarray(pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels)
