"""Whether cheap gains give what the naive form gives: metrics beside the spread of the naive form over seeds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dig2dig.api import preset
from dig2dig.benchmark.config import SpeedConfig
from dig2dig.benchmark.datasets import find_cases, read_case
from dig2dig.benchmark.methods import Fuser
from dig2dig.benchmark.size import Rows, example_pair
from dig2dig.color import luminance
from dig2dig.config import SamplerConfig
from dig2dig.errors import PairingError
from dig2dig.fusion.sampler import fuse
from dig2dig.metrics import MAIN, fusion_metrics

CROP = 256


def spread(config: SpeedConfig, fuser: Fuser) -> tuple[str, str, Rows]:
    """Metrics of the preset and of its gains at full size and in every step, one pair of each dataset."""
    pairs, deviations, offsets, ranges, cheap_ranges = scenes(config), [], [], [], []
    for task, sources in tqdm(pairs, desc="spread"):
        sources, ours = sources.to(fuser.device), preset(task)
        naive = replace(ours, dig=replace(ours.dig, reduce=0.0, refresh=1))
        static = replace(ours, dig=replace(ours.dig, kind="static"))
        ours_scores, naive_scores = (
            np.array([score(fuser, sources, setting, seed) for seed in range(config.seeds)])
            for setting in (ours, naive)
        )
        deviations.append(naive_scores.std(0, ddof=1))
        offsets.append(ours_scores.mean(0) - naive_scores.mean(0))
        ranges.append(naive_scores.mean(0) - score(fuser, sources, static, 0))
        cheap_ranges.append(ours_scores.std(0, ddof=1))
    rows: Rows = []
    for i, name in enumerate(MAIN):
        deviation, offset, cheap = (np.array(part)[:, i] for part in (deviations, offsets, cheap_ranges))
        gained = np.abs(np.array(ranges)[:, i]).mean()
        rows.append(
            {
                "metric": name,
                "naive: spread over seeds": float(deviation.mean()),
                "preset: spread over seeds": float(cheap.mean()),
                "preset − naive, mean": float(offset.mean()),
                "preset − naive, mean size": float(np.abs(offset).mean()),
                "naive − static, mean size": float(gained),
                "pairs within two spreads": f"{int((np.abs(offset) <= 2 * deviation + 1e-6).sum())} of {len(offset)}",
            }
        )
    text = (
        f"{len(pairs)} pairs or stacks, {CROP} px crops, {config.seeds} seeds. *Naive*: gains of every source in every "
        "step at full size, which is (1 + K) × the network of static weights. *Spread*: standard deviation over seeds, "
        "mean over pairs."
    )
    return "Cheap gains beside naive ones", text, rows


def scenes(config: SpeedConfig) -> list[tuple[str, torch.Tensor]]:
    """Task and sources of a few pairs of each dataset; the bundled example where there is no data."""
    if not Path(config.data).is_dir():
        return [("ivf", example_pair(CROP, CROP))]
    try:
        cases = find_cases(config.data, half="second", limit=config.limit)
    except PairingError:
        return [("ivf", example_pair(CROP, CROP))]
    return [(case.task, read_case(case, CROP).sources[None]) for case in cases]


def score(fuser: Fuser, sources: torch.Tensor, setting: SamplerConfig, seed: int) -> list[float]:
    """The main metrics of one fusion, judged as 8-bit luminance."""
    image = (255 * fuse(sources, fuser.denoiser, setting, seed)).round() / 255
    found = fusion_metrics(luminance(image), luminance(sources), names=MAIN)
    return [float(found[name]) for name in MAIN]
