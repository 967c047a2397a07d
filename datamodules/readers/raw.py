"""Photographs as cameras and renderers store them, for users who installed ``dig2dig[formats]``."""

import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from math import prod
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from datamodules.metadata import Metadata, exif_of, metadata_of
from datamodules.readers.tiff import divided, opaque
from dig2dig.errors import ImageError

RAW_SUFFIXES = {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".orf"}
SUFFIXES = {*RAW_SUFFIXES, ".heic", ".heif", ".avif", ".jxl", ".exr", ".hdr", ".pfm", ".pgm", ".ppm", ".jp2"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
STARTS = {
    "jxl": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "exr": (b"v/1\x01",),
    "hdr": (b"#?RADIANCE", b"#?RGBE"),
    "pfm": (b"PF\n", b"PF ", b"PF\r"),
}
_STDERR = threading.Lock()  # held while the process has no stderr

Decoded = tuple[np.ndarray, np.ndarray | None, Metadata]  # pixels, alpha where there is one, metadata
Opened = tuple[int, int, Callable[[], Decoded]]  # height and width in the header of a file, and what decodes the rest


def kind_of(path: Path, start: bytes) -> str:
    """Which of the kinds of this module a file is, by its first 16 bytes; of raw files by their suffix; else empty.

    A raw file is a TIFF inside, whose first image is a thumbnail.
    """
    if known := next((kind for kind, starts in STARTS.items() if start.startswith(starts)), ""):
        return known
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        return "heif"
    return "raw" if path.suffix.lower() in RAW_SUFFIXES and not start.startswith((b"\xff\xd8", b"\x89PNG")) else ""


def read_photo(content: bytes, kind: str, most: int) -> tuple[np.ndarray, np.ndarray | None, Metadata, list[str]]:
    """Upright pixels, which of them are valid (None = all), metadata, and notes.

    Raw files are developed: white balance of the camera, sRGB, 16 bits, no change of brightness, so that the frames of
    a bracket keep their relation. Linear light stays in floating point. More than ``most`` pixels are an ImageError;
    of a damaged file a decoder raises what it likes.
    """
    with silent():
        height, width, decode = OPEN[kind](content)
        if height * width > most:
            raise ImageError(f"claims {height * width / 1e6:.0f} megapixels; at most {most / 1e6:.0f} are read")
        pixels, alpha, metadata = decode()
    notes = ["developed with the camera's white balance"] if kind == "raw" else []
    notes += ["taken for sRGB, its EXIF is not read"] if kind == "jxl" and b"jbrd" not in content else []
    return np.ascontiguousarray(pixels), None if alpha is None else opaque(alpha), metadata, notes


@contextmanager
def silent() -> Iterator[None]:
    """Keeps what C libraries print about a broken file off the terminal; the exception says it already."""
    with _STDERR:
        try:
            kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        except OSError:  # a process without stderr
            yield
            return
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _open_raw(content: bytes) -> Opened:
    """Camera raw by LibRaw."""
    import rawpy

    def decode() -> Decoded:
        with rawpy.imread(io.BytesIO(content)) as raw:
            pixels = raw.postprocess(
                use_camera_wb=True,
                no_auto_bright=True,
                adjust_maximum_thr=0,  # else a bright frame is scaled by its own maximum
                output_bps=16,
                gamma=(2.4, 12.92),  # sRGB
            )
        return pixels, None, Metadata(exif=exif_of(content))

    with rawpy.imread(io.BytesIO(content)) as raw:
        height, width, turned = raw.sizes.iheight, raw.sizes.iwidth, raw.sizes.flip & 4
    return width if turned else height, height if turned else width, decode


def _open_heif(content: bytes) -> Opened:
    """HEIC and HEIF by libheif, which turns pictures upright."""
    import pillow_heif

    image: Any = pillow_heif.open_heif(io.BytesIO(content), convert_hdr_to_8bit=False)

    def decode() -> Decoded:
        pixels, bits = np.asarray(image), int(image.info.get("bit_depth", 8))
        if pixels.dtype == np.uint16 and 8 < bits < 16:  # libheif shifts them up, and white is a little less than white
            white = (2**bits - 1) << (16 - bits)
            pixels = (pixels.astype(np.uint32) * 65535 // white).clip(0, 65535).astype(np.uint16)
        carrier = Image.new("L", (1, 1))  # Pillow has no 16-bit colour
        carrier.info = dict(image.info)
        metadata = metadata_of(carrier)
        return *split(pixels, "a" in image.mode), metadata  # RGBa is multiplied by alpha

    return image.size[1], image.size[0], decode


def _open_jxl(content: bytes) -> Opened:
    """JPEG XL by libjxl, which turns pictures upright."""

    def decode() -> Decoded:
        import imagecodecs

        pixels = imagecodecs.jpegxl_decode(content)
        pixels, metadata = pixels[0] if pixels.ndim == 4 else pixels, Metadata()  # of an animation the first frame
        with suppress(Exception), Image.open(io.BytesIO(imagecodecs.jpegxl_decode_jpeg(content, numthreads=1))) as jpeg:
            metadata = metadata_of(jpeg)  # of a repacked JPEG; of others imagecodecs gives pixels only
        return *split(pixels), metadata

    return *jxl_size(content), decode


def jxl_size(content: bytes) -> tuple[int, int]:
    """Height and width, upright, in the header of a JPEG XL file (ISO 18181-1)."""
    start = content
    if content[:2] != STARTS["jxl"][0]:  # in boxes
        place = 0
        while content[place + 4 : place + 8] not in (b"jxlc", b"jxlp"):
            length = int.from_bytes(content[place : place + 4], "big")
            length = int.from_bytes(content[place + 8 : place + 16], "big") if length == 1 else length
            if length < 8 or place + length >= len(content):
                raise ValueError("no picture in it")
            place += length
        start = content[place + (8 if content[place + 4 : place + 8] == b"jxlc" else 12) :]
    bits, used = int.from_bytes(start[2:18], "little"), 0

    def take(count: int) -> int:
        nonlocal used
        used += count
        return bits >> (used - count) & (1 << count) - 1

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1)
    height, ratio = side(), take(3)
    across, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    width = height * across // down if ratio else side()
    plain = take(1) or not take(1)  # no further fields, so no orientation
    return (height, width) if plain or take(3) < 4 else (width, height)


def _open_exr(content: bytes) -> Opened:
    """OpenEXR: linear light, half or single precision."""
    import OpenEXR

    with OpenEXR.File(io.BytesIO(content), header_only=True) as file:
        low, high = file.header()["dataWindow"]
    width, height = (int(one) + 1 for one in np.subtract(high, low))

    def decode() -> Decoded:
        with redirect_stdout(io.StringIO()), OpenEXR.File(io.BytesIO(content)) as file:  # it prints what it raises
            channels = {name: channel.pixels for name, channel in file.channels().items()}
        name = next((name for name in ("RGBA", "RGB", "Y") if name in channels), "")
        if not name and len(channels) != 1:
            raise ImageError(f"channels {', '.join(channels)}; RGB, RGBA and one channel are read")
        pixels = channels[name or next(iter(channels))]
        pixels = np.dstack([pixels, channels["A"]]) if name == "Y" and "A" in channels else pixels
        return *split(pixels, multiplied=True), Metadata()

    return height, width, decode


def _open_hdr(content: bytes) -> Opened:
    """Radiance: linear light with a shared exponent."""
    line = content[content.index(b"\n\n") + 2 :].split(b"\n", 1)[0].split()
    if len(line) != 4 or (line[0], line[2]) != (b"-Y", b"+X"):
        raise ValueError("its picture does not start at the top left")

    def decode() -> Decoded:
        pixels: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ValueError("its pixels cannot be decoded")
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), None, Metadata()

    return int(line[1]), int(line[3]), decode


