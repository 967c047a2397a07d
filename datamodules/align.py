"""Sources of one scene in one frame: resizing, registration, and doubts whether they lie on each other."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from dig2dig.errors import AlignmentError

LEAST_SCORE = 12.0
"""Registrations that score less are refused: of unrelated images nine in ten do, of infrared and visible ones none."""

_SIDES = (96, 192, 384, 768)  # images are registered from coarse to fine, longer sides in pixels
_MOTIONS = (
    (cv2.MOTION_EUCLIDEAN, _SIDES[:3]),
    (cv2.MOTION_AFFINE, _SIDES[1:3]),
    (cv2.MOTION_HOMOGRAPHY, _SIDES[1:]),
)
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-5)


Structure = NDArray[np.complex64]


@dataclass(frozen=True)
class Registration:
    """A source in the reference's frame.

    Attributes:
        image: The source, resampled; shape (h, w[, c]) of the reference.
        matrix: Homography (3, 3) from the reference's pixels to the source's, both counted from the top left.
        score: How clearly the two agree there, see :func:`agreement`.
    """

    image: np.ndarray
    matrix: np.ndarray
    score: float

    def __str__(self) -> str:
        (a, b, dx), (c, d, dy), _ = self.matrix
        words = [f"moved by {_pixels(-dx)}, {_pixels(-dy)} px"]
        turn, scale = np.degrees(np.arctan2(c, a)), 1 / np.sqrt(max(a * d - b * c, 1e-12))
        if abs(turn) >= 0.05:
            words.append(f"turned by {-turn:.1f}°")
        if abs(scale - 1) >= 0.0005:
            words.append(f"scaled to {100 * scale:.1f} %")
        if not np.allclose(self.matrix[2, :2], 0, atol=1e-9):
            words.append("with perspective")
        return f"{', '.join(words)} (agreement {self.score:.0f}, at least {LEAST_SCORE:g} is needed)"


def _pixels(length: float) -> str:
    return f"{round(length, 1) + 0.0:g}"  # no minus before a zero


@dataclass(frozen=True)
class Shift:
    """How far a source seems to lie beside the reference.

    Attributes:
        dx: To the right, pixels.
        dy: Down, pixels.
        suspicious: Whether it is clear enough to tell the user.
    """

    dx: float
    dy: float
    suspicious: bool


def rescale(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (h, w[, c]) in [0, 1] at another (height, width): means of areas when smaller, cubic when larger."""
    smaller = size[0] < image.shape[0]
    scaled = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return scaled.clip(0, 1)


def structure(image: np.ndarray, blur: float = 1.5, window: int = 31) -> Structure:
    r"""Orientation of edges, the same whether they go from dark to bright or back, and as strong in any light.

    .. math:: z = \frac{(g_x + i g_y)^2}{|g| \sqrt{\langle |g|^2 \rangle}}

    with the gradient g and a local mean. Modalities that see one scene share it, though their grey values differ.

    Args:
        image: Grey, (h, w) in [0, 1].
        blur: Standard deviation of the Gaussian before the gradient, pixels.
        window: Side of the local mean, pixels.

    Returns:
        complex64, (h, w), at most 1.5 in size; zero at the image's border.
    """
    smooth = cv2.GaussianBlur(image, (0, 0), blur)
    g = cv2.Scharr(smooth, cv2.CV_32F, 1, 0, scale=1 / 32) + 1j * cv2.Scharr(smooth, cv2.CV_32F, 0, 1, scale=1 / 32)
    energy = np.abs(g) ** 2
    local = cv2.blur(energy, (window, window)) + 1.6e-5  # flat regions stay flat
    z = g**2 / np.sqrt((energy + 1e-12) * local)
    z /= np.maximum(1, np.abs(z) / 1.5)
    inner = np.zeros(image.shape, np.complex64)
    inner[3:-3, 3:-3] = z[3:-3, 3:-3]
    return inner


def correlation(fixed: Structure, moving: Structure) -> np.ndarray:
    """Correlation of two structures at every shift, half whitened; no shift stands in the middle, (2h', 2w')."""
    size = [scipy.fft.next_fast_len(2 * side) for side in fixed.shape]
    cross = np.conj(scipy.fft.fft2(fixed, size)) * scipy.fft.fft2(moving, size)  # pyright: ignore
    return np.fft.fftshift(scipy.fft.ifft2(cross / np.sqrt(np.maximum(np.abs(cross), 1e-9))).real)  # pyright: ignore


