"""``benchmark align``: registration of published pairs whose source was moved by a known amount.

Two errors are measured, both at the worst corner of the overlap and in pixels of the reference. One is against the
pair as it was published, whose own registration is off by some pixels. One is against what the same registration
makes of the pair that was not moved.
"""

import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datamodules.align import drawn, resizing
from datamodules.pairs import Reading, pair_digest
from datamodules.readers.pixels import read_image
from datamodules.refine import overlap
from datamodules.register import register
from dig2dig.benchmark.config import AlignConfig
from dig2dig.benchmark.datasets import Case, find_cases
from dig2dig.benchmark.methods import hashed
from dig2dig.benchmark.tables import Row, Rows, markdown
from dig2dig.errors import AlignmentError, PairingError

KINDS = ("similarity", "with perspective")  # motions of even warps and of odd ones


@dataclass(frozen=True)
class Warp:
    """A pair whose source was moved."""

    fixed: np.ndarray  # a part of the published reference, (h, w)
    moving: np.ndarray
    valid: np.ndarray  # pixels of the source that the published one covers
    truth: np.ndarray  # the reference's pixels to the source's
    cut: np.ndarray  # the reference's pixels to those of the published reference

    def errors(self, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Distances at the corners of the overlap, in pixels of the reference."""
        corners = overlap(truth, self.fixed.shape, self.moving.shape)[None]
        there = cv2.perspectiveTransform(cv2.perspectiveTransform(corners, truth), np.linalg.inv(found))
        return np.linalg.norm(there - corners, axis=-1)[0]


def run(config: AlignConfig) -> int:
    """Registers moved pairs, and unrelated ones, and writes a table; rows of an earlier run are kept."""
    rows = Rows(Path(config.out) / "results.csv", ("dataset", "name", "warp"))
    found = find_cases(config.data, config.datasets, limit=config.limit)
    cases = [case for case in found if case.task in ("ivf", "mif") and len(_files(case)) == 2]
    if not cases:
        raise PairingError("data: no pairs of vi or visible and ir or infrared, of CT or PET and MRI; see datasets=")
    todo = [(case, warp, f"{KINDS[warp % 2]} {warp}") for case in cases for warp in range(config.warps)]
    kept = [
        rows.find(case.dataset, case.pair.name, name, key=_key(case, config.seed))
        or _measured(rows, case, warp, name, config.seed)
        for case, warp, name in tqdm(todo)
    ]
    others = [
        rows.find(case.dataset, case.pair.name, "unrelated", key=_key(case)) or _unrelated(rows, case, other)
        for case in tqdm(cases)
        if (other := _others(case, cases))
    ]
    rows.finish(kept, table(kept, others))
    return 0


def _files(case: Case) -> list[Path]:
    """The reference's and the source's file: visible or CT first."""
    order = ("vi", "visible", "CT", "PET", "ir", "infrared", "MRI")
    return [case.pair.files[side] for side in order if side in case.pair.files]


def _key(case: Case, seed: int | None = None) -> str:
    return hashed(pair_digest(case.pair, Reading()), seed)


def _grey(file: Path) -> np.ndarray:
    return read_image(file, "L").astype(np.float32) / 255


def _measured(rows: Rows, case: Case, warp: int, name: str, seed: int) -> Row:
    """Registers one moved pair, and keeps what was found under the warp's name."""
    fixed, moving = map(_grey, _files(case))
    rng = np.random.default_rng([seed, warp, zlib.crc32(case.pair.name.encode())])
    moved = make_warp(rng, fixed, moving, bent=warp % 2 == 1)
    own = rows.find(case.dataset, case.pair.name, "own", key=_key(case)) or _own(rows, case, fixed, moving)
    started = time.process_time()
    try:
        found = register(moved.fixed, moved.moving, valid=None if moved.valid.all() else moved.valid)
        row: Row = {"motion": found.motion, "score": f"{found.score:.1f}"}
        published = moved.errors(found.matrix, moved.truth)
        row |= {"middle": f"{np.median(published):.2f}", "worst": f"{published.max():.2f}"}
        if own["matrix"]:
            undone = np.array(own["matrix"].split(), float).reshape(3, 3)
            truth = moved.truth @ np.linalg.inv(moved.cut) @ undone @ moved.cut
            row["own"] = f"{moved.errors(found.matrix, truth).max():.2f}"
    except AlignmentError as error:
        row = {"refused": str(error)}
    row |= {"side": str(max(moved.fixed.shape)), "seconds": f"{time.process_time() - started:.2f}"}
    row = rows.put(case.dataset, case.pair.name, name, row=row | {"key": _key(case, seed)})
    rows.save()
    return row


def _own(rows: Rows, case: Case, fixed: np.ndarray, moving: np.ndarray) -> Row:
    """What registration makes of the published pair; no matrix if it is refused."""
    try:
        matrix = np.linalg.inv(resizing(fixed.shape, moving.shape)) @ register(fixed, moving).matrix
        text = " ".join(f"{number:.10g}" for number in matrix.ravel())
    except AlignmentError:
        text = ""
    return rows.put(case.dataset, case.pair.name, "own", row={"matrix": text, "key": _key(case)})


def _others(case: Case, cases: list[Case]) -> list[Case]:
    """Cases of other scenes: of other datasets where there are any, since cameras that stand still see one scene."""
    apart = [one for one in cases if one.dataset != case.dataset]
    return apart or [one for one in cases if one.pair.name != case.pair.name]


def _unrelated(rows: Rows, case: Case, others: list[Case]) -> Row:
    """Registers a reference with the source of another scene, which must be refused."""
    other = others[zlib.crc32(case.pair.name.encode()) % len(others)]
    row: Row = {"refused": "", "motion": "", "key": _key(case)}
    try:
        found = register(_grey(_files(case)[0]), _grey(_files(other)[1]))
        row |= {"motion": found.motion, "score": f"{found.score:.1f}", "matrix": other.pair.name}
    except AlignmentError as error:
        row["refused"] = str(error)
    row = rows.put(case.dataset, case.pair.name, "unrelated", row=row)
    rows.save()
    return row


def make_warp(rng: np.random.Generator, fixed: np.ndarray, moving: np.ndarray, bent: bool = True) -> Warp:
    """Moves a source: field of view 0.5 to 2, turn to 10°, shift to 15 %, fewer pixels; ``bent``: perspective too."""
    height, width = fixed.shape
    view = rng.choice([rng.uniform(0.5, 0.95), 1.0, rng.uniform(1.0, 2.0)], p=[0.4, 0.3, 0.3])
    pixels = rng.choice([1.0, 0.6, 0.4]) if min(moving.shape) > 300 else 1.0
    h, w = (round(side * pixels) for side in moving.shape)
    turn = np.exp(1j * np.radians(rng.uniform(-10, 10))) * min(view, 1.0) * width / w
    shift = rng.uniform(-0.15, 0.15, 2) * (width, height) / max(1.0, view)
    around = np.array([[1, 0, -(w - 1) / 2], [0, 1, -(h - 1) / 2], [0, 0, 1]])
    turning = np.array([[turn.real, -turn.imag, 0], [turn.imag, turn.real, 0], [0, 0, 1]])
    bend = np.eye(3)
    bend[2, :2] = bent * rng.uniform(-0.02, 0.02, 2) / (width, height)
    place = np.array([[1, 0, (width - 1) / 2 + shift[0]], [0, 1, (height - 1) / 2 + shift[1]], [0, 0, 1]])
    back = place @ bend @ turning @ around  # the new source's pixels to the published pair's
    motion, flags = resizing(fixed.shape, moving.shape) @ back, cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    whole = cv2.warpPerspective(np.ones(moving.shape, np.uint8), motion, (w, h), flags=flags)
    share = 1.0 if view < 1 else min(0.85, 1 / view)  # the source sees more than the reference
    size = [round(side * share) for side in fixed.shape]
    top, left = ((side - part) // 2 for side, part in zip(fixed.shape, size, strict=True))
    cut = np.array([[1, 0, left], [0, 1, top], [0, 0, 1]], float)
    new = drawn(moving, motion, (h, w)) * whole
    return Warp(fixed[top : top + size[0], left : left + size[1]], new, whole > 0, np.linalg.inv(back) @ cut, cut)


def table(rows: list[Row], others: list[Row]) -> str:
    """Accepted registrations and their errors, by dataset, and over all by the kind of motion."""
    header = ["dataset", "n", "accepted %", "median px", "≤ 4 px %", "95 % px", "worst px", "worst, % of side"]
    header += ["against own: median px", "≤ 4 px %", "95 % px", "worst px", "CPU seconds", "unrelated accepted"]
    datasets = [*dict.fromkeys(row["dataset"] for row in rows)]
    lines = [_line(name, [row for row in rows if row["dataset"] == name], others) for name in datasets]
    kinds = {kind: [row for row in rows if row["warp"].startswith(kind)] for kind in KINDS}
    lines += [_line(f"all, {kind}", mine, others) for kind, mine in kinds.items() if mine]
    lines += [_line("all", rows, others)]
    text = (
        "Errors at the corners of the overlap, in pixels of the reference. *Median*: over pairs, of the middle corner. "
        "The other columns: of the worst corner. *Against own*: the truth is what the same registration makes of the "
        "pair before the warp; the other columns take the published pair for the truth.\n\n"
    )
    return text + markdown(header, lines)


def _line(name: str, mine: list[Row], others: list[Row]) -> list[str]:
    null = [row for row in others if name == row["dataset"] or name.startswith("all")]
    took = [row for row in mine if row.get("worst")]
    seconds = f"{np.mean([float(row['seconds']) for row in mine]):.1f}"
    unrelated = f"{sum(bool(row.get('motion')) for row in null)} of {len(null)}"
    head = [name, str(len(mine)), f"{100 * len(took) / max(len(mine), 1):.0f}"]
    if not took:
        return [*head, *[""] * 9, seconds, unrelated]
    middle, worst, side = (np.array([row[key] for row in took], float) for key in ("middle", "worst", "side"))
    own = np.array([row["own"] for row in took if row.get("own")], float)
    cells = [f"{np.median(middle):.1f}", f"{100 * (worst <= 4).mean():.0f}", f"{np.percentile(worst, 95):.1f}"]
    cells += [f"{worst.max():.1f}", f"{100 * (worst / side).max():.1f}"]
    near = f"{100 * (own <= 4).mean():.0f}" if len(own) else ""
    cells += [f"{np.median(own):.1f}", near, f"{np.percentile(own, 95):.1f}", f"{own.max():.1f}"] if near else [""] * 4
    return [*head, *cells, seconds, unrelated]
