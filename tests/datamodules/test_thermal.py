"""Thermal cameras: temperatures against Planck's law, the visible picture beside them, and false colours taken back."""

import io
import math
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from datamodules.pairing import Pair, expand, find_pairs
from datamodules.pairs import Failure, Reading, Sample, batch_key, read_pair
from datamodules.picture import Picture
from datamodules.readers.palettes import palettes, without_palette
from datamodules.readers.source import read_source, source_digest, source_size
from datamodules.readers.thermal import FIELDS, is_infrared, is_radiometric, temperatures
from dig2dig.errors import ImageError, PairingError
from tests.conftest import SHARED
from tests.corpus import picture
from tests.runs import rows, run, save

REAL, CASES = SHARED / "radiometric", SHARED.parent / "cases"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the shared thermal files are not here")
CAMERA = {  # a camera that sees its object without air, window or reflection
    "emissivity": 1.0, "distance": 0.0, "reflected": 293.15, "atmosphere": 293.15, "window_kelvin": 293.15,
    "window": 1.0, "humidity": 0.5, "R1": 17000.0, "B": 1430.0, "F": 1.0, "alpha1": 0.006569, "alpha2": 0.01262,
    "beta1": -0.002276, "beta2": -0.00667, "X": 1.9, "O": -1000, "R2": 0.0125,
}  # fmt: skip
CELSIUS = np.linspace(10, 90, 24 * 32).reshape(24, 32)
VISIBLE = picture(3, 3, 48, 64)


def sent(kelvin: np.ndarray | float, camera: dict = CAMERA) -> np.ndarray:
    """What a black body sends, as raw values: Planck's law as FLIR writes it."""
    return camera["R1"] / (camera["R2"] * (np.exp(camera["B"] / np.asarray(kelvin)) - camera["F"])) - camera["O"]


def camera_record(camera: dict) -> bytes:
    record = bytearray(0x400)
    record[:2] = b"\2\0"
    for name, (at, kind) in FIELDS.items():
        struct.pack_into(f"<{kind}", record, at, camera[name])
    return bytes(record)


def raw_record(values: np.ndarray, stored: str) -> bytes:
    head = struct.pack("<HHH", 2, values.shape[1], values.shape[0]).ljust(32, b"\0")
    if stored == "plain":
        return head + values.astype("<u2").tobytes()
    Image.fromarray(values.byteswap() if stored == "swapped" else values).save(buffer := io.BytesIO(), "PNG")
    return head + buffer.getvalue()


def flir(
    path: Path,
    visible: np.ndarray | None = VISIBLE,
    stored: str = "swapped",
    camera: dict = CAMERA,
    inset: tuple[float, int, int] | None = None,
) -> Path:
    """A radiometric JPEG of ``CELSIUS``, whose own picture is a palette; ``inset`` is its Real2IR, OffsetX, OffsetY."""
    parts = {32: camera_record(camera), 1: raw_record(sent(CELSIUS + 273.15).round().astype(np.uint16), stored)}
    if visible is not None:
        jpeg = cv2.imencode(".jpg", visible[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
        parts[14] = struct.pack("<H", 3).ljust(32, b"\0") + jpeg
    if inset:
        parts[42] = struct.pack("<f2h", *inset).ljust(96, b"\0")
    content, index = b"", b""
    for kind, record in parts.items():
        index += struct.pack(">HHIIIIIII", kind, 1, 100, 0, 64 + 32 * len(parts) + len(content), len(record), 0, 0, 0)
        content += record
    head = b"FFF\0".ljust(20, b"\0") + struct.pack(">III", 100, 64, len(parts))
    fff = head.ljust(64, b"\0") + index + content
    chunks = [fff[i : i + 3000] for i in range(0, len(fff), 3000)]
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(chunk) + 10) + b"FLIR\0\x01" + bytes([i, len(chunks) - 1]) + chunk
        for i, chunk in enumerate(chunks)
    )
    shown = cv2.imencode(".jpg", cv2.applyColorMap(picture(5, 1, 24, 32), cv2.COLORMAP_HOT))[1].tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(shown[:2] + segments + shown[2:])
    return path


