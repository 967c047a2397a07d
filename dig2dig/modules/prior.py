"""Training a prior: what learns, the loss, the validation."""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import ModuleList
from torchmetrics.aggregation import RunningMean

from dig2dig.config_train import AdaptConfig, TrainConfig
from dig2dig.modules.learner import Learner
from dig2dig.modules.results import Result
from dig2dig.priors.build import build_prior
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.load import load_prior
from dig2dig.priors.lora import add_adapter, merge_adapter
from dig2dig.priors.loss import diffusion_loss, draw_times, loss_weight, psnr_by_noise
from dig2dig.priors.schedule import draw_noise, generators, noise_level

NOISE_BANDS = {f"{low:g}-{high:g}": (low, high) for low, high in pairwise((0.0, 0.1, 0.3, 1.0, 3.0, math.inf))}
"""Bands of noise levels, for images in [-1, 1], by which the training loss is logged."""


def starting_prior(config: TrainConfig) -> Denoiser:
    """The prior that a training starts from, or a new one; in fp32, the trainer's precision decides."""
    if not config.prior:
        net = config.network
        return build_prior(net.channels, net.layers, net.patch, net.prediction)
    denoiser = load_prior(config.prior, config.prior_sha256, "fp32")
    if config.adapter:
        merge_adapter(denoiser, Path(config.adapter), config.prior)
    return denoiser


def choose_weights(denoiser: Denoiser, adapt: AdaptConfig) -> Denoiser:
    """Lets the weights of a mode of adaptation learn, and no others."""
    mode = adapt.mode.removesuffix("+weights")
    denoiser.requires_grad_(mode == "full").train()
    if mode == "lora":
        add_adapter(denoiser, adapt.rank, adapt.alpha)
    elif mode == "last":
        unet: Any = denoiser.network.unet
        for part in (unet.up_blocks[-1], unet.conv_norm_out, unet.conv_out):
            part.requires_grad_(True)
    return denoiser


class PriorModule(Learner):
    """Trains a prior on single images.

    Noise and times come from each sample's index: a resumed run sees what an uninterrupted one would have. Validation
    measures how well the prior denoises single images and, where there are pairs to fuse, what it does to fusions and
    gains. Without a denoiser, the configuration names the prior.
    """

    def __init__(self, config: TrainConfig | Mapping[str, Any], denoiser: Denoiser | None = None) -> None:
        super().__init__(config)
        self.denoiser = denoiser or choose_weights(starting_prior(self.config), self.config.adapt)
        self.band_losses = ModuleList(RunningMean(50, sync_on_compute=False) for _ in NOISE_BANDS)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """Mean weighted loss of the batch at drawn noise levels."""
        x0 = 2 * batch["image"] - 1
        spread = 2654435761 * self.config.seed  # generators read 32 bits of their seed only
        random = generators([(index + spread) % 2**32 for index in batch["index"].tolist()], len(x0))
        uniform = torch.stack([torch.rand(2, generator=generator) for generator in random])
        noise = draw_noise(x0.shape[1:], random, x0)
        o = self.config.optim
        times = draw_times(uniform, self.denoiser.alpha_bar, o.sigma_min, o.sigma_max)
        t = times.to(x0.device)
        losses = diffusion_loss(self.denoiser, x0, noise, t, o.variance_weight)
        loss = (loss_weight(o.weighting, o.gamma, self.denoiser, times).to(losses) * losses).mean()
        self.log("train/loss", loss, prog_bar=True)
        self._log_bands(times, losses.detach())
        return loss

    def _log_bands(self, times: Tensor, losses: Tensor) -> None:
        """Unweighted loss by noise level, mean of the last 50 batches that had any."""
        sigma = noise_level(self.denoiser.alpha_bar)[times]
        for band, (name, (low, high)) in zip(self.band_losses, NOISE_BANDS.items(), strict=True):
            inside = ((sigma >= low) & (sigma < high)).nonzero()[:, 0]
            if len(inside):
                band.update(losses[inside.to(losses.device)])  # pyright: ignore[reportCallIssue]
                self.log(f"train/loss_sigma_{name}", band.compute())  # pyright: ignore[reportCallIssue]

    def validation_step(self, batch: Any, _: int, dataloader_idx: int = 0) -> dict[str, list[Result]] | None:
        """Denoising PSNR of images at the usual noise levels, or scores of fused pairs."""
        if isinstance(batch, dict):
            for name, psnr in psnr_by_noise(self.denoiser, batch).items():
                shown = name in ("psnr_25", "psnr_50")
                options: Any = {"prog_bar": shown, "sync_dist": True, "add_dataloader_idx": False}
                self.log(f"val/{name}", psnr.mean(), batch_size=len(psnr), **options)
            return None
        return self.score(batch, self.denoiser)
