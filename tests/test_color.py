import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dig2dig.color import merge, rgb_to_ycbcr, split, to_channels, ycbcr_to_rgb


def test_ycbcr_agrees_with_pillow() -> None:
    from PIL import Image

    pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    theirs = torch.tensor(list(Image.fromarray(pixels.numpy()).convert("YCbCr").tobytes())).view(16, 16, 3)
    ours = rgb_to_ycbcr(pixels.permute(2, 0, 1) / 255) * 255
    ours[1:] += 128
    assert (ours.permute(1, 2, 0) - theirs).abs().max() <= 1


def test_ycbcr_round_trip() -> None:
    rgb = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(ycbcr_to_rgb(rgb_to_ycbcr(rgb)), rgb, rtol=1e-4, atol=1e-5)


def test_visible_keeps_its_colour_beside_grey_infrared() -> None:
    visible, infrared = torch.rand(3, 8, 8), torch.rand(1, 8, 8)
    sources, chroma = split([visible, infrared], "ivf")
    assert sources.shape == (2, 1, 8, 8) and chroma is not None
    torch.testing.assert_close(sources[1], infrared)
    torch.testing.assert_close(chroma, rgb_to_ycbcr(visible)[1:], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(merge(sources[0], chroma), visible, rtol=1e-3, atol=1e-3)


def test_grey_sources_stay_grey_and_focal_planes_stay_colour() -> None:
    grey, colour = torch.rand(1, 4, 4), torch.rand(3, 4, 4)
    assert split([grey, grey], "ivf")[0].shape == (2, 1, 4, 4)
    assert split([grey, grey], "mef")[1] is None
    sources, chroma = split([colour, grey], "mff")
    assert sources.shape == (2, 3, 4, 4) and chroma is None


def test_exposures_take_their_colour_where_it_is_well_exposed() -> None:
    mid = torch.tensor([0.7, 0.4, 0.4]).view(3, 1, 1).expand(3, 4, 4)  # luminance 0.49
    dark, white = mid * 0.05, torch.ones(3, 4, 4) - torch.tensor([0.0, 0.1, 0.1]).view(3, 1, 1)
    sources, chroma = split([dark, mid, white], "mef")
    assert sources.shape == (3, 1, 4, 4) and chroma is not None
    alone = rgb_to_ycbcr(mid)[1:]
    torch.testing.assert_close(chroma, alone, rtol=0.03, atol=0)
    assert chroma.norm() > 1.5 * rgb_to_ycbcr(torch.stack([dark, mid, white]))[:, 1:].mean(0).norm()


@given(st.integers(0, 1000))
def test_merge_keeps_luminance_and_stays_in_range(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    luminance = torch.rand(1, 6, 6, generator=generator)
    chroma = torch.rand(2, 6, 6, generator=generator) - 0.5
    rgb = merge(luminance, chroma)
    assert rgb.min() >= -1e-4 and rgb.max() <= 1 + 1e-4
    torch.testing.assert_close(rgb_to_ycbcr(rgb)[:1], luminance, rtol=1e-3, atol=1e-4)


def test_grey_and_colour() -> None:
    grey = torch.rand(2, 1, 3, 3)
    torch.testing.assert_close(to_channels(to_channels(grey, 3), 1), grey)
    with pytest.raises(ValueError, match="channels"):
        to_channels(torch.rand(1, 2, 3, 3), 3)
