"""NIfTI volumes, cut axially."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.readers.volume import Grid, Volume, check_claim
from dig2dig.errors import ImageError

HEADERS = {348: (344, b"n+1\0"), 540: (4, b"n+2\0")}  # by size: where the magic bytes stand, and what they are
GZIP = b"\x1f\x8b"


def is_header(start: bytes) -> bool:
    """Whether bytes are the start of a NIfTI file, unpacked."""
    sizes = (int.from_bytes(start[:4], order) for order in ("little", "big"))
    return any(start[at : at + 4] == magic for at, magic in (HEADERS[size] for size in sizes if size in HEADERS))


def start_of(path: Path, count: int) -> bytes:
    """The first bytes of a file, unpacked if it is packed by gzip."""
    with _opened(path) as file:
        return file.read(count)


def read_volume(path: Path) -> Volume:
    """Axial slices from below, the front up, the patient's right on the left; NaN is not valid."""
    import nibabel

    start = start_of(path, 540)
    kind: Any = nibabel.Nifti2Image if 540 in (int.from_bytes(start[:4], o) for o in ("little", "big")) else None
    kind = kind or nibabel.Nifti1Image
    header = kind.header_class(start[: kind.header_class.template_dtype.itemsize])
    shape = header.get_data_shape()
    check_claim(path, int(header["vox_offset"]) + 4 * int(np.prod(shape, dtype=object)))
    with _opened(path) as file:
        image = nibabel.as_closest_canonical(kind.from_stream(file))  # axes point right, front, up
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


def _opened(path: Path) -> Any:
    """A file to read, unpacked on the way if it is packed."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    return gzip.open(path) if packed else path.open("rb")
