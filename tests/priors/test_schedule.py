import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import (
    add_noise,
    alpha_bar,
    amplitudes,
    draw_noise,
    gain_grid,
    generators,
    noise_level,
    strictly_decreasing,
    time_grid,
    time_of_noise_level,
)


@pytest.mark.parametrize(
    ("kind", "start", "end"),
    [("linear", 1e-4, 0.02), ("scaled_linear", 8.5e-4, 0.012), ("squaredcos_cap_v2", 0.0, 0.0)],
)
def test_alpha_bar_agrees_with_diffusers(kind: str, start: float, end: float) -> None:
    reference = DDPMScheduler(beta_schedule=kind, beta_start=start, beta_end=end).alphas_cumprod
    torch.testing.assert_close(alpha_bar(kind, start, end).float(), reference, rtol=2e-4, atol=1e-7)


def test_add_noise_agrees_with_diffusers(signal: torch.Tensor) -> None:
    x0, noise, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 500, 999])
    reference = DDPMScheduler().add_noise(x0, noise, t)
    torch.testing.assert_close(add_noise(x0, noise, t, signal), reference, rtol=1e-3, atol=1e-5)


def test_time_of_noise_level_inverts_noise_level(signal: torch.Tensor) -> None:
    assert (time_of_noise_level(signal, noise_level(signal)) == torch.arange(1000)).all()
    assert time_of_noise_level(signal, torch.tensor([1e-9, 1e9])).tolist() == [0, 999]


@given(st.sampled_from(["uniform", "logsnr"]), st.integers(1, 60), st.floats(1, 100), st.floats(0.01, 0.05))
def test_time_grid_is_strictly_decreasing_between_its_ends(kind, steps, start, end) -> None:
    signal = alpha_bar()
    times = time_grid(kind, steps, signal, start, end)
    assert len(times) == steps
    assert (times.diff() < 0).all()
    assert times[0] == time_of_noise_level(signal, torch.tensor(start))
    if steps > 1:
        assert times[-1] == time_of_noise_level(signal, torch.tensor(end))


def test_logsnr_grid_spaces_log_noise_levels_evenly(signal: torch.Tensor) -> None:
    gaps = noise_level(signal)[time_grid("logsnr", 10, signal, 50.0, 0.2)].log().diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(9), rtol=0.05, atol=0)


def test_time_grid_refuses_more_steps_than_times(signal: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        time_grid("uniform", 50, signal, sigma_start=0.02)


def test_gain_grid_shares_gain_equally() -> None:
    coarse = torch.tensor([900, 600, 300, 0])
    times = gain_grid(torch.tensor([0.0, 1, 0, 0]), coarse, 11)  # all the gain lies between 600 and 300
    assert (times.diff() < 0).all() and times[0] == 900 and times[-1] == 0
    assert ((times <= 600) & (times >= 300)).sum() >= 9
    assert gain_grid(torch.ones(4), coarse, 11).tolist() == list(range(900, -1, -90))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_strictly_decreasing_repeats_no_time(values: list[int]) -> None:
    times = torch.tensor(sorted((value + 30 for value in values), reverse=True))
    if times[0] - times[-1] < len(times) - 1:
        times[0] = times[-1] + len(times) - 1
    fixed = strictly_decreasing(times)
    assert (fixed.diff() < 0).all()
    assert fixed[0] == times[0] and fixed[-1] == times[-1]


def test_noise_depends_on_the_seed_alone() -> None:
    like = torch.zeros(1)
    both = draw_noise((2, 3), generators([7, 8], 2), like)
    assert torch.equal(both[1:], draw_noise((2, 3), generators(8, 1), like))
    assert not torch.equal(both[0], both[1])


def test_amplitudes_have_all_digits_of_their_type_near_the_clean_image(signal: torch.Tensor) -> None:
    """At time 0, 1 - alpha_bar is 1e-4: a difference in float32 has an error of 1.7e-4 of it."""
    t = torch.arange(len(signal))
    image, noise = amplitudes(signal, t, torch.zeros(1, 1, 1, 1))
    assert image.shape == noise.shape == (1000, 1, 1, 1) and noise.dtype == torch.float32
    torch.testing.assert_close(image.flatten().double(), signal.sqrt(), rtol=6e-8, atol=0)
    torch.testing.assert_close(noise.flatten().double(), (1 - signal).sqrt(), rtol=6e-8, atol=0)
    clean, draw = torch.zeros(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    noised = add_noise(clean, draw, torch.tensor([0]), signal)
    torch.testing.assert_close(noised.double(), draw.double() * 0.01, rtol=2e-7, atol=0)
    estimate = Denoiser(torch.nn.Identity(), signal).estimate(noised, draw, torch.tensor([0]))
    torch.testing.assert_close(estimate, clean, rtol=0, atol=1e-9)
