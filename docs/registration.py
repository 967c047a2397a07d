"""Registration of photographs to an infrared picture made from them: the truth is exact, as no published pair's is.

``python -m docs.registration`` moves 50 made pairs four times each, as ``benchmark align`` does, and prints the errors.
"""

import zlib
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datamodules.readers.pixels import read_image
from datamodules.register import register
from dig2dig.benchmark.align import KINDS, make_warp
from dig2dig.benchmark.tables import markdown
from dig2dig.errors import AlignmentError

NATURAL = Path("../shared/data/natural")
WARPS = 4
MATERIALS = (6, 14)  # at least, and fewer than


def made_infrared(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a thermal camera might see of a photograph (h, w, 3) in [0, 1]: (h, w) in [0, 1].

    Clusters of colour and place are materials. Each has a temperature by chance, so brightness and the sign of edges
    say nothing, and edges within a material are lost. Blur, slow drift, noise and stripes of a sensor are added.
    """
    height, width = rgb.shape[:2]
    lab = cv2.cvtColor(cv2.GaussianBlur(rgb, (0, 0), 1.0), cv2.COLOR_RGB2Lab)
    place = np.moveaxis(np.mgrid[:height, :width], 0, -1) * (25 / max(height, width))
    data = np.concatenate([lab * (0.6, 1.5, 1.5), place], -1).reshape(-1, 5).astype(np.float32)
    cv2.setRNGSeed(int(rng.integers(2**30)))
    some, ending = data[rng.choice(len(data), 8000)], (cv2.TERM_CRITERIA_MAX_ITER, 10, 0.0)
    labels: np.ndarray = np.empty(0)
    _, labels, centres = cv2.kmeans(some, int(rng.integers(*MATERIALS)), labels, ending, 1, cv2.KMEANS_PP_CENTERS)
    far = np.square(data[:, None] - centres).sum(-1)
    share = np.exp((far.min(1, keepdims=True) - far) / 30)
    heat = share @ rng.uniform(0.1, 0.9, len(centres)) / share.sum(1)
    heat = heat.reshape(height, width) + 0.15 * rng.uniform(-1, 1) * (lab[..., 0] / 100 - 0.5)
    drift = cv2.resize(rng.normal(0, 0.06, (4, 4)), (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 0.02, (height, width)) + rng.normal(0, 0.01, (1, width))
    return (cv2.GaussianBlur(heat, (0, 0), rng.uniform(0.8, 2.0)) + drift + noise).clip(0, 1).astype(np.float32)


def photographs() -> list[Path]:
    """The Kodak suite, and 26 of OpenNature."""
    return [*sorted((NATURAL / "Kodak").glob("*.png")), *sorted((NATURAL / "OpenNature").rglob("*.jpg"))[::17][:26]]


def line(name: str, found: list[np.ndarray | None]) -> list[str]:
    """A row of the table, of the errors at the corners of each warp, None where it was refused."""
    taken = [errors for errors in found if errors is not None]
    worst = np.array([errors.max() for errors in taken])
    cells = [f"{np.median([np.median(errors) for errors in taken]):.2f}", f"{np.median(worst):.2f}"]
    cells += [f"{100 * (worst <= 4).mean():.0f}", f"{np.percentile(worst, 95):.1f}", f"{worst.max():.1f}"]
    return [name, str(len(found)), f"{100 * len(taken) / len(found):.0f}", *cells]


def main() -> None:
    """Prints the table."""
    found: dict[str, list[np.ndarray | None]] = {kind: [] for kind in KINDS}
    for path in tqdm(photographs()):
        rgb = read_image(path, "RGB").astype(np.float32) / 255
        seed = zlib.crc32(path.name.encode())
        heat, grey = made_infrared(rgb, np.random.default_rng(seed)), cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        for number in range(WARPS):
            kind = KINDS[number % 2]
            warp = make_warp(np.random.default_rng([number, seed]), grey, heat, bent=number % 2 == 1)
            try:
                matrix = register(warp.fixed, warp.moving, valid=None if warp.valid.all() else warp.valid).matrix
                found[kind].append(warp.errors(matrix, warp.truth))
            except AlignmentError:
                found[kind].append(None)
    rows = [line(f"made, {kind}", errors) for kind, errors in found.items()]
    rows += [line("made", [errors for each in found.values() for errors in each])]
    header = ["pairs", "n", "accepted %", "median px", "worst corner: median px", "≤ 4 px %", "95 % px", "worst px"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
