"""What a run needs to train fusion weights: scenes with their gains, the module, and the export."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from datamodules.gain_data import GainDataModule
from datamodules.pairing import expand, find_pairs
from datamodules.pairs import Reading, Sample, read_pair
from dig2dig.atomic import write_atomically
from dig2dig.cli import load_strictly
from dig2dig.config import FusionConfig, InferConfig, SamplerConfig
from dig2dig.config_train import TrainConfig
from dig2dig.fusion.weight import WeightNetwork, save_weights
from dig2dig.metrics import fusion_metrics
from dig2dig.metrics.objectives import check_terms
from dig2dig.modules.fuser import Fuser
from dig2dig.modules.prior import choose_weights, starting_prior
from dig2dig.modules.scores import means
from dig2dig.modules.weights import WeightModule
from dig2dig.priors.denoiser import Denoiser
from dig2dig.training.card import Facts, weight_card
from dig2dig.training.checkpoints import export_folder, finish
from dig2dig.training.prior import device_of, fusion_samples, write_prior
from dig2dig.training.scenes import cached, training_scenes

_USUAL = ("SD", "SF", "SCD", "VIF", "Qabf", "SSIM", "Nabf", "halo", "tone")
_EXPOSURES = ("SD", "SF", "VIF", "Qabf", "MEF-SSIM", "Nabf", "halo", "tone")
SHOWN = {"ivf": _USUAL, "mif": _USUAL, "mef": _EXPOSURES, "mff": _USUAL}
"""Metrics of the table before and after, by task."""


class WeightLearning:
    """Weights that learn from pairs and stacks, alone or with the prior."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        check_terms(config.objective)
        self.module = WeightModule(config, denoiser := starting_prior(config))  # refuses, at once, what does not fit
        files, self.held_out = [], expand(find_pairs(config.fusion.sources)) if config.fusion.sources else []
        if config.data.names_scenes and not (config.validate and self.held_out):
            scenes, self.held_out = training_scenes(config, self.held_out)
            if not config.validate:
                files = cached(scenes, config, denoiser.to(device_of(config)), Path(config.out) / "scenes")
        self.count = len(files)
        samples = fusion_samples(config, self.held_out)
        self.data = GainDataModule(config.data, files, config.seed, config.optim.steps, samples)

    def export(self, checkpoint: dict[str, Any], devices: int) -> dict[str, float]:
        """Writes the weights, and the prior or adapter if it learned; prints a table before and after."""
        config, out = self.config, Path(self.config.out)
        denoiser, network = choose_weights(starting_prior(config), config.adapt), WeightNetwork(config.fusion.sampler)
        finish(torch.nn.ModuleDict({"network": network, "denoiser": denoiser}), checkpoint)
        network, denoiser = network.eval(), denoiser.eval()
        folder = out / "weights"
        with export_folder(folder) as place:
            save_weights(network, place)
        print(f"weights written: dig2dig infer … sampler.weights={folder}")
        folders = [folder, write_prior(denoiser, config)] if config.learns_prior else [folder]
        before, after = self.scores(starting_prior(config), None), self.scores(denoiser, network)
        start = config.weights or f"the preset {config.fusion.task} with sampler.weights=gain"
        rows = {start: before, "learned": after}
        if before:
            print(table(rows, len(self.held_out)))
        facts = Facts(self.count, len(self.held_out), devices, rows if before else {})
        for folder in folders:
            write_atomically(folder / "README.md", weight_card(config, network, facts).encode())
        return after

    def scores(self, denoiser: Denoiser, network: WeightNetwork | None) -> dict[str, float]:
        """Mean metrics of the held-out pairs, whole images; of what the training started from without a network."""
        config = self.config
        sampler = config.fusion.sampler if network else starting_sampler(config)
        device, rows = device_of(config), list[dict[str, float]]()
        network = network.to(device) if network else None
        fuser = Fuser(denoiser.to(device).eval(), FusionConfig(sampler=sampler, seed=config.seed), weights=network)
        for pair in tqdm(self.held_out, desc="held-out pairs", unit="pair", disable=not self.held_out):
            sample = read_pair(pair, Reading(config.fusion.task, allow_missing=True))
            result = fuser([sample], device)[0]
            if isinstance(sample, Sample) and result.fused is not None:
                found = fusion_metrics(result.fused[None], sample.sources[None], names=SHOWN[config.fusion.task])
                rows.append({name: float(value) for name, value in found.items()})
        return means(rows)


def starting_sampler(config: TrainConfig) -> SamplerConfig:
    """The sampling of what a training started from: learned weights, or the task's preset with a softmax of gains."""
    if config.weights:
        return replace(config.fusion.sampler, weights=config.weights)
    overrides = ["sources.a=a", "sources.b=b", "sampler.weights=gain"]
    return load_strictly(InferConfig, [config.fusion.task, *overrides]).sampler


def table(rows: dict[str, dict[str, float]], count: int) -> str:
    """Mean metrics of held-out pairs, a line for each form."""
    names, width = list(next(iter(rows.values()))), max(map(len, rows)) + 2
    lines = [f"{count} held-out pairs, means:", " " * width + "".join(f"{name:>10}" for name in names)]
    lines += [f"{form:<{width}}" + "".join(f"{row[name]:>10.4f}" for name in names) for form, row in rows.items()]
    return "\n".join(lines)
