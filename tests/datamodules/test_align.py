"""Registration and doubts about alignment, on the bundled pairs moved by known amounts."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules.align import Registration, clearness, misregistration, rescale, resizing, small, structure
from datamodules.readers.pixels import convert, read_image
from datamodules.register import LEAST_GAIN, register
from dig2dig.errors import AlignmentError
from tests.conftest import EXAMPLES
from tests.runs import rows, run, save


def load(*parts: str) -> np.ndarray:
    return read_image(EXAMPLES.joinpath(*parts)).astype(np.float32) / 255


def thermal() -> tuple[np.ndarray, np.ndarray]:
    """A visible and an infrared image of one scene, grey."""
    name = sorted((EXAMPLES / "infrared_visible" / "visible").glob("*.png"))[0].name
    visible, infrared = (load("infrared_visible", kind, name) for kind in ("visible", "infrared"))
    return (cv2.cvtColor(visible, cv2.COLOR_RGB2GRAY) if visible.ndim == 3 else visible), infrared


def focal() -> tuple[np.ndarray, np.ndarray]:
    return load("multi_focus", "near", "mountain.png"), load("multi_focus", "far", "mountain.png")


def moved(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """An image whose content lies where ``matrix`` says, reference to moved."""
    return cv2.warpPerspective(
        image, matrix, image.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )


def shift(dx: float, dy: float) -> np.ndarray:
    return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]], float)


def corner_error(found: np.ndarray, true: np.ndarray, shape: tuple[int, ...]) -> float:
    corners = np.array([[0, 0, 1], [shape[1], 0, 1], [0, shape[0], 1], [shape[1], shape[0], 1]], float)
    a, b = corners @ found.T, corners @ true.T
    return float(np.linalg.norm(a[:, :2] / a[:, 2:] - b[:, :2] / b[:, 2:], axis=1).mean())


def test_structure_does_not_see_contrast_or_its_sign() -> None:
    image = focal()[0]
    image = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    z = structure(image)
    np.testing.assert_allclose(structure(1 - image), z, atol=1e-3)
    assert np.abs(structure(0.5 * image) - z).mean() < 0.1 * np.abs(z).mean() and np.abs(z).max() < 1.51


def test_phase_finds_a_shift_between_kinds_of_light() -> None:
    visible, infrared = thermal()
    own = register(visible, infrared, "phase", 0.0).matrix
    found = register(visible, moved(infrared, shift(17, -9)), "phase")
    assert found.score > 12 and np.abs(found.matrix[:2, 2] - own[:2, 2] - (17, -9)).max() < 1
    assert "moved by -1" in str(found) and f"agreement {found.score:.0f}" in str(found)


@pytest.mark.parametrize("how", ["phase", "ecc"])
def test_focal_planes_register_to_a_fraction_of_a_pixel(how) -> None:
    near, far = focal()
    true = shift(12.5, 7)
    if how == "ecc":  # turned, scaled and a little in perspective
        true = np.array([[1.02, -0.03, 5], [0.03, 1.01, -8], [2e-5, -1e-5, 1]])
    found = register(near, moved(far, true), how, gain=0.15 * LEAST_GAIN)
    assert corner_error(found.matrix, true, near.shape) < 1
    inner = np.s_[40:-40, 40:-40]
    assert np.abs(found.image - far)[inner].mean() < 0.01 < np.abs(moved(far, true) - far)[inner].mean()


def words(matrix: np.ndarray, size: tuple[int, int] = (80, 100)) -> str:
    """What is said of a registration onto a reference of 100x80 pixels."""
    return str(Registration(np.zeros((80, 100)), matrix, 34.2, size))


def about_the_middle(clockwise: float, scale: float, dx: float = 0, dy: float = 0) -> np.ndarray:
    """Reference to source, both of 100x80 pixels: content turns by degrees about the middle, grows, then moves."""
    matrix = np.vstack([cv2.getRotationMatrix2D((49.5, 39.5), -clockwise, scale), [0, 0, 1]])
    return shift(dx, dy) @ matrix


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (shift(-12.5, 7), "moved by 12.5, -7 px"),
        (shift(0.04, 0.04), "moved by 0, 0 px"),  # never -0
        (shift(-0.04, 3), "moved by 0, -3 px"),
        (about_the_middle(-1.2, 1), "moved by 0, 0 px, turned by 1.2°"),
        (about_the_middle(5, 1.25, 2, 3), "moved by -1.8, -2.3 px, turned by -5°, scaled to 80 %"),
        (about_the_middle(0.04, 1.0004), "moved by 0, 0 px"),
        (np.array([[1, 0, 0], [0, 1, 0], [1e-3, 0, 1]]), "with perspective"),
        (np.array([[1, 0, 0], [0, 1, 0], [1e-6, 0, 1]]), "moved by 0, 0 px"),
    ],
)
def test_words_say_what_was_done_to_the_source(matrix: np.ndarray, said: str) -> None:
    end = " (agreement 34, at least 10 is needed)"
    said_of_it = words(matrix)
    assert said_of_it.endswith(said + end) and ("perspective" in said or said_of_it == said + end)
    assert words(5 * matrix) == said_of_it  # a homography has no scale of its own


def test_words_of_a_source_of_another_size() -> None:
    half = resizing((2, 2), (1, 1))
    assert words(half, (40, 50)).startswith("moved by 0, 0 px, scaled to 200 % (")
    assert words(half @ shift(-6, 4), (40, 50)).startswith("moved by 6, -4 px, scaled to 200 % (")


@pytest.mark.parametrize(("clockwise", "scale"), [(3, 1.04), (-2, 0.97)])
def test_words_fit_a_source_that_is_turned_and_scaled(clockwise: float, scale: float) -> None:
    """The source is turned back by as much, and scaled back."""
    near, far = focal()
    height, width = near.shape[:2]
    true = np.vstack([cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), -clockwise, scale), [0, 0, 1]])
    found = str(register(near, moved(far, true), "ecc"))
    match = re.match(r"moved by (\S+), (\S+) px, turned by (\S+)°, scaled to (\S+) % \(agreement", found)
    assert match and "-0 " not in found and "-0," not in found
    dx, dy, turn, percent = map(float, match.groups())
    assert max(abs(dx), abs(dy)) < 0.6 and abs(turn + clockwise) < 0.15 and abs(percent - 100 / scale) < 0.4


def test_a_source_of_another_size_registers() -> None:
    near, far = focal()
    height, width = near.shape[:2]
    found = register(near, rescale(far, (height * 3 // 4, width * 3 // 4)), "ecc")
    assert found.image.shape == far.shape and np.abs(found.image - far)[20:-20, 20:-20].mean() < 0.02
    np.testing.assert_allclose(found.matrix[0, 0], 0.75, atol=0.01)


def clear(fixed: np.ndarray, moving: np.ndarray) -> float:
    return clearness(*(structure(small(convert(image, "L"), 512)) for image in (fixed, moving)))


def test_other_scenes_do_not_register() -> None:
    near, visible = focal()[0], thermal()[0]
    for how in ("phase", "ecc"):
        with pytest.raises(AlignmentError, match="does not register"):
            register(near, visible, how)
    assert clear(*focal()) > 30 and clear(*thermal()) > 12


def test_doubts_name_the_shift() -> None:
    visible, infrared = thermal()
    assert misregistration(visible, infrared) is None and misregistration(*focal()) is None
    doubt = misregistration(visible, moved(infrared, shift(14, -10)))
    assert doubt is not None and abs(doubt[0] - 14) < 2.5 and abs(doubt[1] + 10) < 2.5


def test_runs_resize_register_refuse_and_warn(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    visible, infrared = (np.round(255 * image).astype(np.uint8) for image in thermal())
    save(tmp_path / "visible" / "a.png", visible)
    save(tmp_path / "infrared" / "a.png", moved(infrared, shift(14, -10)))
    assert run(tmp_path) == 0
    assert "warning: a: infrared: seems shifted by 1" in capsys.readouterr().err
    assert "align=auto registers" in rows(tmp_path / "out")["a"]["note"]
    assert run(tmp_path, "align=phase", f"out={tmp_path / 'phase'}") == 0
    assert "infrared: moved by -1" in rows(tmp_path / "phase")["a"][
        "note"
    ] and not capsys.readouterr().err.strip().startswith("warning")
    small = cv2.resize(infrared, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    save(tmp_path / "infrared" / "a.png", small)
    assert run(tmp_path, f"out={tmp_path / 'none'}") == 1
    height, width = visible.shape[:2]
    assert f"{width}x{height}" in (line := capsys.readouterr().err) and f"{width // 2}x{height // 2}" in line
    assert run(tmp_path, "align=resize", f"out={tmp_path / 'resize'}") == 0
    assert f"infrared: resized from {width // 2}x{height // 2}" in rows(tmp_path / "resize")["a"]["note"]


def test_a_side_that_cannot_be_warped_is_told(tmp_path: Path) -> None:
    (tmp_path / "rig.yaml").write_text("size: [8, 8]\nsources: {infrared: {size: [8, 8], box: [0, 0, 8, 8]}}")
    for seed, side in enumerate(("visible", "infrared")):
        pixels = np.random.default_rng(seed).integers(0, 255, (8, 32768, 4), np.uint8)
        save(tmp_path / side / "a.png", pixels | np.array([0, 0, 0, 128], np.uint8) * (pixels[..., :1] > 9))
    assert run(tmp_path, f"align={tmp_path / 'rig.yaml'}") == 1
    assert "SHRT_MAX" in rows(tmp_path / "out")["a"]["reason"]
