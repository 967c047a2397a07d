"""The scenes that weights are trained on, with the gains of their sources, which are computed once and kept on disk."""

import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.gain_data import GRID, write_scene
from datamodules.image_data import hold_out, read_deep
from datamodules.made import MADE, varied
from datamodules.pairing import MASK, Pair, expand, find_pairs, find_stacks, read_manifest, without_mask
from datamodules.pairs import Reading, Sample, pair_digest, read_pair
from datamodules.readers.pixels import list_images, read_image
from datamodules.readers.source import real, source_digest
from dig2dig.config_train import ImageDataConfig, TrainConfig
from dig2dig.errors import ImageError, RunError, note
from dig2dig.fusion.plan import network_gains
from dig2dig.fusion.resample import filled, resample
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.files import file_sha256
from dig2dig.priors.lora import adapter_file
from dig2dig.priors.schedule import draw_noise, generators

LEAST_SIDE = 64  # pixels: VIF's coarsest window must fit


def crc(text: str) -> int:
    """A number for a text, the same in each run."""
    return zlib.crc32(text.encode(errors="surrogateescape"))


@dataclass(frozen=True)
class Scene:
    """One scene to learn from."""

    name: str
    identity: Callable[[], str]  # changes with its files and with how they are read; ImageError
    read: Callable[[], dict[str, Tensor]]  # ``sources`` (k, c, h, w), ``truth`` and ``mask`` where known; ImageError


def training_scenes(config: TrainConfig, held_out: Sequence[Pair] = ()) -> tuple[list[Scene], Sequence[Pair]]:
    """The scenes that train, and the pairs that do not: those given, or the share ``data.val_share`` of all."""
    data, reading = config.data, Reading(config.fusion.task, allow_missing=True)
    photos = list_images(data.root, data.exclude) if data.made and data.root else []
    pairs = training_pairs(config)
    if not held_out:
        names = [Path(f"{pair.series or pair.name}.x") for pair in pairs]
        out = {*hold_out(names, data.val_share, config.seed)[1]}
        held_out = [without_mask(pair) for pair, name in zip(pairs, names, strict=True) if name in out]
    judged = {real(file) for pair in held_out for file in pair.files.values()}
    kept = [pair for pair in pairs if not judged & {*map(real, pair.files.values())}]
    train = [_made(path, data, config.seed) for path in photos if real(path) not in judged]
    train += [_real(pair, reading, variant) for pair in kept for variant in range(data.variants)]
    if not train:
        raise RunError("no scene is left to train on, all are held out")
    return train, held_out


def _slices(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs, each slice of volumes and each frame of videos; masks mark pictures alone."""
    marks = {pair.name: {MASK: pair.files[MASK]} for pair in pairs if MASK in pair.files}
    found = expand([without_mask(pair) for pair in pairs])
    if marked := next((pair.series for pair in found if pair.series in marks), None):
        raise RunError(f"{marked}: a mask marks a picture, no video or volume")
    return [replace(pair, files=pair.files | marks.get(pair.name, {})) for pair in found]


def training_pairs(config: TrainConfig) -> list[Pair]:
    """The pairs, stacks and slices that the configuration names, with the file of the mask among the files."""
    data, masks = config.data, {MASK: config.data.mask} if config.data.mask else {}
    pairs = _slices(read_manifest(Path(data.manifest))) if data.manifest else []
    pairs += _slices(find_stacks(Path(data.stacks))) if data.stacks else []
    pairs += _slices(find_pairs(data.sources | masks, note)) if data.sources else []
    pairs = [pair for pair in pairs if len(set(pair.files) - {MASK}) > 1]
    if data.mask and not any(MASK in pair.files for pair in pairs):
        raise RunError(f"data.mask={data.mask}: no mask has the name of a pair")
    return pairs


def _real(pair: Pair, reading: Reading, variant: int) -> Scene:
    def read() -> dict[str, Tensor]:
        sample = read_pair(without_mask(pair), reading)
        if not isinstance(sample, Sample):
            raise ImageError(sample.reason)
        images = {"sources": sample.sources if sample.valid is None else filled(sample.sources, sample.valid)}
        if MASK in pair.files:
            mask = torch.from_numpy((read_image(pair.files[MASK], "L") > 127).astype(np.float32))[None]
            if mask.shape[-2:] != sample.sources.shape[-2:]:
                raise ImageError(f"{pair.files[MASK]}: its size is not that of the sources")
            images[MASK] = mask
        return varied(images, np.random.default_rng([variant, crc(pair.name)])) if variant else images

    name = f"{pair.name}_{variant}" if variant else pair.name
    return Scene(name, lambda: f"{pair_digest(pair, reading)}/{variant}", read)


def _made(path: Path, data: ImageDataConfig, seed: int) -> Scene:
    kind = data.made

    def read() -> dict[str, Tensor]:
        photo = read_deep(path, "RGB", data.range)
        random = np.random.default_rng([seed, crc(path.stem)])
        return MADE[kind](photo.astype(np.float32) / (255 if photo.dtype == np.uint8 else 1), random)

    return Scene(f"{kind}_{path.stem}", lambda: f"{source_digest(path)}/{kind}/{seed}/{data.range}", read)


def cached(scenes: Iterable[Scene], config: TrainConfig, denoiser: Denoiser, folder: Path) -> list[Path]:
    """A file for each scene in a folder, with its gains unless the prior learns too; made where it is missing.

    A scene that cannot be read is reported and left out; it is a RunError if none is left.
    """
    files, live = list[Path](), config.learns_prior
    adapter = file_sha256(adapter_file(config.adapter)) if config.adapter else ""
    shaping = (version("dig2dig"), config.seed, config.prior_sha256, adapter, config.fusion.task, config.fusion.sampler)
    settings = "/".join(map(str, (*shaping, live)))
    device = next(iter(denoiser.parameters())).device
    for scene in tqdm([*scenes], desc="gains", unit="scene"):
        try:
            path = folder / f"{scene.name}-{crc(f'{settings}/{scene.identity()}'):08x}.safetensors"
            if not path.is_file():
                images = whole_grid(scene.read())
                write_scene(path, images, [] if live else gain_maps(images["sources"].to(device), denoiser, config))
            files.append(path)
        except ImageError as error:
            print(f"skipped: {scene.name}: {error}", file=sys.stderr)
    if not files:
        raise RunError("no scene can be read")
    return files


def whole_grid(images: dict[str, Tensor]) -> dict[str, Tensor]:
    """Images whose sides are multiples of the grid of crops, a few pixels cut off; an ImageError if too small."""
    h, w = images["sources"].shape[-2:]
    if min(h, w) < LEAST_SIDE:
        raise ImageError(f"sources have {w}×{h} pixels; at least {LEAST_SIDE} a side are needed")
    h, w = h // GRID * GRID, w // GRID * GRID
    return {name: image[..., :h, :w] for name, image in images.items()}


@torch.no_grad()
def gain_maps(sources: Tensor, denoiser: Denoiser, config: TrainConfig) -> list[Tensor]:
    """Gains of sources (k, c, h, w) in [0, 1] at each level, on grids that divide that of crops."""
    clean, sampler = 2 * sources[None] - 1, config.fusion.sampler
    h, w = clean.shape[-2:]
    noise = draw_noise((denoiser.channels, h, w), generators(config.seed, 1), clean)
    found = network_gains(clean, [noise], denoiser, sampler).gains
    coarsest = (h // GRID, w // GRID)
    return [(resample(maps, *coarsest) if maps.shape[-1] < coarsest[1] else maps)[0].cpu() for maps in found]
