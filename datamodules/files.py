"""Reading image files: pixels or one clear line that says what is wrong with which file."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def is_image(path: Path) -> bool:
    """Whether a name looks like an image's; hidden files do not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


class ImageError(ValueError):
    """A file that cannot be used, told in one line."""


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
