import re

import pytest
import torch

from dig2dig.config import SamplerConfig
from dig2dig.fusion.noise import clean_chroma, cleaned, denoise, estimate_noise, without_stripes
from dig2dig.fusion.sampler import fuse
from dig2dig.priors.denoiser import Denoiser
from tests.gaussian import GaussianDenoiser
from tests.pictures import crop_of


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def test_estimate_is_the_posterior_mean_of_a_gaussian(gaussian: GaussianDenoiser) -> None:
    """For Gaussian pixels of mean 0.1 and deviation 0.5 the estimate shrinks to the mean by s² / (s² + sigma²)."""
    noisy = torch.randn(2, 2, 1, 16, 16) * 0.5 + 0.1
    level = torch.tensor([[0.1, 0.0], [0.0, 0.2]])
    found = denoise(noisy, level, gaussian, torch.randn(2, 1, 16, 16))
    for b, k, sigma in ((0, 0, 0.2), (1, 1, 0.4)):
        expected = 0.1 + (noisy[b, k] - 0.1) * 0.25 / (0.25 + sigma**2)
        torch.testing.assert_close(found[b, k], expected, rtol=0.02, atol=0.01)
    assert torch.equal(found[0, 1], noisy[0, 1]) and torch.equal(found[1, 0], noisy[1, 0])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_prior_finds_the_clean_source(bundled: Denoiser, mode) -> None:
    """Grey images pass a colour prior with the noise of three channels made up: they gain as much as colour ones."""
    clean = crop_of("multi_focus", 150, 60, 128, "truth", mode=mode)
    sigma = 25 / 255
    noisy = clean + sigma * torch.randn(clean.shape)
    with torch.no_grad():
        fresh = torch.randn(1, 3, 128, 128)
        found = (denoise(2 * noisy - 1, torch.tensor([[sigma]]), bundled, fresh) + 1) / 2
    assert psnr(noisy, clean) == pytest.approx(20.2, abs=0.3)
    assert psnr(found, clean) > 26


def test_noise_is_estimated() -> None:
    clean = crop_of("infrared_visible", 150, 200, 192, "visible", "infrared")
    for sigma in (10, 25, 50):
        noisy = clean + sigma / 255 * torch.randn(clean.shape)
        assert (estimate_noise(noisy) * 255 - sigma).abs().max() < 0.15 * sigma


def test_a_constant_image_has_no_noise() -> None:
    assert estimate_noise(torch.full((1, 2, 1, 8, 8), 0.3)).tolist() == [[0.0, 0.0]]


def test_clipping_hides_no_noise() -> None:
    """A night picture with noise is cut off at black nearly everywhere; its few lit places tell the level."""
    lit = torch.zeros(1, 1, 1, 192, 192)
    lit[..., :96, 64:192] = 0.3
    noisy = (lit + 20 / 255 * torch.randn(lit.shape)).clamp(0, 1)
    assert float(255 * estimate_noise(noisy)) == pytest.approx(20, rel=0.1)


def test_noise_is_sought_where_a_source_shows_the_scene() -> None:
    """A registered source covers a part of the reference; beyond, its border is repeated, without noise."""
    noisy = 0.4 + 25 / 255 * torch.randn(1, 1, 1, 120, 120)
    placed, valid = (
        torch.nn.functional.pad(one[0], [40] * 4, mode)
        for one, mode in ((noisy, "replicate"), (torch.ones_like(noisy), "constant"))
    )
    _, levels, _ = cleaned(placed[None], ["infrared"], {"all": "auto"}, valid[None] > 0)
    assert levels is not None and float(255 * levels) == pytest.approx(25, rel=0.1)


def test_levels_of_a_configuration() -> None:
    names, sources = ("visible", "infrared"), torch.full((2, 2, 1, 64, 64), 0.5)
    sources[:, 1] += torch.randn(2, 1, 64, 64) * 0.1
    plain, levels, notes = cleaned(sources, names, {"visible": "51", "infrared": "auto"})
    assert levels is not None
    assert levels[:, 0].tolist() == pytest.approx([0.2, 0.2])
    assert levels[:, 1].tolist() == pytest.approx([0.1, 0.1], rel=0.15)
    assert torch.equal(plain[:, 0], sources[:, 0])
    assert all(len(note) == 1 and re.fullmatch(r"infrared: noise of 2\d\.\d of 255.* found", note[0]) for note in notes)
    assert cleaned(sources, names, {}) == (sources, None, [[], []])
    _, levels, notes = cleaned(sources, names, {"all": "auto", "visible": "0"})
    assert levels is not None and (levels[:, 1] > 0.08).all() and not levels[:, 0].any()
    _, levels, notes = cleaned(sources[:, :1], names[:1], {"all": "auto"})
    assert levels is not None and not levels.any() and notes == [["visible: no noise found"]] * 2


def test_stripes_of_a_sensor_are_taken_out_and_edges_stay() -> None:
    clean = crop_of("infrared_visible", 150, 200, 192, "visible", "infrared")
    lines = (2 * torch.randn(1, 1, 1, 1, 192) / 255).clamp(-3 / 255, 3 / 255)
    striped = (clean + lines).clamp(0, 1)
    plain, _, notes = cleaned(striped, ("visible", "infrared"), {"infrared": "auto"})
    before, after = ((one[:, 1] - clean[:, 1]).square().mean().sqrt() * 255 for one in (striped, plain))
    assert before > 1.2 and after < 0.7 * before
    assert "stripes of 1." in notes[0][0] and torch.equal(plain[:, 0], striped[:, 0])
    assert (without_stripes(clean) - clean).abs().mean() < 0.3 / 255
    edge = torch.zeros(1, 1, 1, 64, 64)
    edge[..., :24, 32:] = 1
    assert torch.equal(without_stripes(edge), edge)


def test_told_of_the_noise_the_result_is_nearer_to_the_clean_sources(bundled: Denoiser) -> None:
    clean = crop_of("infrared_visible", 200, 250, 96, "visible", "infrared")
    noisy = clean + 0.1 * torch.randn(clean.shape)
    options = SamplerConfig(steps=4)
    reference = fuse(clean, bundled, options)
    blind, aware = (fuse(noisy, bundled, options, noise=torch.full((1, 2), sigma)) for sigma in (0.0, 0.1))
    assert psnr(aware, reference) > psnr(blind, reference) + 3


def test_noise_that_leaves_the_range_keeps_its_mean() -> None:
    """Clipped at 0, the noise of a black background would make it grey."""
    noisy = 0.1 * torch.randn(1, 1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    plain = without_stripes(noisy)
    assert float(plain.min()) < -0.2 and float(plain.mean()) == pytest.approx(float(noisy.mean()), abs=3e-3)


@pytest.mark.parametrize("side", [24, 60])
def test_noise_of_a_small_patch_is_that_of_its_valid_pixels(side: int) -> None:
    valid = torch.zeros(1, 1, 1, 150, 150, dtype=torch.bool)
    valid[..., 37 : 37 + side, 41 : 41 + side] = True
    noisy = torch.where(valid, 0.4 + 25 / 255 * torch.randn(1, 1, 1, 150, 150), 0.4)
    assert float(255 * estimate_noise(noisy, valid)) == pytest.approx(25, rel=0.2)


def test_a_grey_prior_leaves_colours_as_they_are(gaussian: GaussianDenoiser) -> None:
    chroma = 0.1 * torch.randn(2, 48, 48)
    found, told = clean_chroma(torch.full((1, 48, 48), 0.5), chroma, gaussian, 0)
    assert found is chroma and told == []
