"""Schedules, windows, losses and adapters against numbers computed by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dig2dig.modules.scores import means
from dig2dig.priors.build import SCHEDULE, as_denoiser, build_prior, save_prior
from dig2dig.priors.denoiser import Denoiser, Layout
from dig2dig.priors.load import load_prior
from dig2dig.priors.lora import add_adapter
from dig2dig.priors.loss import denoising_psnr, diffusion_loss, draw_times, loss_weight, psnr_by_noise
from dig2dig.priors.schedule import add_noise, alpha_bar, noise_level, time_grid, time_of_noise_level
from dig2dig.priors.windows import in_windows, window_shares, window_starts
from tests.gaussian import GaussianDenoiser

ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
LEVEL = np.sqrt((1 - ALPHA_BAR) / ALPHA_BAR)


class Recorder(nn.Module):
    """Predicts zeros, and remembers the sides that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.sides.append(tuple(x.shape[-2:]))
        return 0 * x


def test_the_first_and_last_values_of_the_linear_schedule(signal: torch.Tensor) -> None:
    assert signal.dtype == torch.float64 and len(signal) == 1000
    assert float(signal[0]) == pytest.approx(1 - 1e-4) and float(signal[1]) == pytest.approx(
        (1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999)
    )
    assert float(signal[-1]) == pytest.approx(4.0358e-5, rel=1e-4)  # Ho et al.: nearly no signal is left
    np.testing.assert_allclose(signal.numpy(), ALPHA_BAR)
    assert float(noise_level(torch.tensor(0.8))) == pytest.approx(0.5)


def test_noised_images_have_the_two_roots_as_their_shares() -> None:
    x_t = add_noise(
        torch.ones(2, 1, 1, 1), torch.full((2, 1, 1, 1), 10.0), torch.tensor([0, 1]), torch.tensor([0.64, 0.36])
    )
    assert x_t.flatten().tolist() == pytest.approx([0.8 + 10 * 0.6, 0.6 + 10 * 0.8])


def test_the_time_of_a_noise_level_is_the_nearest_in_log(signal: torch.Tensor) -> None:
    levels = [0.011, 0.03, 0.5, 1.0, 8.0, 100.0]
    nearest = [int(np.abs(np.log(LEVEL) - math.log(level)).argmin()) for level in levels]
    assert time_of_noise_level(signal, torch.tensor(levels)).tolist() == nearest


def test_time_grids_by_hand(signal: torch.Tensor) -> None:
    assert time_grid("uniform", 5, signal).tolist() == [999, 749, 500, 250, 0]  # 749.25, 499.5, 249.75
    assert time_grid("uniform", 1, signal).tolist() == [999]
    half, tenth = (int(np.abs(np.log(LEVEL) - math.log(level)).argmin()) for level in (0.5, 0.1))
    middle = int(np.abs(np.log(LEVEL) - (math.log(LEVEL[half]) + math.log(LEVEL[tenth])) / 2).argmin())
    assert time_grid("logsnr", 3, signal, 0.5, 0.1).tolist() == [half, middle, tenth]


@pytest.mark.parametrize(("native", "largest"), [(None, 48), (8, 16), (100, 48)])
def test_windows_of_a_network_with_attention_are_at_most_twice_its_native_side(signal, native, largest: int) -> None:
    network = Recorder()
    denoiser = Denoiser(network, signal, Layout(multiple=4, native=native), window=50)
    assert denoiser.side(64, 64) == largest and denoiser.pixels == largest**2
    denoiser(torch.rand(1, 3, 64, 64), torch.tensor([5]))
    assert max(max(sides) for sides in network.sides) <= largest
    assert len(network.sides) == {48: 4, 16: 49}[largest]  # 64 = 2 · 40 - 16 of halves that overlap; 7 of 16 by 8
    network.sides.clear()
    assert denoiser.in_windows(0).side(64, 40) == 64
    denoiser.in_windows(0)(torch.rand(3, 3, 64, 40), torch.tensor([5, 5, 5]))
    assert network.sides == [(64, 40)]


