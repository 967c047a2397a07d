"""Thermal cameras: radiometric JPEG files of FLIR, thermal JPEG files of DJI, and what counts as infrared.

References:
    P. Harvey, ExifTool, "FLIR Tags" (where a file holds what).
    G. Tattersall, Thermimage, ``raw2temp`` (from raw values to temperatures).
"""

import glob
import io
import math
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.metadata import Metadata, exif_of
from datamodules.picture import Picture, check_pixels, one_line, version
from datamodules.readers.pixels import MAX_PIXELS, open_header
from dig2dig.errors import ImageError

RAW, CAMERA, EMBEDDED, INSET = 1, 32, 14, 42  # types of FLIR's records
KELVIN = 273.15
LEAST_SAMPLES = 2 * 160 * 120  # bytes of the smallest sensor
FIELDS = {  # of the record of a camera: offset and kind; temperatures are in kelvin
    "emissivity": (0x20, "f"), "distance": (0x24, "f"), "reflected": (0x28, "f"), "atmosphere": (0x2C, "f"),
    "window_kelvin": (0x30, "f"), "window": (0x34, "f"), "humidity": (0x3C, "f"),
    "R1": (0x58, "f"), "B": (0x5C, "f"), "F": (0x60, "f"), "O": (0x308, "i"), "R2": (0x30C, "f"),
    "alpha1": (0x70, "f"), "alpha2": (0x74, "f"), "beta1": (0x78, "f"), "beta2": (0x7C, "f"), "X": (0x80, "f"),
}  # fmt: skip
INFRARED = {"infrared", "ir", "tir", "thermal", "lwir", "mwir", "flir"}
NEAR = {"near", "nir", "swir"}
DJI = "DJI keeps its temperatures in a form that only its own library reads; export TIFF with the DJI Thermal SDK"


def is_infrared(modality: str) -> bool:
    """Whether a modality's name says that it shows heat: ``ir``, ``thermal_left``; near infrared shows daylight."""
    tokens = set(re.findall("[a-z]+", modality.lower()))
    return bool(tokens & INFRARED) and not tokens & NEAR


@dataclass(frozen=True)
class ThermalFile:
    """A JPEG file of a thermal camera."""

    maker: str  # "FLIR" or "DJI"
    records: dict[int, bytes]  # of FLIR, by type
    exif: bytes  # as TIFF


def is_radiometric(path: Path) -> bool:
    """Whether one file holds both a temperature and a visible picture, so that it may be both sources of a scene."""
    try:
        found = _thermal(path, version(path))
    except (ImageError, OSError):
        return False
    return found is not None and RAW in found.records


def both_from_one(source: Path, modality: str, other: str) -> bool:
    """Whether one file or folder can be two sources: one infrared, one not, and a JPEG in it is radiometric."""
    if is_infrared(modality) == is_infrared(other):
        return False
    pattern = glob.escape(source.name).replace("{name}", "*")
    files = source.iterdir() if source.is_dir() else source.parent.glob(pattern)
    return any(map(is_radiometric, files))


def read_thermal(path: Path, modality: str) -> Picture | None:
    """A thermal JPEG file as its modality asks: temperatures in degrees Celsius, or the embedded visible picture.

    None where the file is not one, or where no modality is given: it is then read as what it shows. ImageError: it has
    no such picture, or one that only its maker reads.
    """
    if not modality or (found := _thermal(path, version(path))) is None:
        return None
    with one_line(path, "thermal JPEG"):
        if not is_infrared(modality):
            with _open_visible(path, found) as image:
                pixels, note = np.asarray(image.convert("RGB")), "the visible picture in a thermal JPEG"
        elif found.maker == "DJI":
            raise ImageError(f"{path}: {DJI}")
        else:
            pixels, note = temperatures(raw_values(found.records[RAW]), found.records.get(CAMERA, b""))
    box = _box(path, found) if is_infrared(modality) else None
    return Picture(check_pixels(pixels, path), note=note, metadata=Metadata(exif=exif_of(found.exif)), box=box)