def peak(surface: np.ndarray, reach: tuple[int, int]) -> tuple[float, float, float, float]:
    """Where a correlation is largest within reach of the middle: dx, dy, and scores there and in the middle.

    A score is the distance from the median in robust standard deviations, over the shifts within reach.
    """
    (cy, cx), (ry, rx) = (side // 2 for side in surface.shape), reach
    near = surface[cy - ry : cy + ry + 1, cx - rx : cx + rx + 1]
    median = np.median(near)
    near = (near - median) / (1.4826 * np.median(np.abs(near - median)) + 1e-12)
    i, j = np.unravel_index(near.argmax(), near.shape)
    return j - rx + _vertex(near[i], j), i - ry + _vertex(near[:, j], i), float(near[i, j]), float(near[ry, rx])


def _vertex(values: np.ndarray, i: np.intp) -> float:
    """Where between the neighbours of a maximum the parabola through them peaks."""
    if not 0 < i < len(values) - 1:
        return 0.0
    before, here, after = map(float, values[i - 1 : i + 2])
    bend = before - 2 * here + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0


def misregistration(fixed: np.ndarray, moving: np.ndarray) -> Shift:
    """Whether two images of one size seem shifted, and how far.

    Suspicious where some other shift explains the shared structure twice as well as none, and stands out itself.
    """
    a, b = (_small(grey(image), 512) for image in (fixed, moving))
    scale = fixed.shape[1] / a.shape[1]
    reach = max(8, min(a.shape) // 8)
    reach = min(reach, min(a.shape) // 2 - 1)
    dx, dy, found, now = peak(correlation(structure(a), structure(b)), (reach, reach))
    clear = found > 6 and now < 0.5 * found and found - now > 4
    return Shift(dx * scale, dy * scale, bool(clear and np.hypot(dx, dy) > 2))


def agreement(fixed: np.ndarray, moving: np.ndarray) -> float:
    """How far the correlation of two images' structures stands out from that at other shifts, standard deviations.

    Exposures and focal planes of one scene score 40 to 100, infrared and visible 14 to 35, CT and MRI 16 to 21;
    unrelated images after a registration 3 to 13.
    """
    a, b = (structure(_small(grey(image), 512)) for image in (fixed, moving))
    surface = correlation(a, b)
    (cy, cx), (ry, rx) = (side // 2 for side in surface.shape), (side // 4 for side in a.shape)
    near = surface[cy - ry : cy + ry + 1, cx - rx : cx + rx + 1]
    return float((near[ry - 1 : ry + 2, rx - 1 : rx + 2].max() - near.mean()) / (near.std() + 1e-12))


def register(
    fixed: np.ndarray, moving: np.ndarray, how: Literal["ecc", "phase"], least: float = LEAST_SCORE
) -> Registration:
    """Brings an image onto another of the same scene.

    Args:
        fixed: The reference, (h, w[, 3]) in [0, 1].
        moving: The other one, of any size and kind of light.
        how: ``phase`` finds the shift, by the phase of the correlation of structures; ``ecc`` also rotation, scale
            and perspective, by enhanced correlation coefficients, from coarse to fine.
        least: Score that is needed.

    Raises:
        AlignmentError: The score is lower, or the homography is none that a camera makes.

    References:
        Evangelidis and Psarakis, "Parametric image alignment using enhanced correlation coefficient maximization",
        TPAMI 2008. Kuglin and Hines, "The phase correlation image alignment method", 1975.
    """
    height, width = fixed.shape[:2]
    a, b = grey(fixed), rescale(grey(moving), (height, width))
    matrix = _translation(a, b)
    if how == "ecc":
        for motion, sides in _MOTIONS:
            matrix = _refined(a, b, matrix, motion, sides)
    stretch = np.diag([moving.shape[1] / width, moving.shape[0] / height, 1.0])
    whole = stretch @ matrix
    _check(matrix, height, width)
    image = _warp(moving, whole, (height, width)).clip(0, 1)
    covered = _warp(np.ones(moving.shape[:2], np.float32), whole, (height, width), cv2.BORDER_CONSTANT)
    score = agreement(a * (covered > 0.99), grey(image) * (covered > 0.99))
    if score < least:
        raise AlignmentError(f"does not register: the two agree with a score of {score:.1f}, {least:g} is needed")
    return Registration(image, whole / whole[2, 2], score)


def _check(matrix: np.ndarray, height: int, width: int) -> None:
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]], float)
    moved = corners @ matrix.T
    far = np.abs(moved[:, :2] / moved[:, 2:] - corners[:, :2]).max() if (moved[:, 2] > 0).all() else np.inf
    if not far < 0.4 * max(height, width):
        raise AlignmentError("does not register: no homography that a camera makes brings it onto the reference")


def _translation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The shift between two images of one size, coarse and then fine."""
    matrix = np.eye(3)
    for side, part in ((256, 3), (1024, 32)):
        fixed, moving = _small(a, side), _small(_warp(b, matrix, (a.shape[0], a.shape[1])), side)
        reach = tuple(max(2, length // part) for length in fixed.shape)
        dx, dy, _, _ = peak(correlation(structure(fixed), structure(moving)), (reach[0], reach[1]))
        matrix[:2, 2] += np.array([dx, dy]) * a.shape[1] / fixed.shape[1]
    return matrix


def _refined(a: np.ndarray, b: np.ndarray, matrix: np.ndarray, motion: int, sides: tuple[int, ...]) -> np.ndarray:
    """A better matrix of a kind of motion; the one that was there where none is found."""
    found = matrix
    for side in sides:
        fixed, moving = (_features(_small(image, side)) for image in (a, b))
        scale = np.diag([fixed.shape[1] / a.shape[1], fixed.shape[0] / a.shape[0], 1.0])
        start = (scale @ found @ np.linalg.inv(scale)).astype(np.float32)
        rows = 3 if motion == cv2.MOTION_HOMOGRAPHY else 2
        try:
            _, step = cv2.findTransformECC(fixed, moving, start[:rows].copy(), motion, _CRITERIA, None, 3)  # pyright: ignore
        except cv2.error:  # it does not converge
            return matrix
        step = np.vstack([step, [0, 0, 1]][: 4 - rows])
        found = np.linalg.inv(scale) @ step @ scale
    return found


def _features(image: np.ndarray) -> np.ndarray:
    """Structure as three channels, for ECC."""
    z = structure(image, 1.0)
    return np.dstack([z.real, z.imag, np.abs(z)])


def _warp(
    image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: int = cv2.BORDER_REPLICATE
) -> np.ndarray:
    """An image seen through a homography from the result's pixels to its own."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(image, matrix, size[::-1], flags=flags, borderMode=border)


def grey(image: np.ndarray) -> np.ndarray:
    """One channel, BT.601."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _small(image: np.ndarray, side: int) -> np.ndarray:
    """An image whose longer side is at most so many pixels."""
    scale = side / max(image.shape)
    height, width = (max(4, round(length * scale)) for length in image.shape)
    return rescale(image, (height, width)) if scale < 1 else image
