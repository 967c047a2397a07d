"""Where in a reference a source of another field of view may lie: scales, turns and places, by correlation."""

from dataclasses import dataclass

import cv2
import numpy as np
import scipy.fft

from datamodules.align import Structure, rescale, resizing, structure

SCALES = np.geomspace(0.3, 3, 35)  # widths of the source's view, in widths of the reference's
TURNS = (0.0, -5.0, 5.0, -10.0, 10.0)  # degrees
SIDE = 96  # pixels of the longer side of the smaller view
LEAST_OVERLAP = 0.6  # of the smaller view's area


def search(fixed: np.ndarray, moving: np.ndarray, valid: np.ndarray | None = None, keep: int = 8) -> list[np.ndarray]:
    """The best ways from a grey reference's pixels to a grey source's, (3, 3), best first; no two are neighbours.

    All scales and turns of a grid are tried. For each of them, one correlation of the edges' orientations, by FFT,
    tries all places. Both images are sampled so that the smaller view has 96 pixels.
    """
    native = np.hypot(*fixed.shape) / np.hypot(*moving.shape)
    layers: dict[float, Layer] = {}
    found = []
    for scale in SCALES:
        size = min(1.0, SIDE / (max(fixed.shape) * min(1.0, scale)))
        layer = layers.setdefault(size, Layer(*_sampled(fixed, None, size), {}))
        small, to_small = _sampled(moving, valid, native * scale * size)
        for turn in TURNS:
            turned, to_turned = _turned(small, turn)
            score, place = _best_place(layer, turned)
            found.append((score, np.linalg.inv(to_turned @ to_small) @ place @ layer.scaling))
    return _apart([matrix for _, matrix in sorted(found, key=lambda one: -one[0])], fixed.shape, keep)


@dataclass(frozen=True)
class Layer:
    """A reference at one size."""

    structure: Structure
    scaling: np.ndarray  # the reference's pixels to these
    spectra: dict[tuple[int, ...], np.ndarray]  # conjugate transforms, by size


def _sampled(image: np.ndarray, valid: np.ndarray | None, scale: float) -> tuple[Structure, np.ndarray]:
    """Structure of an image at another scale, zero where it is not valid; and the way from its pixels to these."""
    height, width = (max(8, round(side * scale)) for side in image.shape)
    z = structure(rescale(image, (height, width)), 1.2, 21)
    if valid is not None:
        part = rescale(valid.astype(np.float32), (height, width)) > 0.99
        z = z * cv2.erode(part.astype(np.uint8), np.ones((7, 7), np.uint8))
    return z.astype(np.complex64), resizing(image.shape, z.shape)


def _turned(z: Structure, degrees: float) -> tuple[Structure, np.ndarray]:
    """A structure turned about its middle, in a box that holds all of it; its orientations turn twice as much."""
    if not degrees:
        return z, np.eye(3)
    height, width = z.shape
    turn = np.exp(1j * np.radians(degrees))
    w, h = (int(abs(a * turn.real) + abs(b * turn.imag)) + 1 for a, b in ((width, height), (height, width)))
    matrix = np.array([[turn.real, -turn.imag, 0], [turn.imag, turn.real, 0], [0, 0, 1]])
    matrix[:2, 2] = np.array([w - 1, h - 1]) / 2 - matrix[:2, :2] @ [(width - 1) / 2, (height - 1) / 2]
    real, imaginary = (cv2.warpPerspective(np.ascontiguousarray(part), matrix, (w, h)) for part in (z.real, z.imag))
    return ((real + 1j * imaginary) * turn**2).astype(np.complex64), matrix


def _best_place(layer: Layer, moving: Structure) -> tuple[float, np.ndarray]:
    """How far the largest correlation stands out, and its shift from the layer's pixels to the source's."""
    shapes = list(zip(layer.structure.shape, moving.shape, strict=True))
    size = tuple(scipy.fft.next_fast_len(a + b) for a, b in shapes)
    if size not in layer.spectra:
        layer.spectra[size] = np.conj(scipy.fft.fft2(layer.structure, size))  # pyright: ignore
    cross = layer.spectra[size] * scipy.fft.fft2(moving, size)  # pyright: ignore
    surface = scipy.fft.ifft2(cross / np.sqrt(np.maximum(np.abs(cross), 1e-9))).real  # pyright: ignore
    shifts = [np.fft.fftfreq(int(side), 1 / int(side)) for side in size]  # pyright: ignore
    overlaps = [np.minimum(a, b - s) - np.maximum(0, -s) for s, (a, b) in zip(shifts, shapes, strict=True)]
    allowed = np.outer(*(one.clip(0) for one in overlaps)) >= LEAST_OVERLAP * min(layer.structure.size, moving.size)
    values = surface[allowed]
    i, j = np.unravel_index(np.where(allowed, surface, -np.inf).argmax(), surface.shape)
    place = np.eye(3)
    place[:2, 2] = shifts[1][j], shifts[0][i]
    return float((surface[i, j] - values.mean()) / (values.std() + 1e-12)), place


def _apart(candidates: list[np.ndarray], size: tuple[int, ...], keep: int) -> list[np.ndarray]:
    """The first candidates, without those that put the reference's corners near where a better one puts them."""
    height, width = size
    corners = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], float)
    kept: list[np.ndarray] = []
    for one in candidates:
        back = [cv2.perspectiveTransform(corners, np.linalg.inv(other) @ one) for other in kept]
        if all(np.abs(there - corners).max() > 0.12 * max(size) for there in back):
            kept.append(one)
        if len(kept) == keep:
            break
    return kept
