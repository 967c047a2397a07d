"""Registration that is proved or refused: the simplest motion under which two images of a scene agree."""

from dataclasses import replace

import cv2
import numpy as np

from datamodules.align import (
    LEAST_SCORE,
    Registration,
    clearness,
    correlation,
    drawn,
    laid,
    peak,
    rescale,
    resizing,
    small,
    structure,
)
from datamodules.parallax import disagreement, parallax
from datamodules.readers.pixels import convert
from datamodules.refine import MOTIONS, Scene, likeness, overlap, refine, seen, view
from datamodules.search import search
from dig2dig.errors import AlignmentError

LEAST_GAIN = 0.06  # of the correlation, that a motion must bring over a simpler one, where images have little in common
TOLERANCE = 0.012  # of the longer side: registrations of two halves, and of both directions, agree to this
NEAR = 0.06  # of the longer side: motions that differ by less are tried as one
SIDE = 768  # pixels of the longer sides of the images that are registered


def register(
    fixed: np.ndarray,
    moving: np.ndarray,
    how: str = "auto",
    least: float = LEAST_SCORE,
    valid: np.ndarray | None = None,
    gain: float = LEAST_GAIN,
    start: np.ndarray | None = None,
) -> Registration:
    """Brings an image, of any size and kind of light, onto another of the same scene, (h, w[, 3]) in [0, 1].

    ``auto`` searches scales from 0.3 to 3, turns to 10° and all places, and takes the simplest motion that explains
    the result: nothing, a shift, a similarity, a homography. ``ecc`` starts where a resize puts the source. ``phase``
    finds a shift. Each is proved: the agreement is at least ``least``, two halves of the picture that are registered
    alone agree, and so do both directions. An AlignmentError says what failed. ``valid`` (h, w) are pixels of the
    moving image that show something. A motion must raise the correlation by ``gain`` over a simpler one; less is
    enough for images of one kind. ``auto`` also tries a homography ``start``, from the fixed pixels to the moving.
    """
    a, b = (small(convert(image, "L"), SIDE) for image in (fixed, moving))
    known = None if valid is None else rescale(valid.astype(np.float32), (b.shape[0], b.shape[1])) > 0.99
    scene, down, up = Scene(a, b, known), resizing(fixed.shape, a.shape), resizing(b.shape, moving.shape)
    resized = resizing(scene.fixed.shape, scene.moving.shape)
    shifted = resized @ _translation(scene, resized)
    if how == "phase":
        matrix, motion = shifted, "shift"
    else:
        starts = search(scene.fixed, scene.moving, scene.valid, 5) if how == "auto" else []
        starts += [] if start is None or how != "auto" else [np.linalg.inv(up) @ start @ np.linalg.inv(down)]
        matrix, motion = simplest(scene, best(scene, [shifted, *starts]), resized, gain)
    score = agreement_at(scene, matrix)
    if score < least:
        raise AlignmentError(f"does not register: the two agree with a score of {score:.1f}, {least:g} is needed")
    prove(scene, matrix, "shift" if how == "phase" else "similarity")
    matrix = up @ matrix @ down
    matrix /= matrix[2, 2]
    image = laid(moving, matrix, motion, fixed.shape)
    found = Registration(image, matrix, score, moving.shape[:2], motion)
    far = disagreement(fixed, image, found.cover(valid))
    return replace(found, parallax=parallax(far))


def best(scene: Scene, starts: list[np.ndarray]) -> np.ndarray:
    """The similarity, near one of the starts, under which the two agree most."""
    found = []
    for start in starts:
        matrix = refine(scene, start, "similarity", 128, 2.5, 15)
        if _possible(scene, matrix):
            matrix = refine(scene, matrix, "similarity", 256, 1.5)
            found.append((agreement_at(scene, matrix, 256), matrix))
    if not found:
        raise AlignmentError("does not register: no motion that a camera makes brings it onto the reference")
    return max(found, key=lambda one: one[0])[1]