@pytest.mark.parametrize(
    ("modality", "infrared"),
    [("infrared", True), ("IR", True), ("thermal_left", True), ("ir2", True), ("lwir", True), ("mwir-cam", True),
     ("tir", True),
     ("visible", False), ("nir", False), ("near_infrared", False), ("third", False), ("fir", False), ("", False)],
)  # fmt: skip
def test_names_that_show_heat(modality: str, infrared: bool) -> None:
    assert is_infrared(modality) == infrared


@pytest.mark.parametrize("stored", ["plain", "png", "swapped"])
def test_temperatures_are_those_of_the_black_body(tmp_path: Path, stored: str) -> None:
    path = flir(tmp_path / "a.jpg", stored=stored)
    found = read_source(path, modality="infrared")
    assert found.pixels.dtype == np.float32 and "degrees Celsius" in found.note
    np.testing.assert_allclose(found.pixels, CELSIUS, atol=0.02)  # a step of the raw values is 0.01 degrees
    assert found.digest == source_digest(path) and source_size(path, modality="ir") == (24, 32)


def test_air_window_and_reflection_are_taken_out() -> None:
    """A forward model of its own: the object's light through air, window and air, each adding its own."""
    camera = CAMERA | {
        "emissivity": 0.8, "distance": 50.0, "reflected": 280.0, "atmosphere": 300.0, "window_kelvin": 310.0,
        "window": 0.9, "humidity": 60.0,
    }  # fmt: skip
    water = 0.6 * math.exp(1.5587 + 0.06939 * 26.85 - 2.7816e-4 * 26.85**2 + 6.8455e-7 * 26.85**3)
    one, two = (
        math.exp(-math.sqrt(25) * (camera[f"alpha{i}"] + camera[f"beta{i}"] * math.sqrt(water))) for i in (1, 2)
    )
    air = 1.9 * one - 0.9 * two
    assert 0.8 < air < 1
    arriving = 0.8 * sent(CELSIUS + 273.15) + 0.2 * sent(280.0)
    for passed, kelvin in ((air, 300.0), (0.9, 310.0), (air, 300.0)):
        arriving = passed * arriving + (1 - passed) * sent(kelvin)
    np.testing.assert_allclose(temperatures(arriving, camera_record(camera))[0], CELSIUS, atol=0.01)
    plain = temperatures(arriving, camera_record(CAMERA))[0]
    assert abs(plain - CELSIUS).max() > 3  # it matters


def test_damaged_constants_leave_raw_values_or_count_as_one() -> None:
    values = sent(CELSIUS + 273.15).round().astype(np.uint16)
    raw, note = temperatures(values, camera_record(CAMERA | {"R1": 0.0}))
    assert "no calibration" in note and (raw == values).all()
    assert "no calibration" in temperatures(values, b"")[1]
    odd = camera_record(CAMERA | {"emissivity": math.nan, "window": 0.0, "humidity": -1.0, "distance": 9.0})
    np.testing.assert_allclose(temperatures(values, odd)[0], CELSIUS, atol=0.02)


def test_one_file_is_both_sources(tmp_path: Path) -> None:
    path = flir(tmp_path / "both" / "a.jpg")
    seen = read_source(path, modality="visible")
    assert seen.pixels.shape == (48, 64, 3) and abs(seen.pixels.astype(int) - VISIBLE).mean() < 7
    assert source_size(path, modality="visible") == (48, 64) and is_radiometric(path)
    pattern = str(tmp_path / "both" / "{name}.jpg")
    for place in (str(tmp_path / "both"), str(path), pattern):
        pair = find_pairs({"visible": place, "infrared": place})[0]
        assert batch_key(pair) == (2, 48, 64) and batch_key(pair, "infrared") == (2, 24, 32)
        sample = read_pair(pair, Reading(align="resize"))
        assert isinstance(sample, Sample) and sample.sources.shape == (2, 1, 48, 64), sample
        expected = cv2.resize(((CELSIUS - 10) / 80).astype(np.float32), (64, 48))
        assert abs(sample.sources[1, 0].numpy() - expected).max() < 0.03
        assert sample.chroma is not None and "degrees Celsius" in sample.note


