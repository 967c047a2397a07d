"""What the benchmark does to sources: the statistics of each kind."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from datamodules.pairs import Sample
from dig2dig.benchmark.config import DegradedConfig
from dig2dig.benchmark.degraded import degrade


def sample_of(sources: torch.Tensor) -> Sample:
    return Sample("scene", tuple("ab"), sources, None)


def test_gaussian_noise_has_the_level_that_is_told() -> None:
    sample = sample_of(torch.full((2, 1, 200, 200), 0.5))
    noisy, level = degrade(sample, 25.0, DegradedConfig(kind="gaussian"))
    assert noisy.std((2, 3, 4)) * 255 == pytest.approx(torch.full((1, 2), 25.0), abs=0.5)
    assert level * 255 == pytest.approx(torch.full((1, 2), 25.0)) and not torch.equal(noisy[0, 0], noisy[0, 1])
    again, _ = degrade(sample, 25.0, DegradedConfig(kind="gaussian"))
    assert torch.equal(again, noisy)


def test_a_dark_source_has_a_quarter_of_the_light() -> None:
    sample = sample_of(torch.full((2, 1, 200, 200), 0.8))
    dark, level = degrade(sample, 5.0, DegradedConfig(kind="dark", noisy="first"))
    assert float(dark[0, 0].mean()) == pytest.approx(0.2, abs=1e-3) and float(dark[0, 1].min()) == pytest.approx(0.8)
    assert 255 * float(dark[0, 0].std()) == pytest.approx(5, abs=0.1)
    assert (level * 255).tolist()[0] == pytest.approx([5, 0])


def test_thermal_noise_grows_with_the_signal_and_has_stripes() -> None:
    dark, bright = torch.zeros(1, 400, 400), torch.ones(1, 400, 400)
    noisy, level = degrade(sample_of(torch.stack([dark, bright])), 20.0, DegradedConfig(kind="thermal"))
    error = 255 * (noisy[0, :, 0] - torch.tensor([0.0, 1.0]).view(2, 1, 1))
    columns = error.mean(1)
    assert columns.std(1).numpy() == pytest.approx([5, 5], rel=0.15)
    pixels = (error - columns[:, None]).std((1, 2))
    assert pixels.numpy() == pytest.approx([20 * 0.5**0.5, 20 * 1.5**0.5], rel=0.02)
    assert 255 * level[0].numpy() == pytest.approx(error.std((1, 2)).numpy(), rel=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_compressed_source_is_that_of_another_encoder(channels: int) -> None:
    pixels = (255 * torch.rand(1, channels, 64, 64, generator=torch.Generator().manual_seed(0))).round() / 255
    pixels = torch.nn.functional.avg_pool2d(pixels, 5, 1, 2)
    found, level = degrade(sample_of(pixels.repeat(2, 1, 1, 1)), 20.0, DegradedConfig(kind="jpeg", noisy="first"))
    file, bytes_ = io.BytesIO(), (255 * pixels[0]).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
    Image.fromarray(bytes_).save(file, "JPEG", quality=20)
    expected = np.asarray(Image.open(file)).reshape(64, 64, channels)
    error = np.abs(255 * found[0, 0].permute(1, 2, 0).numpy() - expected)
    assert error.mean() < 1 and error.max() <= (2 if channels == 1 else 12)
    assert torch.equal(found[0, 1], pixels[0]) and level[0, 0] > 0 and level[0, 1] == 0


def test_a_blurred_source_has_no_noise() -> None:
    colour = torch.rand(2, 3, 48, 48)
    found, level = degrade(sample_of(colour), 1.5, DegradedConfig(kind="blur"))
    expected = gaussian_filter(colour.numpy(), (0, 0, 1.5, 1.5), mode="mirror", truncate=6)
    np.testing.assert_allclose(found[0, :, :, 8:-8, 8:-8], expected[..., 8:-8, 8:-8], atol=2e-3)
    assert float(level.abs().sum()) == 0
