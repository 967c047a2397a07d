"""Results as DICOM and NIfTI files, with the patient and the geometry of the reference's file."""

import gzip
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.readers import dicom, medical
from datamodules.readers.nifti import affine_of
from datamodules.readers.source import source_digest
from datamodules.readers.volume import Grid

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
WANTED = (  # tags of the reference that a result takes over, and has without a value where there is none
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PositionReferenceIndicator"),
)
KEPT = (  # tags that it takes over where they are
    *("SpecificCharacterSet", "StudyInstanceUID", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight"),
    *("BodyPartExamined", "FrameOfReferenceUID", "PatientPosition", "SliceThickness", "SpacingBetweenSlices"),
)


def dicom_bytes(pixels: np.ndarray, reference: Path, frame: int | None = None, series: str = "") -> bytes:
    """A DICOM Secondary Capture at the place of slice ``frame`` of a reference; equal input gives equal bytes.

    Patient, study, frame of reference and, in the tags of an image plane, spacing, orientation and position are the
    reference's. Its class and its identifiers are new: those of the series come from the reference and ``series``.

    Args:
        pixels: Grey (h, w) of 8 or 16 bits, or 8-bit RGB (h, w, 3).
        reference: A DICOM file, a folder with a DICOM series, or a NIfTI file.
        frame: Slice of the reference; None for its first.
        series: What the slices of one result have in common, and other results of the reference do not.
    """
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    index, grid = frame or 0, medical.grid_of(reference)
    source = _header(reference, index)
    identity = source_digest(reference)
    entropy, content = ["dig2dig", identity, series], hashlib.sha256(pixels.tobytes()).hexdigest()
    data = _dataset(source, generate_uid(entropy_srcs=[*entropy, str(index), str(pixels.shape), content]))
    data.StudyInstanceUID = data.get("StudyInstanceUID") or generate_uid(entropy_srcs=["dig2dig study", identity])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=entropy)
    data.Modality, data.ConversionType, data.SeriesNumber = "OT", "WSD", None
    data.ImageType, data.SeriesDescription = ["DERIVED", "SECONDARY"], "dig2dig: fused"
    data.InstanceNumber = index + 1
    if source is not None and "SOPInstanceUID" in source:
        pointer: Any = Dataset()
        pointer.ReferencedSOPClassUID, pointer.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
        data.SourceImageSequence = [pointer]
    if grid is not None and pixels.shape[:2] == grid.size:
        _put_plane(data, grid, index, identity)
    _put_pixels(data, pixels)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _dataset(source: Any, instance: str) -> Any:
    """A new object with the patient and the study of another, or of nobody."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta: Any = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SECONDARY_CAPTURE, instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data: Any = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for tag in WANTED:
        setattr(data, tag, "")
    for tag in (*WANTED, *KEPT):
        if source is not None and tag in source:
            data[tag] = source[tag]
    data.SOPClassUID, data.SOPInstanceUID = SECONDARY_CAPTURE, instance
    return data


def _header(reference: Path, index: int) -> Any:
    """Tags of the DICOM file that holds a slice; None of NIfTI."""
    if medical.kind(reference) == "nifti":
        return None
    files = medical.files(reference)
    return dicom.header(files[index if len(files) > 1 else 0])


def _put_plane(data: Any, grid: Grid, index: int, identity: str) -> None:
    """Sets where a slice lies in the patient."""
    from pydicom.uid import generate_uid
    from pydicom.valuerep import format_number_as_ds

    def texts(values: np.ndarray) -> list[str]:
        return [format_number_as_ds(float(value) + 0.0) for value in values]

    width, height, thickness = grid.spacing
    directions = np.concatenate([grid.across / width * dicom.PATIENT_AXES, grid.down / height * dicom.PATIENT_AXES])
    data.PixelSpacing = texts(np.array([height, width]))
    data.ImageOrientationPatient = texts(directions.round(12))
    data.ImagePositionPatient = texts((grid.origins[index] * dicom.PATIENT_AXES).round(9))
    data.SliceThickness = data.get("SliceThickness") or texts(np.array([thickness]))[0]
    frame = data.get("FrameOfReferenceUID") or grid.frame
    data.FrameOfReferenceUID = frame or generate_uid(entropy_srcs=["dig2dig frame", identity])


def _put_pixels(data: Any, pixels: np.ndarray) -> None:
    """Sets the pixels, and what describes them."""
    if pixels.dtype not in (np.uint8, np.uint16) or (pixels.ndim == 3 and pixels.dtype != np.uint8):
        raise ValueError(f"pixels of {pixels.dtype} and shape {pixels.shape}; grey of 8 or 16 bits, or 8-bit RGB")
    bits, grey = 8 * pixels.dtype.itemsize, pixels.ndim == 2
    data.set_pixel_data(pixels, "MONOCHROME2" if grey else "RGB", bits, generate_instance_uid=False)
    if grey:
        data.WindowCenter, data.WindowWidth = str(2 ** (bits - 1)), str(2**bits)


def joined(files: Sequence[Path], reference: Path) -> bytes:
    """One NIfTI of the slices that lie in files, all that a reference has, in their order."""
    import nibabel

    loaded: list[Any] = [nibabel.load(file) for file in files]  # pyright: ignore[reportAttributeAccessIssue]
    volume = np.stack([np.asanyarray(one.dataobj)[::-1, ::-1, 0].T for one in loaded])  # as nifti_bytes was given them
    if volume.dtype.names:
        volume = np.stack([volume[name] for name in "RGB"], -1)
    return nifti_bytes(volume, reference)


def nifti_bytes(volume: np.ndarray, reference: Path, first: int = 0) -> bytes:
    """A packed NIfTI volume at the place of slices of a reference; equal input gives equal bytes.

    Axial slices are read back as they are here. Others keep their places, but are cut axially.

    Args:
        volume: Slices, (n, h, w), or 8-bit RGB, (n, h, w, 3), in the order and orientation of the reader.
        reference: A DICOM file, a folder with a DICOM series, or a NIfTI file.
        first: The reference's slice that the first one is.
    """
    import nibabel

    count, height, width = volume.shape[:3]
    values = volume
    if volume.ndim == 4:
        kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        values = np.ascontiguousarray(volume, np.uint8).view(kind)[..., 0]
    values = values[:, ::-1, ::-1].transpose(2, 1, 0)  # to the right, to the front, up
    grid = medical.grid_of(reference)
    told = grid is not None and grid.size == (height, width) and first + count <= len(grid.origins)
    affine = affine_of(grid, first) if grid is not None and told else np.eye(4)
    image: Any = nibabel.Nifti1Image(values, affine, dtype=values.dtype)
    image.set_sform(affine, 1 if told else 0)  # in the scanner's axes, or unknown
    axes, kept = affine[:3, :3], image.get_qform()[:3, :3]
    straight = np.allclose(kept, axes, rtol=0, atol=1e-3 * np.abs(axes).max())  # a qform holds no shear of a gantry
    image.set_qform(affine, 1 if told and straight else 0)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 6, mtime=0)
