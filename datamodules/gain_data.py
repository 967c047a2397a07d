"""Crops of scenes with the gains of their sources, which were computed once and lie in files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.image_data import shared_out, training_batches
from datamodules.pair_data import ListsStay
from datamodules.pairs import Sample
from dig2dig.atomic import write_atomically
from dig2dig.config_train import ImageDataConfig

GRID = 32
"""Crops begin at multiples of so many pixels: maps of gains are up to so many times coarser than images."""
MOST_SOURCES = 4


def write_scene(path: Path, images: dict[str, Tensor], gains: Sequence[Tensor]) -> None:
    """Writes ``sources`` (k, c, h, w) in [0, 1], ``truth`` and ``mask`` where known, and gains (k, 1, h / f, w / f).

    Sides of images are multiples of :data:`GRID`.
    """
    maps = {f"gain_{i}": maps for i, maps in enumerate(gains)}
    write_atomically(path, save({name: value.half().contiguous() for name, value in (images | maps).items()}))


class GainCrops(Dataset):
    """Crops of scenes: ``sources``, ``gains``, and ``truth`` and ``mask`` where they are known.

    Crop ``i`` draws its scene, place, sources (at most four) and orientation from ``(seed, i)`` alone.
    """

    def __init__(self, files: Sequence[Path], side: int, seed: int) -> None:
        self.files, self.side, self.seed = list(files), side, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng([self.seed, index])
        with safe_open(self.files[random.integers(len(self.files))], "pt") as file:
            k, _, height, width = file.get_slice("sources").get_shape()
            h, w = min(self.side, height), min(self.side, width)
            top, left = (GRID * int(random.integers(room // GRID + 1)) for room in (height - h, width - w))
            count = k if k <= 2 else int(random.integers(2, min(k, MOST_SOURCES) + 1))
            chosen = torch.from_numpy(np.sort(random.permutation(k)[:count]))
            turns, flip = int(random.integers(4)), bool(random.integers(2))

            def read(name: str) -> Tensor:
                part = file.get_slice(name)
                f = round(height / part.get_shape()[-2])
                y, x = slice(top // f, (top + h) // f), slice(left // f, (left + w) // f)
                maps = (part[:, :, y, x] if len(part.get_shape()) == 4 else part[:, y, x]).float()
                maps = (maps if name in ("truth", "mask") else maps[chosen]).rot90(turns, (-2, -1))
                return (maps.flip(-1) if flip else maps).contiguous()

            names = list(file.keys())
            crop: dict[str, Any] = {name: read(name) for name in names if not name.startswith("gain_")}
            crop["gains"] = [read(f"gain_{i}") for i in range(len(names) - len(crop))]
        return crop | {"index": index}


class GainDataModule(ListsStay):
    """Crops of files that :func:`write_scene` wrote, for the whole run; and pairs that are fused at each validation."""

    def __init__(
        self, config: ImageDataConfig, files: Sequence[Path], seed: int, steps: int, samples: Sequence[Sample] = ()
    ) -> None:
        super().__init__()
        self.config, self.steps, self.samples = config, steps, list(samples)
        self.train = GainCrops(files, config.crop, seed)

    def train_dataloader(self) -> DataLoader:
        """Crops from where the run stands to its last step; a batch is a list of crops."""
        assert self.trainer is not None
        return training_batches(self.train, self.config, self.trainer, self.steps, collate_fn=list)

    def val_dataloader(self) -> DataLoader:
        """This process's share of the pairs."""
        return shared_out(self.samples, self.trainer)
