"""Kills a run again and again: what the last one leaves is what an uninterrupted run makes.

DIG2DIG_KILLS=200 python -m pytest -s -m slow tests/inference/test_runs.py -k killed_run
"""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import pytest

from tests.conftest import ROOT
from tests.corpus import picture, png

PAIRS = 30
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def command(folder: Path, out: Path) -> list[str]:
    sources = [f"sources.{side}={folder / side}" for side in ("visible", "infrared")]
    return [sys.executable, "infer.py", "configs/ivf.yaml", *sources, f"out={out}",
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
    W&B and TensorBoard begin new files at each start, with the time in them: they do not count.
    """
    files: dict[str, object] = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    files = {name: content for name, content in files.items() if not name.startswith(("wandb", "tensorboard"))}
    files |= {name: None for name in files if name.startswith("report")}
    with (out / "summary.csv").open(newline="") as table:
        files["summary.csv"] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(table)]
    files["run.yaml"] = (out / "run.yaml").read_text().replace(str(out), "OUT")
    return files


def kills(default: int) -> int:
    """How many runs a test kills."""
    return int(os.environ.get("DIG2DIG_KILLS", default))


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """A run in a process and a group of its own."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=alone | environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def left_of(run: subprocess.Popen[str]) -> dict[int, str]:
    """Processes of a run and their command lines: its session, with those that read images, and W&B's own."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has just ended
            continue
        if state != "Z" and (int(session) == run.pid or f"--pid {run.pid} " in command):
            found[int(entry.name)] = command
    return found


def survive(command: Callable[[Path], list[str]], found: Callable[[Path], object], folder: Path, wanted: int) -> int:
    """Kills runs by SIGKILL at random moments until so many died; gives how often a run got through on the way.

    ``command`` runs into a folder, and ``found`` is what must be the same there as after an uninterrupted run.
    Prints x for each death and + for each run that got through.
    """
    began = time.monotonic()
    whole = start(command(folder / "whole"))
    _, printed = whole.communicate()
    assert whole.returncode == 0, printed
    took, chance, killed, through = time.monotonic() - began, random.Random(0), 0, 0
    expected = found(folder / "whole")
    while killed < wanted or not through:
        run = start(command(folder / "out"))
        try:
            _, printed = run.communicate(timeout=chance.uniform(0.3, 1.0) * took if killed < wanted else None)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
            killed += 1
            print("x", end="", flush=True)
            continue
        assert run.returncode == 0, printed
        assert found(folder / "out") == expected
        rmtree(folder / "out")
        through += 1
        print("+", end="", flush=True)
    seconds = time.monotonic() - began
    print(f"\n{killed} runs killed, {through} got through with every byte in place, {seconds:.0f} s")
    return through