def _open_pfm(content: bytes) -> Opened:
    """Colours of Portable FloatMap, lowest row first; Pillow reads the grey ones."""
    head = re.match(rb"PF\s+(\d+)\s+(\d+)\s+(\S+)\s", content)
    if not head:
        raise ValueError("its header is not that of a Portable FloatMap")
    shape, kind = (int(head[2]), int(head[1]), 3), "<f4" if float(head[3]) < 0 else ">f4"

    def decode() -> Decoded:
        pixels = np.frombuffer(content, kind, prod(shape), head.end()).reshape(shape)
        return pixels[::-1].astype(np.float32), None, Metadata()

    return shape[0], shape[1], decode


def split(pixels: np.ndarray, multiplied: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Grey or RGB, and the alpha that stands behind; colours that were ``multiplied`` by alpha are as before."""
    pixels = pixels.astype(np.float32) if pixels.dtype == np.float16 else pixels
    if pixels.ndim == 2 or pixels.shape[2] not in (2, 4):
        return pixels, None
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    if multiplied and pixels.dtype.kind == "f":  # linear light has no upper end
        return np.where(alpha[..., None] > 0, colours / np.maximum(alpha[..., None], 1e-6), 0), alpha
    return divided(colours, alpha) if multiplied else colours, alpha


OPEN = dict(raw=_open_raw, heif=_open_heif, jxl=_open_jxl, exr=_open_exr, hdr=_open_hdr, pfm=_open_pfm)
