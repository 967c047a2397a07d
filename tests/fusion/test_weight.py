import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dig2dig.fusion.gain import normalise, pixel_loss
from dig2dig.fusion.weight import fusion_weight, masked, scoped


@given(st.integers(0, 100), st.integers(2, 5), st.floats(0.01, 10))
def test_weights_sum_to_one_and_follow_the_order_of_sources(seed: int, k: int, temperature: float) -> None:
    gain = torch.randn(2, k, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    weight = fusion_weight(gain, temperature)
    torch.testing.assert_close(weight.sum(1), torch.ones(2, 1, 5, 5))
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(fusion_weight(gain[:, order], temperature), weight[:, order])


def test_a_small_temperature_picks_the_larger_gain() -> None:
    gain = torch.tensor([0.1, 0.2]).view(1, 2, 1, 1, 1)
    assert fusion_weight(gain, 1e-3)[0, 1] == pytest.approx(1)
    assert fusion_weight(gain, 1e3)[0, 1] == pytest.approx(0.5, abs=1e-3)


def test_scopes_average_weights_over_time_or_space() -> None:
    weights = [torch.rand(2, 3, 1, 5, 6) for _ in range(4)]
    spatial, temporal = scoped(weights, "spatial"), scoped(weights, "temporal")
    torch.testing.assert_close(spatial[2], torch.stack(weights).mean(0))
    torch.testing.assert_close(temporal[1][..., 0, 0], weights[1].mean((-2, -1)))
    assert all(one is other for one, other in zip(scoped(weights, "full"), weights, strict=True))


def test_what_is_not_valid_weighs_nothing_in_every_scope() -> None:
    weights, valid = [torch.rand(1, 2, 1, 4, 6)], torch.ones(1, 2, 1, 4, 6, dtype=torch.bool)
    valid[:, 0, ..., :3] = False
    for scope in ("full", "spatial", "temporal"):
        assert masked(scoped(weights, scope)[0], valid)[0, 0, ..., :3].max() < 1e-3, scope


@pytest.mark.parametrize(("kind", "value"), [("l2", 4.0), ("l1", 2.0)])
def test_pixel_loss_of_a_constant(kind: str, value: float) -> None:
    assert (pixel_loss(torch.full((1, 3, 4, 4), 3.0), torch.ones(1, 3, 4, 4), kind) == value).all()


def test_gradient_loss_sees_slopes_only() -> None:
    ramp = torch.arange(5.0).expand(1, 1, 5, 5)
    loss = pixel_loss(ramp + 7, torch.zeros_like(ramp), "gradient")
    assert (loss[..., :-1] == 1).all() and (loss[..., -1] == 0).all()


def test_normalised_gains_have_no_unit() -> None:
    gain = torch.rand(2, 3, 1, 6, 6) + 0.1
    for kind in ("sum", "mean"):
        torch.testing.assert_close(normalise(gain * 1e-4, kind), normalise(gain, kind), rtol=1e-4, atol=1e-6)
    assert (normalise(gain, "sum").sum(1) - 1.5).abs().max() < 0.15  # of two sources, shares
    torch.testing.assert_close(normalise(gain, "mean").mean((1, 2, 3, 4)), torch.ones(2))
    assert normalise(gain, "none") is gain


def test_nothing_gained_means_equal_weights() -> None:
    gain = torch.zeros(1, 2, 1, 4, 4)
    gain[0, 0, 0, 0, 0] = 1.0
    weight = fusion_weight(normalise(gain, "sum"), 0.1)
    assert weight[0, 0, 0, 0, 0] > 0.99
    torch.testing.assert_close(weight[..., 2:, 2:], torch.full((1, 2, 1, 2, 2), 0.5))


def test_the_only_valid_source_is_shown_however_little_it_weighs() -> None:
    """A blown-out exposure weighs next to nothing beside the others, and all where it is alone."""
    weights = torch.tensor([1.0, 1e-7]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 4, 6)
    valid = torch.ones(1, 2, 1, 4, 6, dtype=torch.bool)
    valid[:, 0, ..., :3] = False
    found = masked(weights, valid)
    assert (found[0, 1, ..., :3] == 1).all() and (found[0, 1, ..., 3:] < 1e-6).all()
    nowhere = masked(weights, torch.zeros_like(valid))
    torch.testing.assert_close(nowhere, weights / weights.sum(1, keepdim=True))
