"""Results as NIfTI and DICOM files, read back by the reader."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.metadata import Metadata
from datamodules.readers import medical
from dig2dig.inference.encode import encode
from dig2dig.inference.medical import dicom_bytes, joined, nifti_bytes
from tests.runs import run
from tests.scans import dicom, nifti, places_of, ramp_dicom, scaled, turned

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")


def test_rgb_volumes_are_read_and_resampled(tmp_path: Path) -> None:
    ct = nifti(tmp_path / "ct.nii", np.eye(4))
    colours = np.random.default_rng(0).integers(0, 255, (6, 10, 12, 3), np.uint8)
    (tmp_path / "pet.nii.gz").write_bytes(nifti_bytes(colours, ct))
    for index in range(6):
        np.testing.assert_array_equal(medical.read_slice(tmp_path / "pet.nii.gz", index).pixels, colours[index])
    moved = nifti(tmp_path / "moved.nii", scaled(1, 1, 1, start=(2, 0, 0)))
    picture = medical.read_slice(tmp_path / "pet.nii.gz", 1, ("CT", moved))
    np.testing.assert_array_equal(picture.pixels[:, 2:], colours[1][:, :-2])
    assert picture.pixels.dtype == np.uint8 and picture.valid is not None and not picture.valid[:, :2].any()


def test_colour_results_have_eight_bits(tmp_path: Path) -> None:
    ct = nifti(tmp_path / "ct.nii", np.eye(4))
    image, files = torch.rand(3, 10, 12, generator=torch.Generator().manual_seed(0)), []
    for index in range(6):
        metadata = Metadata(medical=str(ct), frame=index)
        files.append(tmp_path / f"{index}.nii.gz")
        files[-1].write_bytes(encode(image, ".nii.gz", 16, metadata))
    (tmp_path / "all.nii.gz").write_bytes(joined(files, ct))
    wanted = 255 * image.permute(1, 2, 0).numpy()
    for index in (0, 2):
        assert np.abs(medical.read_slice(tmp_path / "all.nii.gz", index).pixels - wanted).max() < 0.51
    assert encode(image, ".dcm", 16, Metadata(medical=str(ct), frame=0))


def test_nifti_results_lie_where_the_reference_does(tmp_path: Path) -> None:
    for i in range(4):
        ramp_dicom(tmp_path / "ct" / f"{i}", 3.0 * i)
    made = np.random.default_rng(0).integers(0, 65535, (3, 10, 12), np.uint16)
    for reference in (tmp_path / "ct", nifti(tmp_path / "a.nii", turned(20))):
        content = nifti_bytes(made, reference, 1)
        assert content == nifti_bytes(made, reference, 1)
        (tmp_path / "made.nii.gz").write_bytes(content)
        for i in range(3):
            np.testing.assert_array_equal(medical.read_slice(tmp_path / "made.nii.gz", i).pixels, made[i])
            np.testing.assert_allclose(places_of(tmp_path / "made.nii.gz", i), places_of(reference, i + 1), atol=1e-4)
    plain = dicom(tmp_path / "plain.dcm", made[0].astype(np.int16), None)
    (tmp_path / "made.nii.gz").write_bytes(nifti_bytes(made[:1], plain))
    assert medical.grid_of(tmp_path / "made.nii.gz") is None and nibabel.load(tmp_path / "made.nii.gz").shape == (
        12,
        10,
        1,
    )


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("plane", [(0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0)])
def test_slices_of_any_plane_are_joined(tmp_path: Path, plane: tuple[int, ...], colour: bool) -> None:
    """Sagittal, coronal, and of a patient who lies on the belly."""
    normal = np.cross(plane[:3], plane[3:])
    for i in range(4):
        dicom(tmp_path / "ct" / f"{i}", np.ones((10, 12), np.int16), 3 * i * normal, ImageOrientationPatient=[*plane])
    made = np.random.default_rng(0).integers(0, 255, (4, 10, 12, 3) if colour else (4, 10, 12), np.uint8)
    files = [write(tmp_path / f"{i}.nii.gz", nifti_bytes(made[i : i + 1], tmp_path / "ct", i)) for i in range(4)]
    assert joined(files, tmp_path / "ct") == nifti_bytes(made, tmp_path / "ct")


def test_a_tilted_gantry_is_told_once(tmp_path: Path) -> None:
    """A qform holds no shear: readers that prefer it would put the slices above each other."""
    for tilt in (0.0, 0.3):
        for i in range(4):
            dicom(tmp_path / f"{tilt}" / f"{i}", np.ones((10, 12), np.int16), (0, tilt * i, 3 * i))
        write(tmp_path / "made.nii.gz", nifti_bytes(np.ones((4, 10, 12), np.uint8), tmp_path / f"{tilt}"))
        header = nibabel.load(tmp_path / "made.nii.gz").header
        assert header["sform_code"] == 1 and header["qform_code"] == (0 if tilt else 1)
        np.testing.assert_allclose(header.get_sform()[:3, 2], (0, -tilt, 3), atol=1e-6)


def test_dicom_results_keep_patient_and_place(tmp_path: Path) -> None:
    for i in range(4):
        ramp_dicom(tmp_path / "ct" / f"{9 - i}", 3.0 * i, SliceThickness="2.5")
    random = np.random.default_rng(0)
    deep = random.integers(0, 65535, (10, 12), np.uint16)
    content = dicom_bytes(deep, tmp_path / "ct", 2)
    assert content == dicom_bytes(deep, tmp_path / "ct", 2)
    (tmp_path / "made").write_bytes(content)
    data, source = pydicom.dcmread(tmp_path / "made"), pydicom.dcmread(tmp_path / "ct" / "7")
    kept = ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "PixelSpacing", "SliceThickness")
    for tag in (*kept, "ImageOrientationPatient", "ImagePositionPatient"):
        assert data[tag].value == source[tag].value, tag
    assert data.SeriesInstanceUID != source.SeriesInstanceUID and data.SOPInstanceUID != source.SOPInstanceUID
    assert data.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7" and data.InstanceNumber == 3
    assert data.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    np.testing.assert_array_equal(medical.read_slice(tmp_path / "made", 0).pixels, deep)
    np.testing.assert_allclose(places_of(tmp_path / "made", 0), places_of(tmp_path / "ct", 2), atol=1e-6)
    other = pydicom.dcmread(write(tmp_path / "other", dicom_bytes(deep[::-1], tmp_path / "ct", 2)))
    third = pydicom.dcmread(write(tmp_path / "third", dicom_bytes(deep, tmp_path / "ct", 2, "another run")))
    assert other.SeriesInstanceUID == data.SeriesInstanceUID != third.SeriesInstanceUID
    assert len({data.SOPInstanceUID, other.SOPInstanceUID, third.SOPInstanceUID}) == 3
    for pixels in (random.integers(0, 255, (10, 12), np.uint8), random.integers(0, 255, (10, 12, 3), np.uint8)):
        write(tmp_path / "made", dicom_bytes(pixels, tmp_path / "ct"))
        np.testing.assert_array_equal(medical.read_slice(tmp_path / "made", 0).pixels, pixels)
    with pytest.raises(ValueError, match="float32"):
        dicom_bytes(deep.astype(np.float32), tmp_path / "ct", 0)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_one_reference_with_other_sources_makes_other_series(tmp_path: Path) -> None:
    for i in range(2):
        ramp_dicom(tmp_path / "ct" / f"{i}", 3.0 * i, (32, 32))
    found = set()
    for bend in (1.5, 2.0):
        for i in range(2):
            pixels = (np.mgrid[:32, :32].sum(0) ** bend).astype(np.int16)
            dicom(tmp_path / "mr" / f"{i}", pixels, (5, 4, 3 * i), Modality="MR")
        assert run(tmp_path, "save.format=dcm", "report.pairs=0", "overwrite=true", sides=("ct", "mr")) == 0
        found |= {pydicom.dcmread(path).SeriesInstanceUID for path in (tmp_path / "out").glob("*.dcm")}
    assert len(found) == 2


def test_dicom_results_of_nifti_keep_the_place(tmp_path: Path) -> None:
    reference = nifti(tmp_path / "a.nii", turned(25))
    made = np.random.default_rng(0).integers(0, 65535, (10, 12), np.uint16)
    for i in range(6):
        write(tmp_path / f"{i}", dicom_bytes(made, reference, i)).rename(tmp_path / f"{i}.dcm")
    one = tmp_path / "4.dcm"
    np.testing.assert_allclose(places_of(one, 0), places_of(reference, 4), atol=1e-4)
