"""NIfTI volumes, cut axially."""

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.readers.volume import Grid, Volume, check_claim
from dig2dig.errors import ImageError


def read_volume(path: Path) -> Volume:
    """Axial slices from below, the front up, the patient's right on the left; NaN is not valid."""
    import nibabel

    image: Any = nibabel.load(path)  # pyright: ignore[reportPrivateImportUsage]
    header, shape = image.header, image.shape
    check_claim(path, int(header["vox_offset"]) + 4 * int(np.prod(shape, dtype=object)))
    image = nibabel.as_closest_canonical(image)  # axes point right, front, up
    values = np.asanyarray(image.dataobj)  # of a packed file no more than the header tells is unpacked
    values = values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.dtype.kind == "c" or values.dtype.names not in (None, ("R", "G", "B")):
        raise ImageError(f"{path}: {values.dtype} of shape {shape}; grey or RGB volumes of three axes are read")
    told = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    grid = grid_from(image.affine, values.shape) if told else None
    values = values.transpose(2, 1, 0)[:, ::-1, ::-1]  # row 0 is the front, column 0 the right
    if values.dtype.names:
        return Volume(np.stack([values[name] for name in "RGB"], -1), None, grid)
    values = np.asarray(values.astype(np.float32))
    valid = np.isfinite(values)
    if valid.all():
        return Volume(values, None, grid)
    return Volume(np.where(valid, values, values[valid].min() if valid.any() else np.float32(0)), valid, grid)


def grid_from(affine: np.ndarray, shape: tuple[int, ...]) -> Grid | None:
    """Places of the slices of a volume whose axes point right, front and up; None if the affine is broken."""
    width, height, count = shape[:3]
    right, front, up, start = affine[:3].T
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return None
    first = start + (width - 1) * right + (height - 1) * front
    grid = Grid((height, width), -right, -front, first + np.arange(count)[:, None] * up, 1.0)
    return Grid(grid.size, grid.across, grid.down, grid.origins, abs(float(up @ grid.normal)))


def affine_of(grid: Grid, first: int) -> np.ndarray:
    """The affine of slices of a grid from ``first`` on, for a volume whose axes point right, front and up."""
    affine = np.eye(4)
    height, width = grid.size
    steps = np.diff(grid.origins, axis=0)
    up = steps.mean(0) if len(steps) else grid.normal * grid.thickness
    affine[:3, :3] = np.stack([-grid.across, -grid.down, up], 1)
    affine[:3, 3] = grid.origins[first] + (width - 1) * grid.across + (height - 1) * grid.down
    return affine