def simplest(scene: Scene, matrix: np.ndarray, resized: np.ndarray, gain: float) -> tuple[np.ndarray, str]:
    """The simplest motion that makes the two nearly as alike as the best one, starting at a similarity."""
    seen_part = overlap(np.linalg.inv(matrix), scene.moving.shape, scene.fixed.shape)
    side = int(np.clip(1.6 * np.ptp(seen_part, 0).max(), 192, 512))  # at most 1.6 pixels for one of the source's own
    matrix = refine(scene, matrix, "similarity", side)
    bent = refine(scene, refine(scene, matrix, "homography", 256, 1.5), "homography", side)
    tried = {"similarity": matrix, "homography": bent}
    middle = np.array([[np.subtract(scene.fixed.shape[::-1], 1) / 2]])
    moved = cv2.perspectiveTransform(middle, np.linalg.inv(resized) @ matrix) - middle
    shift = resized @ _shift(*moved[0, 0])  # where the middle of the reference moves
    if scene.error(resized, matrix) < NEAR:
        tried = {"nothing": resized} | tried
    if scene.error(shift, matrix) < NEAR:
        tried["shift"] = refine(scene, shift, "shift", side)
    onto = view(scene, matrix, side)
    alike = {motion: likeness(scene, tried[motion], onto) for motion in MOTIONS if motion in tried}
    most = max(alike.values())
    motion = next(motion for motion in alike if alike[motion] >= min(most, most * (1 - gain * (1 - most) ** 2)))
    return tried[motion], motion


def prove(scene: Scene, matrix: np.ndarray, motion: str = "similarity") -> None:
    """Raises an AlignmentError unless halves of the picture, and both directions, lead to the same registration.

    The halves are the two colours of a chess board of eight by eight fields, so that both reach all corners. Each
    starts at another place, two hundredths of the overlap away.
    """
    reach = 0.02 * np.ptp(overlap(matrix, scene.fixed.shape, scene.moving.shape), 0).max()
    away = _shift(reach, -0.5 * reach)
    starts = [matrix @ away, matrix @ np.linalg.inv(away)]
    halves = [alone(scene, start, motion, colour) for colour, start in enumerate(starts)]
    apart = scene.error(*halves)
    if apart > TOLERANCE:
        raise AlignmentError(
            f"does not register: two halves of it, each alone, differ by {100 * apart:.1f} % of the side"
        )
    shown = scene.moving if scene.valid is None else scene.moving * scene.valid
    back = alone(Scene(shown, scene.fixed), np.linalg.inv(starts[1]), motion)
    apart = scene.error(np.linalg.inv(back), matrix)
    if motion != "shift" and apart > TOLERANCE:
        raise AlignmentError(f"does not register: there and back differ by {100 * apart:.1f} % of the side")


def alone(scene: Scene, start: np.ndarray, motion: str, colour: int | None = None) -> np.ndarray:
    """The registration by one half of the picture, or by all of it."""
    part = None if colour is None else lambda x, y: (np.floor(4 * x + 4) + np.floor(4 * y + 4)) % 2 == colour
    return refine(scene, refine(scene, start, motion, 256, 2.5, 12, part), motion, 256, 1.0, 8, part)


def _shift(dx: float, dy: float) -> np.ndarray:
    return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]], float)


def agreement_at(scene: Scene, matrix: np.ndarray, side: int = 512) -> float:
    """How clearly the two agree under a motion, see :func:`datamodules.align.clearness`."""
    onto = view(scene, matrix, side)
    z, inside = seen(scene, matrix, onto)
    return clearness(onto.structure * inside, z * inside) if inside.mean() > 0.1 else 0.0


def _possible(scene: Scene, matrix: np.ndarray) -> bool:
    """Whether a camera may see the reference so: no mirror, no horizon, a scale that is searched."""
    height, width = scene.fixed.shape
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], float) @ matrix.T
    native = np.hypot(*scene.moving.shape) / np.hypot(*scene.fixed.shape)
    scale = np.sqrt(max(np.linalg.det(matrix[:2, :2]), 0)) / native
    return bool((corners[:, 2] > 0).all() and 0.25 < scale < 4)


def _translation(scene: Scene, resized: np.ndarray) -> np.ndarray:
    """The shift of a resized source, coarse and then fine."""
    found = np.eye(3)
    for side, part in ((256, 3), (1024, 32)):
        scale = min(1.0, side / max(scene.fixed.shape))
        size = tuple(max(8, round(length * scale)) for length in scene.fixed.shape)
        down = resizing(size, scene.fixed.shape)
        fixed = drawn(scene.fixed, down, size)
        moving = drawn(scene.moving, resized @ found @ down, size)
        near = correlation(structure(fixed), structure(moving), (max(2, size[0] // part), max(2, size[1] // part)))
        found = found @ _shift(*(np.array(peak(near)[:2]) / scale))
    return found
