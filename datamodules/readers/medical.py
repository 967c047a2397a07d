"""Slices of NIfTI and DICOM files, for users who installed ``dig2dig[medical]``.

A folder that holds the slices of one DICOM series is a volume, as a NIfTI file is.
"""

import stat
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.metadata import Metadata
from datamodules.picture import Picture, one_line, version
from datamodules.readers import dicom, nifti
from datamodules.readers.pixels import is_image
from datamodules.readers.video import is_video
from datamodules.readers.volume import Grid, Volume, comparable, overlap, resample, same
from dig2dig.errors import ImageError

NIFTI, DICOM = (".nii", ".nii.gz"), (".dcm", ".dicom", ".ima")
Kind = Literal["", "nifti", "dicom", "series"]
Onto = tuple[str, Path]  # the modality whose slices a result shows, and its file


def is_medical(path: Path) -> bool:
    """Whether something is a NIfTI or DICOM file, or a folder of one DICOM series."""
    return kind(path) != ""


def kind(path: Path) -> Kind:
    """What a file is: NIfTI by its name, DICOM by its suffix or, where that tells nothing, by its content."""
    name = path.name.lower()
    if name.startswith(".") or name == "dicomdir":
        return ""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        mode = 0
    if stat.S_ISDIR(mode):
        return "series" if _slices(path) else ""
    if mode and not stat.S_ISREG(mode):  # to read a pipe could wait for ever
        return ""
    if name.endswith((*NIFTI, *DICOM)):
        return "nifti" if name.endswith(NIFTI) else "dicom"
    if is_image(path) or is_video(path) or not mode:
        return ""
    try:
        return _sniffed(path, version(path))
    except (ImageError, OSError):
        return ""


@lru_cache(maxsize=2**16)
def _sniffed(path: Path, version: tuple[int, int, int]) -> Kind:
    with path.open("rb") as file:
        return "dicom" if file.read(132)[128:] == b"DICM" else ""


def files(path: Path) -> tuple[Path, ...]:
    """The files of a volume: its slices in their order, or the file itself."""
    return _slices(path) if path.is_dir() else (path,)


def _slices(folder: Path) -> tuple[Path, ...]:
    """Slices of the one DICOM series in a folder; empty if it holds other pictures too, or something else."""
    try:
        inside = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
        if any(is_image(path) or is_video(path) for path in inside):
            return ()
        return _series(folder, version(folder))
    except (OSError, ImageError):
        return ()


def is_mixed(folder: Path) -> bool:
    """Whether a folder holds DICOM slices that tell where they lie, but not those of one series."""
    if not folder.is_dir() or is_medical(folder):
        return False
    placed = 0
    for path in folder.iterdir():
        with suppress(ImageError), one_line(path):  # a file that is no slice, or damaged, does not count
            placed += kind(path) == "dicom" and any(dicom.grids(dicom.header(path)))
    return placed > 1


@lru_cache(maxsize=256)
def _series(folder: Path, version: tuple[int, int, int]) -> tuple[Path, ...]:
    kinds = {path: kind(path) for path in sorted(folder.iterdir()) if not path.is_dir()}
    slices = [path for path, found in kinds.items() if found == "dicom"]
    if len(slices) < 2 or "nifti" in kinds.values():
        return ()
    try:
        with one_line(folder, "DICOM series"):
            return dicom.series(slices)
    except ImageError:  # each file tells what is wrong with it
        return ()


def slice_count(path: Path, onto: Onto | None = None) -> int:
    """Slices of a volume, or frames of a DICOM file, which is often one; ``onto`` gives the number of its slices.

    ImageError: the volume and that of ``onto`` have no place in common.
    """
    volume, target = _volume(path, version(path)), _target(path, onto)
    if target is None or volume.grid is None or onto is None:
        return len(volume.values)
    if not overlap(volume.grid, target):
        told = f"lies beside {onto[1]}: no voxel of it is covered; register them, or correct their headers"
        raise ImageError(f"{path}: {told}")
    return len(target.origins)


def read_slice(path: Path, index: int, onto: Onto | None = None) -> Picture:
    """One slice as float32 in the file's units, or 8-bit RGB; shape (h, w) or (h, w, 3).

    NIfTI volumes are cut axially, front up, the patient's right on the left. CT has Hounsfield units. With ``onto``,
    the slice is the one that lies where slice ``index`` of that file does, if both files tell where they lie.
    """
    volume, target = _volume(path, version(path)), _target(path, onto)
    if target is not None and onto is not None:
        return _resampled(path, volume, target, index, onto)
    if index >= len(volume.values):
        raise ImageError(f"{path}: has {len(volume.values)} slices, no slice {index}")
    valid = None if volume.valid is None or volume.valid[index].all() else volume.valid[index]
    if valid is not None and not valid.any():
        raise ImageError(f"{path}: no pixel of slice {index} was measured; all are padding or NaN")
    other = None if onto is None else grid_of(onto[1])
    apart = onto and other and volume.grid and not comparable(volume.grid, other)
    notes = [f"has another frame of reference than {onto[0]}: places are not compared"] if onto and apart else []
    if valid is not None:
        notes.append(f"{100 * (~valid).mean():.1f} % of the pixels are padding or NaN, taken for no data")
    metadata = Metadata(medical=str(path), frame=index)
    return Picture(np.ascontiguousarray(volume.values[index]), "", "; ".join(notes), valid, metadata, volume.inverted)


def _resampled(path: Path, volume: Volume, target: Grid, index: int, onto: Onto) -> Picture:
    """What a volume shows where slice ``index`` of another lies."""
    assert volume.grid is not None
    modality, file = onto
    if index >= len(target.origins):
        raise ImageError(f"{file}: has {len(target.origins)} slices, no slice {index}")
    pixels, valid = resample(volume, target, index)
    if not valid.any():
        raise ImageError(f"{path}: lies beside {file}: no voxel of its slice {index} is covered; leave the slice out")
    size = "x".join(f"{side:.3g}" for side in volume.grid.spacing)
    note = f"resampled from {size} mm to the grid of {modality}"
    if not valid.all():
        note += f", of which it covers {100 * valid.mean():.0f} %"
    metadata = Metadata(medical=str(file), frame=index)
    return Picture(pixels, "", note, None if valid.all() else valid, metadata, volume.inverted)


def _target(path: Path, onto: Onto | None) -> Grid | None:
    """The grid that a volume is to be brought to; None where it stays as it is."""
    if onto is None or onto[1] == path:
        return None
    own, other = grid_of(path), grid_of(onto[1])
    stays = own is None or other is None or not comparable(own, other) or same(own, other)
    return None if stays else other


def grid_of(path: Path) -> Grid | None:
    """Where the slices of a file lie; None where it does not tell."""
    return _volume(path, version(path)).grid


@lru_cache(maxsize=8)  # each slice asks again
def _volume(path: Path, version: tuple[int, int, int]) -> Volume:
    """All slices; in grey only where all of them are, since those of one result have one form."""
    packed = kind(path) == "nifti"
    with one_line(path, "NIfTI file" if packed else "DICOM file"):
        found = nifti.read_volume(path) if packed else dicom.read_volume(files(path))
    grey = found.values.ndim == 4 and (found.values == found.values[..., :1]).all()
    return replace(found, values=found.values[..., 0]) if grey else found
