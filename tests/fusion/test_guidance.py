import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dig2dig.config import GuidanceConfig, SamplerConfig
from dig2dig.fusion.bands import blurred
from dig2dig.fusion.guidance import EMState, Step, bands, em, increments, make_guidance, posterior, proximal
from dig2dig.fusion.resample import resample
from dig2dig.priors.schedule import at
from tests.gaussian import GaussianDenoiser


def step(sources: torch.Tensor, weight: torch.Tensor, alpha_bar: float = 0.5, **changes) -> Step:
    b, _, c, h, w = sources.shape
    defaults = {
        "t": 0,
        "sigma": (1 / alpha_bar - 1) ** 0.5,
        "sigma_next": 0.0,
        "x_t": torch.zeros(b, c, h, w),
        "sources": sources,
        "weights": weight,
        "estimate": sources * 0.5,
        "estimate_next": sources * 0.8,
    }
    return Step(**(defaults | changes))


def scene(seed: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sources = torch.rand(2, k, 1, 6, 6, generator=generator) * 2 - 1
    weight = torch.rand(2, k, 1, 6, 6, generator=generator) + 0.01
    x0_hat = torch.rand(2, 1, 6, 6, generator=generator) * 2 - 1
    return sources, weight / weight.sum(1, keepdim=True), x0_hat


def test_proximal_balances_estimate_and_target() -> None:
    x0_hat, target = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert (proximal(x0_hat, target, 1.0, sigma_n=0.0) == 1).all()
    torch.testing.assert_close(proximal(x0_hat, target, 2.0, sigma_n=2.0), torch.full((1, 1, 2, 2), 0.5))


@given(
    st.integers(0, 50),
    st.integers(1, 4),
    st.sampled_from(["bands", "blend", "em", "increments"]),
    st.floats(0.01, 0.99),
)
def test_order_of_sources_does_not_matter_and_nothing_overshoots(seed: int, k: int, kind, alpha_bar: float) -> None:
    sources, weight, x0_hat = scene(seed, k)
    guide = make_guidance(SamplerConfig(guidance=GuidanceConfig(kind=kind)))
    guided, _ = guide(x0_hat, step(sources, weight, alpha_bar), None)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    permuted, _ = guide(x0_hat, step(sources[:, order], weight[:, order], alpha_bar), None)
    torch.testing.assert_close(permuted, guided, rtol=1e-4, atol=1e-5)
    everything = torch.cat([sources, x0_hat[:, None]], 1)
    if kind == "blend":  # a convex combination at each pixel
        low, high = everything.amin(1), everything.amax(1)
    else:  # the range that sources and estimate span in the image
        low, high = (
            everything.amin((1, 2, 3, 4)).view(-1, 1, 1, 1),
            everything.amax((1, 2, 3, 4)).view(-1, 1, 1, 1),
        )
    assert ((guided >= low - 1e-5) & (guided <= high + 1e-5)).all()


@pytest.mark.parametrize("kind", ["bands", "blend", "increments", "em"])
def test_identical_sources_pull_to_themselves(kind) -> None:
    """When the estimate is already the source, guidance leaves it there."""
    sources, weight, _ = scene(1, 1)
    sources, weight = sources.expand(-1, 3, -1, -1, -1), weight.expand(-1, 3, -1, -1, -1) / 3
    now = step(sources, weight, estimate=sources, estimate_next=sources)
    guided, _ = make_guidance(SamplerConfig(guidance=GuidanceConfig(kind=kind)))(sources[:, 0], now, None)
    torch.testing.assert_close(guided, sources[:, 0], atol=0.02 if kind == "em" else 1e-5, rtol=0)


def test_increments_with_static_weights_telescope_to_the_mean() -> None:
    sources, _, x0_hat = scene(2, 3)
    weight = torch.full_like(sources, 1 / 3)
    levels, state = [0.0, 0.3, 0.7, 1.0], None
    for left, right in itertools.pairwise(levels):
        now = step(sources, weight, estimate=left * sources, estimate_next=right * sources)
        _, state = increments(x0_hat, now, state, sigma_n=0.0)
    torch.testing.assert_close(state, sources.mean(1), rtol=1e-4, atol=1e-6)


def test_increments_give_each_source_what_it_gained() -> None:
    """Weights that follow the step pick the coarse part of one source and the fine part of another."""
    first, second = torch.full((1, 1, 4, 4), 0.2), torch.full((1, 1, 4, 4), -0.4)
    sources = torch.stack([first, second], 1)
    pick = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 2, 1, 1, 1).expand(-1, -1, -1, -1, 4, 4)
    state = None
    for weight, left, right in ((pick[0], 0.0, 0.5), (pick[1], 0.5, 1.0)):
        now = step(sources, weight, estimate=left * sources, estimate_next=right * sources)
        guided, state = increments(first, now, state, sigma_n=0.0)
    torch.testing.assert_close(guided, 0.5 * first + 0.5 * second)


def walk(sources: torch.Tensor, weight: torch.Tensor, energy: float, levels=(0.1, 0.5, 0.9, 1.0)) -> torch.Tensor:
    """The target of ``bands`` after the steps between these values of alpha_bar."""
    state = None
    for now, following in itertools.pairwise(levels):
        part = step(sources, weight, now, sigma_next=(1 / following - 1) ** 0.5)
        _, state = bands(sources[:, 0], part, state, sigma_n=0.0, scale=4.0, energy=energy, tone=1.0)
    assert state is not None
    return state.target


def test_bands_with_static_weights_sum_to_the_mean() -> None:
    sources = torch.randn(2, 3, 1, 24, 20)
    weight = torch.full_like(sources, 1 / 3)
    torch.testing.assert_close(walk(sources, weight, 0.0), sources.mean(1), rtol=1e-4, atol=1e-5)


