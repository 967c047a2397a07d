"""Single images to train or adapt a prior: every sample is a function of its index, so that runs resume exactly."""

import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import Trainer
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from datamodules.pair_data import ListsStay
from datamodules.pairs import Sample
from datamodules.ranges import to_unit
from datamodules.readers.pixels import convert, list_images, read_picture
from datamodules.readers.volume import memory
from datamodules.transforms import A, training_crops, validation_crop
from datamodules.validity import check_finite, without_data
from dig2dig.config_train import ImageDataConfig
from dig2dig.errors import ImageError
from dig2dig.options import parse_range


def read_deep(path: Path, mode: Literal["L", "RGB"] = "RGB", scale: str = "percentile") -> np.ndarray:
    """Pixels of a file of any depth: uint8 as stored, or float32 in [0, 1], scaled by what holds data."""
    picture = read_picture(path)
    valid, _ = without_data(picture.pixels, picture.valid, parse_range(scale)[1])
    if valid is not None and not valid.any():
        raise ImageError(f"{path}: no pixel holds data; leave it out")
    check_finite(picture.pixels, valid, str(path))
    pixels = picture.pixels if picture.depth == 8 else to_unit(picture.pixels, scale, valid)[0]
    return convert(pixels, mode)


def hold_out(paths: list[Path], share: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Splits images into those that train and those that validate, by their stems alone; one is held out at least.

    The sources of one scene, which share a stem, fall on one side; a file that is added moves no other.
    """
    place = {path.stem: zlib.crc32(f"{seed}/{path.stem}".encode(errors="surrogateescape")) for path in paths}
    least = min(place.values()) + 1 if share and len(place) > 1 else 0
    limit = max(share * 2**32, least)
    return [path for path in paths if place[path.stem] >= limit], [path for path in paths if place[path.stem] < limit]


class ImageCrops(Dataset):
    """Augmented crops of single images, ``{"image": (3, h, w) in [0, 1], "index": int}``.

    Sample ``i`` draws its file, crop and colours from ``(seed, i)`` alone, whatever the workers, devices and restarts.
    Decoded images are kept while they take at most ``room`` bytes.
    """

    def __init__(
        self, paths: list[Path], transform: A.Compose, seed: int | None, room: int = 0, range: str = "percentile"
    ) -> None:
        self.paths, self.transform, self.seed, self.range, self.room = paths, transform, seed, range, room
        self.cache: dict[Path, np.ndarray] = {}
        self.unreadable: set[Path] = set()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        if self.seed is None:
            path = self.paths[index]
        else:
            random = np.random.default_rng([self.seed, index])
            path = self.paths[random.integers(len(self.paths))]
            self.transform.set_random_seed(int(random.integers(2**31)))
        try:
            pixels = self.cache[path] if path in self.cache else read_deep(path, "RGB", self.range)
        except ImageError as error:
            return self._instead_of(path, index, error)
        if path not in self.cache and pixels.nbytes <= self.room:
            self.cache[path], self.room = pixels, self.room - pixels.nbytes
        image = self.transform(image=pixels)["image"]
        scale = 255 if image.dtype == np.uint8 else 1
        return {"image": torch.from_numpy(np.array(image)).permute(2, 0, 1) / scale, "index": index}

    def _instead_of(self, path: Path, index: int, error: ImageError) -> dict[str, Any] | None:
        """Reports a file that cannot be read, once; a training takes the next one from now on, a validation none."""
        following = next((other for other in self.paths[self.paths.index(path) :] + self.paths if other != path), None)
        if following is None and self.seed is not None:
            raise error
        if path not in self.unreadable:
            print(f"skipped: {error}", file=sys.stderr)
        self.unreadable.add(path)
        if following is None or self.seed is None:
            return None
        self.paths = [following if other == path else other for other in self.paths]
        return self[index]


class StepSampler(Sampler[int]):
    """Sample indices from ``start`` to ``stop``: each process takes its share of every global batch."""

    def __init__(self, start: int, stop: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.start, self.stop, self.batch_size, self.rank, self.world_size = start, stop, batch_size, rank, world_size

    def __iter__(self) -> Iterator[int]:
        for first in range(self.start + self.rank * self.batch_size, self.stop, self.batch_size * self.world_size):
            yield from range(first, first + self.batch_size)

    def __len__(self) -> int:
        """The whole run's samples: Lightning counts those before ``start`` as done."""
        return self.stop // self.world_size


def training_batches(data: Dataset, config: ImageDataConfig, trainer: Trainer, steps: int, **more: Any) -> DataLoader:
    """Batches from where a run stands to its last step."""
    per_step = config.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    first, last = trainer.global_step * per_step, steps * per_step
    sampler = StepSampler(first, last, config.batch_size, trainer.global_rank, trainer.world_size)
    more |= {"num_workers": config.workers, "pin_memory": trainer.strategy.root_device.type == "cuda"}
    return DataLoader(data, config.batch_size, sampler=sampler, drop_last=True, **more)


def shared_out(items: Any, trainer: Trainer | None, size: int = 1, workers: int = 0) -> DataLoader:
    """This process's share of images or pairs that validate; one empty batch if there is none: it must take part."""
    rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
    share = range(rank, len(items), world_size)
    batches = [list(share[i : i + size]) for i in range(0, len(share), size)] or [[]]
    return DataLoader(items, batch_sampler=batches, collate_fn=collate, num_workers=workers)


def collate(items: list[Any]) -> Any:
    """Images that could be read as one batch; pairs, or nothing, as a list."""
    items = [item for item in items if item is not None]
    return default_collate(items) if items and isinstance(items[0], dict) else items


class ImageDataModule(ListsStay):
    """Training crops from a folder tree, centre crops for validation, and pairs that are fused at each validation.

    The split and the crops follow from ``seed``. A run has ``steps`` optimiser steps. ``samples`` are the pairs.
    """

    def __init__(self, config: ImageDataConfig, seed: int, steps: int, samples: Sequence[Sample] = ()) -> None:
        super().__init__()
        self.config, self.seed, self.steps, self.samples = config, seed, steps, list(samples)
        self.train: ImageCrops | None = None
        self.val: ImageCrops | None = None

    def setup(self, stage: str) -> None:
        """Lists the files; a folder that does not exist or holds no image is a FileNotFoundError."""
        config = self.config
        val = list_images(config.val) if config.val else []
        held_out = {path.resolve() for path in val}
        paths = list_images(config.root, config.exclude) if config.root else []
        paths = [path for path in paths if path.resolve() not in held_out]
        if not val and config.val_share:
            paths, val = hold_out(paths, config.val_share, self.seed)
        if config.root and not paths:
            raise FileNotFoundError(f"{config.root}: no image is left to train on, all are held out")
        crops = training_crops(config.crop, config.scales, config.grey)
        room = config.cache * memory() // 4 // max(config.workers, 1)
        room = room // self.trainer.num_devices if self.trainer else room
        self.train = ImageCrops(paths, crops, self.seed, room, config.range)
        if val:
            self.val = ImageCrops(val, validation_crop(config.val_crop), None, 0, config.range)

    def train_dataloader(self) -> DataLoader:
        """Crops from where the run stands to its last step."""
        assert self.trainer is not None and self.train is not None
        return training_batches(self.train, self.config, self.trainer, self.steps)

    def val_dataloader(self) -> list[DataLoader]:
        """This process's share of the centre crops, four at a time, and of the pairs."""
        images = [shared_out(self.val, self.trainer, 4, self.config.workers)] if self.val else []
        return [*images, shared_out(self.samples, self.trainer)] if self.samples else images
