import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from dig2dig.fusion import comparators as baselines
from dig2dig.fusion.comparators import CLASSICAL, ddfm, stretch
from dig2dig.fusion.resample import box, guided_filter
from dig2dig.fusion.sampler import fuse
from tests.gaussian import GaussianDenoiser
from tests.pictures import crop_of, random_sources


@pytest.mark.parametrize("name", [name for name in CLASSICAL if name != "mertens"])
@pytest.mark.parametrize("channels", [1, 3])
def test_identical_sources_return_themselves_and_their_order_does_not_matter(name: str, channels: int) -> None:
    source = random_sources(0, 2, 1, channels, 50, 37)
    same = CLASSICAL[name](source.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(same, source[:, 0], rtol=0, atol=2e-3 if name == "guided" else 1e-5)
    sources = random_sources(1, 1, 3, channels, 50, 37)
    torch.testing.assert_close(CLASSICAL[name](sources.flip(1)), CLASSICAL[name](sources), rtol=1e-4, atol=1e-5)


def test_exposure_fusion_takes_what_is_well_exposed() -> None:
    """A mid-grey source wins over one that is nearly black."""
    texture = random_sources(3, 1, 3, 32, 32)
    fused = baselines.mertens(torch.stack([0.02 + 0.02 * texture, 0.4 + 0.2 * texture], 1))
    assert float(fused.mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["laplacian", "wavelet", "guided"])
def test_focus_is_found_on_the_example(name: str) -> None:
    near_far = crop_of("multi_focus", 150, 60, 128, "near", "far", mode="RGB")
    truth = crop_of("multi_focus", 150, 60, 128, "truth", mode="RGB")[:, 0]
    error = [float((image - truth).square().mean()) for image in (CLASSICAL[name](near_far), near_far.mean(1))]
    assert error[0] < 0.5 * error[1]


@pytest.mark.parametrize("size", [(64, 80), (61, 77)])
def test_laplacian_is_burts_pyramid(size: tuple[int, int]) -> None:
    """As OpenCV reduces and expands; at the borders they continue images in other ways."""
    sources = random_sources(2, 1, 2, 1, *size)
    bands, rest = [], []
    for image in sources[0, :, 0].numpy():
        smaller = cv2.pyrDown(image)
        rest.append(cv2.pyrUp(smaller, dstsize=size[::-1]))
        bands.append(image - rest[-1])
    fused = np.mean(rest, 0) + np.where(np.abs(bands[0]) >= np.abs(bands[1]), *bands)
    found = baselines.laplacian(sources, levels=1)[0, 0].numpy()
    np.testing.assert_allclose(found[4:-4, 4:-4], fused.clip(0, 1)[4:-4, 4:-4], atol=1e-6)


def test_the_window_of_saliency_is_that_of_the_paper() -> None:
    """11 × 11, standard deviation 5."""
    image = random_sources(4, 1, 2, 1, 40, 50)
    wanted = cv2.GaussianBlur(image[0, 0, 0].numpy(), (11, 11), 5, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(baselines._filtered(image, *baselines.SALIENCY)[0, 0, 0].numpy(), wanted, atol=1e-6)


def test_box_is_the_mean_of_what_lies_in_the_image() -> None:
    image = torch.rand(1, 1, 9, 12)
    torch.testing.assert_close(box(image, 2), avg_pool2d(image, 5, 1, 2, count_include_pad=False))


def test_guided_filter_of_a_guide_by_itself_keeps_edges_and_smooths_the_rest() -> None:
    step = torch.zeros(1, 1, 32, 32)
    step[..., 16:] = 1
    noisy = step + 0.02 * torch.randn(1, 1, 32, 32)
    smoothed = guided_filter(noisy, noisy, 4, 0.01)
    assert float((smoothed - step).abs().mean()) < 0.5 * float((noisy - step).abs().mean())


def test_stretch_fills_the_range() -> None:
    image = torch.tensor([0.2, 0.3, 0.6]).view(1, 1, 1, 3)
    np.testing.assert_allclose(stretch(image).flatten(), [0, 0.25, 1], rtol=1e-6)
    assert not stretch(torch.full((1, 1, 2, 2), 0.4)).any()


@pytest.mark.parametrize("form", ["code", "paper"])
def test_ddfm_runs_on_our_sampler(gaussian: GaussianDenoiser, form: str) -> None:
    config = ddfm(form, steps=5)
    assert (config.guidance.kind, config.dig.kind, config.research.noise, config.sigma_start) == (
        "em",
        "static",
        "recomputed",
        None,
    )
    source = random_sources(2, 1, 1, 1, 16, 16)
    fused = fuse(source.expand(-1, 2, -1, -1, -1), gaussian, config)
    torch.testing.assert_close(fused, source[:, 0], rtol=0, atol=0.05)
