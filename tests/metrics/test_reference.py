"""The metrics against numbers that others computed, and against slow code written from the definitions."""

import csv
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import visual_information_fidelity

from dig2dig import metrics
from dig2dig.metrics import METRICS, __main__, structure
from dig2dig.metrics.levels import both
from tests.conftest import EXAMPLES, ROOT, SHARED
from tests.metrics.agreement import GOLDEN, VIFB, Difference, fusion, golden, main, read, relative, report, vifb

TABLE = SHARED.parent / "golden" / "metrics.csv"
BENCHMARK = SHARED / "infrared_visible" / "VIFB"

needs_golden = pytest.mark.skipif(not TABLE.is_file(), reason="needs the shared reference values")
needs_vifb = pytest.mark.skipif(not BENCHMARK.is_dir(), reason="needs the shared images of VIFB")


@needs_golden
def test_metrics_agree_with_reference_implementations(tmp_path) -> None:
    """The smallest image of each dataset."""
    smallest: dict[tuple[str, str], dict[str, str]] = {}
    for row in csv.DictReader(TABLE.read_text().splitlines()):
        key = row["task"], row["dataset"]
        if key not in smallest or int(row["height"]) < int(smallest[key]["height"]):
            smallest[key] = row
    assert len(smallest) >= 4
    with (tmp_path / "few.csv").open("w") as file:
        writer = csv.DictWriter(file, next(iter(smallest.values())))
        writer.writeheader()
        writer.writerows(smallest.values())
    found = list(golden(tmp_path / "few.csv", SHARED))
    assert len(found) == len(smallest) * len(GOLDEN)
    assert all(difference < (5e-5 if column == "Nabf" else 1e-6) for column, difference, _ in found)


@pytest.mark.huge
@needs_golden
def test_metrics_agree_with_every_reference_value() -> None:
    found = list(golden(TABLE, SHARED))
    assert len(found) == 48 * len(GOLDEN)
    assert all(difference < (5e-5 if column == "Nabf" else 1e-6) for column, difference, _ in found)


@needs_vifb
def test_metrics_agree_with_what_vifb_published() -> None:
    """The smallest pair: colour and grey methods, to the five digits that were printed."""
    rows = csv.DictReader((BENCHMARK / "published_metrics" / "per_image.csv").read_text().splitlines())
    chosen = [row for row in rows if row["image"] == "manWalking" and row["method"] in ("GTF", "CNN", "SeAFusion")]
    assert len(chosen) == 3
    for row in chosen:
        images = fusion(BENCHMARK, row["image"], ("vi", "ir"), row["method"])
        for column, name in VIFB.items():
            assert relative(METRICS[name](*images, "vifb"), row[column]) < 5e-5, (row["method"], column)


@pytest.mark.huge
@needs_vifb
def test_metrics_agree_with_all_that_vifb_published() -> None:
    """Files of two methods differ from those that were measured then; see docs/metrics.md."""
    found = list(vifb(SHARED))
    assert len(found) == 275 * len(VIFB)
    for column, difference, row in found:
        assert difference < (2e-2 if row["method"] in ("YDTR", "SwinFusion") else 5e-5), (column, row)


