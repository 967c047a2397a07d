"""Medical volumes: where their slices lie, and which voxels were measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.pairing import expand, find_pairs
from datamodules.pairs import Failure, Reading, Sample, read_pair
from datamodules.readers import medical
from datamodules.readers.source import read_source
from dig2dig.errors import ImageError, PairingError
from tests.conftest import ROOT
from tests.scans import dicom, nifti, pair_of, places_of, ramp, ramp_dicom, scaled, turned

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

CASES = ROOT.parent / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")


def test_places_are_those_of_the_files(tmp_path: Path) -> None:
    oblique = nifti(tmp_path / "a.nii.gz", turned(20))
    for path in (oblique, ramp_dicom(tmp_path / "b.dcm", 7)):
        np.testing.assert_allclose(medical.read_slice(path, 0).pixels, ramp(places_of(path, 0)), atol=0.02)
    front = medical.read_slice(nifti(tmp_path / "c.nii", np.eye(4)), 0).pixels  # right is left, the front is up
    assert front[0, 0] == ramp(np.array([11, 9, 0])) and front[-1, -1] == ramp(np.zeros(3))
    assert read_source(oblique, 3).metadata.medical == str(oblique) and read_source(oblique, 3).metadata.frame == 3


@pytest.mark.parametrize(
    ("affine", "shape"),
    [
        (scaled(2, 2, 3, start=(-3, -2, -4)), (10, 10, 9)),
        (scaled(-0.5, 0.7, 1.1, start=(14, -2, -2)), (50, 40, 20)),  # finer: averaged over each voxel
        (turned(15), (12, 10, 8)),
    ],
)
def test_volumes_come_to_the_grid_of_the_reference(tmp_path: Path, affine: np.ndarray, shape: Any) -> None:
    """A linear field is interpolated exactly, wherever its voxels lie."""
    ct, mri = nifti(tmp_path / "ct.nii", scaled(1, 1, 2)), nifti(tmp_path / "mri.nii", affine, shape)
    seen = 0
    for index in range(6):
        try:
            picture = medical.read_slice(mri, index, ("CT", ct))
        except ImageError as error:
            assert "is covered" in str(error)
            continue
        places = places_of(ct, index)
        back = (np.c_[places.reshape(-1, 3), np.ones(120)] @ np.linalg.inv(affine).T)[:, :3].reshape(10, 12, 3)
        inner = ((back >= 0.6) & (back <= np.array(shape) - 1.6)).all(-1)
        outer = ((back < -1.6) | (back > np.array(shape) + 0.6)).any(-1)
        valid = np.ones((10, 12), bool) if picture.valid is None else picture.valid
        assert valid[inner].all() and not valid[outer].any()
        np.testing.assert_allclose(picture.pixels[inner], ramp(places)[inner], atol=0.01)
        seen += inner.sum()
    assert seen > 40


def test_resampling_agrees_with_nibabel(tmp_path: Path) -> None:
    processing = pytest.importorskip("nibabel.processing")
    random = np.random.default_rng(1).normal(size=(12, 10, 8)).astype(np.float32)
    ct = nifti(tmp_path / "ct.nii", scaled(-1, 1.2, 2, start=(14, 2, 1)))
    mri = nifti(tmp_path / "mri.nii", turned(25), values=random)
    wanted = processing.resample_from_to(nibabel.load(mri), nibabel.load(ct), order=1, cval=np.nan).get_fdata()
    compared = 0
    for index in range(6):
        other = wanted[:, ::-1, index].T  # columns go to the left already
        inside = np.isfinite(other)
        if not inside.any():
            continue
        picture = medical.read_slice(mri, index, ("CT", ct))
        assert picture.valid is not None and picture.valid[inside].all()
        np.testing.assert_allclose(picture.pixels[inside], other[inside], atol=1e-4)
        compared += inside.sum()
    assert compared > 100


def test_finer_volumes_are_averaged(tmp_path: Path) -> None:
    stripes = np.zeros((16, 16, 2), np.float32)
    stripes[::2] = 8
    fine = nifti(tmp_path / "fine.nii", scaled(1, 1, 1, start=(-0.5, -0.5, 0)), values=stripes)
    coarse = nifti(tmp_path / "coarse.nii", scaled(2, 2, 1), (8, 8, 2))
    picture = medical.read_slice(fine, 0, ("CT", coarse))
    assert picture.valid is None and picture.note == "resampled from 1x1x1 mm to the grid of CT"
    np.testing.assert_allclose(picture.pixels[:, :-1], 4, atol=1e-5)


def test_equal_grids_are_fused_as_they_are(tmp_path: Path) -> None:
    pair = pair_of(nifti(tmp_path / "a.nii", turned(9)), nifti(tmp_path / "b.nii", turned(9) + 1e-5))
    sample = read_pair(expand([pair])[2], Reading("mif"))
    assert isinstance(sample, Sample) and "resampled" not in sample.note
    assert sample.metadata.medical == str(pair.files["CT"]) and sample.metadata.frame == 2


def test_what_a_volume_does_not_cover_is_not_valid(tmp_path: Path) -> None:
    ct = nifti(tmp_path / "ct.nii", np.eye(4))
    mri = nifti(tmp_path / "mri.nii", scaled(1, 1, 1, start=(4, 0, 1)))
    pairs = expand([pair_of(ct, mri)])
    assert [pair.name for pair in pairs] == [f"head_00000{i}" for i in range(6)]
    first, second = read_pair(pairs[0], Reading("mif")), read_pair(pairs[1], Reading("mif"))
    assert isinstance(first, Failure)
    assert first.reason == f"{mri}: lies beside {ct}: no voxel of its slice 0 is covered; leave the slice out"
    assert isinstance(second, Sample) and "MRI: resampled from 1x1x1 mm to the grid of CT" in second.note
    picture = medical.read_slice(mri, 1, ("CT", ct))
    assert picture.valid is not None
    np.testing.assert_array_equal(picture.valid, np.arange(12)[None].repeat(10, 0) < 8)  # the left 4 mm are missing
    np.testing.assert_allclose(picture.pixels[:, :8], medical.read_slice(mri, 0).pixels[:, 4:])
    assert second.valid is not None and second.valid[1, 0].sum() == 80


def test_volumes_that_lie_apart_are_one_line(tmp_path: Path) -> None:
    ct, mri = nifti(tmp_path / "ct.nii", np.eye(4)), nifti(tmp_path / "mri.nii", scaled(1, 1, 1, start=(0, 60, 0)))
    (pair,) = expand([pair_of(ct, mri)])
    assert pair.problem.startswith(f"{mri}: lies beside {ct}: no voxel of it is covered")


def test_frames_are_those_of_the_reference(tmp_path: Path) -> None:
    ct, mri = nifti(tmp_path / "ct.nii", np.eye(4)), nifti(tmp_path / "mri.nii", scaled(1, 1, 0.5), (12, 10, 40))
    assert len(expand([pair_of(ct, mri)])) == 6
    pairs = expand([pair_of(ct, mri)], reference="MRI")
    assert len(pairs) == 40 and pairs[0].probes["CT"][-1] == (ct, 5) and pairs[0].probes["MRI"][-1] == (mri, 39)
    sample = read_pair(pairs[3], Reading("mif", reference="MRI"))
    assert isinstance(sample, Sample) and "CT: resampled from 1x1x1 mm to the grid of MRI" in sample.note
    np.testing.assert_allclose(
        medical.read_slice(ct, 3, ("MRI", mri)).pixels, medical.read_slice(mri, 3).pixels, atol=0.01
    )


def test_without_geometry_sizes_decide(tmp_path: Path) -> None:
    a = nifti(tmp_path / "a.nii", np.eye(4))
    bare = nibabel.Nifti1Image(np.arange(480, dtype=np.float32).reshape(8, 10, 6), None)
    nibabel.save(bare, tmp_path / "b.nii")
    assert medical.grid_of(tmp_path / "b.nii") is None and medical.slice_count(tmp_path / "b.nii", ("CT", a)) == 6
    failure = read_pair(expand([pair_of(a, tmp_path / "b.nii")])[0], Reading("mif"))
    assert isinstance(failure, Failure) and "differ in size" in failure.reason
    plain = dicom(tmp_path / "plain.dcm", np.arange(120, dtype=np.int16).reshape(10, 12), None)
    assert read_source(plain, None, ("CT", a)).note == ""


def test_other_frames_of_reference_are_told(tmp_path: Path) -> None:
    ct, mr = ramp_dicom(tmp_path / "ct.dcm", 0), ramp_dicom(tmp_path / "mr.dcm", 90, FrameOfReferenceUID="1.2.8")
    assert "another frame of reference than CT" in medical.read_slice(mr, 0, ("CT", ct)).note
    near = ramp_dicom(tmp_path / "near.dcm", 90)
    with pytest.raises(ImageError, match="lies beside"):
        medical.read_slice(near, 0, ("CT", ct))


def test_dicom_and_nifti_share_the_patient_axes(tmp_path: Path) -> None:
    for i in range(5):
        ramp_dicom(tmp_path / "ct" / f"{9 - i}", 2 * i)
    mri = nifti(tmp_path / "mri.nii", scaled(1, 1, 1, start=(-18, -24, -1)), (16, 24, 12))
    picture = medical.read_slice(mri, 2, ("CT", tmp_path / "ct"))
    assert picture.valid is None or picture.valid[1:, 1:].all()
    np.testing.assert_allclose(picture.pixels[1:-1, 1:-1], ramp(places_of(tmp_path / "ct", 2))[1:-1, 1:-1], atol=0.5)


def test_a_file_without_a_header_of_dicom_is_read(tmp_path: Path) -> None:
    """As archives from before 1998 export."""
    whole = ramp_dicom(tmp_path / "a.dcm", 7)
    wanted = medical.read_slice(whole, 0).pixels
    content = whole.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")  # behind the preamble and the group of the header
    (tmp_path / "b.dcm").write_bytes(content[start:])
    np.testing.assert_array_equal(medical.read_slice(tmp_path / "b.dcm", 0).pixels, wanted)
    (tmp_path / "b.IMA").write_bytes(content[132:])  # with the header, but nothing before it
    assert medical.kind(tmp_path / "b.IMA") == "dicom"
    np.testing.assert_array_equal(medical.read_slice(tmp_path / "b.IMA", 0).pixels, wanted)
    (tmp_path / "c.dcm").write_bytes(b"a text that is no scan" * 20)
    with pytest.raises(ImageError, match=r"c\.dcm: not a DICOM image"):
        medical.read_slice(tmp_path / "c.dcm", 0)


def test_a_folder_of_two_echoes_is_not_paired_by_names(tmp_path: Path) -> None:
    for z in range(3):
        ramp_dicom(tmp_path / "ct" / f"{z}.dcm", z)
        for echo in range(2):
            ramp_dicom(tmp_path / "mr" / f"{2 * z + echo}.dcm", z, Modality="MR", EchoTime=10 + 70 * echo)
    with pytest.raises(
        PairingError, match=r"mr: holds more than one DICOM series, echo or phase; give a folder for each"
    ):
        find_pairs({"CT": str(tmp_path / "ct"), "MRI": str(tmp_path / "mr")})
    (tmp_path / "mr" / "9.dcm").write_bytes(b"a damaged one" * 20)
    with pytest.raises(PairingError, match=r"mr: holds more than one DICOM series"):
        find_pairs({"CT": str(tmp_path / "ct"), "MRI": str(tmp_path / "mr")})


def test_nan_was_not_measured(tmp_path: Path) -> None:
    values = np.arange(720, dtype=np.float32).reshape(12, 10, 6) + 5
    values[:4] = np.nan
    picture = medical.read_slice(nifti(tmp_path / "a.nii", np.eye(4), values=values), 0)
    assert picture.valid is not None and not picture.valid[:, 8:].any() and picture.valid[:, :8].all()
    assert picture.pixels.min() == 245  # the least that was measured


@needs_cases
def test_shared_dicom_cases() -> None:
    folder = CASES / "dicom"
    pytest.importorskip("gdcm")
    np.testing.assert_array_equal(
        medical.read_slice(folder / "ct_ljpeg.dcm", 0).pixels, medical.read_slice(folder / "ct.dcm", 0).pixels
    )
    pet = medical.read_slice(folder / "pet_palette.dcm", 0).pixels
    assert pet.shape == (128, 128, 3) and pet.dtype == np.uint8 and (pet[..., 0] >= pet[..., 2]).all()
    pairs = expand(find_pairs({"CT": str(folder / "noext" / "CT"), "MRI": str(folder / "noext" / "MR")}))
    assert len(pairs) == 4
    for i, pair in enumerate(pairs):
        sample = read_pair(pair, Reading("mif"))
        assert isinstance(sample, Sample) and "resampled" not in sample.note
        grid = medical.grid_of(pair.files["MRI"])
        assert grid is not None and grid.depths[i] == 5 * i


@needs_cases
def test_shared_nifti_cases() -> None:
    folder = CASES / "nifti_grid"
    ct = folder / "ct.nii.gz"
    for name, told in (("mr_2mm", "2x2x5 mm to the grid of CT"), ("mr_shift30", "covers 77 %"), ("mr_3sl", "1x1x5")):
        pairs = expand([pair_of(ct, folder / f"{name}.nii.gz")])
        samples = [read_pair(pair, Reading("mif")) for pair in pairs]
        assert len(samples) == 4
        assert all(isinstance(sample, Sample) and told in sample.note for sample in samples[:3])
        assert isinstance(samples[3], Failure if name == "mr_3sl" else Sample)
    shifted = medical.read_slice(folder / "mr_shift30.nii.gz", 1, ("CT", ct))
    assert shifted.valid is not None
    np.testing.assert_array_equal(shifted.valid, np.arange(128)[None].repeat(128, 0) >= 30)
    plain = medical.read_slice(folder / "mr_3sl.nii.gz", 1).pixels  # the same values at other places
    np.testing.assert_allclose(shifted.pixels[:, 30:], plain[:, :-30], atol=0.01)
    halved = medical.read_slice(folder / "mr_2mm.nii.gz", 1, ("CT", ct)).pixels
    fits = {shift: np.corrcoef(np.roll(halved, shift, 1).ravel(), plain.ravel())[0, 1] for shift in range(-3, 4)}
    assert fits[0] > 0.95 and fits[0] > max(fits.values()) - 0.01  # the case itself is half a pixel off
