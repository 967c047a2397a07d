"""Every way to fuse on a device that is not the CPU: no tensors of two devices meet, no picture goes to and fro."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from datamodules.pairs import Failure, Sample
from dig2dig.app.job import describe
from dig2dig.config import (
    DigConfig,
    FusionConfig,
    GuidanceConfig,
    ResearchConfig,
    SamplerConfig,
)
from dig2dig.fusion import stream
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.sampler import fuse
from dig2dig.inference.writer import FusionWriter
from dig2dig.modules.fuser import Fuser
from dig2dig.modules.fusion import FusionModule
from dig2dig.modules.results import Tracing
from dig2dig.priors.build import build_prior
from dig2dig.priors.denoiser import Denoiser
from dig2dig.report.pictures import pair_view
from dig2dig.tracking.panels import to_colours
from tests.device import AWAY, Away, Moves, away
from tests.pictures import random_sources

SIDE = 48


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Moves]]:
    with away(monkeypatch) as found:
        yield found


def prior(window: int = 0) -> Denoiser:
    torch.manual_seed(0)
    return build_prior([32], 1, 2).requires_grad_(False).eval().in_windows(window)


SETTINGS = {
    "bands": SamplerConfig(steps=3),
    "learned": SamplerConfig(weights="bundled/ivf", prefer=[1.5, 1.0]),
    "prior in the loop": SamplerConfig(steps=3, guidance=GuidanceConfig(sigma_n=0.1)),
    "blend": SamplerConfig(steps=3, guidance=GuidanceConfig("blend", 0.1), dig=DigConfig("change", "l1", "mean")),
    "increments": SamplerConfig(steps=3, guidance=GuidanceConfig("increments", 0.1)),
    "em": SamplerConfig(steps=3, guidance=GuidanceConfig("em", 0.1)),
    "posterior": SamplerConfig(steps=3, guidance=GuidanceConfig("posterior", 0.1)),
    "gain grid": SamplerConfig(steps=3, grid="gain", dig=DigConfig("gain", "gradient", base=0.5, share=0.5)),
    "spatial": SamplerConfig(steps=3, research=ResearchConfig(scope="spatial", draws=3), prefer=[2.0, 1.0]),
    "temporal": SamplerConfig(
        steps=3, guidance=GuidanceConfig(sigma_n=0.1), research=ResearchConfig("network", 0.5, "temporal")
    ),
    "static": SamplerConfig(steps=3, dig=DigConfig("static")),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_fusion_stays_on_its_device(name: str, masked: bool, moves: type[Moves]) -> None:
    count = 1 if name == "gain grid" else 2
    sources, trace = random_sources(0, count, 2, 1, SIDE, SIDE), list[Snapshot]()
    valid = torch.ones(count, 2, 1, SIDE, SIDE, dtype=torch.bool)
    valid[0, 1, :, :9] = False
    mask, seeds = valid if masked else None, range(1, 1 + count)
    expected = fuse(sources, prior(), SETTINGS[name], seeds, valid=mask)
    moves.seen = []
    there = None if mask is None else mask.to(AWAY)
    fused = fuse(sources.to(AWAY), prior().to(AWAY), SETTINGS[name], seeds, observe=trace.append, valid=there)
    assert isinstance(fused, Away) and moves.back() < SIDE, "only times and costs come back"
    torch.testing.assert_close(fused.cpu(), expected, rtol=0, atol=1e-5)
    for step in trace:
        maps = (step.x0_hat, step.guided, step.gain, step.weight)
        assert all(isinstance(one, Away) for one in maps) and type(step.of(count - 1).weight) is torch.Tensor


def test_one_loaded_network_serves_two_devices(moves: type[Moves]) -> None:
    settings, sources = SamplerConfig(weights="bundled/ivf"), random_sources(0, 1, 2, 1, SIDE, SIDE)
    module = FusionModule(FusionConfig(sampler=settings), prior()).to(AWAY)
    fuse(sources, prior(), settings)
    (result,) = module.predict_step([Sample("a", ("visible", "infrared"), sources[0], None)])
    assert result.fused is not None
    torch.testing.assert_close(result.fused.cpu(), fuse(sources, prior(), settings, result.seed)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [0, 32])
def test_noisy_colours_in_windows_stay_there(window: int, moves: type[Moves]) -> None:
    sources, noise = random_sources(0, 1, 3, 3, SIDE, SIDE + 5), torch.tensor([[0.1, 0.0, 0.2]])
    settings = SamplerConfig(steps=2)
    expected = fuse(sources, prior(window), settings, noise=noise)
    moves.seen = []
    found = fuse(sources.to(AWAY), prior(window).to(AWAY), settings, noise=noise)
    assert isinstance(found, Away) and moves.back() < SIDE
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_tall_stacks_stay_there(masked: bool, moves: type[Moves], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dig2dig.shapes.TALL", 1)
    sources, settings = random_sources(0, 1, 3, 1, SIDE, SIDE), SamplerConfig(steps=3, dig=DigConfig(share=0.5))
    assert stream.streams(settings, sources.shape, learned=False)
    valid = sources > 0.1 if masked else None
    expected = fuse(sources, prior(), settings, valid=valid)
    moves.seen = []
    there = None if valid is None else valid.to(AWAY)
    found = fuse(sources.to(AWAY), prior().to(AWAY), settings, valid=there)
    assert isinstance(found, Away) and moves.back() < SIDE
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)


def test_what_is_shown_and_written_of_a_fusion_comes_from_there(moves: type[Moves], tmp_path: Path) -> None:
    """The module's two steps, with noise that is found, pixels without data, maps, report and page."""
    valid = torch.ones(2, 1, SIDE, SIDE, dtype=torch.bool)
    valid[0, :, :5] = False
    tint, names = 0.1 * torch.randn(2, SIDE, SIDE), ("visible", "infrared")
    sources = random_sources(0, 1, 2, 1, SIDE, SIDE)[0]
    sample = Sample("a", names, sources, tint, valid=valid, coloured=("infrared",))
    config = FusionConfig(sampler=SETTINGS["prior in the loop"], noise={"infrared": "auto"}, prefer={"visible": 2.0})
    watched: list[Snapshot] = []
    module = FusionModule(config, prior(), Tracing(None, None, None, watched.append)).to(AWAY)
    assert module.device == module.denoiser.device == AWAY
    for step in (module.predict_step, lambda batch: module.validation_step(batch)["results"]):
        results = list(step([sample, Failure("b", "b: gone")]))
        (result,) = (one for one in results if one.fused is not None)
        assert result.image is not None and type(result.image) is torch.Tensor and "colour noise" in result.note
        assert all(type(one.weight) is type(one.guided) is torch.Tensor for one in result.trace)
    FusionWriter(tmp_path)._write_maps(result)
    view = pair_view(result, "a.png", {}, tmp_path, ["mean", "laplacian"])
    assert len(view.views) == 3 and len(list((tmp_path / "a_maps").iterdir())) == 12
    assert describe(watched[0], ["", ""], ["v", "i"]).panels
    assert to_colours(watched[0].weight[0, 0, 0], 0.0, 1.0).shape == (SIDE, SIDE, 3)


