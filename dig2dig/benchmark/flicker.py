"""``benchmark flicker``: change from frame to frame where nothing moves, with one noise for all frames or one for each.

The scene is the bundled infrared-visible pair. The camera is still while a square moves, or it pans; without and with
sensor noise.
"""

import itertools
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
MARGIN = 24  # around its way and at the borders, pixels; not measured, as fusion depends on neighbourhoods
PAN = 4  # pixels that a panning camera moves from frame to frame


def run(config: FlickerConfig) -> int:
    """Fuses the sequence in both ways for each sensor noise and pull, and writes a table and pictures of the change."""
    fuser, out, lines = open_fuser(config), Path(config.out), []
    each = itertools.product(("still", "pans"), map(float, names(config.sensor)), map(float, names(config.pulls)))
    for camera, sensor, pull in tqdm([*each], desc="flicker"):
        pan = PAN * (camera == "pans")
        frames = make_frames(config, sensor, pan).to(fuser.device)
        sampler, found = preset(config.task, f"sampler.guidance.sigma_n={pull}"), []
        for name, seeds in (("one", [config.seed] * config.frames), ("each", range(config.frames))):
            pairs = zip(frames, seeds, strict=True)
            fused = torch.cat([fuse(frame[None], fuser.denoiser, sampler, [seed]) for frame, seed in pairs])
            found.append(float(changes(fused, pan).mean()))
            last = (32 / 255 * changes(fused, pan)[-1, 0]).cpu()
            write_atomically(out / f"{camera}_{name}_{sensor:g}_{pull:g}.png", to_png(to_colours(last, 0.0, 1.0)))
        own = float((changes(frames[:, 0], pan) + changes(frames[:, 1], pan)).mean()) / 2
        lines.append([camera, f"{sensor:g}", f"{pull:g}", *(f"{one:.3f}" for one in (own, *found))])
    text = (
        f"{config.frames} frames of {config.crop} px; mean absolute change from frame to frame of places where nothing "
        f"moves, of 255. The camera is still, or pans by {PAN} px a frame. *Sensor*: noise of each frame's own in the "
        "sources.\n\n"
    )
    header = ["camera", "sensor", "sigma_n", "sources", "one noise for all frames", "a noise for each"]
    write_atomically(out / "table.md", (text + markdown(header, lines)).encode())
    print(f"{out / 'table.md'}, and the change of the last frame, times 32, in pictures beside it")
    return 0


def make_frames(config: FlickerConfig, sensor: float, pan: int) -> Tensor:
    """Frames (n, 2, 1, h, w) in [0, 1]."""
    generator = torch.Generator().manual_seed(config.seed)
    scene = example_pair(config.crop, config.crop + pan * (config.frames - 1))
    frames = torch.cat([scene[..., i * pan :][..., : config.crop] for i in range(config.frames)])
    top = config.crop // 2
    lefts = torch.linspace(MARGIN, config.crop - SQUARE - MARGIN, config.frames).long().tolist()
    for frame, left in zip(frames, lefts if not pan else [], strict=not pan):
        frame[:, :, top : top + SQUARE, left : left + SQUARE] = torch.tensor([0.2, 0.9]).view(2, 1, 1, 1)
    return (frames + torch.randn(frames.shape, generator=generator) * sensor / 255).clamp(0, 1)


def changes(frames: Tensor, pan: int) -> Tensor:
    """Absolute difference of neighbouring frames (n, 1, h, w) at the same places of the scene, of 255.

    Where the square moves, and what a panning camera just begins to see, are left out.
    """
    if pan:
        before, after = frames[:-1, ..., pan:], frames[1:, ..., :-pan]
        return 255 * (after - before).abs()[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    top = frames.shape[-2] // 2
    still = torch.cat([frames[..., : top - MARGIN, :], frames[..., top + SQUARE + MARGIN :, :]], -2)
    return 255 * still.diff(dim=0).abs()
