"""Makes the figures of README.md and docs/tracking.md from the bundled examples: make figures."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datamodules.pairing import find_pairs
from datamodules.pairs import Sample, read_pair
from datamodules.readers.pixels import read_image
from dig2dig.atomic import write_atomically
from dig2dig.cli import load
from dig2dig.color import merge, to_pixels
from dig2dig.config import InferConfig
from dig2dig.fusion.comparators import CLASSICAL
from dig2dig.fusion.statistics import dig_statistics
from dig2dig.inference.state import reading
from dig2dig.modules.fuser import Fuser
from dig2dig.modules.results import Result, Tracing
from dig2dig.priors.load import load_prior
from dig2dig.tracking.panels import curves, fusion_panel, maps_panel, row, to_png

ROOT = Path(__file__).parents[1]
FIGURES = Path(__file__).parent / "figures"
SHOWN = (  # config, folder of examples, sources, name
    ("ivf", "infrared_visible", ("visible", "infrared"), "00537D"),
    ("mef", "multi_exposure", ("under", "over"), "station"),
    ("mef", "multi_exposure_stack", ("dark", "middle", "bright"), "Tower"),
    ("mff", "multi_focus", ("near", "far"), "mountain"),
)
PEERS = {"ivf": "laplacian", "mef": "mertens", "mff": "laplacian"}
"""A classical fusion to look at beside ours, by task."""
TILE = (320, 240)
"""Width and height of a picture in the overview."""


def fuse_example(config: str, folder: str, sides: tuple[str, ...], name: str) -> tuple[list[Path], Sample, Result]:
    """Files, sources and traced result of a bundled example with its preset."""
    files = {side: next((ROOT / "examples" / folder / side).glob(f"{name}.*")) for side in sides}
    options = [f"sources.{side}={file}" for side, file in files.items()]
    setting = load(InferConfig, [str(ROOT / "configs" / f"{config}.yaml"), *options])
    (pair,) = find_pairs(setting.sources)
    sample = read_pair(pair, reading(setting))
    assert isinstance(sample, Sample)
    fuser = Fuser(load_prior(), setting, Tracing(None, None))
    (result,) = fuser.fuse([sample], torch.device("cpu"))
    return list(files.values()), sample, result


def tile(pixels: np.ndarray) -> np.ndarray:
    """The middle of a picture, in the overview's shape."""
    picture = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    width, height = TILE
    scale = max(width / picture.width, height / picture.height)
    grown = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    left, top = (grown.width - width) // 2, (grown.height - height) // 2
    return np.asarray(grown.crop((left, top, left + width, top + height)))


def overview_row(task: str, files: list[Path], sample: Sample, result: Result) -> np.ndarray:
    """The first and the last source, a classical fusion, and the result."""
    assert result.image is not None
    ends = [0, len(files) - 1]
    sources = [read_image(files[k]) for k in ends]
    if PEERS[task] == "mertens":  # weighs by saturation too
        stack = torch.stack([torch.from_numpy(read_image(file, "RGB").copy()).permute(2, 0, 1) / 255 for file in files])
        peer = CLASSICAL["mertens"](stack[None])[0]
    else:
        peer = merge(CLASSICAL[PEERS[task]](sample.sources[None])[0].clamp(0, 1), sample.chroma)
    pictures = [np.atleast_3d(one) for one in (*sources, to_pixels(peer), to_pixels(result.image))]
    which = [f", {k + 1} of {len(files)}" if len(files) > 2 else "" for k in ends]
    titles = [*(f"{sample.modalities[k]}{text}" for k, text in zip(ends, which, strict=True)), PEERS[task], "dig2dig"]
    return row([tile(one) for one in pictures], titles)


def write_jpeg(path: Path, pixels: np.ndarray) -> None:
    """Writes RGB pixels (h, w, 3)."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=88, subsampling=0)
    write_atomically(path, content.getvalue())


def main() -> None:
    """Writes all figures."""
    made = [fuse_example(*one) for one in SHOWN]
    rows = [overview_row(task, *one) for (task, *_), one in zip(SHOWN, made, strict=True)]
    write_jpeg(FIGURES / "overview.jpg", np.vstack(rows))
    _, sample, result = made[0]
    assert result.image is not None
    write_jpeg(FIGURES / "tracking_panel.jpg", fusion_panel(sample.sources, result.image, sample.modalities))
    panels = {
        "maps": maps_panel(result.trace, sample.modalities),
        "curves": curves(dig_statistics(result.trace, sample.sources[None]), sample.modalities),
    }
    for kind, pixels in panels.items():
        write_atomically(FIGURES / f"tracking_{kind}.png", to_png(pixels))
    print(f"figures: {FIGURES}")


if __name__ == "__main__":
    main()
