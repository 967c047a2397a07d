"""What a run needs to train a prior: its module, its images, and the export."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.image_data import ImageDataModule, shared_out
from datamodules.pair_data import PairDataset
from datamodules.pairing import Pair, expand, find_pairs
from datamodules.pairs import Reading, Sample
from dig2dig.atomic import write_atomically
from dig2dig.config_train import TrainConfig
from dig2dig.errors import RunError, note
from dig2dig.modules.prior import PriorModule, choose_weights, starting_prior
from dig2dig.modules.scores import means
from dig2dig.priors.build import save_prior
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.lora import save_adapter
from dig2dig.priors.loss import psnr_by_noise
from dig2dig.tracking.trainer import build_trainer
from dig2dig.training.card import Facts, model_card
from dig2dig.training.checkpoints import export_folder, finish


def fusion_samples(config: TrainConfig, held_out: Sequence[Pair] = ()) -> list[Sample]:
    """The pairs that are fused at each validation, cropped; pairs that cannot be read are reported and left out."""
    fusion = config.fusion
    found = expand(find_pairs(fusion.sources, note)) if fusion.sources else held_out
    pairs = PairDataset(found, Reading(fusion.task, True))
    samples: list[Sample] = []
    for item in (pairs[index] for index in range(len(pairs))):
        if len(samples) == config.logger.pairs:
            break
        if isinstance(item, Sample):
            samples.append(cropped(item, fusion.crop) if fusion.crop else item)
        else:
            print(f"skipped: {item.reason}", file=sys.stderr)
    return samples


def cropped(sample: Sample, side: int) -> Sample:
    """The centre of a scene, reflected where it is smaller."""
    rows, columns = (_middle(length, side) for length in sample.sources.shape[-2:])
    found = ((name, getattr(sample, name)) for name in ("sources", "chroma", "valid"))
    return replace(sample, **{name: images[..., rows, :][..., columns] for name, images in found if images is not None})


def _middle(length: int, side: int) -> Tensor:
    """The places of the middle of an axis."""
    short = max(side - length, 0)
    places = np.pad(np.arange(length), (short // 2, short - short // 2), "reflect")
    return torch.from_numpy(places)[max(length - side, 0) // 2 :][:side]


def device_of(config: TrainConfig) -> torch.device:
    """Where a run measures outside of its trainer: the device that a trainer would take in this process."""
    return build_trainer(config.trainer, logger=False, enable_checkpointing=False).strategy.root_device


def write_prior(denoiser: Denoiser, config: TrainConfig) -> Path:
    """Writes a prior, or its adapter, into ``OUT``, says how to use it, and gives the folder."""
    out, lora = Path(config.out), config.adapt.mode.startswith("lora")
    folder = out / ("adapter" if lora else "prior")
    with export_folder(folder) as place:
        if lora:
            save_adapter(denoiser, place, config.prior, config.adapt.rank, config.adapt.alpha)
        else:
            save_prior(denoiser, place)
    use = f"prior.path={config.prior} prior.adapter={folder}" if lora else f"prior.path={folder}"
    print(f"{folder.name} written: dig2dig infer … {use}")
    return folder


class PriorLearning:
    """A prior that learns from single images."""

    def __init__(self, config: TrainConfig) -> None:
        denoiser = starting_prior(config)
        check_sizes(config, denoiser)
        self.config, samples = config, fusion_samples(config)
        self.module = PriorModule(config, denoiser if config.validate else choose_weights(denoiser, config.adapt))
        self.data = ImageDataModule(config.data, config.seed, config.optim.steps, samples)

    def export(self, checkpoint: dict[str, Any], devices: int) -> dict[str, float]:
        """Writes the prior or its adapter, averaged, with its card; gives its denoising PSNR by noise level."""
        config, data = self.config, self.data
        data.setup("validate")
        assert data.train is not None
        before = self.denoising(starting_prior(config)) if config.prior else {}
        denoiser = choose_weights(starting_prior(config), config.adapt)
        finish(torch.nn.ModuleDict({"denoiser": denoiser}), checkpoint)
        after = self.denoising(denoiser)
        facts = Facts(len(data.train), len(data.val or []), devices, {"before": before, "after": after})
        write_atomically(write_prior(denoiser, config) / "README.md", model_card(config, denoiser, facts).encode())
        return after

    def denoising(self, denoiser: Denoiser) -> dict[str, float]:
        """Denoising PSNR on the held-out images, outside of any training."""
        if self.data.val is None:
            return {}
        device = device_of(self.config)
        denoiser = denoiser.to(device).eval()
        loader = shared_out(self.data.val, None, 4)
        batches = ({name: value.to(device) for name, value in batch.items()} for batch in loader if batch)
        return means([row for batch in batches for row in psnr_by_noise(denoiser, batch)])


def check_sizes(config: TrainConfig, denoiser: Denoiser) -> None:
    """Refuses crops that the network cannot take, and priors for grey images, before hours have passed."""
    if denoiser.channels != 3:
        raise RunError(f"{config.prior}: a prior for grey images; training reads colour")
    sides = {"data.crop": config.data.crop, "data.val_crop": config.data.val_crop}
    for name, side in sides.items():
        if side % denoiser.multiple:
            raise RunError(f"{name}={side}: this network takes multiples of {denoiser.multiple}")
