"""What counts as data: no-data values, alpha, borders, ranges of stacks; from the file to the fused picture."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch

from datamodules.pairing import Pair
from datamodules.pairs import Failure, Reading, Sample, read_pair
from datamodules.ranges import limits, one_range, to_unit
from datamodules.readers.pixels import read_picture
from datamodules.validity import left_border, without_data
from dig2dig.api import preset
from dig2dig.fusion.resample import filled
from dig2dig.fusion.sampler import fuse
from dig2dig.options import parse_range
from dig2dig.priors.denoiser import Denoiser
from dig2dig.training.prior import cropped
from tests.conftest import SHARED
from tests.corpus import picture
from tests.pictures import crop_of

CASES = SHARED.parent / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")


def save(path: Path, pixels: np.ndarray, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, **settings)
    else:
        cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    return path


def read(files: dict[str, Path], **options) -> Sample:
    sample = read_pair(Pair("x", files), Reading(**options))
    assert isinstance(sample, Sample), sample.reason
    return sample


def thermal(seed: int = 1) -> np.ndarray:
    return (7000 + 5.0 * picture(seed, height=64, width=64)).astype(np.uint16)


def test_gdal_nodata_has_no_part_in_the_range(tmp_path: Path) -> None:
    values = 20 + 10 * picture(1, height=64, width=64).astype(np.float32) / 255
    holed = values.copy()
    holed[10:14, 20:40] = -9999
    tag = [(42113, "s", 0, "-9999", True)]
    holed_file = save(tmp_path / "holed.tif", holed, extratags=tag)
    visible = save(tmp_path / "v.png", picture(2, height=64, width=64))
    sample = read({"visible": visible, "infrared": holed_file})
    whole = read({"visible": visible, "infrared": save(tmp_path / "whole.tif", values)})
    assert sample.valid is not None and whole.valid is None
    expected = np.ones((64, 64), bool)
    expected[10:14, 20:40] = False
    np.testing.assert_array_equal(sample.valid[1, 0], expected)
    assert sample.valid[0].all() and "2.0 % of the pixels" in sample.note
    assert (sample.sources[1, 0] - whole.sources[1, 0])[expected].abs().max() < 0.02


def test_nan_is_no_data_where_asked_for(tmp_path: Path) -> None:
    values = picture(1, height=32, width=32).astype(np.float32) + 300
    values[3, 4] = np.nan
    files = {"visible": save(tmp_path / "v.png", picture(2, height=32, width=32))}
    files["infrared"] = save(tmp_path / "i.tif", values)
    failure = read_pair(Pair("x", files), Reading())
    assert isinstance(failure, Failure) and "range.infrared=nodata=nan" in failure.reason
    sample = read(files, range={"infrared": "nodata=nan"})
    assert sample.valid is not None and sample.valid.sum() == 2 * 32 * 32 - 1
    assert sample.sources.isfinite().all()


def test_zero_lines_telemetry_and_hot_pixels_do_not_decide_the_range() -> None:
    frame = thermal()
    low, high = np.percentile(frame, (0.1, 99.9))
    zeros = frame.copy()
    zeros[::10] = 0
    valid, note = without_data(zeros)
    assert valid is not None and not valid[::10].any() and valid.mean() == pytest.approx(57 / 64)
    assert note == "10.9 % of the pixels hold 0, taken for no data"
    assert limits(zeros, valid) == pytest.approx((low, high), abs=30)
    telemetry = frame.copy()
    telemetry[:2] = np.arange(64) % 7
    telemetry[-1] = 60000
    assert limits(telemetry) == pytest.approx((low, high), abs=30)
    hot = frame.copy()
    hot[5, 5] = 65535
    assert limits(hot)[1] < high + 600


@pytest.mark.parametrize("top", [16383, 65535])
def test_a_saturated_target_and_a_black_background_are_data(top: int) -> None:
    hot = thermal()
    hot[20:30, 20:30] = top
    assert without_data(hot)[0] is None
    skull = thermal() - 6900  # 100 to 1375, as a slice without its background
    skull[:20] = 0
    assert without_data(skull)[0] is None


def test_exposures_of_twelve_bits_share_one_range(tmp_path: Path) -> None:
    scene = picture(1, height=48, width=48).astype(np.float32) / 255
    files = {
        name: save(tmp_path / f"{name}.tif", (4095 * scene * gain).clip(0, 4095).astype(np.uint16))
        for name, gain in (("dark", 0.1), ("bright", 1.5))
    }
    sample = read(files, task="mef")
    assert sample.note.startswith("all: values 11") and "to 4095 are black to white" in sample.note
    inside = scene * 1.5 < 0.95
    ratio = sample.sources[0, 0].numpy()[inside] / np.maximum(sample.sources[1, 0].numpy()[inside], 1e-3)
    assert np.median(ratio) == pytest.approx(0.1 / 1.5, rel=0.1)
    alone = read(files, task="ivf")
    assert alone.sources[0].max() == 1  # other tasks stretch each source


def test_no_data_does_not_decide_the_range_of_a_stack_of_series(tmp_path: Path) -> None:
    files, values = {}, picture(1, height=32, width=32).astype(np.float32) + 300
    for seed, name in enumerate(("a", "b")):
        holed = values + seed
        holed[:3] = -99
        files[name] = save(tmp_path / f"{name}.tif", holed)
    probes = {name: ((file, None),) for name, file in files.items()}
    pair = Pair("x", files, series="s", probes=probes)
    sample = read_pair(pair, Reading("mff", range={name: "nodata=-99" for name in files}))
    assert isinstance(sample, Sample), sample.reason
    assert "all: values 30" in sample.note and sample.sources[:, :, 3:].min() < 0.1


def test_mixed_ranges_of_a_stack_are_told(tmp_path: Path) -> None:
    files = {"a": save(tmp_path / "a.png", picture(1)), "b": save(tmp_path / "b.tif", picture(2).astype(np.uint16) * 8)}
    note = read(files, task="mef").note
    assert "a: its whole range is black to white" in note and "b: values" in note


def test_one_range_of_several_pictures() -> None:
    dark, bright = thermal(1) - 6000, thermal(2)
    low, high = map(float, one_range([dark, bright], [None, None], "auto").split("-"))
    assert low == pytest.approx(np.percentile(dark, 0.1), abs=1) and high == pytest.approx(
        np.percentile(bright, 99.9), abs=1
    )
    assert one_range([picture(1), picture(2)], [None, None], "auto") == "full"
    assert one_range([bright, np.full_like(bright, 60000)], [None, None], "auto") != "full"
    tiny = np.random.default_rng(0).normal(0, 1e-8, (8, 8)).astype(np.float32)
    assert parse_range(one_range([tiny, -tiny], [None, None], "auto")) != ("full", None)


def test_colour_of_twelve_bits_is_stretched_and_told() -> None:
    unit, note = to_unit(picture(1, 3).astype(np.uint16) * 16)
    assert unit.max() > 0.95 and "are black to white" in note


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("turns", range(4))
def test_a_border_of_a_warp_is_found(value: float, turns: int) -> None:
    image = 0.3 + 0.4 * picture(1, height=90, width=120).astype(np.float32) / 255
    assert left_border(image) is None
    depth = np.linspace(14, 3, 120)
    wedge = np.arange(90)[:, None] < depth[None]
    image[wedge] = value
    valid = left_border(np.rot90(image, turns))
    assert valid is not None
    found = ~np.rot90(valid, -turns)
    assert found[wedge].all() and found.mean() < wedge.mean() + 2.5 / 90


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_turned_frame_is_found_on_all_sides(value: float) -> None:
    image = 0.3 + 0.4 * picture(1, height=180, width=240).astype(np.float32) / 255
    corners = np.array([[12, 8], [225, 20], [215, 170], [2, 160]])
    inside = cv2.fillConvexPoly(np.zeros((180, 240), np.uint8), corners, 1) > 0
    found = left_border(np.where(inside, image, value).astype(np.float32))
    assert found is not None and not (found & ~inside).any()
    assert (inside & ~found).mean() < 0.03
    corner = np.add.outer(np.arange(180), np.arange(240)) < 60  # a dark corner is part of the picture
    assert left_border(np.where(corner, value, image).astype(np.float32)) is None


def test_skies_and_backgrounds_are_no_borders() -> None:
    rng = np.random.default_rng(0)
    image = 0.3 + 0.4 * picture(1, height=90, width=120).astype(np.float32) / 255
    roofs = image.copy()
    roofs[np.arange(90)[:, None] < (20 + 10 * np.sin(np.arange(120) / 6) + rng.integers(0, 6, 120))[None]] = 1
    assert left_border(roofs) is None
    y, x = np.mgrid[:90, :120]
    slice_ = np.where((y - 45) ** 2 + (x - 60) ** 2 < 900, image, 0)
    assert left_border(slice_) is None
    dim = image.copy()
    dim[:10] = 0.02
    dim[10:] *= 0.05  # the picture behind is as dark: no contrast
    assert left_border(dim) is None


def test_filled_pixels_continue_their_surroundings() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 1, 64, 64).clone()
    valid = torch.ones(1, 1, 1, 64, 64, dtype=torch.bool)
    valid[..., 20:40, 30:34] = False
    holed = torch.where(valid, ramp, torch.tensor(float("nan"))).nan_to_num(9.0)
    assert (filled(holed, valid) - ramp).abs().max() < 0.05
    assert torch.equal(filled(holed, valid)[valid], ramp[valid])
    assert (filled(holed, torch.zeros_like(valid)) == 0).all()


@pytest.mark.parametrize("task", ["ivf", "mef", "mff", "universal"])
def test_a_source_without_data_leaves_the_picture_to_the_other(bundled: Denoiser, task: str) -> None:
    sources = crop_of("infrared_visible", 0, 0, 192, "visible", "infrared")
    valid = torch.ones_like(sources, dtype=torch.bool)
    assert (fuse(sources, bundled, preset(task), valid=valid) - fuse(sources, bundled, preset(task))).abs().max() < 1e-5
    valid[:, 1, :, :, 96:] = False
    black = sources * valid
    white = torch.where(valid, sources, torch.ones(()))
    first, second = (fuse(one, bundled, preset(task), valid=valid) for one in (black, white))
    assert torch.equal(first, second)  # what invalid pixels hold does not matter
    assert (first - sources[:, 0])[..., 128:].abs().mean() < 0.04


@needs_cases
@pytest.mark.parametrize("name", ["ir_nodata", "telem"])
def test_the_cases_fuse_as_the_plain_frame(bundled: Denoiser, name: str) -> None:
    visible = CASES / "values" / "vis.png"
    fused = []
    for infrared in ("ir.png", f"{name}.tif"):
        sample = read({"visible": visible, "infrared": CASES / "values" / infrared})
        fused.append(
            fuse(
                sample.sources[None], bundled, preset("ivf"), valid=None if sample.valid is None else sample.valid[None]
            )
        )
    assert 255 * (fused[0] - fused[1]).abs().mean() < 3


@needs_cases
def test_the_case_of_uncovered_pixels(bundled: Denoiser) -> None:
    first, second = (CASES / "aligned_alpha" / "stack" / f"aligned_000{i}.tif" for i in range(2))
    sample = read({"1": first, "2": second}, task="mff")
    assert sample.valid is not None
    fused = fuse(sample.sources[None], bundled, preset("mff"), valid=sample.valid[None])[0]
    truth = torch.from_numpy(read_picture(CASES / "aligned_alpha" / "truth.png").pixels.copy()).permute(2, 0, 1) / 255
    strip = ~sample.valid[1, 0]
    for where, least in ((strip, 45), (~strip, 45)):
        assert -10 * torch.log10((fused - truth).square()[:, where].mean()) > least


@needs_cases
@pytest.mark.parametrize("name", ["rgbn16_unspec", "vis16_planar"])
def test_deep_colour_cases_are_the_plain_picture(name: str) -> None:
    deep, plain = (read_picture(CASES / "values" / file).pixels for file in (f"{name}.tif", "vis.png"))
    assert deep.dtype == np.uint16 and abs(deep / 257.0 - plain).max() <= 1


@needs_cases
def test_the_case_of_dark_colour_is_stretched_and_told() -> None:
    files = {"visible": CASES / "values" / "vis12in16.tif", "infrared": CASES / "values" / "ir.png"}
    sample = read(files)
    assert "visible: values 15 to 256 are black to white" in sample.note
    assert sample.sources[0].mean() > 0.3


@needs_cases
def test_the_case_of_a_bracket_of_twelve_bits() -> None:
    folder = CASES / "bracket_12bit" / "u12"
    sample = read({name: folder / name / "x.tif" for name in ("dark", "middle", "bright")}, task="mef")
    means = sample.sources.mean((1, 2, 3)).tolist()
    stored = [read_picture(folder / name / "x.tif").pixels.mean() / 4095 for name in ("dark", "middle", "bright")]
    assert means == pytest.approx(stored, abs=0.03) and "all: values" in sample.note


def test_masks_move_with_their_images(tmp_path: Path) -> None:
    values = thermal()
    values[:, :9] = 0
    files = {"visible": save(tmp_path / "v.png", picture(2, height=64, width=64))}
    files["infrared"] = save(tmp_path / "i.tif", values)
    sample = cropped(read(files), 60)
    assert sample.valid is not None and sample.valid.shape == (2, 1, 60, 60)
    assert not sample.valid[1, 0, :, :7].any() and sample.valid[1, 0, :, 10:].all() and sample.valid[0].all()


@pytest.mark.parametrize("size", [(480, 640), (4, 300), (1080, 1920)])
def test_a_border_through_the_middle_is_no_fault(size: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).uniform(0.3, 1, size).astype(np.float32)
    for half in (np.s_[: size[0] // 2], np.s_[:, : size[1] // 2]):
        cut = grey.copy()
        cut[half] = 0
        inside = left_border(cut)
        assert inside is None or not inside[half].any()
