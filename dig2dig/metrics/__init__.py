"""Fusion metrics: pure functions on images in [0, 1], computed on 8-bit grey levels as in the original papers.

A function takes ``fused`` (b, c, h, w), and ``sources`` (b, k, c, h, w) if it needs them, grey or RGB. It gives one
value for each image, or one for each image and source. :data:`METRICS` lists all metrics.
"""

from dig2dig.metrics.levels import grey_levels
from dig2dig.metrics.suite import ALL, CONVENTIONS, MAIN, METRICS, Metric, fusion_metrics

__all__ = ["ALL", "CONVENTIONS", "MAIN", "METRICS", "Metric", "fusion_metrics", "grey_levels"]
