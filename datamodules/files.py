"""Reading image files: pixels or one clear line that says what is wrong with which file."""

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def is_image(path: Path) -> bool:
    """Whether a name looks like an image's; hidden files do not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


class ImageError(ValueError):
    """A file that cannot be used, told in one line."""


def list_images(root: str, exclude: list[str] | None = None) -> list[Path]:
    """All image files under a folder in sorted order, or those that a text file names, one path on each line.

    Relative paths in a text file start at its folder. Paths with an excluded part are left out.

    Raises:
        FileNotFoundError: There is no such folder or file, it names no image, or one that does not exist.
    """
    place = Path(root)
    if place.is_file():
        try:
            lines = filter(None, map(str.strip, place.read_text().splitlines()))
        except UnicodeDecodeError as error:
            raise FileNotFoundError(f"{place}: neither a folder of images nor a text file that lists them") from error
        found = [place.parent / line for line in lines if not line.startswith("#")]
        lost = next((path for path in found if not path.is_file()), None)
        if lost:
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
    """(height, width) as ``read_image`` gives it, from the file's header."""
    with _open(path) as image:
        lying = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if lying else (image.height, image.width)


def read_image(path: Path, mode: Literal["auto", "L", "RGB"] = "auto") -> np.ndarray:
    """8-bit pixels of a file, upright, shape (h, w) if grey and (h, w, 3) if in colour.

    Args:
        path: The file.
        mode: ``L`` or ``RGB`` to convert; ``auto`` keeps colour and gives images that are stored in colour
            with three equal channels as grey.

    Raises:
        ImageError: The file is missing, not an image, truncated, or not 8 bits deep.
    """
    with _open(path) as image:
        if image.mode not in ("L", "RGB", "P", "RGBA", "LA", "1", "CMYK", "YCbCr") or _bit_depth(image, path) > 8:
            raise ImageError(f"{path}: more than 8 bits a channel; only 8-bit grey and colour images are read")
        grey = image.mode in ("L", "LA", "1")
        try:
            upright = ImageOps.exif_transpose(image)
            pixels = np.asarray(upright.convert(("L" if grey else "RGB") if mode == "auto" else mode))
        except (OSError, SyntaxError, ValueError) as error:
            raise ImageError(f"{path}: damaged image ({error}); copy it again") from error
    if mode == "auto" and pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels


Range16 = Literal["percentile", "full"]


def read_deep(path: Path, mode: Literal["L", "RGB"] = "RGB", scale: Range16 = "percentile") -> np.ndarray:
    """Pixels of an 8- or 16-bit file: uint8 as ``read_image`` gives them, or float32 in [0, 1].

    Args:
        path: The file.
        mode: Grey or colour.
        scale: 16-bit files: ``percentile`` stretches what lies between the 0.1 and 99.9 percentiles, so that
            thermal frames, which use a small part of their range, are images; ``full`` divides by 65535.

    Raises:
        ImageError: The file is missing, not an image, truncated, or neither 8 nor 16 bits deep.
    """
    with _open(path) as image:
        depth = 16 if image.mode.startswith("I") else _bit_depth(image, path)
    if depth <= 8:
        return read_image(path, mode)
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise ImageError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    if pixels is None or pixels.dtype != np.uint16:
        kind = "damaged image" if pixels is None else f"pixels are {pixels.dtype}, only 8 and 16 bits are read"
        raise ImageError(f"{path}: {kind}")
    pixels = np.atleast_3d(pixels)[..., :3].astype(np.float32)
    pixels = pixels[..., ::-1] if pixels.shape[2] == 3 else pixels[..., :1]
    low, high = (0.0, 65535.0) if scale == "full" else map(float, np.percentile(pixels, (0.1, 99.9)))
    pixels = ((pixels - low) / max(high - low, 1.0)).clip(0, 1).astype(np.float32)
    if mode == "L":
        return pixels[..., 0] if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _bit_depth(image: Image.Image, path: Path) -> int:
    """Bits of a channel as the file has them: Pillow opens 16-bit colour as if it had 8."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[-1]  # in the IHDR chunk, which comes first
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, 8)
        return max(bits) if isinstance(bits, tuple) else bits
    return 8


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image file") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}") from error
