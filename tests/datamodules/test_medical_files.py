"""DICOM and NIfTI files: what is recognised, decoded, sorted and refused."""

import gzip
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.pairing import Pair, expand, find_pairs
from datamodules.pairs import Reading, Sample, read_pair
from datamodules.readers import medical, volume
from datamodules.readers.source import frame_count, is_source, read_source, source_digest, source_size, stem
from dig2dig.errors import ImageError
from tests.scans import dicom, nifti, ramp, ramp_dicom

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")


def test_palettes_are_applied(tmp_path: Path) -> None:
    table = np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 7)]).astype(np.uint8)
    colours = {}
    for name, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        colours[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        colours[f"{name}PaletteColorLookupTableData"] = (entries.astype(np.uint16) * 257).tobytes()
    indices = np.arange(120, dtype=np.uint8).reshape(10, 12)
    path = dicom(tmp_path / "pet.dcm", indices, PhotometricInterpretation="PALETTE COLOR", **colours)
    picture = read_source(path)
    assert picture.pixels.dtype == np.uint8 and picture.depth == 8
    np.testing.assert_array_equal(picture.pixels, table[:, indices].transpose(1, 2, 0))


def test_padding_was_not_measured(tmp_path: Path) -> None:
    stored = np.arange(120, dtype=np.int16).reshape(10, 12)
    stored[:, :2], stored[0, 5] = -2000, -1990
    rescale = {"RescaleSlope": "2", "RescaleIntercept": "-1024"}
    path = dicom(tmp_path / "one.dcm", stored, PixelPaddingValue=-2000, **rescale)
    picture = medical.read_slice(path, 0)
    assert picture.valid is not None
    np.testing.assert_array_equal(picture.valid, stored != -2000)
    np.testing.assert_array_equal(picture.pixels[picture.valid], 2.0 * stored[stored != -2000] - 1024)
    assert (picture.pixels[:, :2] == 2 * -1990 - 1024).all()
    limits = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}
    picture = medical.read_slice(dicom(tmp_path / "two.dcm", stored, **limits), 0)
    assert picture.valid is not None
    np.testing.assert_array_equal(picture.valid, stored >= 0)
    inverted = dicom(tmp_path / "three.dcm", stored, PhotometricInterpretation="MONOCHROME1", **limits)
    found = medical.read_slice(inverted, 0)
    np.testing.assert_array_equal(found.pixels[stored >= 0], stored[stored >= 0])
    assert found.inverted and (found.pixels[stored < 0] == 119).all()  # no data is dark
    with pytest.raises(ImageError, match="no pixel of slice 0 was measured"):
        medical.read_slice(dicom(tmp_path / "all.dcm", np.full((8, 8), -2000, np.int16), PixelPaddingValue=-2000), 0)
    sample = read_pair(Pair("a", {"CT": path, "MRI": dicom(tmp_path / "b.dcm", stored % 50)}), Reading("mif"))
    assert isinstance(sample, Sample) and sample.valid is not None
    assert not sample.valid[0, 0, :, :2].any() and sample.valid[0, 0, 1:, 2:].all()


def test_jpeg_of_12_bits_is_decoded(tmp_path: Path) -> None:
    """Lossy DICOM of CR and XA, which neither GDCM nor Pillow decode for pydicom."""
    imagecodecs: Any = pytest.importorskip("imagecodecs")
    from pydicom.encaps import encapsulate

    y, x = np.mgrid[:64, :80]
    stored = ((np.sin(x / 9) + np.cos(y / 7) + 2) * 1000).astype(np.uint16)
    frames = encapsulate([imagecodecs.jpeg_encode(one, level=97, bitspersample=12) for one in (stored, stored[::-1])])
    tags = {"BitsStored": 12, "HighBit": 11, "NumberOfFrames": 2, "PixelData": frames, "RescaleIntercept": "-9"}
    path = dicom(tmp_path / "xa.dcm", stored, syntax="1.2.840.10008.1.2.4.51", RescaleSlope="1", **tags)
    for index, frame in enumerate((stored, stored[::-1])):
        np.testing.assert_allclose(medical.read_slice(path, index).pixels, frame - 9.0, atol=4)


