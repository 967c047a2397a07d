import pytest
import torch
from scipy.ndimage import gaussian_filter

from dig2dig.fusion.resample import coarseness, downsample, resample, smooth


def test_narrow_filters_agree_with_scipy() -> None:
    image = torch.rand(1, 1, 1, 40, 30)
    theirs = gaussian_filter(image[0, 0, 0].numpy(), 1.7, mode="mirror", radius=6)
    torch.testing.assert_close(smooth(image, 1.7)[0, 0, 0], torch.tensor(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (1, 5)])
def test_shrinking_keeps_the_mean_and_growing_the_size(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, 1, *size)
    small = downsample(image, 4)
    assert small.shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))
    assert resample(small, *size).shape == image.shape
    if size == (16, 24):
        torch.testing.assert_close(small.mean((-2, -1)), image.mean((-2, -1)))


def test_maps_are_as_coarse_as_their_smoothing() -> None:
    assert [coarseness(sigma) for sigma in (0.0, 1.9, 2.0, 5.0, 130.0)] == [1, 1, 2, 4, 128]


@pytest.mark.parametrize("sigma", [2.0, 7.0, 13.0, 40.0])
def test_smoothing_keeps_constants_and_matches_a_gaussian(sigma: float) -> None:
    torch.testing.assert_close(smooth(torch.full((1, 2, 1, 9, 3), 0.7), sigma), torch.full((1, 2, 1, 9, 3), 0.7))
    side = 2 * int(5 * sigma) + 1
    impulse = torch.zeros(1, 1, 1, side, side)
    impulse[..., side // 2, side // 2] = 1
    spread = smooth(impulse, sigma)[0, 0, 0]
    offset = torch.arange(float(side)) - side // 2
    for axis in (0, 1):
        variance = float((spread.sum(axis) * offset**2).sum() / spread.sum())
        assert variance == pytest.approx(sigma**2, rel=0.1)
