"""Terms of objectives against the metrics that they follow, and against numbers worked out by hand."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from dig2dig.metrics import METRICS
from dig2dig.metrics.objectives import TERMS, View, check_terms, objective
from dig2dig.metrics.tone import bright_targets, halo, inside_and_ring, target_contrast, targets, tone_order


def scene(channels: int = 1, k: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources with structure and clipped parts, and a fused image that departs from their mean; 8-bit values."""
    generator = torch.Generator().manual_seed(3)
    sources = torch.rand(2, k, channels, 96, 96, generator=generator)
    sources = avg_pool2d(sources.flatten(0, 1), 5, 1, 2).unflatten(0, (2, k))
    sources = ((sources - 0.3) * 2.2).clamp(0, 1)
    sources[:, 0, :, :20] = 1.0
    fused = (sources.mean(1) + 0.05 * torch.randn(sources.mean(1).shape, generator=generator)).clamp(0, 1)
    return (255 * fused).round() / 255, (255 * sources).round() / 255


TWINS = {
    "vif": "VIF",
    "ssim": "SSIM",
    "qabf": "Qabf",
    "scd": "SCD",
    "mef_ssim": "MEF-SSIM",
    "halo": "halo",
    "artefact": "Nabf",
}


@pytest.mark.parametrize(("term", "metric"), TWINS.items())
@pytest.mark.parametrize("k", [2, 3])
def test_a_term_is_its_metric_on_eight_bit_images(term: str, metric: str, k: int) -> None:
    fused, sources = scene(k=k)
    value = float(METRICS[metric](fused, sources).mean())
    sign, factor = (
        (1 if metric in ("halo", "Nabf") else -1),
        (k if metric == "SSIM" else 1),
    )  # SSIM is summed over the sources
    assert float(TERMS[term](View(fused, sources))) == pytest.approx(sign * factor * value, rel=2e-4, abs=1e-9)


@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_of_each_term_is_finite_and_lowers_it(name: str) -> None:
    fused, sources = scene(channels=3)
    mask = torch.zeros(2, 1, 96, 96)
    mask[:, :, 40:60, 40:60] = 1
    sources[:, 1, :, 40:60, 40:60] = 0.9
    sources[:, 0] *= 0.6

    def view(image: torch.Tensor) -> View:
        return View(image, sources, truth=sources[:, 0], mask=mask)

    moved = 1.5 * avg_pool2d(fused, 3, 1, 1) - 0.2  # also outside of [0, 1]
    moved.requires_grad_()
    value = TERMS[name](view(moved))
    (gradient,) = torch.autograd.grad(value, moved)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    step = 1e-3 * gradient / gradient.abs().max()
    assert TERMS[name](view(moved.detach() - step)) < value


def test_an_objective_is_the_sum_of_its_terms() -> None:
    fused, sources = scene()
    view = View(fused, sources)
    found = objective(view, {"target": 2.0, "vif": 0.5, "ssim": 0.0})
    assert set(found) == {"target", "vif"}
    torch.testing.assert_close(found["target"], 2 * TERMS["target"](view))
    with pytest.raises(ValueError, match="no term vfi; there are vif"):
        check_terms({"vfi": 1.0})


def test_halo_counts_gradients_against_every_source() -> None:
    ramp = torch.linspace(0, 1, 96).expand(1, 1, 96, 96)
    sources = torch.stack([ramp, 0.5 * ramp], 1)
    assert float(halo(ramp, sources)) == 0
    assert float(halo(1 - ramp, sources)) == 1
    half = torch.where(torch.arange(96) < 48, ramp, 1 - ramp)  # a roof: the right half falls
    assert float(halo(half, sources)) == pytest.approx(0.5, abs=0.02)
    assert float(halo(1 - ramp, torch.stack([ramp, 1 - ramp], 1))) == 0  # one source explains it


def test_tone_order_counts_places_that_are_turned_round() -> None:
    ramp = torch.linspace(0.1, 0.9, 64).expand(1, 1, 64, 64)
    sources = torch.stack([ramp, ramp**2], 1)
    assert float(tone_order(ramp.sqrt(), sources)) == 0
    assert float(tone_order(1 - ramp, sources)) == 1
    assert float(tone_order(1 - ramp, torch.stack([ramp, 1 - ramp], 1))) == 0  # the sources do not agree
    assert float(TERMS["order"](View(1 - ramp, sources))) == pytest.approx(1)


def test_contrast_of_targets_is_inside_less_ring() -> None:
    mask, levels = torch.zeros(1, 1, 64, 64), torch.full((1, 1, 64, 64), 50.0)
    mask[..., 24:40, 24:40] = 1
    levels[..., 24:40, 24:40] = 130
    inside, ring = inside_and_ring(mask)
    assert float(target_contrast(levels, inside, ring)) == pytest.approx(80)
    image = levels / 255
    sources = torch.stack([torch.full_like(image, 50 / 255), image], 1)
    weaker = 50 / 255 + (image - 50 / 255) / 4
    assert float(TERMS["mask"](View(weaker, sources, mask=mask))) == pytest.approx(0.75, abs=1e-4)
    assert float(TERMS["mask"](View(weaker, sources))) == 0


def test_targets_keep_their_contrast_or_are_lost() -> None:
    infrared, mask = torch.full((1, 1, 80, 120), 40 / 255), torch.zeros(1, 80, 120)
    for left in (20, 70):
        mask[:, 30:50, left : left + 20] = 1
        infrared[..., 30:50, left : left + 20] = 200 / 255
    mask[:, 2:4, 2:4] = 1  # too small for a target
    visible = torch.full_like(infrared, 100 / 255)
    sources = torch.stack([visible, infrared], 1)
    fused = visible.clone()
    fused[..., 30:50, 20:40] += 80 / 255  # half of 160 levels; the other target is not there at all
    kept, lost = targets(fused, sources, mask)
    assert kept == pytest.approx([0.5, 0.0]) and lost == 1
    assert targets(infrared, sources, mask) == (pytest.approx([1.0, 1.0]), 0)
    found = bright_targets(infrared)
    assert found[..., 32:48, 22:38].all() and not found[..., :20, :].any()
