"""Which pixels of a source show the scene: no data, and borders that a registration left."""

import cv2
import numpy as np

from datamodules.ranges import Valid, shown
from dig2dig.errors import ImageError

NEAR = 12 / 255  # how far a border's pixels differ, as JPEG stores them
STEP = 12 / 255  # least contrast between a border and the picture


def without_data(pixels: np.ndarray, valid: Valid = None, empty: float | None = None) -> tuple[Valid, str]:
    """Which pixels show the scene, and a note: ``empty`` is a value that stands for no data.

    In grey images of more than 8 bits, the least value is no data as well if it stands on at least 0.05 % of the pixels
    and further from all others than they from each other: lines of zeros, frames of a warp. So is one beyond 1e30.
    """
    holds = np.zeros(pixels.shape[:2], bool)
    if empty is not None:
        here = np.isnan(pixels) if np.isnan(empty) else pixels == empty
        holds |= here.all(-1) if here.ndim == 3 else here
    elif pixels.ndim == 2 and pixels.dtype != np.uint8 and (found := shown(pixels, valid)).size:
        holds |= (pixels == found.min()) if _stands_apart(found) else False
        holds |= (np.abs(pixels) > 1e30) if pixels.dtype.kind == "f" else False
    if not holds.any():
        return valid, ""
    told = f"{100 * holds.mean():.1f} % of the pixels hold {pixels[holds].flat[0]:g}, taken for no data"
    return (~holds if valid is None else valid & ~holds), told


def check_finite(pixels: np.ndarray, valid: Valid, file: str, remedy: str = "mend the file") -> None:
    """Raises an ImageError where a valid pixel is no number."""
    if pixels.dtype.kind == "f" and not (finite := np.isfinite(shown(pixels, valid))).all():
        raise ImageError(f"{file}: {int((~finite).sum())} pixels are NaN or infinite; {remedy}")


def _stands_apart(values: np.ndarray) -> bool:
    """Whether the least value is frequent, and far below all others."""
    rest = values[values != values.min()]
    if not 5e-4 <= 1 - rest.size / values.size <= 0.9:
        return False
    low, high = np.percentile(rest, (0.1, 99.9))
    return bool(low - values.min() > high - low > 0)


def left_border(image: np.ndarray) -> Valid:
    """Pixels inside of the black or white wedges that a warp leaves at the sides of an image, or None without any.

    The image (h, w[, c]) is in [0, 1]. A wedge is nearly uniform, its inner edge is straight and covers half of a side,
    and the picture goes on behind it with contrast. A clipped sky over roofs is no wedge.
    """
    grey = image if image.ndim == 2 else image.mean(-1)
    border = np.zeros(grey.shape, bool)
    for turns in range(4):
        side, mask = np.rot90(grey, turns), np.rot90(border, turns)  # views: what is marked here is marked there
        if (depth := _wedge(side)) is not None:
            mask |= np.arange(len(side))[:, None] < depth[None]
    return ~cv2.dilate(border.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) if border.any() else None


def _wedge(side: np.ndarray) -> np.ndarray | None:
    """How deep a wedge at the top of an image reaches in each column; None if there is none."""
    height, width = side.shape
    value = float(np.median(side[0]))
    if 8 / 255 < value < 247 / 255:
        return None
    other = np.abs(side - value) > NEAR
    depth = np.where(other.any(0), other.argmax(0), height)
    inside = (depth >= 2) & (depth < height)  # a whole column belongs to the border at another side
    if inside.sum() < width / 2:
        return None
    x = np.flatnonzero(inside)
    slope, start = np.polyfit(x, depth[x], 1)
    edge = slope * np.arange(width) + start
    straight = np.abs(depth - edge)[x] <= 2
    behind = side[np.minimum(depth[x] + 2, height - 1), x]
    if straight.mean() < 0.9 or depth[x].max() > 0.45 * height or np.median(np.abs(behind - value)) < STEP:
        return None
    return np.where(inside, np.ceil(np.maximum(depth, edge)), np.where(depth == height, height, 0))
