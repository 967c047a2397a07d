import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dig2dig.config import DigConfig, GuidanceConfig, SamplerConfig
from dig2dig.fusion.sampler import fuse
from dig2dig.priors.denoiser import Denoiser, Layout
from dig2dig.priors.schedule import add_noise
from dig2dig.priors.windows import in_windows, pad, window_shares, window_starts
from tests.pictures import crop_of


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 8, 32]))
def test_pad_reflects_as_numpy_and_crop_takes_it_back(height: int, width: int, multiple: int) -> None:
    image = torch.rand(2, 1, height, width)
    padded = pad(image, multiple)
    assert padded.shape[-2] % multiple == 0 and padded.shape[-1] % multiple == 0
    margin = [(0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)]
    np.testing.assert_array_equal(padded.numpy(), np.pad(image.numpy(), margin, mode="reflect"))
    assert torch.equal(padded[..., :height, :width], image)


@pytest.mark.parametrize("length", [64, 65, 200, 513, 1000])
@pytest.mark.parametrize(("side", "overlap", "multiple"), [(64, 16, 1), (128, 64, 8), (96, 95, 4)])
def test_windows_cover_an_axis_evenly_and_their_shares_sum_to_one(length, side, overlap, multiple) -> None:
    length = -(-length // multiple) * multiple
    starts, size = window_starts(length, side, overlap, multiple)
    assert starts[0] == 0 and starts[-1] + size == length and size <= side
    assert all(start % multiple == 0 for start in starts)
    assert all(later <= earlier + size for earlier, later in itertools.pairwise(starts))
    total = torch.zeros(length)
    for start, share in zip(starts, window_shares(starts, size, length, overlap), strict=True):
        assert (share >= 0).all()
        total[start : start + size] += share
    torch.testing.assert_close(total, torch.ones(length))


def test_a_function_of_pixels_is_the_same_in_windows() -> None:
    x_t, t = torch.randn(3, 2, 40, 72), torch.tensor([1, 2, 3])
    calls: list[torch.Size] = []

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return x * t.view(-1, 1, 1, 1)

    windowed = in_windows(function, x_t, t, side=32, overlap=8, multiple=8, pixels=3 * 32 * 32)
    torch.testing.assert_close(windowed, x_t * t.view(-1, 1, 1, 1), rtol=1e-5, atol=1e-6)
    assert all(shape[0] * shape[2] * shape[3] <= 3 * 32 * 32 for shape in calls)


def test_small_windows_blend_without_a_seam() -> None:
    """Half of a window is shared at most, also where more is asked for."""
    number = iter(range(10))
    made = in_windows(lambda x, t: torch.full_like(x, float(next(number))), torch.zeros(1, 1, 32, 80),
                      torch.tensor([0]), side=32, overlap=64, multiple=1, pixels=32 * 32)  # fmt: skip
    assert float(made.diff(dim=-1).abs().max()) < 0.25 and float(made.max()) > 2


def test_a_local_denoiser_sees_in_windows_what_it_sees_whole(bundled: Denoiser) -> None:
    """The network sees further than the windows overlap, so the two are close, not equal; no window shows."""
    sources = 2 * crop_of("infrared_visible", 100, 100, 192, "visible") - 1
    x_t, t = add_noise(sources[:, 0].expand(-1, 3, -1, -1), torch.randn(1, 3, 192, 192), torch.tensor([100]),
                       bundled.alpha_bar), torch.tensor([100])  # fmt: skip
    with torch.no_grad():
        whole = bundled(x_t, t)
        windowed = in_windows(bundled.whole, x_t, t, 128, 64, bundled.multiple, 2**20)
    difference = (whole - windowed).abs() / 2 * 255
    assert 0 < float(difference.mean()) < 0.1 and float(difference.max()) < 2


def test_the_window_is_a_multiple_and_no_larger_than_twice_the_native_side(bundled: Denoiser) -> None:
    """0 is always whole; networks with attention get windows of at most twice the side that they were trained on."""
    assert bundled.in_windows(300).side(4000, 3000) == 288 and bundled.in_windows(300).pixels == 288**2
    assert bundled.in_windows(0).side(4000, 3000) == 4000
    assert bundled.side(4000, 3000) == 1408 and bundled.multiple == 16
    attentive = Denoiser(bundled.network, bundled.alpha_bar, Layout(multiple=32, native=256))
    assert attentive.side(4000, 3000) == 512 and attentive.in_windows(200).side(4000, 3000) == 192
    assert bundled.in_windows(96).network is bundled.network and bundled.window == 1408


def test_fusion_in_windows_is_fusion_of_the_whole(bundled: Denoiser) -> None:
    """Gains, weights and noise are global: what remains is what the network itself sees differently."""
    sources = crop_of("infrared_visible", 0, 0, 256, "visible", "infrared")
    config = SamplerConfig(steps=4, dig=DigConfig(reduce=0.0), guidance=GuidanceConfig(sigma_n=0.01))
    whole = fuse(sources, bundled, config)
    windowed = fuse(sources, bundled.in_windows(128), config)
    assert 0 < float((whole - windowed).abs().mean()) < 1 / 255


def test_large_batches_go_in_parts(bundled: Denoiser) -> None:
    """One call gets at most as many pixels as a window has; the estimates are those of each image alone."""
    calls: list[int] = []
    handle = bundled.network.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    x_t, t = torch.randn(5, 3, 64, 64), torch.tensor([5] * 5)
    with torch.no_grad():
        parts = bundled.in_windows(96)(x_t, t)
        handle.remove()
        torch.testing.assert_close(parts, bundled(x_t, t), rtol=0, atol=1e-4)
    assert calls == [2, 2, 1]
