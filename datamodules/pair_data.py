"""Pairs and stacks to fuse, batched by size."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.pairing import Pair, expand, find_pairs
from datamodules.pairs import Failure, Reading, Sample, batch_key, read_pair

PIXELS_PER_BATCH = 2**23  # of all sources of a batch: large images come alone


class PairDataset(Dataset):
    """Reads pairs; what cannot be read comes as a :class:`Failure` and stops nothing."""

    def __init__(self, pairs: Sequence[Pair], reading: Reading) -> None:
        self.pairs, self.reading = pairs, reading

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample | Failure:
        return read_pair(self.pairs[index], self.reading)


class SizeBatches(list[list[int]]):
    """Batches of pairs that share size and K; each process takes its share of whole batches."""

    def __init__(
        self, pairs: Sequence[Pair], batch_size: int, rank: int = 0, world_size: int = 1, reference: str = ""
    ) -> None:
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, pair in enumerate(pairs):
            groups[batch_key(pair, reference)].append(index)
        batches: list[list[int]] = []
        for key, group in groups.items():
            size = max(1, min(batch_size, PIXELS_PER_BATCH // max(math.prod(key), 1)))
            batches += [group[i : i + size] for i in range(0, len(group), size)]
        super().__init__(batches[rank::world_size] or [[]])  # a process without work must still take part


class ReadAhead(DataLoader):
    """Without workers, one thread reads the next batch, on one core: else it would hold up the fusion before it."""

    def __iter__(self) -> Iterator[list[Sample | Failure]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batches = super().__iter__()
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
            coming = thread.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = thread.submit(next, batches, None)
                yield batch


class ListsStay(LightningDataModule):
    """Leaves lists of pairs or crops where they are: they travel when they are used, those of one shape together."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A batch as it is, if it is a list."""
        return batch if isinstance(batch, list) else super().transfer_batch_to_device(batch, device, dataloader_idx)


class FusionDataModule(ListsStay):
    """Pairs for ``Trainer.predict`` and ``Trainer.validate``: batches are lists of samples and failures.

    Args:
        pairs: The files of each scene; or, per modality, where they are, see :func:`datamodules.pairing.find_pairs`.
        reading: How files become sources.
        batch_size: Images of equal size in one batch.
        workers: Processes that read ahead; 0 = a thread does.
    """

    def __init__(
        self,
        pairs: Sequence[Pair] | Mapping[str, str],
        reading: Reading | None = None,
        batch_size: int = 1,
        workers: int = 0,
    ) -> None:
        super().__init__()
        found = expand(find_pairs(pairs)) if isinstance(pairs, Mapping) else pairs
        self.dataset, self.batch_size, self.workers = PairDataset(found, reading or Reading()), batch_size, workers

    def predict_dataloader(self) -> DataLoader:
        """Every pair once."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = SizeBatches(self.dataset.pairs, self.batch_size, rank, world_size, self.dataset.reading.reference)
        loader = DataLoader if self.workers else ReadAhead
        return loader(self.dataset, batch_sampler=batches, num_workers=self.workers, collate_fn=list)

    val_dataloader = predict_dataloader
