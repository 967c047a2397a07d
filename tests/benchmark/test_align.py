"""``benchmark align`` on the bundled pairs."""

import shutil
from pathlib import Path

import numpy as np

from dig2dig.benchmark.align import make_warp, run
from dig2dig.benchmark.config import AlignConfig
from tests.conftest import EXAMPLES


def test_the_truth_of_a_warp_is_true() -> None:
    y, x = np.mgrid[:120, :160].astype(np.float32)
    ramp = (x + 200 * y) / (200 * 120)  # each pixel has its own value
    for seed in range(6):
        warp = make_warp(np.random.default_rng(seed), ramp, ramp)
        height, width = warp.fixed.shape
        for u, v in ((width // 2, height // 2), (width // 3, height // 2)):
            i, j, w = warp.truth @ (u, v, 1)
            straight = make_warp(np.random.default_rng(seed), ramp, ramp, bent=False).truth
            assert not straight[2, :2].any() and warp.truth[2, :2].all()
            i, j = round(i / w), round(j / w)
            if 2 <= i < warp.moving.shape[1] - 2 and 2 <= j < warp.moving.shape[0] - 2 and warp.valid[j, i]:
                assert abs(warp.moving[j, i] - warp.fixed[v, u]) < 2.5 / 120


def test_registers_moved_pairs_and_goes_on_from_its_rows(tmp_path: Path) -> None:
    for kind, side in (("visible", "vi"), ("infrared", "ir")):
        shutil.copytree(EXAMPLES / "infrared_visible" / kind, tmp_path / "infrared_visible" / "bundled" / side)
    config = AlignConfig(str(tmp_path), "bundled", warps=1, out=str(tmp_path / "out"))
    assert run(config) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| bundled | 2 |" in table and table.rstrip().endswith("0 of 2 |")
    assert "| all, similarity | 2 |" in table and "with perspective" not in table
    before = (tmp_path / "out" / "results.csv").read_bytes()
    assert run(config) == 0 and (tmp_path / "out" / "results.csv").read_bytes() == before
