"""A fused image as the bytes of a picture file, with what its reference's file says beside the pixels."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin
from torch import Tensor

from datamodules.metadata import KEPT, Metadata, raw_text
from dig2dig.color import to_pixels
from dig2dig.errors import UserError
from dig2dig.tracking.panels import to_png

DEEP = (".png", ".tif", ".tiff")  # formats that hold 16 bits; the others get 8
PICTURES = (*DEEP, ".jpg", ".jpeg", ".webp", ".bmp")  # formats of results; of any other source it becomes a PNG
MEDICAL = {"dcm": ".dcm", "nii": ".nii.gz"}  # formats that take geometry and patient from a medical reference
PILLOW = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
MARKER = 65_000  # bytes that fit into a marker of JPEG
QUALITY = 95  # of JPEG, without subsampled colour, and WebP, 1 to 100


def suffix_of(format: str, source: str) -> str:
    """The suffix of a result: that of ``save.format``, or of the reference's file where that is a picture format."""
    if format != "reference":
        return MEDICAL.get(format, f".{format}")
    return source if source in PICTURES else ".png"


def encode(
    image: Tensor,
    suffix: str,
    depth: int = 8,
    metadata: Metadata | None = None,
    valid: np.ndarray | None = None,
    series: str = "",
) -> bytes:
    """An image (1 or 3, h, w) in [0, 1], rounded to 8 or 16 bits, as a picture; formats that hold 8 get 8.

    ``metadata`` goes with it as far as the format holds it, see :func:`lost`. Pixels that are not ``valid``, (h, w),
    are transparent where the format has alpha. UserError where the format has no room for a picture of this size, or
    takes a medical reference and there is none. ``series`` tells DICOM results of one reference apart.
    """
    metadata = metadata or Metadata()
    if suffix in MEDICAL.values():
        colour = len(image) > 1  # which has 8 bits there
        return _medical(to_pixels(image, 8 if colour else depth), suffix, metadata, series)
    pixels = to_pixels(image, depth if suffix in DEEP else 8)
    kept = metadata.icc if metadata.icc[16:20] == (b"RGB " if pixels.shape[2] == 3 else b"GRAY") else b""
    if valid is not None and suffix in (*DEEP, ".webp"):
        alpha = valid[..., None].astype(pixels.dtype) * np.iinfo(pixels.dtype).max
        colours = np.repeat(pixels, 3, 2) if suffix == ".webp" and pixels.shape[2] == 1 else pixels
        pixels = np.concatenate([colours, alpha], 2)
    try:
        if suffix == ".png":
            content, start = to_png(pixels), 8 + 25  # signature and header
            return content[:start] + _chunks(metadata, kept) + content[start:]
        return _tiff(pixels, metadata, kept) if suffix in DEEP else _pillow(pixels, suffix, metadata, kept)
    except (OSError, ValueError, RuntimeError, struct.error) as error:  # WebP and JPEG have largest sizes
        height, width = pixels.shape[:2]
        raise UserError(f"a picture of {width}x{height} cannot be stored as {suffix}") from error


def lost(suffix: str, metadata: Metadata, valid: np.ndarray | None = None) -> list[str]:
    """What the format of a result cannot keep, in words."""
    words = []
    if metadata.geo and suffix not in (".tif", ".tiff"):
        words.append(f"a {suffix} holds no georeference, .tif does")
    if valid is not None and suffix not in (*DEEP, ".webp"):
        words.append(f"a {suffix} holds no alpha, .png does: pixels without data are filled")
    if suffix == ".bmp" and (metadata.exif or metadata.icc or metadata.xmp):
        words.append("a .bmp holds no EXIF, XMP and colour profile")
    if suffix in (".jpg", ".jpeg") and max(len(metadata.exif), len(metadata.xmp)) >= MARKER:
        words.append(f"a {suffix} holds no EXIF or XMP of 64 kB and more, .png does")
    if suffix == ".webp" and {*map(round, metadata.dpi or ())} - {72, 96}:  # what software writes for none
        words.append("a .webp holds no resolution, .png does")
    return words


