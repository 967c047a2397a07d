"""Reading image files: pixels or one clear line that says what is wrong with which file."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


class ImageError(ValueError):
    """A file that cannot be used, told in one line."""


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the file's header."""
    with _open(path) as image:
        return image.height, image.width


def read_image(path: Path, mode: Literal["auto", "L", "RGB"] = "auto") -> np.ndarray:
    """8-bit pixels of a file, shape (h, w) if grey and (h, w, 3) if in colour.

    Args:
        path: The file.
        mode: ``L`` or ``RGB`` to convert; ``auto`` keeps colour and gives images that are stored in colour
            with three equal channels as grey.

    Raises:
        ImageError: The file is missing, not an image, truncated, or not 8 bits deep.
    """
    with _open(path) as image:
        if image.mode not in ("L", "RGB", "P", "RGBA", "LA", "1", "CMYK", "YCbCr"):
            raise ImageError(f"{path}: {image.mode} pixels; only 8-bit grey and colour images are read")
        grey = image.mode in ("L", "LA", "1")
        try:
            pixels = np.asarray(image.convert(("L" if grey else "RGB") if mode == "auto" else mode))
        except (OSError, SyntaxError, ValueError) as error:
            raise ImageError(f"{path}: damaged image ({error}); copy it again") from error
    if mode == "auto" and pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image file") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}") from error
