"""Makes msrs.jpg and worst_DATASET.jpg of docs/results from a run of configs/results.yaml: python -m docs.worst OUT.

Only sets whose licence allows it are shown.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from datamodules.readers.pixels import read_image
from dig2dig.benchmark.config import QualityConfig
from dig2dig.benchmark.datasets import Case, find_cases
from dig2dig.benchmark.gallery import worst
from dig2dig.errors import exits_in_one_line
from dig2dig.tracking.panels import row
from docs.figures import write_jpeg

SHOWN = {"MSRS": "guided", "STDFusionNet": "laplacian", "SICE_HoLoCo": "mertens"}
"""Sets under the MIT licence, and the classical fusion that stands beside ours."""
SCENES = {"MSRS": ("00103D", "00107D", "00537D", "00881N"), "STDFusionNet": ("31", "41", "45")}
"""Held-out scenes of the sheet that shows the training-free form beside the learned one."""
RESULTS = Path(__file__).parent / "results"
COUNT = 3


def tile(file: Path, width: int) -> np.ndarray:
    """A picture of a width, in colour."""
    pixels = read_image(file, "RGB")
    return cv2.resize(pixels, (width, round(width * pixels.shape[0] / pixels.shape[1])), interpolation=cv2.INTER_AREA)


def line(out: Path, case: Case, methods: Sequence[str], width: int) -> np.ndarray:
    """The sources of a pair, and what some methods made of them."""
    made = {name: out / "pictures" / case.dataset / name / f"{case.pair.name}.png" for name in methods}
    files = case.pair.files | made
    return row([tile(one, width) for one in files.values()], [f"{case.pair.name} {one}" for one in files])


def main(out: Path) -> int:
    """Writes a sheet of some scenes, and one of each set's worst pairs beside a classical fusion, the worst first."""
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for dataset, beside in SHOWN.items():
        cases = worst(find_cases("../shared/data", dataset, "second"), rows, QualityConfig(report=COUNT))
        sheet = [line(out, case, (beside, "dig2dig"), 400) for case in cases]
        write_jpeg(RESULTS / f"worst_{dataset}.jpg", np.vstack(sheet))
    found = [case for name in SCENES for case in find_cases("../shared/data", name, "second")]
    sheet = [line(out, case, ("gain", "dig2dig"), 300) for case in found if case.pair.name in SCENES[case.dataset]]
    write_jpeg(RESULTS / "msrs.jpg", np.vstack(sheet))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    raise SystemExit(exits_in_one_line(main)(Path(sys.argv[1])))
