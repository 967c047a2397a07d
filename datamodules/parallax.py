"""Where a registered source does not lie on its reference: things at other depths than the homography's plane."""

import cv2
import numpy as np

from datamodules.align import correlation, peak, small, structure
from datamodules.readers.pixels import convert

SIDE, BLOCK, STEP, REACH = 512, 64, 32, 14  # of the working image, its blocks and their shifts, pixels
CLEAR = 6.5  # robust deviations by which a block's shift must stand out among all shifts
LEAST_SHARE = 0.15  # of the blocks that say something
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "middle", "right")


def disagreement(fixed: np.ndarray, moved: np.ndarray, cover: np.ndarray | None = None) -> np.ndarray:
    """How far a source lies from the reference at each place, in pixels, (h, w); NaN where the edges do not say it.

    Both images are (h, w[, c]) in [0, 1], of one size. ``cover`` are the pixels where both show something.
    """
    whole = fixed.shape[:2]
    a, b = (structure(small(convert(image, "L"), SIDE), 1.2) for image in (fixed, moved))
    inside = np.ones(a.shape, bool) if cover is None else cv2.resize(cover.astype(np.float32), a.shape[::-1]) > 0.99
    taper = cv2.createHanningWindow((BLOCK, BLOCK), cv2.CV_32F)
    tops, lefts = (range(0, max(1, side - BLOCK + 1), STEP) for side in a.shape)
    far = np.full((len(tops), len(lefts)), np.nan, np.float32)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            part = np.s_[top : top + BLOCK, left : left + BLOCK]
            if a[part].shape == taper.shape and inside[part].mean() > 0.9:
                dx, dy, clear, here = peak(correlation(a[part] * taper, b[part] * taper, (REACH, REACH)))
                away = np.hypot(dx, dy)
                if clear > CLEAR and (away < 4 or here < 0.5 * clear):  # else two places are as likely
                    far[i, j] = away * max(whole) / max(a.shape)
    return cv2.resize(far, whole[::-1], interpolation=cv2.INTER_NEAREST)


def parallax(far: np.ndarray) -> str:
    """Where, and in which share of the picture, a source does not lie on the reference; empty if it does."""
    limit = max(3, round(0.01 * max(far.shape)))
    known, off = np.isfinite(far), np.nan_to_num(far) > limit
    if not known.any() or off.sum() < LEAST_SHARE * known.sum():
        return ""
    places = []
    for row, band in zip(ROWS, np.array_split(np.arange(far.shape[0]), 3), strict=True):
        for column, cut in zip(COLUMNS, np.array_split(np.arange(far.shape[1]), 3), strict=True):
            cell = np.ix_(band, cut)
            if known[cell].mean() > 0.1 and off[cell].sum() > 0.5 * known[cell].sum():
                places.append("middle" if row == column else f"{row} {column}")
    where = f"the {', the '.join(places)}" if 0 < len(places) < 5 else "a part of it"
    verb = "do" if len(places) in (2, 3, 4) else "does"
    share = 100 * off.sum() / known.sum()
    return f"parallax: {where} {verb} not lie within {limit} px ({share:.0f} % of what shows edges)"