def test_native_side_is_that_of_pixels_and_only_where_there_is_attention() -> None:
    from diffusers import UNet2DModel

    plain = build_prior([32], 1, 2)
    assert plain.layout == Layout("v_prediction", channels=3, patch=2, multiple=2, native=None)
    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 32, "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 32)}
    unet = UNet2DModel(**sizes, **kinds, layers_per_block=1)
    assert as_denoiser(unet, SCHEDULE).layout == Layout("epsilon", channels=1, patch=2, multiple=4, native=64)


def test_the_outer_quarter_of_an_overlap_does_not_count() -> None:
    """Windows of 16 from 0 and 8: of the 8 shared pixels two at each end belong to one window, four blend smoothly."""
    first, second = window_shares([0, 8], 16, 24, 8).tolist()
    smooth = [x * x * (3 - 2 * x) for x in (0.125, 0.375, 0.625, 0.875)]
    assert first[:8] == [1.0] * 8 and second[8:] == [1.0] * 8
    assert first[8:] == pytest.approx([1, 1, *reversed(smooth), 0, 0], abs=3e-6)
    assert second[:8] == pytest.approx([0, 0, *smooth, 1, 1], abs=3e-6)


def test_windows_are_spread_evenly() -> None:
    assert window_starts(24, 16, 8, 1) == ([0, 8], 16)
    assert window_starts(20, 16, 8, 4) == ([0, 4], 16)
    assert window_starts(16, 16, 8, 4) == ([0], 16)
    assert window_starts(64, 48, 64, 4) == ([0, 20], 44)  # the overlap is half a window at most
    assert window_starts(100, 40, 10, 10) == ([0, 30, 60], 40)


def test_windows_blend_by_their_shares_on_both_axes() -> None:
    """Each call answers with its number: the picture is the sum of numbers times shares."""
    number = iter(range(1, 5))
    made = in_windows(
        lambda x, t: torch.full_like(x, float(next(number))),
        torch.zeros(1, 1, 24, 24),
        torch.tensor([0]),
        *(16, 8, 1, 16 * 16),
    )[0, 0]
    a, b = window_shares([0, 8], 16, 24, 8)
    left, right = torch.cat([a, torch.zeros(8)]), torch.cat([torch.zeros(8), b])
    top, bottom = torch.outer(left, left) + 2 * torch.outer(left, right), torch.outer(right, 3 * left + 4 * right)
    torch.testing.assert_close(made, top + bottom)
    assert made[0, 0] == 1 and made[0, 23] == 2 and made[23, 0] == 3 and made[23, 23] == 4


def test_drawn_times_by_hand(signal: torch.Tensor) -> None:
    """Below a tenth the second number chooses the index itself, else the level 0.02 · 500^position."""
    uniform = torch.tensor([[0.25, 0.5], [0.25, 0.099], [0.999, 0.05], [0.999, 0.1]])
    level = [0.02 * 500**position for position in (0.25, 0.999)]
    nearest = [int(np.abs(np.log(LEVEL) - math.log(one)).argmin()) for one in level]
    assert draw_times(uniform, signal, 0.02, 10.0).tolist() == [nearest[0], 250, 999, nearest[1]]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_loss_of_a_network_that_says_zero_is_the_mean_square_of_its_target(prediction, signal: torch.Tensor) -> None:
    denoiser = Denoiser(Recorder(), signal, Layout(prediction))
    x0, noise, t = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([100, 700])
    a = torch.tensor(ALPHA_BAR[[100, 700]]).float().view(2, 1, 1, 1)
    target = {"epsilon": noise, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x0, "sample": x0}[prediction]
    torch.testing.assert_close(diffusion_loss(denoiser, x0, noise, t), target.square().mean((1, 2, 3)))
    snr = ALPHA_BAR[[100, 700]] / (1 - ALPHA_BAR[[100, 700]])
    unit = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1 + 0 * snr}[prediction]
    expected = np.minimum(snr, 5) / unit  # SNR 8.4 is cut at 5, SNR 0.007 is not
    np.testing.assert_allclose(loss_weight("min_snr", 5.0, denoiser, t).numpy(), expected, rtol=1e-5)
    assert loss_weight("none", 5.0, denoiser, t).tolist() == [1, 1]


