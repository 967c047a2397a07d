"""The command ``dig2dig metrics`` on picture files."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dig2dig.metrics import ALL, MAIN, METRICS, fusion_metrics
from dig2dig.metrics.__main__ import main
from tests.scans import dicom


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A fused picture of 16 bits, and its sources: grey of 8 bits, colour of 16 bits."""
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 256, (40, 50), np.uint8)
    colour = generator.integers(0, 65536, (40, 50, 3), np.uint16)
    fused = (grey.astype(np.uint16) * 257 // 2) + 20000
    paths = [str(tmp_path / f"{name}.png") for name in ("fused", "grey", "colour")]
    for path, pixels in zip(paths, (fused, grey, colour), strict=True):
        cv2.imwrite(path, pixels)
    return paths


def values(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()}


@pytest.mark.parametrize("convention", ["standard", "vifb"])
def test_values_are_those_of_the_function(files: list[str], convention: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*files, f"convention={convention}"]) == 0
    shown = values(capsys.readouterr().out)
    images = []
    for path in files:
        pixels = np.atleast_3d(cv2.imread(path, cv2.IMREAD_UNCHANGED))[..., ::-1]
        scaled = torch.from_numpy(pixels / np.iinfo(pixels.dtype).max).float().movedim(-1, 0)
        images.append(scaled.expand(3, -1, -1))
    expected = fusion_metrics(images[0][None], torch.stack(images[1:])[None], convention)
    assert list(shown) == list(MAIN)
    for name, value in expected.items():
        assert float(shown[name][0]) == pytest.approx(float(value), rel=1e-5)
    assert shown["VIF"] == ["needs", "41", "pixels", "a", "side", "↑"]
    assert shown["Nabf"][-1] == "↓" and shown["Qabf"][-1] == "↑"


def test_sources_are_as_they_look(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One slice, stored with small values dark, and with large ones."""
    pytest.importorskip("pydicom")
    stored, shown = np.arange(2000, dtype=np.int16).reshape(40, 50) % 577, []
    for kind, pixels in (("MONOCHROME2", stored), ("MONOCHROME1", 576 - stored)):
        path = dicom(tmp_path / f"{kind}.dcm", pixels, PhotometricInterpretation=kind)
        assert main([*files[:2], str(path)]) == 0
        shown.append(values(capsys.readouterr().out))
    for name in set(MAIN) - {"VIF"}:
        assert float(shown[0][name][0]) == pytest.approx(float(shown[1][name][0]), rel=1e-3), name


def test_a_copy_of_the_sources_is_perfect(files: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main([files[1]] * 4 + ["metrics=all"]) == 0
    shown = values(capsys.readouterr().out)
    assert list(shown) == list(ALL)
    assert shown["SSIM"] == ["1", "↑"] and shown["MSE"] == ["0", "↓"] and shown["NMI"] == ["3", "↑"]


def test_mistakes_are_told_in_one_line(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = str(tmp_path / "other.png")
    cv2.imwrite(other, np.zeros((20, 30), np.uint8))
    holed, broken, bright = (str(tmp_path / f"{name}.tif") for name in ("holed", "broken", "bright"))
    levels = np.random.default_rng(1).random((40, 50), np.float32)
    for path, value in ((holed, -9999), (broken, np.nan), (bright, 90)):
        cv2.imwrite(path, np.where(np.arange(50) < 5, np.float32(value), levels))
    for arguments, line in (
        ([*files, holed], "10.0 % of the pixels hold -9999, taken for no data; metrics are of whole pictures"),
        ([*files, broken], "200 pixels are NaN"),
        ([bright, *files[1:]], "values outside of [0, 1]"),
        ([*files, other], f"{other} has 30×20 pixels, {files[0]} has 50×40"),
        ([*files[:2], str(tmp_path / "lost.png")], "lost.png"),
        ([*files, "convention=mine"], "convention"),
        ([*files, "metric=all"], "did you mean 'metrics'?"),
    ):
        assert main(arguments) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and told[0].startswith("error: ") and line in told[0]


def test_usage_and_table(files: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0 and "FUSED SOURCE SOURCE" in capsys.readouterr().out
    assert main([]) == main(files[:2]) == 2
    capsys.readouterr()
    assert main(["table"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(METRICS)