def pair(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The middle of a bundled pair, and the mean of both sources."""
    name = next((EXAMPLES / "infrared_visible" / "visible").iterdir()).stem
    images = [read(EXAMPLES / "infrared_visible" / kind, name)[:, 60:, 80:] for kind in ("visible", "infrared")]
    sources = metrics.grey_levels(torch.stack([x.expand(3, -1, -1)[:, :side, :side] for x in images]))[None] / 255
    return (sources.mean(1) * 255).floor() / 255, sources


def test_similarity_agrees_with_scikit_image_and_torchmetrics() -> None:
    fused, sources = torch.rand(2, 1, 50, 60), torch.rand(2, 3, 1, 50, 60)
    f, s = metrics.grey_levels(fused), metrics.grey_levels(sources)
    found, information = structure.similarity(*both(fused, sources)), METRICS["VIF"](fused, sources)
    gaussian = METRICS["SSIM"](fused, sources, "vifb")
    for b in range(2):
        images = [(f[b, 0].numpy(), s[b, k, 0].numpy()) for k in range(3)]
        expected = [structural_similarity(*pair, data_range=255) for pair in images]
        assert found[b].tolist() == pytest.approx(expected, rel=1e-9)
        first = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
        assert float(gaussian[b]) == pytest.approx(sum(structural_similarity(*pair, **first) for pair in images))
        each = [visual_information_fidelity(f[[b]], s[b, [k]]) for k in range(3)]
        assert float(information[b]) == pytest.approx(float(torch.stack(each).sum()), rel=1e-4)  # theirs is float32


def similarity(x: np.ndarray, y: np.ndarray, with_luminance: bool) -> float:
    def local(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5]

    contrast = 2 * (local(x * y) - local(x) * local(y)) + 7.65**2
    contrast /= local(x * x) - local(x) ** 2 + local(y * y) - local(y) ** 2 + 7.65**2
    luminance = (2 * local(x) * local(y) + 2.55**2) / (local(x) ** 2 + local(y) ** 2 + 2.55**2)
    return float((contrast * luminance if with_luminance else contrast).mean())


def halved(image: np.ndarray) -> np.ndarray:
    """Means of 2×2 pixels, an odd last one repeated."""
    even = np.pad(image, [(0, n % 2) for n in image.shape], "edge")
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4


def test_multi_scale_similarity_agrees_with_its_definition() -> None:
    fused = torch.rand(1, 1, 178, 181)
    sources = (torch.rand(1, 1, 1, 178, 181) + 3 * fused[:, None]) / 4
    x, y = (metrics.grey_levels(images).squeeze().numpy() for images in (fused, sources))
    score = 1.0
    for scale, power in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        score *= similarity(x, y, scale == 4) ** power
        x, y = halved(x), halved(y)
    assert float(METRICS["MS-SSIM"](fused, sources)) == pytest.approx(score, rel=1e-9)


def windows(image: np.ndarray, size: int) -> Iterator[tuple[int, int, np.ndarray]]:
    for i in range(image.shape[0] - size + 1):
        for j in range(image.shape[1] - size + 1):
            yield i, j, image[i : i + size, j : j + size]


def mass(window: np.ndarray) -> np.ndarray:
    values = window.T.ravel() - window.min()
    return values / values.sum() if values.any() else np.full(9, 1 / 9)


def shared_information(p: np.ndarray, q: np.ndarray) -> float:
    """Of one window: the bounds of Fréchet, cell by cell."""
    c = 0.0 if np.ptp(p) < 1e-12 or np.ptp(q) < 1e-12 else np.corrcoef(p, q)[0, 1]

    def bound(i: int, j: int) -> float:
        a, b = p[:i].sum(), q[:j].sum()
        return min(a, b) if c >= 0 else max(a + b - 1, 0)

    cells = [(i, j) for i in range(1, 10) for j in range(1, 10)]
    covariance = sum(bound(i, j) - p[:i].sum() * q[:j].sum() for i, j in cells)
    spreads = [math.sqrt((x * np.arange(9) ** 2).sum() - (x * np.arange(9)).sum() ** 2) for x in (p, q)]
    share = 0.0 if abs(c) < 1e-12 or min(spreads) < 1e-6 else c * spreads[0] * spreads[1] / covariance
    joint = 0.0
    for i, j in cells:
        extreme = bound(i, j) - bound(i - 1, j) - bound(i, j - 1) + bound(i - 1, j - 1)
        value = share * extreme + (1 - share) * p[i - 1] * q[j - 1]
        joint -= value * math.log(abs(value)) if abs(value) > 1e-15 else 0.0
    alone = -sum(x * math.log(x) for x in (*p, *q) if x > 0)
    return 2 * (alone - joint) / alone


@pytest.mark.parametrize("name", ["FMI_pixel", "FMI_gradient"])
def test_feature_information_agrees_with_its_definition(name: str) -> None:
    fused, sources = pair(18)
    f, s = fused[0, 0].numpy() * 255, sources[0, :, 0].numpy() * 255
    if name == "FMI_gradient":
        f, s = np.gradient(f, axis=-1), np.gradient(s, axis=-1)
    scores = []
    for source in s:
        for i, j, window in windows(f, 3):
            other = source[i : i + 3, j : j + 3]
            scores.append(1.0 if (window == other).all() else shared_information(mass(window), mass(other)))
    assert float(METRICS[name](fused, sources)) == pytest.approx(np.mean(scores), rel=1e-5)


def best_patch(patches: np.ndarray) -> np.ndarray:
    """What the patches (k, 11, 11) would give at best, after Ma et al."""
    centred = patches - patches.mean((1, 2), keepdims=True)
    norms = np.linalg.norm(centred, axis=(1, 2))
    consistency = min((np.linalg.norm(centred.sum(0)) + 2**-52) / (norms.sum() + 2**-52), 1 - 2**-52)
    energy = norms + 0.001
    share = (energy / 11) ** min(math.tan(math.pi / 2 * consistency), 10)
    structure = np.einsum("k,kij->ij", share / share.sum() / energy, centred)
    return structure / np.linalg.norm(structure) * energy.max()


def test_exposure_similarity_agrees_with_its_definition() -> None:
    fused, sources = pair(46)
    sources = torch.cat([sources, fused[:, None].square()], 1)
    levels = [metrics.grey_levels(x).squeeze().numpy() for x in (fused, sources)]
    at = np.arange(11) - 5
    weight = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    weight /= weight.sum()
    powers, score = np.array([0.0448, 0.2856, 0.3001]), 1.0
    for power in powers / powers.sum():
        f, s = levels
        quality = []
        for i, j, window in windows(f, 11):
            best = best_patch(s[:, i : i + 11, j : j + 11])
            best, window = best - (weight * best).sum(), window - (weight * window).sum()
            c = (0.03 * 255) ** 2
            spread = (weight * best**2).sum() + (weight * window**2).sum()
            quality.append((2 * (weight * best * window).sum() + c) / (spread + c))
        score *= np.mean(quality) ** power
        levels = [halved(f), np.stack([halved(x) for x in s])]
    assert float(METRICS["MEF-SSIM"](fused, sources)) == pytest.approx(score, rel=1e-9)


def test_perceptual_metrics_of_the_bundled_pair_stay_what_they_were() -> None:
    """Computed by the code that agrees with VIFB's values."""
    fused, sources = pair(120)
    assert float(METRICS["Qcb"](fused, sources)) == pytest.approx(0.445989878, rel=1e-6)
    assert float(METRICS["Qcv"](fused, sources)) == pytest.approx(207.858628, rel=1e-6)


def test_the_documented_table_is_the_table() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    for metric in METRICS.values():
        assert __main__.row(metric) in text


def test_reports(capsys: pytest.CaptureFixture[str]) -> None:
    row: dict[str, str] = {}
    differences: list[Difference] = [("EN", 0.1 * i, row) for i in range(21)]
    report(iter(differences))
    assert capsys.readouterr().out.splitlines()[1].split() == ["EN", "21", "1.0e+00", "1.9e+00", "2.0e+00"]
    with pytest.raises(SystemExit, match="golden GOLDEN_CSV DATA"):
        main(["gold"])
