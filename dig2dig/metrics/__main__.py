"""Metrics of a fused picture against its sources.

dig2dig metrics FUSED SOURCE SOURCE … [convention=standard] [metrics=main]   values of picture files, one a line
dig2dig metrics table                                                        the table of docs/metrics.md

convention is standard, cddfuse, tang or vifb; metrics is main or all. ↑ means that more is better, ↓ that less is."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from dig2dig.cli import load_strictly
from dig2dig.errors import UserError, exits_in_one_line, usage
from dig2dig.metrics.suite import ALL, MAIN, METRICS, Metric, fusion_metrics
from dig2dig.options import option


@dataclass
class MetricsConfig:
    """Options of the command."""

    convention: Literal["standard", "cddfuse", "tang", "vifb"] = option("standard", "form of the metrics")
    metrics: Literal["main", "all"] = option("main", "the eight main metrics, or all")


def measure(files: Sequence[Path], config: MetricsConfig) -> None:
    """Prints the metrics of the first file, a fused picture, against the other files."""
    from datamodules.ranges import to_unit
    from datamodules.readers.source import frame_count, read_source
    from datamodules.readers.thermal import both_from_one
    from datamodules.validity import check_finite, without_data

    pixels, inverted = [], []
    for i, file in enumerate(files):
        if frame_count(file) is not None:
            raise UserError(f"{file}: has several frames or slices; give pictures")
        if file in files[:i] and both_from_one(file, "visible", "infrared"):
            raise UserError(f"{file}: holds a visible and an infrared picture, of which the first alone is read here")
        picture = read_source(file)
        if (note := without_data(picture.pixels, picture.valid)[1]) or picture.valid is not None:
            raise UserError(f"{file}: {note or 'some pixels hold no data'}; metrics are of whole pictures")
        check_finite(picture.pixels, None, str(file))
        pixels, inverted = [*pixels, picture.pixels], [*inverted, picture.inverted]
    if pixels[0].dtype.kind == "f" and not 0 <= pixels[0].min() <= pixels[0].max() <= 1:
        raise UserError(f"{files[0]}: values outside of [0, 1]; a fused picture has values in [0, 1], or whole numbers")
    for file, image in zip(files[1:], pixels[1:], strict=True):
        (h, w), (height, width) = image.shape[:2], pixels[0].shape[:2]
        if (h, w) != (height, width):
            raise UserError(f"{file} has {w}×{h} pixels, {files[0]} has {width}×{height}: sizes must be equal")
    units = [to_unit(image, "auto" if i else "full", None, inverted[i])[0] for i, image in enumerate(pixels)]
    images = [torch.from_numpy(np.atleast_3d(unit)).movedim(-1, 0) for unit in units]
    channels = max(map(len, images))  # all are in colour if one of them is
    fused, *sources = (image.expand(channels, -1, -1) for image in images)
    names = ALL if config.metrics == "all" else MAIN
    found = fusion_metrics(fused[None], torch.stack(sources)[None], config.convention, names)
    for name in names:
        value = f"{float(found[name]):.6g}" if name in found else f"needs {METRICS[name].smallest} pixels a side"
        print(f"{name:14}{value:<24}{METRICS[name].arrow}")


def row(metric: Metric) -> str:
    """A metric's line of the table in docs/metrics.md."""
    better = "more" if metric.higher_is_better else "less"
    size = metric.smallest if metric.smallest > 11 else ""
    cells = metric.name, metric.definition, metric.range, better, metric.many, size, metric.source
    return f"| {' | '.join(str(cell) for cell in cells)} |"


@exits_in_one_line
def main(argv: list[str]) -> int:
    """Runs one of the commands and gives the exit code."""
    options = [argument for argument in argv if "=" in argument and not Path(argument).exists()]
    files = [Path(argument) for argument in argv if argument not in options]
    if argv == ["table"]:
        print("\n".join(row(metric) for metric in METRICS.values()))
    elif len(files) < 3 or {"--help", "-h"} & set(argv):
        return usage(__doc__ or "", argv)
    else:
        measure(files, load_strictly(MetricsConfig, options))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