def _box(path: Path, found: ThermalFile) -> tuple[float, ...] | None:
    """Where the camera puts its infrared picture in its visible one (Real2IR, OffsetX, OffsetY), see ``Picture``.

    None if it does not say so, if that makes no sense, or if the visible picture cannot be opened.
    """
    scale, dx, dy = struct.unpack_from("<f2h", found.records.get(INSET, b"").ljust(8, b"\0"))
    _, columns, rows = _header(found.records[RAW])
    try:
        with _open_visible(path, found) as image:
            w, h = image.size
    except Exception:  # a decoder of damaged bytes may raise any
        return None
    if not (0.5 < scale < 20 and abs(dx) < w / 2 and abs(dy) < h / 2):
        return None
    width, height = 1 / scale, w / h * rows / columns / scale
    return (1 - width) / 2 + dx / w, (1 - height) / 2 + dy / h, width, height


def thermal_size(path: Path, modality: str) -> tuple[int, int] | None:
    """(height, width) of what ``read_thermal`` gives, from headers."""
    if not modality or (found := _thermal(path, version(path))) is None:
        return None
    if is_infrared(modality) and found.maker == "DJI":
        raise ImageError(f"{path}: {DJI}")
    if is_infrared(modality):
        with one_line(path, "thermal JPEG"):
            _, width, height = _header(found.records[RAW])
        return height, width
    with one_line(path, "thermal JPEG"), _open_visible(path, found) as image:
        return image.height, image.width


def _open_visible(path: Path, found: ThermalFile) -> Image.Image:
    """The embedded picture, of which only the header is read."""
    content = found.records.get(EMBEDDED, b"")[32:]
    if not content.startswith((b"\xff\xd8", b"\x89PNG")):
        raise ImageError(f"{path}: a thermal JPEG without an embedded visible picture; give the visible files")
    return open_header(io.BytesIO(content), path)


@lru_cache(maxsize=8)  # both sources of a scene ask
def _thermal(path: Path, version: tuple[int, int, int]) -> ThermalFile | None:
    """What makes a file a thermal JPEG; None if nothing does. Of other files little more than 2 bytes are read."""
    with one_line(path), path.open("rb") as file:
        if file.read(2) != b"\xff\xd8":
            return None
        flir: dict[int, bytes] = {}
        exif, samples, last = b"", b"", 0
        for marker, content in getattr(open_header(file, path), "applist", []):
            if marker == "APP1" and content.startswith(b"FLIR\0\x01") and len(content) > 8:
                flir[content[6]], last = content[8:], content[7]
            elif marker == "APP1" and content.startswith(b"Exif\0"):
                exif = content[6:]
            elif marker == "APP3" and not content.startswith((b"\xff\xd8", b"_JPSJPS_", b"Meta")):
                samples += content
        if b"DJI\0" in exif and len(samples) >= LEAST_SAMPLES:  # its visible photographs have none
            return ThermalFile("DJI", {}, exif)
        if not flir:
            return None
        if lost := set(range(last + 1)) - set(flir):
            raise ImageError(f"{path}: {len(lost)} parts of its thermal data are lost; copy it again")
        found = records(b"".join(flir[index] for index in sorted(flir)))
        return ThermalFile("FLIR", found, exif) if RAW in found else None


def records(content: bytes) -> dict[int, bytes]:
    """Records of FLIR's file format, the first of each type: a header of 64 bytes, then an index of 32 for each."""
    if not content.startswith((b"FFF\0", b"AFF\0")):
        return {}
    order = ">" if 100 <= struct.unpack_from(">I", content, 20)[0] < 200 else "<"
    place, count = struct.unpack_from(f"{order}II", content, 24)
    found: dict[int, bytes] = {}
    for i in range(min(count, 1000)):
        kind, _, _, _, start, length = struct.unpack_from(f"{order}HHIIII", content, place + 32 * i)
        if kind and length:
            if start + length > len(content):
                raise ValueError("its thermal data are cut")
            found.setdefault(kind, content[start : start + length])
    return found


def _header(record: bytes) -> tuple[str, int, int]:
    """Byte order, width and height of a record of raw values."""
    order = "<" if record[:2] == b"\2\0" else ">"
    return order, *struct.unpack_from(f"{order}HH", record, 2)


