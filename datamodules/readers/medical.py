"""Slices of NIfTI and DICOM files, for users who installed ``dig2dig[medical]``."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from datamodules.picture import one_line, version
from dig2dig.errors import ImageError

NIFTI = (".nii", ".nii.gz")


def is_medical(path: Path) -> bool:
    """Whether a name is that of a NIfTI or DICOM file."""
    return path.name.lower().endswith((*NIFTI, ".dcm", ".dicom")) and not path.name.startswith(".")


def slice_count(path: Path) -> int:
    """Slices of a volume, or frames of a DICOM file, which is often one."""
    return len(_volume(path, version(path)))


def read_slice(path: Path, index: int) -> np.ndarray:
    """One slice as float32 in the file's units, or 8-bit RGB; shape (h, w) or (h, w, 3).

    NIfTI volumes are cut axially, front up, the patient's right on the left. CT has Hounsfield units.
    """
    volume = _volume(path, version(path))
    if index >= len(volume):
        raise ImageError(f"{path}: has {len(volume)} slices, no slice {index}")
    return np.ascontiguousarray(volume[index])


@lru_cache(maxsize=4)  # each slice asks again
def _volume(path: Path, version: tuple[int, int, int]) -> np.ndarray:
    """All slices, (n, h, w) or (n, h, w, 3)."""
    nifti = path.name.lower().endswith(NIFTI)
    with one_line(path, "NIfTI file" if nifti else "DICOM file"):
        try:
            return _nifti(path) if nifti else _dicom(path)
        except ImportError as error:
            needed = f"needs {error.name}; pip install 'dig2dig[medical]'"
            raise ImageError(f"{path}: {needed if error.name in ('nibabel', 'pydicom') else error}") from error


def _nifti(path: Path) -> np.ndarray:
    import nibabel

    image = nibabel.as_closest_canonical(nibabel.load(path))  # axes point right, front, up  # pyright: ignore
    values = np.asanyarray(image.dataobj)
    values = values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.dtype.fields:
        raise ImageError(f"{path}: values of shape {values.shape}; grey volumes of three axes are read")
    return values.astype(np.float32).transpose(2, 1, 0)[:, ::-1, :]  # row 0 is the front


def _dicom(path: Path) -> np.ndarray:
    import pydicom
    from pydicom.pixels.processing import apply_rescale
    from pydicom.pixels.utils import pixel_array

    data = pydicom.dcmread(path)
    if "PixelData" not in data:
        raise ImageError(f"{path}: a DICOM file without pixels")
    pixels = pixel_array(data)  # YBR comes as RGB
    if data.get("SamplesPerPixel", 1) == 3:
        return pixels if pixels.ndim == 4 else pixels[None]
    values = apply_rescale(pixels, data).astype(np.float32)
    if data.get("PhotometricInterpretation") == "MONOCHROME1":  # large values are dark
        values = values.max() + values.min() - values
    return values if values.ndim == 3 else values[None]
