"""The motion near a start that lays a source on a reference: Gauss-Newton steps on the structures of both."""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from datamodules.align import Structure, local_scale, rescale, resizing, structure

MOTIONS = {"nothing": 0, "shift": 2, "similarity": 4, "homography": 8}  # parameters of each motion, simplest first
STIFFNESS = 1.0  # how strongly a homography is held at a similarity, where the images have little in common

Part = Callable[[np.ndarray, np.ndarray], np.ndarray]  # chooses pixels by x and y, in halves of the longer side


@dataclass(frozen=True)
class Scene:
    """Two grey images that are registered."""

    fixed: np.ndarray  # (h, w)
    moving: np.ndarray
    valid: np.ndarray | None = None  # pixels of the moving image that show something
    layers: dict[float, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # smaller moving images

    def layer(self, step: float) -> tuple[np.ndarray, np.ndarray]:
        """The moving image and its valid pixels, as much smaller as a step in it is long, by half octaves."""
        step = 2.0 ** (max(0, round(2 * np.log2(step))) / 2)
        if step not in self.layers:
            height, width = (max(8, round(side / step)) for side in self.moving.shape)
            whole = np.ones(self.moving.shape, np.float32) if self.valid is None else self.valid.astype(np.float32)
            self.layers[step] = rescale(self.moving, (height, width)), rescale(whole, (height, width))
        return self.layers[step]

    def error(self, one: np.ndarray, other: np.ndarray) -> float:
        """Largest distance of two homographies at the corners of the overlap, in shares of the longer side."""
        corners = overlap(other, self.fixed.shape, self.moving.shape)[None]
        there = cv2.perspectiveTransform(corners, np.linalg.inv(one) @ other)
        return float(np.linalg.norm(there - corners, axis=-1).max() / max(self.fixed.shape))


@dataclass(frozen=True)
class View:
    """The part of a reference that a source covers, at a working size."""

    structure: Structure
    scaling: np.ndarray  # its pixels to the reference's


def overlap(matrix: np.ndarray, fixed: tuple[int, ...], moving: tuple[int, ...]) -> np.ndarray:
    """Corners of what a source covers of the reference, (n, 2)."""
    boxes = [np.array([[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], float) for h, w in (fixed[:2], moving[:2])]
    placed = cv2.perspectiveTransform(boxes[1][None], np.linalg.inv(matrix))[0]
    area, corners = cv2.intersectConvexConvex(placed.astype(np.float32), boxes[0].astype(np.float32))
    return corners[:, 0].astype(float) if area > 0 and corners is not None else boxes[0]


def view(scene: Scene, matrix: np.ndarray, side: int) -> View:
    """What the source covers of the reference, its longer side at most so many pixels."""
    corners = overlap(matrix, scene.fixed.shape, scene.moving.shape)
    limits = np.array(scene.fixed.shape[::-1])
    low = np.minimum(np.floor(corners.min(0)), limits - 16).clip(0).astype(int)
    high = np.minimum(np.maximum(np.ceil(corners.max(0)) + 1, low + 16), limits).astype(int)
    part = scene.fixed[low[1] : high[1], low[0] : high[0]]
    scale = min(1.0, side / max(part.shape))
    small = rescale(part, tuple(max(8, round(length * scale)) for length in part.shape)) if scale < 1 else part  # pyright: ignore
    place = np.array([[1, 0, low[0]], [0, 1, low[1]], [0, 0, 1]], float)
    return View(structure(small, 1.2), place @ resizing(small.shape, part.shape))


def seen(scene: Scene, matrix: np.ndarray, onto: View) -> tuple[Structure, np.ndarray]:
    """Structure of the source in a view of the reference, and where it is one."""
    way, shape = matrix @ onto.scaling, onto.structure.shape
    image, valid = scene.layer(local_scale(way, shape))
    way = resizing(scene.moving.shape, image.shape) @ way
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    image = cv2.warpPerspective(image, way, shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpPerspective(valid, way, shape[::-1], flags=flags) > 0.99
    inside = cv2.erode(inside.astype(np.uint8), np.ones((9, 9), np.uint8), borderValue=0) > 0
    return structure(image, 1.2), inside


def likeness(scene: Scene, matrix: np.ndarray, onto: View) -> float:
    """Correlation of the structures, 1 if they are the same."""
    z, inside = seen(scene, matrix, onto)
    a, b = onto.structure[inside], z[inside]
    return float(np.vdot(a, b).real / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-6)) if inside.mean() > 0.05 else 0.0


def refine(
    scene: Scene,
    matrix: np.ndarray,
    motion: str,
    side: int,
    blur: float = 0.0,
    steps: int = 10,
    part: Part | None = None,
) -> np.ndarray:
    r"""The motion near a start that makes the structures most alike, by Gauss-Newton steps.

    .. math:: \min_{g, p} \sum \left| z_f - g\, (z_m + p \cdot \partial z_m) \right|^2

    The gain g is the part of the edges that both images have, so that few common edges still give full steps.

    References:
        Evangelidis and Psarakis, "Parametric image alignment using enhanced correlation coefficient maximization",
        TPAMI 2008.
    """
    onto, count = view(scene, matrix, side), MOTIONS[motion]
    height, width = onto.structure.shape
    half, cx, cy = max(height, width) / 2, (width - 1) / 2, (height - 1) / 2
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = (x - cx) / half, (y - cy) / half
    flows = _flows(x, y)[:count]
    target, total = _blurred(onto.structure, blur), np.zeros(count)
    edges = np.array([[x.min(), x.max(), x.min(), x.max()], [y.min(), y.min(), y.max(), y.max()], [1, 1, 1, 1]], float)
    to_unit = onto.scaling @ np.array([[half, 0, cx], [0, half, cy], [0, 0, 1]])
    for _ in range(steps):
        z, inside = seen(scene, matrix, onto)
        inside = inside & part(x, y) if part else inside
        if inside.sum() < 200:
            break
        step = _step(target, _blurred(z, blur), inside, flows, half, total)
        far = np.abs(((np.eye(3) + _change(step)) @ edges)[:2] - edges[:2]).max() * half
        step *= min(1.0, 4 / (far + 1e-9))
        total += step
        matrix = matrix @ to_unit @ (np.eye(3) + _change(step)) @ np.linalg.inv(to_unit)
        if far < 0.03:
            break
    return matrix / matrix[2, 2]


def _step(
    target: Structure,
    z: Structure,
    inside: np.ndarray,
    flows: list[tuple[np.ndarray, np.ndarray]],
    half: float,
    total: np.ndarray,
) -> np.ndarray:
    """The change of the parameters that a linear fit asks for."""
    dy, dx = (slope * half for slope in np.gradient(z))
    inside = inside & (np.abs(z) > 0.05)  # flat regions say nothing
    columns = [z[inside], *((dx * u + dy * v)[inside] for u, v in flows)]
    columns = np.stack([np.concatenate([column.real, column.imag]) for column in columns]).astype(np.float32)
    wanted = np.concatenate([target[inside].real, target[inside].imag]).astype(np.float32)
    normal, right = (columns @ columns.T).astype(float), (columns @ wanted).astype(float)
    gain = max(right[0] / (normal[0, 0] + 1e-9), 0.05)
    normal[np.diag_indices_from(normal)] *= 1.001
    stiff = np.arange(5, len(normal))  # all that a similarity has not
    alike = max(right[0] / (np.sqrt(normal[0, 0]) * np.linalg.norm(wanted) + 1e-9), 0.1)
    held = STIFFNESS * (1 - alike) ** 2 / alike * normal[1, 1]
    normal[stiff, stiff] += held
    right[stiff] -= held * gain * total[stiff - 1]
    found = np.linalg.solve(normal + 1e-9 * np.eye(len(normal)), right)
    return found[1:] / max(found[0], 0.3 * gain, 0.02)


def _flows(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """How a pixel moves with each parameter of a homography: shift, scale, turn, shears, perspective."""
    one, none = np.ones_like(x), np.zeros_like(x)
    return [(one, none), (none, one), (x, y), (-y, x), (x, -y), (y, x), (-x * x, -x * y), (-x * y, -y * y)]


def _change(step: np.ndarray) -> np.ndarray:
    """The same parameters as a change of a homography."""
    p = np.pad(step, (0, 8 - len(step)))
    return np.array([[p[2] + p[4], p[5] - p[3], p[0]], [p[3] + p[5], p[2] - p[4], p[1]], [p[6], p[7], 0]])


def _blurred(z: Structure, blur: float) -> Structure:
    """A structure after a Gaussian, for which a start may lie farther away."""
    if not blur:
        return z
    real, imaginary = (cv2.GaussianBlur(np.ascontiguousarray(part), (0, 0), blur) for part in (z.real, z.imag))
    return real + 1j * imaginary  # pyright: ignore
