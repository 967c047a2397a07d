"""Small NIfTI and DICOM files whose values tell where they lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.pairing import Pair
from datamodules.readers import medical

SLOPES = np.array([2.0, -3.0, 5.0])  # of a ramp, per mm to the right, to the front and up


def ramp(places: np.ndarray) -> np.ndarray:
    return 700 + places @ SLOPES


def nifti(path: Path, affine: np.ndarray, shape: tuple[int, ...] = (12, 10, 6), values: Any = None) -> Path:
    """A volume whose values tell where they lie."""
    nibabel: Any = pytest.importorskip("nibabel")
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    values = ramp(indices @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32) if values is None else values
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def scaled(*sides: float, start: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    affine = np.diag([*sides, 1.0])
    affine[:3, 3] = start
    return affine


def turned(degrees: float) -> np.ndarray:
    """A grid that is oblique in all axes."""
    a = np.deg2rad(degrees)
    one = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    two = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = one @ two * [1.0, 1.5, 2.0], (8, 4, 3)
    return affine


def dicom(path: Path, pixels: np.ndarray, position: Any = (0.0, 0.0, 0.0), **tags: Any) -> Path:
    pydicom: Any = pytest.importorskip("pydicom")
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    data: Any = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
    data.PatientName, data.PatientID, data.StudyInstanceUID = "Anyone", "7", "1.2.3"
    data.SeriesInstanceUID, data.FrameOfReferenceUID, data.Modality = "1.2.3.4", "1.2.3.9", "CT"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1
    bits = 8 * pixels.dtype.itemsize
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", int(pixels.dtype.kind == "i")
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    if position is not None:
        data.ImagePositionPatient = [float(one) for one in position]
        data.ImageOrientationPatient, data.PixelSpacing = [1, 0, 0, 0, 1, 0], [2.0, 1.0]
    data.PixelData = pixels.tobytes()
    for tag, value in tags.items():
        setattr(data, tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def ramp_dicom(path: Path, z: float, size: tuple[int, int] = (10, 12), **tags: Any) -> Path:
    """A slice at height z whose values tell where it lies: DICOM counts to the left and to the back."""
    y, x = np.mgrid[: size[0], : size[1]]
    places = np.stack([-1.0 * x - 5, -2.0 * y - 4, np.full(size, z)], -1)
    return dicom(path, ramp(places).astype(np.int16), (5, 4, z), **tags)


def places_of(path: Path, index: int) -> np.ndarray:
    grid = medical.grid_of(path)
    assert grid is not None
    y, x = np.mgrid[: grid.size[0], : grid.size[1]].astype(float)
    return grid.points(np.full(grid.size, float(index)), y, x)


def pair_of(first: Path, second: Path) -> Pair:
    return Pair("head", {"CT": first, "MRI": second})
