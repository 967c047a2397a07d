"""Where a registered source does not lie on its reference, at other depths than a plane; exposures are bent there."""

from dataclasses import replace

import cv2
import numpy as np

from datamodules.align import Registration, correlation, drawn, peak, small, structure
from datamodules.ranges import Valid
from datamodules.readers.pixels import convert

SIDE, BLOCK, STEP, REACH = 512, 64, 32, 14  # of the working image, its blocks and their shifts, pixels
CLEAR = 6.5  # robust deviations by which a block's shift must stand out among all shifts
LEAST_SHARE = 0.15  # of the blocks that say something
LEAST_EDGES = 0.03  # mean size of a block's structure; what is blown out has less, what shows anything 0.05
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "middle", "right")


def block_shifts(fixed: np.ndarray, moved: np.ndarray, *covers: Valid) -> tuple[np.ndarray, np.ndarray]:
    """How far a source lies right and down of the reference in each block, pixels (n, m, 2), and how clearly, (n, m).

    Both images are (h, w[, c]) in [0, 1], of one size, and show something at the pixels of all ``covers``. A block
    whose edges do not say it has zeros.
    """
    a, b = (structure(small(convert(image, "L"), SIDE), 1.2) for image in (fixed, moved))
    known = [cv2.resize(cover.astype(np.float32), a.shape[::-1]) > 0.99 for cover in covers if cover is not None]
    inside = np.logical_and.reduce([np.ones(a.shape, bool), *known])
    taper = cv2.createHanningWindow((BLOCK, BLOCK), cv2.CV_32F)
    tops, lefts = (range(0, max(1, side - BLOCK + 1), STEP) for side in a.shape)
    shifts, clear = np.zeros((len(tops), len(lefts), 2), np.float32), np.zeros((len(tops), len(lefts)), np.float32)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            part = np.s_[top : top + BLOCK, left : left + BLOCK]
            edges = min(np.abs(one[part]).mean() for one in (a, b))
            if a[part].shape == taper.shape and inside[part].mean() > 0.9 and edges > LEAST_EDGES:
                dx, dy, found, here = peak(correlation(a[part] * taper, b[part] * taper, (REACH, REACH)))
                if found > CLEAR and (np.hypot(dx, dy) < 4 or here < 0.5 * found):  # else two places are as likely
                    shifts[i, j], clear[i, j] = (dx, dy), found
    return shifts * max(fixed.shape) / max(a.shape), clear


def disagreement(fixed: np.ndarray, moved: np.ndarray, *covers: Valid) -> np.ndarray:
    """How far a source lies from the reference at each place, in pixels, (h, w); NaN where the edges do not say it.

    See :func:`block_shifts`.
    """
    shifts, clear = block_shifts(fixed, moved, *covers)
    far = np.where(clear > 0, np.linalg.norm(shifts, axis=-1), np.nan).astype(np.float32)
    return cv2.resize(far, fixed.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def settled(fixed: np.ndarray, moving: np.ndarray, found: Registration, valid: Valid, seen: Valid) -> Registration:
    """A registration bent so that things at other depths than the homography's plane lie on the reference too.

    Shifts of blocks are smoothed over their neighbours; a block that differs from them has little say. ``valid`` are
    pixels of the moving image, ``seen`` of the fixed one. It stays as it is where few blocks lie a pixel in 512 away.
    """
    limit = max(fixed.shape) / SIDE
    for _ in range(2):
        shifts, clear = block_shifts(fixed, found.image, found.cover(valid), seen)
        if (np.linalg.norm(shifts, axis=-1) > limit).sum() <= LEAST_SHARE * (clear > 0).sum():
            break
        smooth, say = shifts, clear
        for _ in range(6):
            total = cv2.GaussianBlur(say, (0, 0), 1.0) + 1e-6
            smooth = cv2.GaussianBlur(shifts * say[..., None], (0, 0), 1.0) / total[..., None]
            say = clear / (1 + (np.linalg.norm(shifts - smooth, axis=-1) / limit) ** 2)
        bend = _spread(smooth, fixed.shape) + (0 if found.bend is None else found.bend)
        found = replace(found, image=drawn(moving, found.matrix, fixed.shape, bend), bend=bend)
    if found.bend is None:
        return found
    return replace(found, parallax=parallax(disagreement(fixed, found.image, found.cover(valid), seen)))


def _spread(shifts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Shifts of blocks on a grid over the whole picture, (n, m, 2)."""
    scale = min(1, SIDE / max(shape))
    x, y = ((np.arange(4, scale * side, 8, dtype=np.float32) - BLOCK / 2) / STEP for side in shape[1::-1])
    return cv2.remap(shifts, *np.meshgrid(x, y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


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
