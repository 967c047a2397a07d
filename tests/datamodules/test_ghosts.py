"""Things that move between exposures: found, shown once, and nothing else changed."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datamodules.ghosts import MOST, best_exposed, increasing, mapping, shown_once, without_ghosts
from datamodules.pairing import Pair, find_pairs
from datamodules.pairs import Reading, Sample, read_pair
from dig2dig.cli import load_strictly
from dig2dig.config import InferConfig
from dig2dig.inference.state import reading
from tests.conftest import SHARED

GAINS = {2: (0.5, 2.0), 3: (0.4, 1.0, 2.2), 4: (0.3, 0.7, 1.3, 2.5), 5: (0.25, 0.5, 1.0, 2.0, 4.0)}
RADIUS, ROW = 14, 60


def scene(colour: bool) -> np.ndarray:
    """Smooth patches of all intensities, 120 x 240."""
    noise = np.random.default_rng(3).random((120, 240, 3) if colour else (120, 240)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 9)
    low, high = smooth.min(), smooth.max()
    return 0.05 + 0.6 * (smooth - low) / (high - low)


def exposed(light: np.ndarray, gain: float, seed: int = 0) -> np.ndarray:
    """An exposure in 8 bits, with a gamma, clipping and noise."""
    noise = np.random.default_rng(seed).normal(0, 1 / 255, light.shape)
    return (((np.clip(gain * light, 0, 1) ** (1 / 2.2) + noise).clip(0, 1) * 255).round() / 255).astype(np.float32)


def disc(column: int) -> np.ndarray:
    y, x = np.ogrid[:120, :240]
    return (y - ROW) ** 2 + (x - column) ** 2 <= RADIUS**2


def stack(k: int, colour: bool, things: bool = True) -> tuple[list[np.ndarray], list[int]]:
    """K exposures with a dark disc at a place of its own in each."""
    columns, found = [30 + 45 * i for i in range(k)], []
    for i, (gain, column) in enumerate(zip(GAINS[k], columns, strict=True)):
        light = scene(colour)
        if things:
            light[disc(column)] = (0.02, 0.03, 0.15) if colour else 0.02
        found.append(exposed(light, gain, i))
    return found, columns


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_a_thing_that_moves_is_found_and_shown_once(k: int, colour: bool) -> None:
    sources, columns = stack(k, colour)
    reference = k // 2
    masks = shown_once(sources, reference)[1]
    cleaned, _ = shown_once(sources, reference)
    for i in range(k):
        if i == reference:
            assert not masks[i].any() and cleaned[i] is sources[i]
            continue
        assert iou(masks[i], disc(columns[i]) | disc(columns[reference])) > 0.7
        truth = scene(colour)
        truth[disc(columns[reference])] = (0.02, 0.03, 0.15) if colour else 0.02
        shown = exposed(truth, GAINS[k][i], i)
        assert np.abs(cleaned[i] - shown).mean() < 1 / 255
        assert np.abs(cleaned[i] - shown)[disc(columns[i])].mean() < 4 / 255  # the thing is gone
        assert cleaned[i].dtype == np.float32 and cleaned[i].min() >= 0 and cleaned[i].max() <= 1


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_a_static_stack_stays(k: int, colour: bool) -> None:
    sources, _ = stack(k, colour, things=False)
    cleaned, masks = shown_once(sources, k // 2)
    assert max(mask.mean() for mask in masks) < 2e-3
    assert max(np.abs(a - b).mean() for a, b in zip(cleaned, sources, strict=True)) < 0.1 / 255


def test_what_a_clipped_reference_cannot_say_is_kept_and_what_it_denies_is_not() -> None:
    light = scene(False)
    light[:, 120:] *= 6  # white in the reference, with detail in the dark exposure
    dark, reference = exposed(light, 0.15), exposed(light, 1.6, 1)
    assert (reference[:, 130:] > 0.99).mean() > 0.8
    still, masks = shown_once([dark, reference], 1)
    assert not masks[0].any() and still[0] is dark
    light[disc(190)] = 0.01  # no white thing is that dark
    masks = shown_once([exposed(light, 0.15), reference], 1)[1]
    assert iou(masks[0], disc(190)) > 0.7


def test_grey_beside_colour() -> None:
    colour, columns = stack(3, True)
    sources = [cv2.cvtColor(colour[0], cv2.COLOR_RGB2GRAY), *colour[1:]]
    cleaned, masks = shown_once(sources, 1)
    assert [image.shape for image in cleaned] == [image.shape for image in sources]
    assert iou(masks[0], disc(columns[0]) | disc(columns[1])) > 0.6
    assert shown_once([sources[0], sources[2]], 0)[1][1].any()


def test_pixels_without_data_are_neither_compared_nor_changed() -> None:
    sources, columns = stack(3, True)
    valid = np.ones((120, 240), bool)
    valid[:, : columns[0] + RADIUS + 12] = False
    sources[0][~valid] = 0
    cleaned, masks = shown_once(sources, 1, [valid, None, None])
    assert not (masks[0] & ~valid).any() and (cleaned[0][~valid] == 0).all()
    assert (masks[0] & disc(columns[1])).sum() > 0.8 * (disc(columns[1]) & valid).sum()
    nothing = np.zeros((120, 240), bool)
    assert not shown_once(sources, 1, [nothing, None, None])[1][0].any()


def test_notes_and_the_choice_of_the_reference() -> None:
    sources, _ = stack(3, True)
    images = dict(zip("abc", sources, strict=True))
    chosen = "abc"[best_exposed(sources)]
    _, notes = without_ghosts(images, dict.fromkeys(images))
    assert len(notes) == 2 and all(f"is taken from {chosen}" in note for note in notes)
    cleaned, notes = without_ghosts(images, dict.fromkeys(images), "a")
    assert cleaned["a"] is sources[0] and notes[0].startswith("b: ") and "% of the picture moves" in notes[0]
    assert best_exposed([sources[0] * 0.01, sources[1], np.ones_like(sources[1])]) == 1
    other = {"a": exposed(scene(False), 1.0), "b": exposed(scene(False), 1.0)}
    other["b"][:, :108] = 0.02
    kept, notes = without_ghosts(other, dict.fromkeys(other), "a")
    assert shown_once(list(other.values()), 0)[1][1].mean() > MOST
    assert "not taken for motion" in notes[0] and kept["b"] is other["b"]


def test_the_mapping_increases_and_is_not_led_by_what_moves() -> None:
    assert increasing(np.array([1.0, 9.0, 2.0, 3.0, 4.0])).tolist() == [1, 3, 3, 3, 4]
    generator = np.random.default_rng(0)
    fixed = generator.random(50_000).astype(np.float32)
    other = fixed**2 + generator.normal(0, 0.01, fixed.shape).astype(np.float32)
    other[generator.random(fixed.shape) < 0.2] = 0.9
    how = mapping(fixed, other)
    at = np.linspace(0.1, 0.9, 9)
    assert np.abs(how(at) - at**2).max() < 0.01
    assert (np.diff(how.curve) >= 0).all() and 0.01 < how.deviation.mean() < 0.02


@pytest.mark.parametrize("size", [(4, 4), (5, 900)])
def test_tiny_and_constant_images_pass(size: tuple[int, int]) -> None:
    a = np.full(size, 0.5, np.float32)
    b = np.linspace(0, 1, a.size, dtype=np.float32).reshape(size)
    for pair in ([a, a], [a, b], [b, a]):
        assert [image.shape for image in shown_once(pair, 0)[0]] == [size, size]


def write_stack(folder: Path, sources: list[np.ndarray]) -> Pair:
    files = {}
    for i, image in enumerate(sources):
        files[f"e{i}"] = folder / f"e{i}" / "x.png"
        files[f"e{i}"].parent.mkdir()
        cv2.imwrite(str(files[f"e{i}"]), (image[..., ::-1] * 255).round().astype(np.uint8))
    return Pair("x", files)


def test_reading_removes_ghosts_where_it_is_told_to(tmp_path: Path) -> None:
    sources, columns = stack(3, True)
    pair = write_stack(tmp_path, sources)
    kept, removed, other = (
        read_pair(pair, one) for one in (Reading("mef"), Reading("mef", ghosts="remove"), Reading(ghosts="remove"))
    )
    assert isinstance(kept, Sample) and isinstance(removed, Sample) and isinstance(other, Sample)
    assert "moves" in removed.note and "moves" not in kept.note and "moves" not in other.note
    gap = (removed.sources - kept.sources).abs().amax(0)[0].numpy()
    assert gap[disc(columns[0])].mean() > 0.05 > gap[disc(215)].max() + 0.04


def test_options(tmp_path: Path) -> None:
    files = {"sources.a": "a", "sources.b": "b"}
    given = [f"{key}={value}" for key, value in files.items()]
    assert reading(load_strictly(InferConfig, ["mef", *given])).ghosts == "remove"
    assert reading(load_strictly(InferConfig, ["mff", *given])).ghosts == "keep"
    assert reading(load_strictly(InferConfig, ["ivf", *given])).ghosts == "keep"
    with pytest.raises(ValueError, match="ghosts=remove compares"):
        load_strictly(InferConfig, ["ivf", *given, "ghosts=remove"])


@pytest.mark.skipif(not (SHARED.parent / "cases" / "ghost").is_dir(), reason="no cases beside the checkout")
def test_the_case_shows_one_thing() -> None:
    folder = SHARED.parent / "cases" / "ghost"
    (pair,) = find_pairs({side: str(folder / side) for side in ("dark", "middle", "bright")})
    sample = read_pair(pair, Reading("mef", ghosts="remove"))
    assert isinstance(sample, Sample) and sample.chroma is not None
    assert "dark: 1.9 % of the picture moves and is taken from middle" in sample.note
    red = sample.chroma[1] - sample.chroma[0]
    centres = [(335, 116), (335, 336), (335, 555)]  # of the disc in dark, middle and bright
    shown = [red[y - 12 : y + 13, x - 12 : x + 13] for y, x in centres]
    assert shown[1].mean() > 0.3 and shown[1].std() < 0.05
    assert shown[0].mean() < 0.2
    assert torch.isfinite(sample.sources).all()