def _medical(pixels: np.ndarray, suffix: str, metadata: Metadata, series: str) -> bytes:
    from dig2dig.inference.medical import dicom_bytes, nifti_bytes

    if not metadata.medical:
        raise UserError(f"a {suffix} takes its geometry from the reference, which is no DICOM or NIfTI file")
    reference, frame = Path(metadata.medical), metadata.frame
    picture = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    if suffix == ".dcm":
        return dicom_bytes(picture, reference, frame, series)
    return nifti_bytes(picture[None], reference, frame or 0)


def _pillow(pixels: np.ndarray, suffix: str, metadata: Metadata, icc: bytes) -> bytes:
    settings: dict[str, Any] = {"icc_profile": icc} if icc else {}
    most = MARKER if PILLOW[suffix] == "JPEG" else 2**31
    settings |= {"exif": metadata.exif} if 0 < len(metadata.exif) < most else {}
    settings |= {"xmp": metadata.xmp} if 0 < len(metadata.xmp) < most else {}
    settings |= {"dpi": tuple(map(round, metadata.dpi))} if metadata.dpi else {}
    content = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(content, PILLOW[suffix], quality=QUALITY, subsampling=0, **settings)
    return content.getvalue()


def _chunks(metadata: Metadata, icc: bytes) -> bytes:
    """The PNG chunks of metadata (PNG, third edition, 11.3)."""
    parts = [(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))] if icc else []
    if metadata.dpi:
        across, down = (round(one / 0.0254) for one in metadata.dpi)
        parts.append((b"pHYs", struct.pack(">IIB", across, down, 1)))
    if metadata.exif:
        parts.append((b"eXIf", metadata.exif.removeprefix(b"Exif\0\0")))
    if metadata.xmp:
        parts.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    content = io.BytesIO()
    for kind, data in parts:
        PngImagePlugin.putchunk(content, kind, data)
    return content.getvalue()


def _tiff(pixels: np.ndarray, metadata: Metadata, icc: bytes) -> bytes:
    """By tifffile; the tables of EXIF and GPS, whose places only the written file knows, go to its end."""
    found = Image.Exif()
    found.load(metadata.exif) if metadata.exif else None
    tables = {tag: found.get_ifd(tag) for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)}
    tables = {int(tag): table for tag, table in tables.items() if table}
    extra: list[Any] = [(*tag, False) for tag in metadata.geo]
    extra += [(tag, "s", 0, raw_text(str(found[tag])), False) for tag in KEPT if tag in found]
    extra += [(700, "B", len(metadata.xmp), metadata.xmp, False)] if metadata.xmp else []
    colours = pixels.shape[2]
    content = io.BytesIO()
    tifffile.imwrite(
        content,
        pixels.squeeze(2) if colours == 1 else pixels,
        photometric="rgb" if colours >= 3 else "minisblack",
        planarconfig="contig",
        extrasamples=["unassalpha"] if colours in (2, 4) else None,
        compression="zlib",
        predictor=True,
        metadata=None,
        software=False,
        iccprofile=icc or None,
        resolution=metadata.dpi,
        resolutionunit="INCH" if metadata.dpi else None,
        extratags=extra,
    )
    return _with_tables(content.getvalue(), tables) if tables else content.getvalue()


def _with_tables(content: bytes, tables: dict[int, Any]) -> bytes:
    """A little-endian TIFF whose directory, moved to its end, also points at these tables."""
    written = bytearray(content)
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = [content[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    for tag, table in tables.items():
        directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
        directory.update(table)
        written += bytes(len(written) % 2)
        entries.append(struct.pack("<HHII", tag, 4, 1, len(written)))
        written += directory.tobytes(len(written))
    written += bytes(len(written) % 2)
    struct.pack_into("<I", written, 4, len(written))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    return bytes(written + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4))
