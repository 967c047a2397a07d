"""Sections of ``benchmark speed`` on whole commands: their start, pictures per second after it, steps of a training."""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dig2dig.benchmark.config import SpeedConfig
from dig2dig.benchmark.datasets import example_pair
from dig2dig.benchmark.methods import Fuser
from dig2dig.benchmark.sections import Section
from dig2dig.cli import shipped
from dig2dig.color import to_pixels
from dig2dig.tracking.panels import to_png

PAIRS, STEPS = 10, 20


def start(config: SpeedConfig, _: Fuser) -> Section:
    """Seconds of commands on one small pair, beside the import of torch alone."""
    with TemporaryDirectory() as folder:
        sides = pairs(Path(folder), 1)
        one = [*(str(Path(side) / "0.png") for side in sides), *chosen(config)]
        taken = {
            "import torch": seconds(config.repeats, "-c", "import torch"),
            "dig2dig --help": seconds(config.repeats, "-m", "dig2dig", "--help"),
            "dig2dig fuse": seconds(config.repeats, "-m", "dig2dig", "fuse", config.task, *one, "out=OUT/fused.png"),
            "dig2dig infer": seconds(config.repeats, *infer(config, sides)),
        }
    rows = [{"command": name, "seconds": t, "× import torch": t / taken["import torch"]} for name, t in taken.items()]
    return Section("Start", "Wall time of a command of its own on one pair of 640 × 480, median.", rows)


def throughput(config: SpeedConfig, _: Fuser) -> Section:
    """Pairs per second after the start, from files to files, with the report and without."""
    rows = []
    for report in (0, PAIRS):
        taken = []
        for count in (1, 1 + PAIRS):
            with TemporaryDirectory() as folder:
                command = infer(config, pairs(Path(folder), count))
                taken.append(seconds(config.repeats, *command, f"report.pairs={report}"))
        rows.append({"pairs in the report": report, "pairs per second": PAIRS / (taken[1] - taken[0])})
    text = f"`dig2dig infer` on {1 + PAIRS} pairs of 640 × 480 less the same on one, median."
    return Section("From files to files", text, rows)


def train(config: SpeedConfig, _: Fuser) -> Section:
    """Steps per second of adapting the prior to the bundled photographs."""
    photos = shipped("examples") / "multi_focus" / "truth"
    command = ["-m", "dig2dig", "train", "configs/finetune.yaml", f"data.root={photos}", "val_every=100000", "out=OUT"]
    command += [f"prior={config.prior.path}", f"trainer.accelerator={config.device}"]
    taken = [seconds(config.repeats, *command, f"optim.steps={steps}") for steps in (1, 1 + STEPS)]
    text = f"`dig2dig train finetune data.root=DIR`: {1 + STEPS} steps of 4 crops of 96 px less one, median."
    return Section("Training", text, [{"steps per second": STEPS / (taken[1] - taken[0])}])


def infer(config: SpeedConfig, sides: list[str]) -> list[str]:
    """The command that fuses two folders."""
    sources = [f"sources.{name}={side}" for name, side in zip(("visible", "infrared"), sides, strict=True)]
    return ["-m", "dig2dig", "infer", f"configs/{config.task}.yaml", *sources, "out=OUT", *chosen(config)]


def chosen(config: SpeedConfig) -> list[str]:
    """The prior and the device, as options of a command."""
    return [f"prior.path={config.prior.path}", f"trainer.accelerator={config.device}"]


def pairs(folder: Path, count: int) -> list[str]:
    """Two folders with so many pairs, each a little different."""
    for k, side in enumerate(("visible", "infrared")):
        (folder / side).mkdir()
        for i in range(count):
            pixels = to_pixels(example_pair(480, 640, 3)[0, k].roll(i, -1))
            (folder / side / f"{i}.png").write_bytes(to_png(pixels))
    return [str(folder / "visible"), str(folder / "infrared")]


def seconds(repeats: int, *command: str) -> float:
    """Median wall time of a Python command; its OUT is a new folder each time."""
    taken = []
    for _ in range(repeats):
        with TemporaryDirectory() as out:
            arguments = [argument.replace("out=OUT", f"out={out}") for argument in command]
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            taken.append(time.perf_counter() - started)
    return float(np.median(taken))
