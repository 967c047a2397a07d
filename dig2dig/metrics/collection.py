"""Means of fusion metrics over a data set, on one process or many."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric

from dig2dig.metrics.suite import MAIN, check_names, fusion_metrics
from dig2dig.shapes import Image, Sources


class FusionMetrics(TorchMetric):
    """Mean of each metric over all images so far; images for which one is undefined do not count in its mean.

    Args:
        convention: As for :func:`fusion_metrics`.
        names: Which metrics.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, convention: str = "standard", names: Sequence[str] = MAIN) -> None:
        super().__init__()
        check_names(names, convention)
        self.convention = convention
        self.names = tuple(names)
        self.add_state("total", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(len(self.names), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, fused: Image, sources: Sources) -> None:
        """Add a batch of images in [0, 1]."""
        for name, values in fusion_metrics(fused, sources, self.convention, self.names).items():
            defined = values.isfinite()
            self.total[self.names.index(name)] += values[defined].sum()
            self.count[self.names.index(name)] += defined.sum()

    def compute(self) -> dict[str, Tensor]:
        """Means by name; a metric that was defined for no image is left out."""
        means = self.total / self.count
        return {name: mean for name, mean, n in zip(self.names, means, self.count, strict=True) if n}
