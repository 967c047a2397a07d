"""Kills a run of 30 pairs again and again: python -m tests.survive [KILLS].

Each time the process dies by SIGKILL at a random moment and the same command starts again. When it got through, the
folder must hold what an uninterrupted run makes: the same pictures byte for byte, the same rows but for the seconds.
"""

import csv
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import ROOT
from tests.corpus import picture, png

PAIRS = 30


def command(folder: Path, out: Path) -> list[str]:
    sources = [f"sources.{side}={folder / side}" for side in ("visible", "infrared")]
    return [sys.executable, "infer.py", "configs/ivf.yaml", *sources, f"out={out}", "batch_size=2",
            "trainer.accelerator=cpu", "save.weights=true", "logger.csv=true"]  # fmt: skip


def make_pairs(folder: Path, pairs: int = PAIRS) -> None:
    for seed, side in enumerate(("visible", "infrared")):
        (folder / side).mkdir(parents=True)
        for i in range(pairs):
            pixels = picture(100 * seed + i, height=96 + 8 * (i % 3), width=96)
            (folder / side / f"{i:02d}.png").write_bytes(png(pixels))


def contents(out: Path) -> dict[str, object]:
    """Every file of a run by name; of the table all but the seconds, of the record all but the folder's name.

    The pages' parts (report/*.json) hold the seconds that a pair took: they count by name alone, and so does the page.
    """
    files: dict[str, object] = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    files |= {name: None for name in files if name.startswith("report")}
    with (out / "summary.csv").open(newline="") as table:
        files["summary.csv"] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(table)]
    files["run.yaml"] = (out / "run.yaml").read_text().replace(str(out), "OUT")
    return files


def survive(folder: Path, kills: int, seed: int = 0, pairs: int = PAIRS) -> int:
    """Kills runs until so many died; gives how often a run got through on the way."""
    make_pairs(folder, pairs)
    started = time.monotonic()
    subprocess.run(command(folder, folder / "whole"), cwd=ROOT, check=True, capture_output=True)
    took, moments, through, killed = time.monotonic() - started, random.Random(seed), 0, 0
    expected = contents(folder / "whole")
    while killed < kills or not through:
        run = subprocess.Popen(
            command(folder, folder / "out"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            run.communicate(timeout=moments.uniform(0.3, 1.0) * took if killed < kills else None)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.communicate()
            killed += 1
            continue
        assert run.returncode == 0
        assert contents(folder / "out") == expected
        through += 1
        (folder / "out").rename(folder / f"through{through}")
    return through


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as place:
        print(f"{wanted} runs killed; {survive(Path(place), wanted)} got through, each with every byte in place")
