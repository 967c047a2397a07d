"""Learned weights: invariants of the network, its files, and fusions with it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dig2dig.api import preset
from dig2dig.config import DigConfig, SamplerConfig
from dig2dig.errors import PriorError
from dig2dig.fusion.bands import BandSum
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.sampler import fuse
from dig2dig.fusion.weight import WeightNetwork, load_weights, preferred, save_weights, scale_space
from dig2dig.priors.denoiser import Denoiser
from tests.pictures import crop_of

DIG = DigConfig(loss="l1", normalise="none", smoothing=1.0, refresh=1)
SETTINGS = SamplerConfig(steps=3, sigma_start=0.5, sigma_end=0.125, dig=DIG)


@pytest.fixture
def network() -> WeightNetwork:
    """A network whose last layer is not zero."""
    torch.manual_seed(0)
    network = WeightNetwork(SETTINGS)
    torch.nn.init.normal_(network.last.weight, std=8.0)
    return network.eval().requires_grad_(False)


def scene(k: int, h: int = 40, w: int = 56, channels: int = 1) -> torch.Tensor:
    sources = torch.rand(1, k, channels, h, w, generator=torch.Generator().manual_seed(k))
    return torch.nn.functional.avg_pool2d(sources.flatten(0, 1), 3, 1, 1).unflatten(0, (1, k))


def levels(network: WeightNetwork, sources: torch.Tensor, order: list[int] | None = None) -> list:
    k, sigmas = sources.shape[1], [0.5, 0.25, 0.125]
    gains = [torch.rand(1, k, 1, 20, 28, generator=torch.Generator().manual_seed(9)) for _ in range(4)]
    order = order or list(range(k))
    return network(scale_space(sources[:, order], sigmas, 32.0), [gain[:, order] for gain in gains], sigmas)


@pytest.mark.parametrize("factor", [0.0, 0.7, -0.7])
def test_no_detail_is_stronger_than_in_the_source_that_has_most_of_it(bundled: Denoiser, factor: float) -> None:
    """So a picture that is given twice returns as it is, unless a factor weakens its bands."""
    network, sources = WeightNetwork(SETTINGS).eval(), scene(3)
    assert network.last.bias is not None
    with torch.no_grad():
        network.last.bias[1] = factor
    twice = torch.stack([sources[:, 0], sources[:, 0]], 1)
    if factor >= 0:
        torch.testing.assert_close(fuse(twice, bundled, weights=network), sources[:, 0], atol=1e-5, rtol=0)
    seen, sharper, total = torch.zeros_like(sources), 2 * sources - 1, BandSum(1.0, held=True)
    total.add(sharper.clone(), seen, torch.full_like(sources[:, :, :1], 1 / 3))
    fused = total.restored(0.0, 32.0, torch.full_like(sources[:, 0, :1], 1 + factor))
    assert (fused.abs() <= sharper.abs().amax(1) + 1e-6).all()
    assert factor <= 0 or (fused.abs() == sharper.abs().amax(1)).float().mean() > 0.1


@pytest.mark.parametrize("k", [2, 3, 5])
def test_weights_sum_to_one_and_follow_the_order_of_the_sources(network: WeightNetwork, k: int) -> None:
    sources = 2 * scene(k) - 1
    order = [*range(1, k), 0]
    for here, turned in zip(levels(network, sources), levels(network, sources, order), strict=True):
        torch.testing.assert_close(here.weight.sum(1), torch.ones_like(here.weight[:, 0]))
        torch.testing.assert_close(turned.weight, here.weight[:, order], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(turned.factor, here.factor, atol=1e-5, rtol=1e-4)
        assert here.weight.std() > 1e-3 and ((here.factor > 0.36) & (here.factor < 2.72)).all()


def test_one_source_twice_is_that_source(network: WeightNetwork, bundled: Denoiser) -> None:
    """Equal sources have equal weights; only the learned factor may change the bands."""
    network.last.weight[1] = 0
    source = scene(2)[:, :1]
    fused = fuse(source.expand(-1, 2, -1, -1, -1), bundled, SamplerConfig(), weights=network)
    torch.testing.assert_close(fused, source[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("h", "w", "channels"), [(17, 33, 1), (64, 50, 3), (1, 9, 1)])
def test_any_size_and_channels(network: WeightNetwork, bundled: Denoiser, h: int, w: int, channels: int) -> None:
    sources = scene(2, h, w, channels)
    fused = fuse(sources, bundled, SamplerConfig(), weights=network)
    assert fused.shape == (1, channels, h, w) and fused.isfinite().all()
    pair = fuse(torch.cat([sources, sources.flip(-1)]), bundled, SamplerConfig(), seed=[0, 1], weights=network)
    torch.testing.assert_close(pair[:1], fused, atol=1e-5, rtol=0)


def test_observers_see_the_learned_weights_and_the_prior_may_run(network: WeightNetwork, bundled: Denoiser) -> None:
    sources, trace, alone = scene(2), list[Snapshot](), list[Snapshot]()
    fused = fuse(sources, bundled, SamplerConfig(), weights=network, observe=trace.append)
    same = fuse(sources, bundled, SamplerConfig(), weights=network, observe=alone.append, estimates=False)
    assert len(trace) == len(alone) == SETTINGS.steps and trace[0].x0_hat is not None and alone[0].x0_hat is None
    torch.testing.assert_close(fused, same)
    for step in trace:
        assert step.weight.std() > 1e-4
    pulled = replace(SamplerConfig(), guidance=replace(SamplerConfig().guidance, sigma_n=0.05))
    assert (fuse(sources, bundled, pulled, weights=network) - fused).abs().max() > 1e-4
    noisy = fuse(sources, bundled, SamplerConfig(), weights=network, noise=torch.full((1, 2), 0.1))
    assert (noisy - fused).abs().max() > 1e-3


def test_weights_come_back_from_their_folder(network: WeightNetwork, bundled: Denoiser, tmp_path: Path) -> None:
    save_weights(network, tmp_path / "w")
    loaded, sources = load_weights(str(tmp_path / "w")), scene(2)
    assert loaded.settings == SETTINGS
    expected = fuse(sources, bundled, SamplerConfig(), weights=network)
    named = SamplerConfig(weights=str(tmp_path / "w"))
    torch.testing.assert_close(fuse(sources, bundled, named), expected)
    with torch.no_grad():
        loaded.last.weight.zero_()  # a training of what was loaded is not seen by others
    torch.testing.assert_close(fuse(sources, bundled, named), expected)
    file = tmp_path / "w" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    narrow = WeightNetwork(SETTINGS, 8)
    save_weights(narrow, tmp_path / "narrow")
    with pytest.raises(PriorError, match=r"of another version; learn the weights again$"):
        load_weights(str(tmp_path / "narrow"))
    with pytest.raises(PriorError, match=r"weights\.safetensors: damaged"):
        load_weights(str(tmp_path / "w"))
    (tmp_path / "w" / "sampler.yaml").unlink()
    with pytest.raises(PriorError, match=r"sampler\.yaml: missing"):
        load_weights(str(tmp_path / "w"))
    with pytest.raises(PriorError, match=r"sampler\.weights=nowhere: no weights\.safetensors there; give gain"):
        load_weights("nowhere")


def test_loading_leaves_the_random_numbers_alone(network: WeightNetwork, tmp_path: Path) -> None:
    save_weights(network, tmp_path)
    before = torch.get_rng_state()
    load_weights(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_clipped_exposure_weighs_less_in_the_base(bundled: Denoiser) -> None:
    texture = 0.4 + 0.3 * crop_of("multi_focus", 0, 0, 128, "far")
    sources = torch.cat([texture, 0.98 + 0.01 * texture], 1)
    plain, shared = (fuse(sources, bundled, preset("mef", f"sampler.dig.share={p}")).mean() for p in (0, 1.25))
    assert abs(shared - texture.mean()) < 0.25 * abs(plain - texture.mean())


def test_preferred_sources_say_more() -> None:
    weights = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1, 1)
    assert preferred(weights, [1.0, 3.0]).flatten().tolist() == pytest.approx([0.25, 0.75])
    assert preferred(weights, []) is weights
    with pytest.raises(ValueError, match="3 factors for 2 sources"):
        preferred(weights, [1.0, 1.0, 1.0])


def test_preference_and_tone_change_the_picture(bundled: Denoiser) -> None:
    sources, plain = scene(2), SamplerConfig(steps=3, sigma_start=0.5)
    fused = fuse(sources, bundled, plain)
    first, second = (fuse(sources, bundled, replace(plain, prefer=factors)) for factors in ([50.0, 1.0], [1.0, 50.0]))
    for image, source in ((first, sources[:, 0]), (second, sources[:, 1])):
        assert (image - source).abs().mean() < 0.2 * (fused - source).abs().mean()
    natural, vivid = (fuse(sources, bundled, replace(plain, tone=tone)) for tone in ("natural", "vivid"))
    assert natural.std() < fused.std() < vivid.std()
    assert fuse(sources, bundled, replace(plain, prefer=[1.0, 1.0])).allclose(fused, atol=1e-5)


def test_base_weights_decide_the_tone(bundled: Denoiser) -> None:
    """A source that the denoiser can guess, middle grey, has less to say about the tone than a bright one."""
    sources = torch.stack([torch.full((1, 1, 64, 64), 0.5), torch.full((1, 1, 64, 64), 0.95)], 1)
    sources = sources + 0.01 * torch.randn(sources.shape, generator=torch.Generator().manual_seed(0))
    plain = SamplerConfig(steps=3, sigma_start=0.5)
    weighted = replace(plain, dig=replace(plain.dig, base=0.2))
    mean, tone = (float(fuse(sources.clamp(0, 1), bundled, one).mean()) for one in (plain, weighted))
    assert mean == pytest.approx(0.725, abs=0.01) and tone > mean + 0.05


def test_the_tone_of_exposures_does_not_follow_the_noise_of_a_camera(bundled: Denoiser) -> None:
    """It is no detail, so a dim frame weighs the same with and without it."""
    scene = crop_of("multi_focus", 64, 64, 128, "far")
    clean = torch.cat([0.15 * scene, (1.5 * scene).clamp(max=1)], 1)
    noise = torch.randn(scene.shape, generator=torch.Generator().manual_seed(4)) * 4 / 255
    noisy = torch.cat([(0.15 * scene + noise).clamp(min=0), clean[:, 1:]], 1)
    before, after = (float(fuse(sources, bundled, preset("mef")).mean()) for sources in (clean, noisy))
    assert after == pytest.approx(before, abs=0.01)


def test_the_tone_of_exposures_does_not_follow_the_seed(bundled: Denoiser) -> None:
    """Which comes from the name of a file: a photograph that is renamed keeps its brightness."""
    scene = crop_of("multi_focus", 64, 64, 128, "far")
    sources = torch.cat([0.15 * scene, (1.5 * scene).clamp(max=1)], 1)
    means = [float(fuse(sources, bundled, preset("mef"), seed=seed).mean()) for seed in range(4)]
    assert max(means) - min(means) < 0.004
