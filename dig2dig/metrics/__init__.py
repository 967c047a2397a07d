"""Fusion metrics: pure functions on images in [0, 1], computed on 8-bit grey levels as their authors do.

Every function takes ``fused`` (b, c, h, w) and, where it needs them, ``sources`` (b, k, c, h, w), grey or RGB, and
gives one value for each image, or one for each image and source. :data:`METRICS` is the table of them all.
"""

from dig2dig.metrics.collection import FusionMetrics
from dig2dig.metrics.levels import grey_levels
from dig2dig.metrics.suite import ALL, CONVENTIONS, MAIN, METRICS, Metric, fusion_metrics, reference_metrics

__all__ = [
    "ALL",
    "CONVENTIONS",
    "MAIN",
    "METRICS",
    "FusionMetrics",
    "Metric",
    "fusion_metrics",
    "grey_levels",
    "reference_metrics",
]
