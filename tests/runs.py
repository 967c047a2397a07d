"""Small runs of infer.py, and what they leave."""

import csv
from pathlib import Path

import cv2
import numpy as np

import infer
from tests.conftest import ROOT

FAST = ["sampler.weights=gain", "sampler.steps=2", "trainer.accelerator=cpu"]


def run(folder: Path, *options: str, sides: tuple[str, ...] = ("visible", "infrared")) -> int:
    sources = [f"sources.{side}={folder / side}" for side in sides]
    learned = any(option.startswith("sampler.weights=") for option in options)  # they bring their own steps
    fast = FAST[2:] if learned else FAST
    return infer.main([str(ROOT / "configs" / "ivf.yaml"), *sources, f"out={folder / 'out'}", *fast, *options])


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
