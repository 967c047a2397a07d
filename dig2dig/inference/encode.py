"""A fused image as the bytes of a picture file."""

import cv2
import numpy as np
from torch import Tensor

from dig2dig.color import to_pixels

DEEP = (".png", ".tif", ".tiff")  # formats that hold 16 bits; the others get 8
PICTURES = (*DEEP, ".jpg", ".jpeg", ".webp", ".bmp")  # formats of results; of any other source it becomes a PNG
QUALITY = 95  # of JPEG, without subsampled colour, and WebP, 1 to 100


def suffix_of(format: str, source: str) -> str:
    """The suffix of a result: that of ``save.format``, or of the reference's file where that is a picture format."""
    if format != "reference":
        return f".{format}"
    return source if source in PICTURES else ".png"


def encode(image: Tensor, suffix: str, depth: int = 8) -> bytes:
    """An image (1 or 3, h, w) in [0, 1], rounded to 8 or 16 bits, as one of ``PICTURES``; formats that hold 8 get 8.

    ValueError where the format has no room for a picture of this size.
    """
    pixels = to_pixels(image, depth if suffix in DEEP else 8)
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    settings = {".jpg": jpeg, ".webp": [cv2.IMWRITE_WEBP_QUALITY, QUALITY]}
    name = ".jpg" if suffix == ".jpeg" else suffix
    try:
        done, content = cv2.imencode(name, pixels[..., ::-1], settings.get(name, []))
    except cv2.error:  # WebP and JPEG have largest sizes
        done, content = False, np.empty(0)
    if not done:
        raise ValueError(f"a picture of {pixels.shape[1]}x{pixels.shape[0]} cannot be stored as {suffix}")
    return content.tobytes()