def test_files_are_recognised_by_content(tmp_path: Path) -> None:
    for name in ("IM000001", "1.2.840.7", "x.IMA", "x.DCM"):
        assert medical.kind(ramp_dicom(tmp_path / name, 0)) == "dicom"
    assert stem(Path("1.2.840.7")) == "1.2.840.7" and stem(Path("a/x.IMA")) == "x"
    assert medical.slice_count(nifti(tmp_path / "v.NII.gz", np.eye(4))) == 6
    assert source_size(nifti(tmp_path / "w.nii", np.eye(4)), 0) == (10, 12)
    (tmp_path / "notes.txt").write_text("x" * 400)
    (tmp_path / "short").write_bytes(b"DICM")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(os.urandom(900))[:200])
    ramp_dicom(tmp_path / "hidden", 0).rename(tmp_path / ".hidden")
    ramp_dicom(tmp_path / "index", 0).rename(tmp_path / "DICOMDIR")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
    os.mkfifo(tmp_path / "pipe.dcm")
    for name in ("notes.txt", "short", "cut.gz", ".hidden", "DICOMDIR", "empty", "pipe", "pipe.dcm", "lost"):
        assert not is_source(tmp_path / name)
    before = tmp_path / "short"
    ramp_dicom(before, 0)
    assert medical.is_medical(before)  # the file is another one now


def test_a_folder_of_one_series_is_a_volume(tmp_path: Path) -> None:
    """Files are sorted by position, whatever they are called."""
    heights = {"z": 0, "b": 2, "y": 4, "a": 6}
    for name, z in heights.items():
        ramp_dicom(tmp_path / "CT" / name, z)
    for name, z in zip(("1", "2", "3", "4"), (4, 2, 6, 0), strict=True):
        ramp_dicom(tmp_path / "MR" / name, z, Modality="MR")
    (tmp_path / "CT" / "README.txt").write_text("four slices")
    assert medical.kind(tmp_path / "CT") == "series" and frame_count(tmp_path / "CT") == 4
    assert [file.name for file in medical.files(tmp_path / "MR")] == ["4", "2", "1", "3"]
    (pair,) = find_pairs({"CT": str(tmp_path / "CT"), "MRI": str(tmp_path / "MR")})
    assert pair.files == {"CT": tmp_path / "CT", "MRI": tmp_path / "MR"}
    frames = expand([pair])
    assert [frame.name for frame in frames] == [f"CT_00000{i}" for i in range(4)]
    for i, frame in enumerate(frames):
        one, other = (medical.read_slice(tmp_path / side, i).pixels for side in ("CT", "MR"))
        np.testing.assert_array_equal(one, other)
        assert one[0, 0] == ramp(np.array([-5, -4, 2 * i]))
        assert isinstance(read_pair(frame, Reading("mif")), Sample)
    assert source_size(tmp_path / "CT", 1) == (10, 12)
    digest = source_digest(tmp_path / "CT")
    (tmp_path / "CT" / "z").rename(tmp_path / "CT" / "c")
    assert len(digest) == 32 and source_digest(tmp_path / "CT") == digest
    ramp_dicom(tmp_path / "CT" / "c", -2)
    assert source_digest(tmp_path / "CT") != digest
    (pair,) = find_pairs({"CT": str(tmp_path / "CT"), "MRI": str(nifti(tmp_path / "mri.nii", np.eye(4)))})
    assert list(pair.files) == ["CT", "MRI"]


def test_a_series_shares_range_and_inversion(tmp_path: Path) -> None:
    for i in range(3):
        stored = np.arange(120, dtype=np.int16).reshape(10, 12) + 1000 * i
        dicom(tmp_path / "ct" / str(i), stored, (0, 0, i), PhotometricInterpretation="MONOCHROME1")
    found = [medical.read_slice(tmp_path / "ct", i) for i in range(3)]
    assert [one.pixels.max() for one in found] == [119, 1119, 2119] and all(one.inverted for one in found)


