"""Reading image files: pixels as they are stored, or one clear line that says what is wrong with which file."""

import hashlib
import io
import threading
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from datamodules.picture import Picture, check_pixels, one_line
from datamodules.ranges import full_scale
from dig2dig.errors import ImageError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
MAX_PIXELS = 2**28  # a larger header is taken for a decompression bomb
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PILLOW = threading.Lock()  # held while Pillow's own limit is lifted


def is_image(path: Path) -> bool:
    """Whether a name looks like an image's; hidden files do not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(root: str, exclude: list[str] | None = None) -> list[Path]:
    """All images under a folder, sorted, or those that a text file names, a path a line, relative to its folder.

    Paths with an excluded part are left out. No image at all, or a file that is lost, is a FileNotFoundError.
    """
    place = Path(root)
    if place.is_file():
        try:
            lines = filter(None, map(str.strip, place.read_text().splitlines()))
        except UnicodeDecodeError as error:
            raise FileNotFoundError(f"{place}: neither a folder of images nor a text file that lists them") from error
        found = [place.parent / line for line in lines if not line.startswith("#")]
        if lost := next((path for path in found if not path.is_file()), None):
            raise FileNotFoundError(f"{place}: names {lost}, which does not exist")
    elif place.is_dir():
        found = [path for path in sorted(place.rglob("*")) if is_image(path) and path.is_file()]
    else:
        raise FileNotFoundError(f"{place}: no such folder of images, or list of them")
    kept = [path for path in found if not set(path.parts) & set(exclude or [])]
    if not kept:
        raise FileNotFoundError(f"{place}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return kept


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as ``read_picture`` gives it, from the file's header."""
    with one_line(path), path.open("rb") as file:
        image = _open(file, path)
        if image is None:
            return read_picture(path).pixels.shape[:2]
        with image:
            return image.size if _orientation(image) >= 5 else (image.height, image.width)


def read_picture(path: Path) -> Picture:
    """The pixels of an image file, of 8 or 16 bits, 32-bit integers or floating point, upright.

    ImageError: the file is missing, damaged, no image, too small or too large, of other channels than grey or RGB with
    or without alpha, or holds numbers that are not finite.
    """
    with one_line(path):
        content = path.read_bytes()
        if not content:
            raise ImageError(f"{path}: empty file; copy it again")
        pixels, alpha, pages = _decode(content, path)
    pixels = check_pixels(pixels, path)
    notes = [f"first of {pages} pages"] if pages > 1 else []
    if alpha is not None and (alpha < 1).any():
        pixels = (pixels * (alpha if pixels.ndim == 2 else alpha[..., None])).astype(pixels.dtype)
        notes.append("alpha composed over black")
    return Picture(pixels, hashlib.blake2b(content, digest_size=16).hexdigest(), ", ".join(notes))


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


def _open(file: Any, path: Path) -> Image.Image | None:
    """An image of which only the header is read; None for a TIFF that Pillow does not open."""
    start = file.read(4)
    file.seek(0)
    try:
        with one_line(path), _PILLOW, patch.object(Image, "MAX_IMAGE_PIXELS", None):  # it only warns up to its double
            image = Image.open(file)
        if image.width * image.height > MAX_PIXELS:
            megapixels = image.width * image.height / 1e6
            raise ImageError(f"{path}: claims {megapixels:.0f} megapixels; at most {MAX_PIXELS / 1e6:.0f} are read")
        return image
    except ImageError as error:
        if start in TIFF_STARTS:
            return None
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise ImageError(f"{path}: not an image file, or of a kind that is not read") from error
        raise


def _decode(content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Upright pixels, alpha in [0, 1] where there is one, and the number of pages."""
    image = _open(io.BytesIO(content), path)
    if image is None:
        return _rare_tiff(content, path), None, 1
    with image:
        pages = getattr(image, "n_frames", 1)
        image.load()  # all of it: a truncated file is refused
        deep = image.mode in ("F", "I") or image.mode.startswith("I;16") or _bit_depth(image, content) > 8
        return *(_deep(image, content, path) if deep else _shallow(image)), pages


def _rare_tiff(content: bytes, path: Path) -> np.ndarray:
    """Pixels of kinds that Pillow does not know: colour or 64 bits in floating point, many channels."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        if page.size > 3 * MAX_PIXELS:
            raise ImageError(f"{path}: claims {page.size / 1e6:.0f} million values; at most {3 * MAX_PIXELS} are read")
        pixels = np.asarray(page.asarray())
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
        raise ImageError(f"{path}: {min(pixels.shape)} channels; grey and RGB are read, with or without alpha")
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return pixels.astype(np.float32) if pixels.dtype not in (np.uint8, np.uint16) else pixels


def _shallow(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """8-bit pixels, and alpha in [0, 1] where there is one."""
    image = ImageOps.exif_transpose(image)
    alpha = np.asarray(image.convert("RGBA").getchannel("A"), np.float32) / 255 if image.has_transparency_data else None
    if image.mode not in ("L", "LA", "1", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        raise ValueError(f"pixels of kind {image.mode}")
    return np.asarray(image.convert("L" if image.mode in ("L", "LA", "1") else "RGB")), alpha


def _deep(image: Image.Image, content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels of more than 8 bits, and alpha in [0, 1]: Pillow has them in grey only, OpenCV also in colour."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        pixels: Any = np.asarray(image)
        if pixels.dtype == ">u2" or (pixels.dtype == np.int32 and image.format == "PNG"):  # Pillow 10 gives 32 bits
            pixels = pixels.astype(np.uint16)
    else:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ImageError(f"{path}: of a kind that cannot be decoded; save it as PNG or plain TIFF")
        if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    orientation = _orientation(image)
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    if pixels.dtype not in (np.uint16, np.int32, np.float32, np.uint8):
        raise ImageError(f"{path}: pixels are {pixels.dtype}; 8 and 16 bits, 32-bit integers and floats are read")
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1].astype(np.float32) / full_scale(pixels)
        return (pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]), alpha
    return pixels, None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the tag is broken."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError):
        return 1
    return found if found in range(1, 9) else 1


def _bit_depth(image: Image.Image, content: bytes) -> int:
    """Bits of a channel as the file has them: Pillow opens 16-bit colour as if it had 8."""
    if image.format == "PNG":
        return content[24]  # in the IHDR chunk, which comes first
    return int(np.max(getattr(image, "tag_v2", {}).get(258, 8)))  # of a TIFF