def test_the_camera_says_where_its_pictures_lie(tmp_path: Path) -> None:
    """A scale of 1.6 leaves 40x30 of 64x48 visible pixels, the offset moves them by 4, -2: from 16, 7 on."""
    file = flir(tmp_path / "a.jpg", inset=(1.6, 4, -2))
    pair = Pair("a", {"visible": file, "infrared": file})
    found = read_pair(pair, Reading(align="none", border="keep"))
    assert isinstance(found, Sample) and found.valid is not None
    assert "infrared: moved by 4, -2 px, scaled to 125 %, as its camera says" in found.note
    covered = np.zeros((48, 64), bool)
    covered[7:37, 16:56] = True
    np.testing.assert_array_equal(found.valid[1, 0], covered)
    rows = found.sources[1, 0, 7:37, 16:56].mean(1).diff()
    assert (rows > 0).all()  # CELSIUS rises from row to row
    inner = read_pair(pair, Reading(reference="infrared", border="keep"))
    assert isinstance(inner, Sample) and inner.valid is None and inner.sources.shape[-2:] == (24, 32)
    luma = cv2.cvtColor(VISIBLE, cv2.COLOR_RGB2GRAY)[7:37, 16:56]
    expected = cv2.resize(luma, (32, 24), interpolation=cv2.INTER_AREA) / 255
    assert np.abs(inner.sources[0, 0].numpy() - expected).mean() < 0.03
    refused = read_pair(pair, Reading(align="auto", border="keep"))  # noise does not register, so the camera decides
    assert isinstance(refused, Sample) and "as its camera says" in refused.note
    other = Pair("a", {"visible": flir(tmp_path / "b.jpg", inset=(1.6, 4, -2)), "infrared": file})
    apart = read_pair(other, Reading())
    assert isinstance(apart, Failure) and "sources differ in size" in apart.reason


def test_a_damaged_visible_picture_leaves_the_temperatures(tmp_path: Path) -> None:
    file = flir(tmp_path / "a.jpg", inset=(1.6, 4, -2))
    content = file.read_bytes()
    at = content.index(b"\xff\xd8\xff", 10) + 2  # of the embedded picture
    file.write_bytes(content[:at] + bytes(60) + content[at + 60 :])
    picture = read_source(file, modality="infrared")
    assert picture.box is None and abs(picture.pixels - CELSIUS).max() < 0.1
    with pytest.raises(ImageError, match=r"a\.jpg"):
        read_source(file, modality="visible")


@pytest.mark.parametrize("inset", [None, (0.0, 4, 4), (float("nan"), 4, 4), (1.6, 40, 4)])
def test_a_camera_that_states_no_place_leaves_it_to_the_user(tmp_path: Path, inset) -> None:
    file = flir(tmp_path / "a.jpg", inset=inset)
    found = read_pair(Pair("a", {"visible": file, "infrared": file}), Reading())
    assert isinstance(found, Failure) and "sources differ in size" in found.reason


def test_one_file_is_not_two_sources_of_one_kind(tmp_path: Path) -> None:
    folder = str(flir(tmp_path / "both" / "a.jpg").parent)
    for names in (("visible", "other"), ("ir", "thermal")):
        with pytest.raises(PairingError, match="are the same"):
            find_pairs(dict.fromkeys(names, folder))
    Image.fromarray(VISIBLE).save(tmp_path / "plain.jpg")
    plain = Pair("plain", dict.fromkeys(("visible", "infrared"), tmp_path / "plain.jpg"))
    assert "given twice" in getattr(read_pair(plain, Reading()), "reason", "")


def test_without_a_visible_picture_one_line_says_so(tmp_path: Path) -> None:
    path = flir(tmp_path / "a.jpg", visible=None)
    with pytest.raises(ImageError) as caught:
        read_source(path, modality="visible")
    assert str(caught.value) == (f"{path}: a thermal JPEG without an embedded visible picture; give the visible files")
    assert read_source(path).pixels.shape == (24, 32, 3)  # where nobody asks, what it shows


