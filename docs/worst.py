"""Makes docs/results/worst_DATASET.jpg from a finished run of configs/results.yaml: python -m docs.worst OUT.

Only sets whose licence allows it are shown.
"""

import csv
import sys
from pathlib import Path

import cv2
import numpy as np

from datamodules.readers.pixels import read_image
from dig2dig.benchmark.config import QualityConfig
from dig2dig.benchmark.datasets import find_cases
from dig2dig.benchmark.gallery import worst
from dig2dig.errors import exits_in_one_line
from dig2dig.tracking.panels import row
from docs.figures import write_jpeg

SHOWN = {"MSRS": "guided", "STDFusionNet": "laplacian", "SICE_HoLoCo": "mertens"}
"""Sets under the MIT licence, and the classical fusion that stands beside ours."""
COUNT, WIDTH = 3, 400


def tile(file: Path) -> np.ndarray:
    """A picture of the sheet's width, in colour."""
    pixels = read_image(file, "RGB")
    return cv2.resize(pixels, (WIDTH, round(WIDTH * pixels.shape[0] / pixels.shape[1])), interpolation=cv2.INTER_AREA)


def main(out: Path) -> int:
    """Writes a sheet for each set: sources, a classical fusion, ours; the worst pair first."""
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for dataset, beside in SHOWN.items():
        cases = worst(find_cases("../shared/data", dataset, "second"), rows, QualityConfig(report=COUNT))
        lines = []
        for case in cases:
            made = {name: out / "pictures" / dataset / name / f"{case.pair.name}.png" for name in (beside, "dig2dig")}
            files = case.pair.files | made
            lines.append(row([tile(one) for one in files.values()], [f"{case.pair.name} {one}" for one in files]))
        write_jpeg(Path(__file__).parent / "results" / f"worst_{dataset}.jpg", np.vstack(lines))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    raise SystemExit(exits_in_one_line(main)(Path(sys.argv[1])))