def test_psnr_of_a_known_denoiser_by_hand(signal: torch.Tensor) -> None:
    """The Gaussian estimate is linear; noise of 25 of 255 is twice that in [-1, 1]."""
    denoiser = GaussianDenoiser(0.1, 0.5, signal)
    images, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    t = int(np.abs(np.log(LEVEL) - math.log(50 / 255)).argmin())
    a = ALPHA_BAR[t]
    x_t = math.sqrt(a) * (2 * images.double() - 1) + math.sqrt(1 - a) * noise
    x0 = 0.1 + math.sqrt(a) * 0.25 / (a * 0.25 + 1 - a) * (x_t - math.sqrt(a) * 0.1)
    error = ((x0 / 2 + 0.5).clamp(0, 1) - images).square().mean((1, 2, 3))
    expected = [10 * math.log10(1 / one) for one in error.tolist()]
    assert denoising_psnr(denoiser, images, noise, 25.0).tolist() == pytest.approx(expected, rel=1e-4)


def test_validation_draws_each_images_noise_from_its_index_and_weighs_images_alike(signal: torch.Tensor) -> None:
    denoiser = GaussianDenoiser(0.1, 0.5, signal)
    images, index = torch.rand(3, 1, 8, 8), torch.tensor([4, 0, 7])
    noise = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (4, 0, 7)])
    found = psnr_by_noise(denoiser, {"image": images, "index": index})
    assert [list(row) for row in found] == 3 * [["psnr_15", "psnr_25", "psnr_50", "psnr_100"]]
    for sigma in (15, 100):
        expected = denoising_psnr(denoiser, images, noise, float(sigma)).tolist()
        assert [row[f"psnr_{sigma}"] for row in found] == pytest.approx(expected)
    parts = [{"image": images[part], "index": index[part]} for part in (slice(0, 2), slice(2, 3))]
    apart = means([row for part in parts for row in psnr_by_noise(denoiser, part)])
    assert apart == pytest.approx(means(found), rel=1e-5) and means([]) == {}


def test_an_adapter_adds_alpha_over_rank_times_its_product() -> None:
    """W' = W + alpha / rank · B A, for a convolution and after the merge."""
    denoiser = build_prior([32], 3, 2)
    before = {name: weight.clone() for name, weight in denoiser.named_parameters()}
    tuner = add_adapter(denoiser, 4, 12.0)
    low = {name: weight for name, weight in denoiser.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for weight in low.values():
            weight.normal_(0, 0.1)
    products = {
        name.replace("lora_A.default.", ""): torch.einsum("orij,rkyx->okyx", low[name.replace("_A.", "_B.")], weight)
        for name, weight in low.items()
        if "lora_A" in name
    }
    tuner.merge_and_unload(safe_merge=True)
    changed = 0
    for name, weight in denoiser.named_parameters():
        product = products.get(name)
        changed += product is not None
        torch.testing.assert_close(weight, before[name] + (0 if product is None else 3 * product), rtol=1e-4, atol=1e-5)
    assert changed == len(products) > 4 and not any(weight.requires_grad for weight in denoiser.parameters())


def test_a_prior_on_disk_has_its_weights_its_schedule_and_its_prediction(tmp_path) -> None:
    torch.manual_seed(3)
    denoiser = build_prior([32], 1, 2, "sample")
    denoiser.alpha_bar = alpha_bar("scaled_linear", 8.5e-4, 0.012, 500)
    save_prior(denoiser, tmp_path)
    found = load_prior(tmp_path, precision="fp32")
    assert found.prediction == "sample" and found.precision == "fp32" and not found.training
    betas = np.linspace(8.5e-4**0.5, 0.012**0.5, 500) ** 2
    np.testing.assert_allclose(found.alpha_bar.numpy(), np.cumprod(1 - betas), rtol=1e-9)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([30])
    with torch.no_grad():
        torch.testing.assert_close(found(x, t), denoiser(x, t))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 2e-3), ("bf16", 0.1), ("auto", 0.1)])
def test_a_prior_on_cuda_is_that_on_the_cpu(tiny, precision, atol: float) -> None:
    here = load_prior(tiny, precision="fp32")
    there = load_prior(tiny, precision=precision, device="cuda")
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([30, 800])
    with torch.no_grad():
        found = there(x.cuda(), t.cuda())
        assert found.is_cuda and found.dtype == torch.float32
        torch.testing.assert_close(found.cpu(), here(x, t), rtol=0, atol=atol)
