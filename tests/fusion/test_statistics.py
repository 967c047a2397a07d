from dataclasses import replace

import pytest
import torch

from dig2dig.config import DigConfig, SamplerConfig
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.sampler import fuse
from dig2dig.fusion.statistics import dig_statistics, guidance_contribution, weight_covariance, weight_entropy
from dig2dig.tracking.panels import curves, fusion_panel, histogram_values, maps_panel
from tests.gaussian import GaussianDenoiser


def test_entropy_is_one_for_equal_weights_and_zero_for_a_choice() -> None:
    equal = torch.full((1, 3, 1, 4, 4), 1 / 3)
    choice = torch.zeros(1, 3, 1, 4, 4)
    choice[:, 1] = 1
    assert float(weight_entropy(equal)) == pytest.approx(1)
    assert float(weight_entropy(choice)) == 0


def test_contribution_is_positive_towards_the_ideal_and_covariance_zero_for_flat_weights() -> None:
    ideal, x0_hat = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5)
    sources = torch.stack([torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)], 1)
    contribution = guidance_contribution(x0_hat, sources, ideal)
    assert (contribution[:, 0] == 0.5).all() and (contribution[:, 1] == -0.5).all()
    random = torch.randn(2, 2, 1, 8, 8)
    assert weight_covariance(torch.full((2, 2, 1, 8, 8), 0.5), random).abs().max() < 1e-7
    found = weight_covariance(random, random)
    torch.testing.assert_close(found, random.flatten(2).var(2, correction=0))


def test_statistics_and_panels_of_a_fusion(gaussian: GaussianDenoiser) -> None:
    trace: list[Snapshot] = []
    sources = torch.rand(1, 2, 1, 40, 50)
    config = SamplerConfig(steps=5, dig=DigConfig(kind="residual"))
    fuse(sources, gaussian, config, observe=trace.append)
    statistics = dig_statistics(trace, sources)
    assert statistics.weight_mean.shape == (5, 2) and statistics.covariance.shape == (5, 2)
    torch.testing.assert_close(statistics.weight_mean.sum(1), torch.ones(5))
    assert (statistics.entropy > 0).all() and (statistics.entropy <= 1).all()
    assert statistics.t.tolist() == sorted(statistics.t.tolist(), reverse=True)
    names = ("visible", "infrared")
    panel = fusion_panel(sources[0], trace[-1].guided[0], names)
    assert panel.shape == (40 + 18 + 4, 3 * 54, 3) and panel.dtype.name == "uint8"
    assert maps_panel(trace, names).shape[2] == 3
    assert curves(statistics, names).std() > 0
    with pytest.raises(ValueError, match="estimates=True"):
        dig_statistics([replace(step, x0_hat=None) for step in trace], sources)
    assert histogram_values(trace, 1).shape == (5 * 40 * 50,)
