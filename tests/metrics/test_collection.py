"""Means over a data set."""

import pytest
import torch

from dig2dig.metrics import MAIN, FusionMetrics, fusion_metrics


def test_means_over_batches_are_means_over_images() -> None:
    fused, sources = torch.rand(3, 1, 48, 50), torch.rand(3, 2, 1, 48, 50)
    collection = FusionMetrics()
    collection.update(fused[:2], sources[:2])
    collection.update(fused[2:], sources[2:])
    found, expected = collection.compute(), fusion_metrics(fused, sources)
    assert tuple(found) == MAIN
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].mean())


def test_processes_add_up() -> None:
    fused, sources = torch.rand(3, 1, 48, 50), torch.rand(3, 2, 1, 48, 50)
    whole, one, other = (FusionMetrics("vifb", ["EN", "SSIM"]) for _ in range(3))
    whole.update(fused, sources)
    one.update(fused[:1], sources[:1])
    other.update(fused[1:], sources[1:])
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), whole.compute())
    assert one._reductions["total"] is one._reductions["count"]  # both are summed over processes
    one.reset()
    one.update(fused, sources)
    torch.testing.assert_close(one.compute(), whole.compute())


def test_images_without_a_value_do_not_count() -> None:
    large, small = torch.rand(1, 1, 48, 48), torch.rand(2, 1, 20, 48)
    collection = FusionMetrics(names=["EN", "VIF", "PSNR", "MS-SSIM"])
    collection.update(large, large[:, None].expand(-1, 2, -1, -1, -1).contiguous().clamp(max=0.5))
    collection.update(small, small[:, None].expand(-1, 2, -1, -1, -1))  # PSNR is infinite
    found = collection.compute()
    assert set(found) == {"EN", "VIF", "PSNR"}
    alone = fusion_metrics(large, large[:, None].expand(-1, 2, -1, -1, -1).clamp(max=0.5), names=["VIF", "PSNR"])
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value[0])


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="no metric FSIM"):
        FusionMetrics(names=["FSIM"])
