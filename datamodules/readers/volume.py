"""Volumes: slices with their places in the patient, brought to the grid of another volume where they differ."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np

from dig2dig.errors import ImageError

MOST_POINTS = 4  # along each axis of a voxel, at which a finer volume is sampled and averaged
SAME = 0.05  # voxels; grids that differ by less are one
LATTICE = 24  # points along each axis by which an overlap is found


@dataclass(frozen=True, eq=False)
class Grid:
    """Places of the pixels of parallel slices, in mm: to the right, to the front and up, as NIfTI has them."""

    size: tuple[int, int]  # height and width of a slice
    across: np.ndarray  # step from a column to the next, (3,)
    down: np.ndarray  # step from a row to the next, (3,)
    origins: np.ndarray  # place of the first pixel of each slice, (n, 3), ascending along the normal
    thickness: float  # of a slice with its gap
    frame: str = ""  # DICOM's frame of reference; places in two of them cannot be compared; empty if unknown

    @cached_property
    def normal(self) -> np.ndarray:
        """Unit vector across the slices, (3,)."""
        cross = np.cross(self.across, self.down)
        return cross / np.linalg.norm(cross)

    @cached_property
    def depths(self) -> np.ndarray:
        """Places of the slices along the normal, (n,)."""
        return self.origins @ self.normal

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Size of a voxel across, down and through, in mm."""
        return float(np.linalg.norm(self.across)), float(np.linalg.norm(self.down)), self.thickness

    def points(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Places of pixels with these indices, shape (..., 3), also between and beside slices."""
        slices = np.arange(len(self.origins))
        origins = np.stack([np.interp(z, slices, axis) for axis in self.origins.T], -1)
        beyond = (z - np.clip(z, 0, len(slices) - 1))[..., None] * self.normal * self.thickness
        return origins + beyond + x[..., None] * self.across + y[..., None] * self.down

    def indices(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices z, y, x of places, shape (3, ...), and which of the places a voxel covers."""
        depth = points @ self.normal
        z = np.interp(depth, self.depths, np.arange(len(self.depths)))
        away = np.abs(depth - self.depths[np.rint(z).astype(int)])
        between = (depth >= self.depths[0]) & (depth <= self.depths[-1])
        covered = away <= self.thickness * np.where(between, 1.0, 0.5) * (1 + 1e-6)  # one slice may be missing
        origins = np.stack([np.interp(depth, self.depths, axis) for axis in self.origins.T], -1)
        plane = np.linalg.pinv(np.stack([self.across, self.down], 1))
        x, y = np.moveaxis((points - origins) @ plane.T, -1, 0)
        for index, count in ((y, self.size[0]), (x, self.size[1])):
            covered &= (index >= -0.5) & (index <= count - 0.5)
        return np.stack([z, y, x]), covered

    def lattice(self) -> np.ndarray:
        """Places spread over the volume, with its corners."""
        counts = (len(self.origins), *self.size)
        axes = [np.linspace(0, count - 1, min(count, LATTICE)) for count in counts]
        return self.points(*np.meshgrid(*axes, indexing="ij"))


@dataclass(frozen=True, eq=False)
class Volume:
    """Slices of one size."""

    values: np.ndarray  # (n, h, w) float32, or (n, h, w, 3) 8-bit RGB
    valid: np.ndarray | None = None  # voxels that were measured, (n, h, w), bool; None = all of them
    grid: Grid | None = None  # None where the file does not tell
    inverted: bool = False  # large values are dark


def comparable(one: Grid, other: Grid) -> bool:
    """Whether places in one grid are places in the other."""
    return not one.frame or not other.frame or one.frame == other.frame


def same(one: Grid, other: Grid) -> bool:
    """Whether two grids have the same voxels."""
    if one.size != other.size or len(one.origins) != len(other.origins):
        return False
    apart = np.abs(one.lattice() - other.lattice()).max()
    return bool(apart <= SAME * min(*one.spacing, *other.spacing))


def overlap(one: Grid, other: Grid) -> bool:
    """Whether any voxel of one grid lies in the other."""
    return any(a.indices(b.lattice())[1].any() for a, b in ((one, other), (other, one)))


def stack(grids: Sequence[Grid | None]) -> tuple[np.ndarray, Grid] | None:
    """The order of slices along their normal, and their common grid; None where they are no volume.

    They are one if they are parallel, of one size, at different depths, and above each other.
    """
    if not grids or any(grid is None for grid in grids):
        return None
    first, *others = [grid for grid in grids if grid is not None]
    for other in others:
        turned = max(np.abs(first.across - other.across).max(), np.abs(first.down - other.down).max())
        if other.size != first.size or other.frame != first.frame or turned > 1e-3 * first.spacing[0]:
            return None
    origins = np.concatenate([grid.origins for grid in (first, *others)])
    order = np.argsort(origins @ first.normal)
    origins = origins[order]
    depths = origins @ first.normal
    if len(depths) == 1:
        return order, replace(first, origins=origins)
    share = ((depths - depths[0]) / max(depths[-1] - depths[0], 1e-9))[:, None]
    aside = np.abs(origins - origins[0] - share * (origins[-1] - origins[0])).max()
    if np.diff(depths).min() < 1e-3 or aside > max(first.spacing[:2]):
        return None
    return order, replace(first, origins=origins, thickness=float(np.median(np.diff(depths))))


def resample(volume: Volume, target: Grid, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Slice ``index`` of another grid, and which of its pixels the volume covers.

    Values between voxels are interpolated linearly; where the volume is finer, they are averaged over the voxel.
    """
    assert volume.grid is not None
    y, x = np.meshgrid(*map(np.arange, target.size), indexing="ij")
    total: np.ndarray | float = 0.0
    weight = np.zeros(target.size, np.float32)
    parts = _inside(volume.grid, target)
    for dz, dy, dx in parts:
        points = target.points(np.full(target.size, index + dz), y + dy, x + dx)
        where, covered = volume.grid.indices(points)
        if covered.any():
            found, share = _sample(volume, where, covered)
            total, weight = total + found, weight + share
    valid = weight >= len(parts) / 2
    if not valid.any():
        return np.zeros((*target.size, *volume.values.shape[3:]), volume.values.dtype), valid
    scale = np.maximum(weight, 1e-6)
    pixels = total / (scale if volume.values.ndim == 3 else scale[..., None])
    pixels[~valid] = pixels[valid].max(0) if volume.inverted else pixels[valid].min(0)
    whole = volume.values.dtype.kind in "ui"
    return (np.rint(pixels) if whole else pixels).astype(volume.values.dtype), valid


def _inside(moving: Grid, target: Grid) -> list[tuple[float, float, float]]:
    """Points z, y, x in a voxel of the target, from its centre: many where the moving volume has finer voxels."""
    units = np.stack([moving.normal / moving.thickness, *(v / (v @ v) for v in (moving.down, moving.across))], 1)
    steps = np.stack([target.normal * target.thickness, target.down, target.across]) @ units  # in moving voxels
    counts = np.clip(np.rint(np.linalg.norm(steps, axis=1)), 1, MOST_POINTS).astype(int)
    return list(product(*((np.arange(count) + 0.5) / count - 0.5 for count in counts)))


def _sample(volume: Volume, where: np.ndarray, covered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of valid values around places, and the share of each that is valid; both 0 where nothing is covered."""
    from scipy.ndimage import map_coordinates

    first, last = int(where[0][covered].min()), int(np.ceil(where[0][covered].max()))
    slab = slice(first, last + 1)
    values, place = volume.values[slab], where - np.array([first, 0, 0])[:, None, None]
    share = covered.astype(np.float32)
    if volume.valid is not None:
        holds = volume.valid[slab]
        values = np.where(holds if values.ndim == 3 else holds[..., None], values, 0)
        share = share * map_coordinates(holds.astype(np.float32), place, order=1, mode="nearest")
    channels = [values] if values.ndim == 3 else np.moveaxis(values, -1, 0)
    found = [map_coordinates(part, place, np.float32, order=1, mode="nearest") * covered for part in channels]
    return (found[0] if values.ndim == 3 else np.stack(found, -1)), share


def check_claim(path: Path, size: int) -> None:
    """Refuses a file that says it holds more bytes than half of the machine's memory."""
    if size > (most := memory() // 2):
        told = f"claims {size / 2**30:.1f} GiB; at most {most / 2**30:.1f} GiB, half of the memory, are read"
        raise ImageError(f"{path}: {told}; cut it into parts")


def memory() -> int:
    """Bytes of memory that the machine has; 4 GiB where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 2**32