def test_a_part_that_is_lost_is_told(tmp_path: Path) -> None:
    path = flir(tmp_path / "a.jpg")
    content = path.read_bytes()
    at = content.index(b"FLIR\0\x01\x01")
    path.write_bytes(content[: at - 4] + content[at - 2 + struct.unpack(">H", content[at - 2 : at])[0] :])
    with pytest.raises(ImageError, match="1 parts of its thermal data are lost; copy it again"):
        read_source(path, modality="infrared")


@pytest.mark.parametrize("seed", range(40))
def test_mutated_thermal_files_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    stored = ("plain", "png", "swapped")[seed % 3]
    content = bytearray(flir(tmp_path / "a.jpg", stored=stored, inset=(1.6, 4, -2)).read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(2, 400 if seed % 2 else len(content), 6):
        content[place] = rng.integers(256)
    (tmp_path / "a.jpg").write_bytes(bytes(content[: rng.integers(len(content) // 2, len(content))]))
    for modality in ("infrared", "visible"):
        try:
            assert min(read_source(tmp_path / "a.jpg", modality=modality).pixels.shape[:2]) >= 4
            source_size(tmp_path / "a.jpg", modality=modality)
        except ImageError as error:
            assert "a.jpg" in str(error) and "\n" not in str(error)


def dji(path: Path, samples: int) -> Path:
    exif = Image.Exif()
    exif[271] = "DJI"
    Image.fromarray(VISIBLE).save(path, exif=exif)
    content = path.read_bytes()
    parts = [bytes(60000)] * (samples // 60000)
    segments = b"".join(b"\xff\xe3" + struct.pack(">H", len(part) + 2) + part for part in parts)
    at = 2 + 2 + struct.unpack(">H", content[4:6])[0]
    path.write_bytes(content[:at] + segments + content[at:])
    return path


def test_thermal_files_of_dji_are_told_from_its_photographs(tmp_path: Path) -> None:
    path = dji(tmp_path / "thermal.jpg", 640 * 512 * 2)
    for look in (read_source, source_size):
        with pytest.raises(ImageError, match=r"thermal.jpg: DJI keeps its temperatures .* export TIFF"):
            look(path, modality="infrared")
    with pytest.raises(ImageError, match="without an embedded visible picture"):
        read_source(path, modality="visible")
    photograph = dji(tmp_path / "photograph.jpg", 0)
    assert read_source(photograph, modality="visible").pixels.shape == (48, 64, 3)


@needs_real
def test_real_files_have_the_temperatures_that_their_pictures_print() -> None:
    ax8 = read_source(REAL / "FLIR_AX8.jpg", modality="infrared").pixels
    assert ax8.shape == (60, 80)
    np.testing.assert_allclose([ax8.max(), ax8.min(), ax8.mean()], [25.5, 24.3, 25.1], atol=0.08)  # in its corner
    mug = read_source(REAL / "FLIR.jpg", modality="infrared").pixels
    shown = np.asarray(Image.open(REAL / "FLIR.jpg").convert("L").resize(mug.shape[::-1]))
    assert spearmanr(mug.ravel(), shown.ravel()).statistic > 0.9 and 25 < mug.min() < mug.max() < 63
    fuses = read_source(REAL / "FLIR_T640.jpg", modality="infrared").pixels
    assert fuses.shape == (480, 640) and 20 < fuses.min() < fuses.max() < 120
    for name, size in (("FLIR", (640, 480)), ("FLIR_AX8", (480, 640)), ("FLIR_T640", (1944, 2592))):
        seen = read_source(REAL / f"{name}.jpg", modality="visible")
        assert seen.pixels.shape == (*size, 3) and len(seen.metadata.exif) > 100
    with pytest.raises(ImageError, match=r"DJI_H20T.jpg: DJI keeps"):
        read_source(REAL / "DJI_H20T.jpg", modality="infrared")


@pytest.mark.slow
@needs_real
def test_a_folder_of_thermal_files_is_fused_with_itself(tmp_path: Path) -> None:
    for side in ("visible", "infrared"):
        (tmp_path / side).mkdir()
        for name in ("FLIR.jpg", "FLIR_AX8.jpg"):
            (tmp_path / side / name).symlink_to(REAL / name)
    assert run(tmp_path) == 0
    assert all("as its camera says" in row["note"] for row in rows(tmp_path / "out").values())


@pytest.mark.parametrize("name", ["jet", "inferno", "hot", "turbo", "viridis", "rainbow", "iron", "iron bow"])
def test_false_colours_are_taken_back_to_values(name: str) -> None:
    values = cv2.resize(np.clip(picture(7, 1, 30, 40) * 0.8 + 20, 0, 255).astype(np.uint8), (320, 240))
    coloured = palettes()[name][values].round().astype(np.uint8)
    found = without_palette(Picture(coloured, note="read"))
    assert found.note == f"read, false colour ({name}) taken back to values"
    assert abs(found.pixels.astype(int) - values).mean() < 1.5
    noisy = cv2.imdecode(cv2.imencode(".jpg", coloured[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1], 1)
    assert isinstance(noisy, np.ndarray)
    again = without_palette(Picture(np.ascontiguousarray(noisy[..., ::-1])))
    assert "taken back" in again.note and spearmanr(again.pixels.ravel(), values.ravel()).statistic > 0.9


def test_a_series_has_one_palette(tmp_path: Path) -> None:
    """A frame whose colours noise has moved off it does not change the picture's brightness."""
    noise = np.random.default_rng(0).normal(0, 40, (60, 80, 3))
    for index in range(5):
        coloured = palettes()["rainbow"][picture(index, 1, 60, 80)] + noise * (index == 3)
        save(tmp_path / "infrared" / f"{index}.png", coloured.clip(0, 255).round().astype(np.uint8)[..., ::-1])
        save(tmp_path / "visible" / f"{index}.png", picture(9 + index, 1, 60, 80))
    assert "dropped" in read_source(tmp_path / "infrared" / "3.png", modality="infrared").note
    for sequence, count in ((False, 1), (True, 0)):
        folders = {side: str(tmp_path / side) for side in ("visible", "infrared")}
        samples = [read_pair(pair, Reading()) for pair in expand(find_pairs(folders), sequence)]
        notes = [sample.note for sample in samples if isinstance(sample, Sample)]
        assert len(notes) == 5 and sum("dropped" in note for note in notes) == count


def test_other_colours_are_dropped_and_grey_stays(tmp_path: Path) -> None:
    found = without_palette(Picture(VISIBLE))
    np.testing.assert_array_equal(found.pixels, np.asarray(Image.fromarray(VISIBLE).convert("L")))
    assert found.note == "colour dropped: infrared does not colour the scene"
    grey = Picture(picture(1))
    assert without_palette(grey) is grey
    for dtype, factor in ((np.uint16, 257.0), (np.float32, 1 / 255)):
        jet = (palettes()["jet"][picture(7)] * factor).astype(dtype)
        other = without_palette(replace(grey, pixels=jet))
        assert abs(other.pixels.astype(int) - picture(7)).max() <= 2 and "(jet)" in other.note
    Image.fromarray(np.repeat(picture(1)[..., None], 3, 2)).save(tmp_path / "a.png")
    assert read_source(tmp_path / "a.png", modality="ir").note == ""


def test_the_shared_false_colour_picture_gives_its_values_and_no_colour() -> None:
    if not (CASES / "palette").is_dir():
        pytest.skip("the shared cases are not here")
    pair = find_pairs({"visible": str(CASES / "palette" / "vis"), "infrared": str(CASES / "palette" / "ir")})[0]
    sample = read_pair(pair, Reading())
    assert isinstance(sample, Sample) and sample.chroma is not None
    assert "infrared: false colour (jet) taken back to values" in sample.note
    bgr = cv2.imread(str(pair.files["infrared"]))
    values = np.round(sample.sources[1, 0].numpy() * 255).astype(np.uint8)
    np.testing.assert_array_equal(cv2.applyColorMap(values, cv2.COLORMAP_JET), bgr)
    visible = read_pair(replace(pair, files={"visible": pair.files["visible"], "b": pair.files["visible"]}), Reading())
    assert not isinstance(visible, Sample)  # given twice
