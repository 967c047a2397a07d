import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from dig2dig import metrics

from .conftest import SHARED

GOLDEN = SHARED.parent / "golden" / "metrics.csv"
COLUMNS = {"EN": "EN", "SD": "SD", "SF": "SF", "SCD": "SCD", "VIF": "VIF_sum", "Qabf": "Qabf", "Nabf": "Nabf"}


def grey(path) -> torch.Tensor:
    rgb = np.asarray(Image.open(path).convert("RGB")).astype(float)
    return torch.tensor(np.round(rgb @ [0.299, 0.587, 0.114]))[None] / 255


def agrees(row: dict[str, str]) -> None:
    folder = SHARED / row["task"] / row["dataset"]
    files = [next((folder / row[side]).glob(f"{row['name']}.*")) for side in ("source_a", "source_b")]
    fused = grey(next((folder / "peers" / row["method"]).glob(f"{row['name']}.*")))[None]
    found = metrics.fusion_metrics(fused, torch.stack([grey(file) for file in files])[None])
    for name, column in COLUMNS.items():
        tolerance = 1e-3 if name == "Nabf" else 1e-4
        assert float(found[name]) == pytest.approx(float(row[column]), rel=tolerance), (row["name"], name)
    assert 2 * float(found["SSIM"]) == pytest.approx(float(row["SSIM_sum"]), rel=1e-4)


@pytest.mark.skipif(not GOLDEN.is_file(), reason="needs the shared reference values")
def test_metrics_agree_with_reference_implementations() -> None:
    """The smallest image of each dataset."""
    smallest: dict[tuple[str, str], dict[str, str]] = {}
    for row in csv.DictReader(GOLDEN.read_text().splitlines()):
        key = row["task"], row["dataset"]
        if key not in smallest or int(row["height"]) < int(smallest[key]["height"]):
            smallest[key] = row
    assert len(smallest) >= 4
    for row in smallest.values():
        agrees(row)


@pytest.mark.slow
@pytest.mark.skipif(not GOLDEN.is_file(), reason="needs the shared reference values")
def test_metrics_agree_with_every_reference_value() -> None:
    rows = list(csv.DictReader(GOLDEN.read_text().splitlines()))
    assert len(rows) == 48
    for row in rows:
        agrees(row)


def test_entropy_and_deviation_in_closed_form() -> None:
    ramp = torch.arange(256.0).view(1, 1, 16, 16) / 255
    assert float(metrics.entropy(ramp)) == pytest.approx(8.0)
    assert float(metrics.standard_deviation(ramp)) == pytest.approx(math.sqrt((256**2 - 1) / 12))
    flat = torch.full((2, 1, 16, 16), 0.3)
    assert metrics.entropy(flat).tolist() == [0, 0]
    assert metrics.spatial_frequency(flat).tolist() == [0, 0]
    assert float(metrics.spatial_frequency(ramp)) == pytest.approx(math.sqrt(1 + 16**2))


def test_ssim_agrees_with_scikit_image_and_metrics_take_many_sources() -> None:
    fused, sources = torch.rand(2, 1, 50, 60), torch.rand(2, 3, 1, 50, 60)
    levels = [metrics.grey_levels(x) for x in (fused, sources)]
    found = metrics.structural_similarity(fused, sources)
    for b in range(2):
        for k in range(3):
            expected = structural_similarity(levels[0][b, 0].numpy(), levels[1][b, k, 0].numpy(), data_range=255)
            assert float(found[b, k]) == pytest.approx(expected, rel=1e-6)
    values = metrics.fusion_metrics(fused, sources)
    swapped = metrics.fusion_metrics(fused, sources[:, [2, 0, 1]])
    for name, value in values.items():
        assert value.shape == (2,) and value.isfinite().all()
        torch.testing.assert_close(value, swapped[name], rtol=1e-5, atol=1e-6)  # VIF is computed in float32


def test_metrics_of_a_perfect_copy() -> None:
    image = torch.rand(1, 1, 64, 64)
    values = metrics.fusion_metrics(image, image[:, None].expand(-1, 2, -1, -1, -1))
    assert float(values["SSIM"]) == pytest.approx(1)
    assert float(values["VIF"]) == pytest.approx(2, rel=1e-4)
    assert float(values["Nabf"]) == 0
    assert float(values["Qabf"]) > 0.97
    assert set(metrics.fusion_metrics(image[..., :20, :20], image[:, None, :, :20, :20].repeat(1, 2, 1, 1, 1))) == {
        "EN", "SD", "SF", "SCD", "Qabf", "SSIM", "Nabf",
    }  # fmt: skip


def test_metrics_of_constant_images_are_finite() -> None:
    flat = torch.full((1, 1, 48, 48), 0.5)
    values = metrics.fusion_metrics(flat, flat[:, None].expand(-1, 2, -1, -1, -1))
    assert all(value.isfinite().all() for name, value in values.items() if name != "VIF")