def test_bands_of_one_source_alone_are_that_source_but_for_the_coarsest() -> None:
    sources = torch.randn(1, 2, 1, 24, 20)
    weight = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1).expand_as(sources)
    coarsest = blurred(sources, 3.0, 4.0)  # noise level 3 at alpha_bar 0.1
    rest = (coarsest[:, 1:] - coarsest[:, :1]) / 2
    for alpha_bar in (0.5, 0.9, 1.0):  # from grid to grid, as the bands are
        rest = resample(rest, *blurred(sources, (1 / alpha_bar - 1) ** 0.5, 4.0).shape[-2:])
    torch.testing.assert_close(walk(sources, weight, 1.0), sources[:, 0] + rest[:, 0], rtol=1e-3, atol=1e-4)


def test_bands_give_back_the_energy_that_averaging_cancels() -> None:
    """The mean of two unlike images has half of their power; equal images lose nothing and gain nothing."""
    sources = torch.randn(1, 2, 1, 64, 64)
    weight = torch.full_like(sources, 0.5)
    power = float(sources.square().mean())
    assert float(walk(sources, weight, 0.0).square().mean()) == pytest.approx(0.5 * power, rel=0.1)
    assert float(walk(sources, weight, 1.0).square().mean()) == pytest.approx(power, rel=0.1)
    same = sources[:, :1].expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(walk(same, weight, 1.0), same[:, 0], rtol=1e-4, atol=1e-5)


def test_increments_need_estimates() -> None:
    sources, weight, x0_hat = scene(3, 2)
    with pytest.raises(ValueError, match="estimates"):
        increments(x0_hat, step(sources, weight, estimate=None), None, sigma_n=0.1)


def test_em_minimises_its_m_step_objective() -> None:
    """With the split term off, the M-step is the weighted least-squares mean of the sources."""
    sources, weight, x0_hat = scene(4, 3)
    fused, state = em(x0_hat, step(sources, weight), None, form="paper", penalty=0.0)
    assert isinstance(state, EMState)
    precision = (2 / ((x0_hat[:, None] - sources).square() + 1e-6)).sqrt()
    precision = precision.minimum(2 * precision.amin(1, keepdim=True))
    candidate = fused.clone().requires_grad_()
    objective = (weight * precision * (candidate[:, None] - sources).square()).sum()
    (gradient,) = torch.autograd.grad(objective, candidate)
    assert gradient.abs().max() < 1e-4
    expected = (1 / (precision + 1e-10)).mean((2, 3, 4)) + 0.5
    torch.testing.assert_close(state.scale, expected)


def test_em_smoothing_solves_its_normal_equation() -> None:
    from dig2dig.fusion.guidance import _split_smooth

    image, gradient_x, gradient_y = torch.randn(3, 2, 1, 7, 8).unbind(0)
    h = _split_smooth(image, EMState(torch.ones(2, 2), gradient_x, gradient_y))
    dx, dy = h - h.roll(-1, -1), h - h.roll(-1, -2)
    left = h + (dx - dx.roll(1, -1)) + (dy - dy.roll(1, -2))
    right = image + gradient_x - gradient_x.roll(1, -1) + gradient_y - gradient_y.roll(1, -2)
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_em_code_gives_what_ddfm_published() -> None:
    """One step of DDFM's EM_onestep.py on these inputs gave these numbers; the total variation differs by 1e-3."""
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    infrared, visible = (torch.sin(x + 2 * y) * 0.8)[None, None], (torch.cos(2 * x - y) * 0.6)[None, None]
    x0_hat = 0.3 * infrared + 0.5 * visible + 0.1 * torch.sin(x * y)
    published = torch.tensor([
        [0.3002, 0.3461, 0.3127, 0.3672],
        [0.5929, 0.1833, -0.5999, -0.4543],
        [-0.4868, -0.3106, -0.2323, 0.1994],
        [-0.4535, 0.4584, 0.6357, -0.1077],
    ])  # fmt: skip
    now = step(torch.stack([infrared, visible], 1), torch.full((1, 2, 1, 4, 4), 0.5))
    code, _ = em(x0_hat, now, None, form="code")
    torch.testing.assert_close(code[0, 0], published, rtol=0, atol=2e-3)


def test_em_code_is_for_two_sources() -> None:
    sources, weight, x0_hat = scene(5, 3)
    with pytest.raises(ValueError, match="two sources"):
        em(x0_hat, step(sources, weight), None, form="code")


def test_posterior_equals_the_gaussian_posterior(gaussian: GaussianDenoiser) -> None:
    """For a Gaussian prior, one Tweedie step adds exactly the posterior covariance times the likelihood's slope."""
    t = torch.tensor([400])
    alpha_bar = at(gaussian.alpha_bar, t, torch.zeros(1, 1, 1, 1))
    x_t = torch.randn(1, 1, 5, 5).requires_grad_()
    x0_hat = gaussian(x_t, t)
    source = x0_hat.detach() + 0.4
    guided, _ = posterior(
        x0_hat,
        step(source[:, None], torch.ones(1, 1, 1, 5, 5), alpha_bar=float(alpha_bar), x_t=x_t),
        None,
        sigma_n=0.1,
    )
    a = float(alpha_bar)
    covariance = 0.25 * (1 - a) / (a * 0.25 + 1 - a)
    expected = x0_hat.detach() + covariance * 0.4 / (1 - a + 0.01)
    torch.testing.assert_close(guided, expected, rtol=1e-3, atol=1e-4)