def test_a_window_holds_stored_values_where_large_ones_are_dark(tmp_path: Path) -> None:
    stored = np.arange(120, dtype=np.int16).reshape(10, 12)
    ct = dicom(tmp_path / "ct.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    pair = Pair("a", {"CT": ct, "MRI": dicom(tmp_path / "mri.dcm", stored % 50)})
    sample = read_pair(pair, Reading("mif", range={"CT": "20-60"}))
    assert isinstance(sample, Sample) and "CT: values 20 to 60 are white to black" in sample.note
    np.testing.assert_allclose(sample.sources[0, 0].numpy(), (1 - (stored - 20) / 40).clip(0, 1), atol=1e-6)


def test_what_is_not_covered_is_dark_where_large_values_are(tmp_path: Path) -> None:
    """A slice that is resampled to a grid beyond its own."""
    stored = np.arange(120, dtype=np.int16).reshape(10, 12)
    onto = dicom(tmp_path / "ct.dcm", stored, (4, 0, 0))
    for kind, filled in (("MONOCHROME1", np.max), ("MONOCHROME2", np.min)):
        path = dicom(tmp_path / f"{kind}.dcm", stored, PhotometricInterpretation=kind)
        found = medical.read_slice(path, 0, ("CT", onto))
        assert found.valid is not None and not found.valid.all()
        assert (found.pixels[~found.valid] == filled(found.pixels[found.valid])).all(), kind


def test_a_series_is_in_colour_or_grey_as_a_whole(tmp_path: Path) -> None:
    """A slice of a PET map that shows nothing is grey, but its result belongs to those in colour."""
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    for i in range(3):
        ramp_dicom(tmp_path / "MR" / f"{i}", i)
        map = np.full((10, 12, 3), (90, 40 if i == 1 else 90, 90), np.uint8)
        dicom(tmp_path / "PET" / f"{i}", map, (5, 4, i), SeriesInstanceUID="1.2.3.5", **colour)
        dicom(tmp_path / "grey" / f"{i}", np.full_like(map, 90), (5, 4, i), **colour)
    for side, coloured in (("PET", True), ("grey", False)):
        pairs = expand(find_pairs({"MRI": str(tmp_path / "MR"), side: str(tmp_path / side)}))
        for sample in (read_pair(pair, Reading("mif")) for pair in pairs):
            assert isinstance(sample, Sample) and (sample.chroma is not None) == coloured


def test_other_folders_are_paired_by_name(tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "patients": {"PatientID": "8"},
        "series": {"SeriesInstanceUID": "1.2.3.5"},
        "turned": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
        "bare": {"PixelSpacing": None},
    }
    for name, tags in changes.items():
        ramp_dicom(tmp_path / name / "a.dcm", 0)
        ramp_dicom(tmp_path / name / "b.dcm", 2, **tags)
        assert medical.kind(tmp_path / name) == ""
    ramp_dicom(tmp_path / "twice" / "a.dcm", 0)
    ramp_dicom(tmp_path / "twice" / "b.dcm", 0)
    ramp_dicom(tmp_path / "one" / "a.dcm", 0)
    assert medical.kind(tmp_path / "twice") == medical.kind(tmp_path / "one") == ""
    pairs = find_pairs({"CT": str(tmp_path / "patients"), "MRI": str(tmp_path / "series")})
    assert [pair.name for pair in pairs] == ["a", "b"]
    assert pairs[1].files["MRI"] == tmp_path / "series" / "b.dcm"


def test_folders_of_series_are_paired_by_name(tmp_path: Path) -> None:
    for side in ("CT", "MR"):
        for patient in ("ann", "bob"):
            for z in range(2):
                ramp_dicom(tmp_path / side / patient / f"{z}", z, SeriesInstanceUID=f"1.{len(side + patient)}")
    pairs = find_pairs({"CT": str(tmp_path / "CT"), "MRI": str(tmp_path / "MR")})
    assert [pair.name for pair in pairs] == ["ann", "bob"] and pairs[1].files["CT"] == tmp_path / "CT" / "bob"


def test_multi_frame_files_tell_where_each_frame_lies(tmp_path: Path) -> None:
    def group(**tags: Any) -> Any:
        data: Any = pydicom.Dataset()
        for tag, value in tags.items():
            setattr(data, tag, value)
        return data

    frames, shared = [], group()
    shared.PixelMeasuresSequence = [group(PixelSpacing=[2.0, 1.0], SliceThickness="3")]
    shared.PlaneOrientationSequence = [group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    for i in range(3):
        frame = group(PlanePositionSequence=[group(ImagePositionPatient=[0.0, 0.0, -3.0 * i])])
        frame.PixelValueTransformationSequence = [group(RescaleSlope=str(i + 1), RescaleIntercept="-10")]
        frames.append(frame)
    stored = np.arange(360, dtype=np.int16).reshape(3, 10, 12)
    many = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames}
    path = dicom(tmp_path / "a.dcm", stored[0], None, NumberOfFrames=3, PixelData=stored.tobytes(), **many)
    grid = medical.grid_of(path)
    assert grid is not None and grid.spacing == (1, 2, 3) and grid.depths.tolist() == [-6, -3, 0]
    for i in range(3):
        np.testing.assert_array_equal(medical.read_slice(path, 2 - i).pixels, stored[i] * (i + 1.0) - 10)


def test_claims_are_checked_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = nifti(tmp_path / "a.nii", np.eye(4))
    header = bytearray(small.read_bytes())
    header[42:48] = np.array([30000] * 3, "<i2").tobytes()
    for name, content in (("b.nii", bytes(header)), ("b.nii.gz", gzip.compress(bytes(header)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=rf"{name}: claims 100582.8 GiB; at most"):
            medical.slice_count(tmp_path / name)
    frames = dicom(tmp_path / "c.dcm", np.ones((8, 8), np.int16), Rows=60000, Columns=60000, NumberOfFrames=40)
    with pytest.raises(ImageError, match=r"c\.dcm: claims 536\.4 GiB"):
        medical.slice_count(frames)
    bomb = tmp_path / "d.nii.gz"
    bomb.write_bytes(gzip.compress(small.read_bytes() + bytes(2**27)))
    tracemalloc.start()
    try:
        assert medical.slice_count(bomb) == 6
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    noise = {"DeviceSerialNumber": "1", "PixelData": bytes(2**20)}
    deflated = dicom(tmp_path / "e.dcm", np.arange(64, dtype=np.int16).reshape(8, 8), syntax=volume_syntax(), **noise)
    monkeypatch.setattr("datamodules.readers.dicom.memory", lambda: 2**16)
    monkeypatch.setattr(volume, "memory", lambda: 2**16)
    assert deflated.stat().st_size < 2**13
    with pytest.raises(ImageError, match=r"e\.dcm: claims 0\.0 GiB"):
        medical.slice_count(deflated)


def volume_syntax() -> Any:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    return DeflatedExplicitVRLittleEndian


def test_deflated_files_are_read(tmp_path: Path) -> None:
    stored = np.arange(120, dtype=np.int16).reshape(10, 12)
    path = dicom(tmp_path / "a.dcm", stored, syntax=volume_syntax())
    np.testing.assert_array_equal(medical.read_slice(path, 0).pixels, stored)


def test_decoders_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import decoders
    from pydicom.uid import MPEG2MPML, HTJ2KLossless, JPEGLosslessSV1

    pixels = np.arange(120, dtype=np.int16).reshape(10, 12)
    wanted = {
        JPEGLosslessSV1: r"needs a decoder for JPEG Lossless: pip install 'dig2dig\[medical\]'",
        HTJ2KLossless: "needs a decoder for .*JPEG 2000.*: pip install pylibjpeg pylibjpeg-openjpeg",
        MPEG2MPML: "MPEG2 .* is not read; save it as Explicit VR Little Endian",
    }
    for decoder in (decoders.JPEGLosslessSV1Decoder, decoders.HTJ2KLosslessDecoder):
        monkeypatch.setattr(decoder, "_available", {})
    for syntax, told in wanted.items():
        path = dicom(tmp_path / f"{syntax[-3:]}.dcm", pixels)
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID, data.PixelData = syntax, encapsulate([b"\xff\xd8ab"])
        data["PixelData"].is_undefined_length = True
        data.save_as(path)
        with pytest.raises(ImageError, match=told) as error:
            medical.slice_count(path)
        assert "\n" not in str(error.value)
