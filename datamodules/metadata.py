"""What a picture file says beside its pixels, and what a result keeps of it."""

import re
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image


@dataclass(frozen=True)
class Metadata:
    """What belongs to a picture; empty where its file has none."""

    icc: bytes = b""  # colour profile
    exif: bytes = b""  # EXIF with GPS, without a thumbnail, upright; as TIFF, without the prefix of JPEG
    xmp: bytes = b""  # XMP packet
    dpi: tuple[float, float] | None = None  # dots per inch, across and down
    geo: tuple[tuple[int, int, int, Any], ...] = ()  # GeoTIFF tags, the place on Earth: code, type, count and value
    medical: str = ""  # file whose patient and geometry a DICOM or NIfTI result takes over
    frame: int | None = None  # slice of that file

    @property
    def grid(self) -> str:
        """The place on Earth without its citations, which each program words in its own way."""
        tags = {code: value for code, _, _, value in self.geo if code != CITATIONS}
        if isinstance(keys := tags.get(34735), tuple):  # four numbers a key, the second is the tag that has its value
            tags[34735] = [keys[i : i + 4] for i in range(4, len(keys), 4) if keys[i + 1 : i + 2] != (CITATIONS,)]
        return repr(tags)


KEPT = (270, 271, 272, 305, 306, 315, 33432)  # description, maker, model, software, date, artist, copyright
CITATIONS = 34737  # tag with the names of a GeoTIFF's reference system
UNFIT = (0x927C, 0xA002, 0xA003, 0xA005)  # notes whose offsets break, and the size and index of another file


def metadata_of(image: Image.Image) -> Metadata:
    """What an opened image says beside its pixels; a broken part is left out."""
    info = image.info
    xmp, dpi = info.get("xmp") or b"", info.get("dpi")
    try:
        exif = clean_exif(image.getexif())
    except Exception:  # a broken header raises what it likes
        exif = b""
    sound = isinstance(dpi, tuple) and len(dpi) == 2 and all(1 < float(one) < 1e5 for one in dpi)
    return Metadata(
        icc=info.get("icc_profile") or b"",
        exif=exif,
        xmp=upright_xmp(xmp.encode() if isinstance(xmp, str) else bytes(xmp)),
        dpi=(float(dpi[0]), float(dpi[1])) if sound and dpi else None,
    )


def upright_xmp(xmp: bytes) -> bytes:
    """An XMP packet that says of its picture that it is upright."""
    return re.sub(rb"""(tiff:Orientation\s*(?:=\s*["']|>)\s*)[2-8]""", rb"\g<1>1", xmp)


def exif_of(content: bytes) -> bytes:
    """The EXIF of a TIFF file, as :class:`Metadata` has it; EXIF itself is a TIFF without pixels."""
    try:
        found = Image.Exif()
        found.load(content)
    except Exception:  # whatever a broken header raises: the pixels are read by another library
        return b""
    return clean_exif(found)


def clean_exif(found: Image.Exif) -> bytes:
    """EXIF and GPS without orientation, thumbnail and what only describes the file; empty where there is none."""
    try:
        clean = Image.Exif()
        for tag in KEPT:
            if tag in found and not str(found[tag]).startswith(("{", "ImageJ")):  # not of the arrays in other software
                clean[tag] = raw_text(found[tag])
        for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            tags = {tag: value for tag, value in found.get_ifd(part).items() if tag not in UNFIT}
            if tags:
                clean.get_ifd(part).update(tags)
                clean[part] = 0
        return clean.tobytes() if len(clean) else b""
    except Exception:  # a broken tag can raise anything
        return b""


def raw_text(value: Any) -> Any:
    """The bytes of a text: Pillow reads them as Latin-1, whatever they are, and would write what is not ASCII as ?."""
    if not isinstance(value, str):
        return value
    return value.encode("latin-1" if max(map(ord, value), default=0) < 256 else "utf-8")


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the tag is broken."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken header raises what it likes
        return 1
    return found if found in range(1, 9) else 1