def raw_values(record: bytes) -> np.ndarray:
    """Raw values of the sensor, (h, w), uint16: plain, or a PNG, most of which have their bytes in the wrong order."""
    order, width, height = _header(record)
    content = record[32:]
    if min(width, height) < 2:
        raise ImageError(f"{width}x{height} raw values")
    if width * height > MAX_PIXELS:
        raise ImageError(f"claims {width * height / 1e6:.0f} megapixels; at most {MAX_PIXELS / 1e6:.0f} are read")
    if not content.startswith(b"\x89PNG"):
        if len(content) < 2 * width * height:
            raise ImageError("its raw values are stored in a way that is not read")
        return np.frombuffer(content, f"{order}u2", width * height).reshape(height, width).astype(np.uint16)
    with Image.open(io.BytesIO(content)) as image:
        if image.size != (width, height):
            raise ValueError(f"raw values of {image.width}x{image.height} in a record of {width}x{height}")
        values = np.asarray(image).astype(np.uint16)
    swapped = values.byteswap()
    return swapped if _roughness(swapped) <= _roughness(values) else values


def _roughness(values: np.ndarray) -> float:
    """Mean step between neighbours: values whose bytes are in the wrong order jump."""
    return float(sum(np.abs(np.diff(values.astype(np.float32), axis=axis)).mean() for axis in (0, 1)))


def constants(camera: bytes) -> dict[str, float]:
    """The numbers of a camera's record by the names of ``FIELDS``; empty if there are no Planck constants."""
    order = "<" if camera[:2] == b"\2\0" else ">"
    try:
        fields = {name: struct.unpack_from(f"{order}{kind}", camera, at)[0] for name, (at, kind) in FIELDS.items()}
    except struct.error:  # a shorter record
        return {}
    return fields if fields["R1"] > 0 and fields["B"] > 0 and fields["R2"] > 0 else {}


def temperatures(values: np.ndarray, camera: bytes) -> tuple[np.ndarray, str]:
    r"""Temperatures in degrees Celsius, float32, of raw values, and a note; the raw values if nothing calibrates them.

    .. math:: T = B / \ln(R_1 / (R_2 (s + O)) + F)

    where s is what the object itself sends. The sensor gets it through half of the air, a window, and the other half,
    each of which lets a share pass and sends its own part; the object reflects its surroundings by 1 - emissivity.
    Damaged shares count as 1.
    """
    fields = constants(camera)
    if not fields:
        return values.astype(np.float32), "raw thermal values: the file has no calibration"
    r1, b, f, o, r2 = (fields[name] for name in ("R1", "B", "F", "O", "R2"))

    def sent(kelvin: float) -> float:
        """Raw value of a black body of a temperature."""
        return r1 / (r2 * (math.exp(b / kelvin) - f)) - o if kelvin > 0 else 0.0

    def share(name: str) -> float:
        return fields[name] if 0.01 <= fields[name] <= 1 else 1.0

    air, window, emissivity = _air(fields), share("window"), share("emissivity")
    left = values.astype(np.float64)
    way = ((air, "atmosphere"), (window, "window_kelvin"), (air, "atmosphere"), (emissivity, "reflected"))
    for passed, kelvin in way:
        left = (left - (1 - passed) * sent(fields[kelvin])) / passed if passed < 1 else left
    ratio = r1 / (r2 * np.maximum(left + o, 1e-6)) + f
    degrees = b / np.log(np.maximum(ratio, 1 + 1e-9)) - KELVIN
    return degrees.astype(np.float32), f"temperatures in degrees Celsius, emissivity {emissivity:.2g}"


def _air(fields: dict[str, float]) -> float:
    """Share of radiation that passes half of the air between object and camera, by its water vapour."""
    celsius = fields["atmosphere"] - KELVIN
    humidity = fields["humidity"] / (100 if fields["humidity"] > 2 else 1)
    if not (fields["distance"] > 0 and 0 <= humidity <= 1 and -60 < celsius < 100 and fields["X"]):
        return 1.0
    water = math.sqrt(humidity * math.exp(1.5587 + 0.06939 * celsius - 2.7816e-4 * celsius**2 + 6.8455e-7 * celsius**3))
    length = math.sqrt(fields["distance"] / 2)
    one, two = (math.exp(-length * (fields[f"alpha{i}"] + fields[f"beta{i}"] * water)) for i in (1, 2))
    passed = fields["X"] * one + (1 - fields["X"]) * two
    return passed if 0.01 <= passed <= 1 else 1.0