def test_small_windows_where_memory_ran_out_are_on_the_device(moves: type[Moves], monkeypatch) -> None:
    denoiser, left = prior().to(AWAY), [torch.OutOfMemoryError("out of memory")]
    outputs = Denoiser.outputs
    monkeypatch.setattr(
        Denoiser, "outputs", lambda self, x, t: (_ for _ in ()).throw(left.pop()) if left else outputs(self, x, t)
    )
    sample = Sample("a", ("visible", "infrared"), random_sources(0, 1, 2, 1, SIDE, SIDE)[0], None)
    (result,) = Fuser(denoiser, FusionConfig(sampler=SETTINGS["bands"])).fuse([sample], denoiser.device)
    assert result.fused is not None and "small windows" in result.note


def test_the_device_refuses_what_a_gpu_refuses(moves: type[Moves]) -> None:
    """The test of the test: a tensor that was left behind is found, a picture that comes back is counted."""
    there, here = torch.rand(1, 2, 1, SIDE, SIDE).to(AWAY), torch.rand(SIDE, SIDE)
    with pytest.raises(RuntimeError, match="two devices meet"):
        there + here
    with pytest.raises(RuntimeError, match="two devices meet"):
        fuse(torch.rand(1, 2, 1, SIDE, SIDE), prior().to(AWAY), SETTINGS["bands"])
    assert isinstance(there * here.sum(), Away) and moves.back() == 0
    assert torch.equal(there.cpu(), there.here) and moves.back() == 2 * SIDE**2
