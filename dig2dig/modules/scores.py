"""What validation says of fused pairs: metrics, and statistics of gains and weights, as means over all processes."""

import sys

import torch

from dig2dig.fusion.statistics import DigStatistics, dig_statistics
from dig2dig.metrics import fusion_metrics, grey_levels
from dig2dig.modules.results import Result


def pair_statistics(result: Result) -> DigStatistics:
    """Statistics of a fused pair whose steps were kept with the prior's estimates."""
    assert result.sample is not None
    return dig_statistics(result.trace, result.sample.sources[None].cpu())


def pair_scores(result: Result) -> dict[str, float]:
    """``fusion/METRIC`` on luminance, ``dig/entropy``, and per modality mean weight, mean gain and covariance."""
    sample = result.sample
    assert sample is not None and result.image is not None
    metrics = fusion_metrics(grey_levels(result.image.cpu())[None] / 255, grey_levels(sample.sources.cpu())[None] / 255)
    found = {f"fusion/{name}": float(value) for name, value in metrics.items()}
    statistics = pair_statistics(result)
    found["dig/entropy"] = float(statistics.entropy.mean())
    for k, modality in enumerate(sample.modalities):
        found[f"dig/weight_mean/{modality}"] = float(statistics.weight_mean[:, k].mean())
        found[f"dig/gain_mean/{modality}"] = float(statistics.gain_mean[:, k].mean())
        found[f"dig/covariance/{modality}"] = float(statistics.covariance[:, k].sum())
    return found


class PairScores:
    """Scores of the pairs that one process fused, and of images that it denoised."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.count = 0  # pairs of all processes behind the last means

    def add(self, results: list[Result]) -> dict[str, list[Result]]:
        """Keeps the scores of fused pairs and prints why the others failed; gives what a validation step returns."""
        for result in results:
            if result.fused is None:
                print(f"not fused: {result.reason}", file=sys.stderr)
            else:
                self.rows.append(pair_scores(result))
        return {"results": results}

    def means(self) -> dict[str, float]:
        """Means over all processes since the last call, whatever the share of each."""
        parts = [self.rows]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(parts, self.rows)
        rows, self.rows = [row for part in parts for row in part], []
        self.count = len(rows)
        return means(rows)


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each score over the rows that have it: pairs may have different modalities."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
