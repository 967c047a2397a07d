"""``benchmark ghosts``: a thing at another place in each source, fused with ghosts removed and kept; and static stacks.

The thing is a disc of the stack itself, so it has the right look in each source. The truth is the fusion of the stack
that has it at the reference's place in all sources.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from datamodules.ghosts import SLACK, best_exposed, shown_once
from dig2dig.api import preset
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import GhostsConfig
from dig2dig.benchmark.datasets import Case, centre, find_cases, noted, read_case
from dig2dig.benchmark.methods import Fuser, open_fuser
from dig2dig.benchmark.tables import markdown
from dig2dig.color import merge, split, to_pixels
from dig2dig.errors import PairingError
from dig2dig.tracking.panels import to_png

RADIUS = 0.08  # of the disc, as a share of the shorter side
SEEN = 8 / 255  # a smaller difference is none that must be found
MARGIN = 12  # pixels around a thing that may be marked with it

Images = Sequence[np.ndarray]
Masks = Sequence[NDArray[np.bool_]]
COLUMNS = ("PSNR, kept", "PSNR, removed", "least", "found", "right", "share", "most", "change", "most", "fused", "most")


def run(config: GhostsConfig) -> int:
    """Measures every stack and writes table.md, and pictures of the made stacks."""
    fuser, out, failed = open_fuser(config), Path(config.out), list[str]()
    rows: dict[str, list[list[float]]] = {}
    found = find_cases(config.data, config.datasets, config.half, config.limit)
    if not (cases := [case for case in found if case.task in SLACK]):
        raise PairingError("data: no stacks of multi_exposure or multi_focus; see datasets=")
    for case in tqdm(cases, desc="stacks"):
        with noted(failed):
            rows.setdefault(f"{case.dataset} ({case.task})", []).append(measured(case, fuser, config))
    lines = [[name, str(len(values)), *summary(np.array(values))] for name, values in rows.items()]
    text = (
        "A disc of each stack, at another place in each source; PSNR to the fusion with the disc at the reference's "
        f"place, with ghosts kept and removed. *Found*: share of what differs by more than {255 * SEEN:.0f} of 255 "
        "that is marked; *right*: share of what is marked that lies on the disc. Static stacks, whole: *share* of a "
        "source that is wrongly marked, mean *change* of the sources and of the *fused* picture, of 255. Means over "
        "stacks; *least* and *most* over stacks, of a stack's worst source.\n\n"
    )
    write_atomically(out / "table.md", (text + markdown(["dataset", "stacks", *COLUMNS], lines)).encode())
    print(f"{out / 'table.md'}, and the made stacks, kept and removed, in pictures beside it")
    return int(bool(failed))


def measured(case: Case, fuser: Fuser, config: GhostsConfig) -> list[float]:
    """PSNR kept and removed, found, right, and of the static stack: share, change of sources and of the result."""
    sample, slack = read_case(case, colour=True), SLACK[case.task]
    static, cropped = (arrays(images) for images in (sample.sources, centre(sample.sources, config.crop)))
    reference = best_exposed(cropped)
    sources, ideal, discs = move(cropped, reference, config.seed)
    removed, masks = shown_once(sources, reference, slack=slack)
    truth, *tried = (fused(images, case.task, fuser) for images in (ideal, sources, removed))
    shown = torch.cat([truth, *tried], -1)
    write_atomically(Path(config.out) / "pictures" / f"{case.dataset}_{case.pair.name}.png", to_png(to_pixels(shown)))
    scores = [float(-10 * (image - truth).square().mean().clamp(min=1e-10).log10()) for image in tried]
    still, wrong = shown_once(static, best_exposed(static), slack=slack)
    change = max(float(np.abs(a - b).mean()) for a, b in zip(still, static, strict=True))
    after, before = (fused(images, case.task, fuser) for images in (still, static)) if change else (truth, truth)
    gap = float((after - before).abs().mean())
    return [*scores, *agreement(discs, masks), 100 * max(mask.mean() for mask in wrong), 255 * change, 255 * gap]


def arrays(images: Tensor) -> list[np.ndarray]:
    """Sources (k, c, h, w) as pictures (h, w) or (h, w, 3)."""
    return [np.ascontiguousarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in images]


def summary(values: np.ndarray) -> list[str]:
    """The columns of a dataset, from the measures of its stacks."""
    kept, removed, found, right, *static = pd.DataFrame(values).mean()  # of what is a number
    psnr = [f"{number:.1f}" for number in (kept, removed, values[:, 1].min())]
    counts = ["" if np.isnan(number) else f"{number:.2f}" for number in (found, right)]
    pairs = zip(static, values[:, 4:].max(0), strict=True)
    return [*psnr, *counts, *(f"{number:.2f}" for pair in pairs for number in pair)]


def move(static: Images, reference: int, seed: int) -> tuple[Images, Images, Masks]:
    """The stack with a disc of itself at another place in each source, and at the reference's; where the two differ."""
    height, width = static[0].shape[:2]
    radius = max(6, round(RADIUS * min(height, width)))
    y, x = patch_of(static[reference], radius)
    generator = np.random.default_rng(seed)
    columns = np.linspace(radius, width - radius - 1, len(static) + 2).round().astype(int)[1:-1]
    rows = generator.integers(radius, height - radius, len(static))
    places = np.stack([rows, generator.permutation(columns)], 1).tolist()
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2) > 0

    def pasted(image: np.ndarray, row: int, column: int) -> np.ndarray:
        result, thing = image.copy(), image[y - radius : y + radius + 1, x - radius : x + radius + 1]
        result[row - radius : row + radius + 1, column - radius : column + radius + 1][disc] = thing[disc]
        return result

    sources = [pasted(image, *place) for image, place in zip(static, places, strict=True)]
    truth = [pasted(image, *places[reference]) for image in static]
    gaps = [np.abs(a - b) for a, b in zip(sources, truth, strict=True)]
    return sources, truth, [(gap if gap.ndim == 2 else gap.max(-1)) > SEEN for gap in gaps]


def patch_of(image: np.ndarray, radius: int) -> tuple[int, int]:
    """The middle of a well-exposed place with contrast."""
    grey = image if image.ndim == 2 else image.mean(-1)
    side = 2 * radius + 1
    mean, square = (cv2.blur(values, (side, side)) for values in (grey, grey**2))
    worth = np.sqrt(np.maximum(square - mean**2, 0)) - 2 * np.abs(mean - 0.45)
    inner = worth[radius:-radius, radius:-radius]
    row, column = np.unravel_index(int(inner.argmax()), inner.shape)
    return int(row) + radius, int(column) + radius


def agreement(discs: Masks, masks: Masks) -> tuple[float, float]:
    """Share of the moving pixels that are marked, and of the marked ones that move or lie close to what does."""
    kernel, marked, moved = np.ones((2 * MARGIN + 1,) * 2, np.uint8), np.stack(masks), np.stack(discs)
    near = np.stack([cv2.dilate(disc.astype(np.uint8), kernel) > 0 for disc in moved])
    hit, right = (marked & moved).sum(), (marked & near).sum()
    return float(hit / moved.sum()) if moved.any() else np.nan, float(right / marked.sum()) if marked.any() else np.nan


def fused(images: Images, task: str, fuser: Fuser) -> Tensor:
    """The picture of a stack, (c, h, w) in [0, 1]."""
    sources, chroma = split([torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1) for image in images], task)
    return merge(fuser(sources[None], preset(task)).image[0], chroma)
