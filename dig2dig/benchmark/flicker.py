"""``benchmark flicker``: change from frame to frame where nothing moves, with one noise for all frames or one for each.

The scene is the bundled infrared-visible pair with a moving square, without and with sensor noise.
"""

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dig2dig.api import preset
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import FlickerConfig
from dig2dig.benchmark.datasets import example_pair, names
from dig2dig.benchmark.methods import open_fuser
from dig2dig.benchmark.tables import markdown
from dig2dig.fusion.sampler import fuse
from dig2dig.tracking.panels import to_colours, to_png

SQUARE = 24  # side of the moving square, pixels
MARGIN = 24  # around its way, pixels; not measured, as fusion depends on neighbourhoods


def run(config: FlickerConfig) -> int:
    """Fuses the sequence in both ways for each sensor noise and pull, and writes a table and pictures of the change."""
    fuser, out, lines = open_fuser(config), Path(config.out), []
    each = [(float(sensor), float(pull)) for sensor in names(config.sensor) for pull in names(config.pulls)]
    for sensor, pull in tqdm(each, desc="flicker"):
        frames, still = (part.to(fuser.device) for part in make_frames(config, sensor))
        sampler, found = preset(config.task, f"sampler.guidance.sigma_n={pull}"), []
        for name, seeds in (("one", [config.seed] * config.frames), ("each", range(config.frames))):
            pairs = zip(frames, seeds, strict=True)
            fused = torch.cat([fuse(frame[None], fuser.denoiser, sampler, [seed]) for frame, seed in pairs])
            found.append(change(fused, still))
            last = (32 * fused.diff(dim=0)[-1, 0].abs()).cpu()
            write_atomically(out / f"{name}_{sensor:g}_{pull:g}.png", to_png(to_colours(last, 0.0, 1.0)))
        ratio = f"{found[1] / found[0]:.1f}" if found[0] else "∞"
        own = (change(frames[:, 0], still) + change(frames[:, 1], still)) / 2
        lines.append([f"{sensor:g}", f"{pull:g}", *(f"{one:.3f}" for one in (own, *found)), ratio])
    text = (
        f"{config.frames} frames of {config.crop} px; mean absolute change from frame to frame where nothing moves, of "
        "255. *Sensor*: noise of each frame's own in the sources.\n\n"
    )
    header = ["sensor", "sigma_n", "sources", "one noise for all frames", "a noise for each", "ratio"]
    write_atomically(out / "table.md", (text + markdown(header, lines)).encode())
    print(f"{out / 'table.md'}, and the change of the last frame, times 32, in pictures beside it")
    return 0


def make_frames(config: FlickerConfig, sensor: float) -> tuple[Tensor, Tensor]:
    """Frames (n, 2, 1, h, w) in [0, 1], and where nothing ever moves (1, h, w)."""
    generator = torch.Generator().manual_seed(config.seed)
    scene = example_pair(config.crop, config.crop)[0]
    frames = scene.expand(config.frames, -1, -1, -1, -1).clone()
    still = torch.ones(1, config.crop, config.crop, dtype=torch.bool)
    top = config.crop // 2
    for i, left in enumerate(torch.linspace(MARGIN, config.crop - SQUARE - MARGIN, config.frames).long().tolist()):
        frames[i, 0, :, top : top + SQUARE, left : left + SQUARE] = 0.2
        frames[i, 1, :, top : top + SQUARE, left : left + SQUARE] = 0.9
    still[:, top - MARGIN : top + SQUARE + MARGIN] = False
    noise = torch.randn(frames.shape, generator=generator) * sensor / 255
    return (frames + noise).clamp(0, 1), still


def change(frames: Tensor, still: Tensor) -> float:
    """Mean absolute difference of neighbouring frames (n, 1, h, w) where ``still``, of 255."""
    return float((255 * frames.diff(dim=0).abs())[:, still].mean())
