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
    """Pixels inside of the black or white border that a warp leaves around an image, or None without one.

    The image (h, w[, c]) is in [0, 1]. The border is nearly uniform. What it leaves is a warped rectangle: a polygon of
    at most eight corners, whose sides are turned by less than 14° and have contrast all along. So skies over roofs,
    dark corners, and backgrounds of scans are no borders.
    """
    grey = np.ascontiguousarray(image if image.ndim == 2 else image.mean(-1))
    rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    for extreme in (0, 1):
        at_end = rim[np.abs(rim - extreme) <= 8 / 255]
        if len(at_end) > 0.05 * len(rim) and (inside := _framed(grey, float(np.median(at_end)))) is not None:
            return inside
    return None


def _framed(grey: np.ndarray, value: float) -> Valid:
    """The polygon that a border of one value leaves; None if it leaves none."""
    height, width = grey.shape
    outside = np.pad((np.abs(grey - value) <= NEAR).astype(np.uint8), 1, constant_values=1)
    cv2.floodFill(outside, None, (0, 0), 2)  # what hangs together with the rim
    shown = cv2.morphologyEx((outside[1:-1, 1:-1] != 2).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    rim = shown - cv2.erode(shown, np.ones((3, 3), np.uint8), borderValue=0)  # it has the whole one's hull
    if shown.all() or (points := cv2.findNonZero(rim)) is None:
        return None
    corners = cv2.approxPolyDP(cv2.convexHull(points), 1 + 0.004 * max(height, width), True)[:, 0].astype(float)
    lengths = [_side(grey, value, start, end) for start, end in zip(corners, np.roll(corners, -1, 0), strict=True)]
    if len(corners) > 8 or min(lengths) < 0 or sum(lengths) < 0.5 * min(height, width):
        return None
    inside = cv2.fillConvexPoly(np.zeros_like(shown), corners.astype(np.int32), 1)
    return cv2.erode(inside, np.ones((3, 3), np.uint8), borderValue=1) > 0 if inside.mean() > 0.4 else None


def _side(grey: np.ndarray, value: float, start: np.ndarray, end: np.ndarray) -> int:
    """Pixels of a side of a polygon off the rim, 0 if they are too few to tell; -1 if a border does not end there."""
    size = np.array(grey.shape[::-1])
    line = start + (end - start) * np.linspace(0, 1, int(np.linalg.norm(end - start)) + 1)[:, None]
    line = line[((line > 1) & (line < size - 2)).all(1)]
    if len(line) <= 8:
        return 0
    less, more = np.sort(np.abs(end - start))
    middle = size / 2 - line
    x, y = (line + 4 * middle / np.linalg.norm(middle, axis=1, keepdims=True).clip(4)).round().astype(int).T
    return len(line) if less < 0.25 * more and (np.abs(grey[y, x] - value) >= STEP).mean() > 0.9 else -1
