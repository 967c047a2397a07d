"""Training a prior: what learns, the loss, the validation."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dig2dig.config import PriorConfig
from dig2dig.config_train import AdaptConfig, TrainConfig
from dig2dig.modules.learner import Learner
from dig2dig.modules.results import Result
from dig2dig.priors.build import build_prior, recompute
from dig2dig.priors.counter import draws
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.load import open_prior
from dig2dig.priors.lora import add_adapter
from dig2dig.priors.loss import diffusion_loss, draw_times, loss_weight, psnr_by_noise
from dig2dig.priors.schedule import at, noise_level

NOISE_BANDS = {f"{low:g}-{high:g}": (low, high) for low, high in pairwise((0.0, 0.1, 0.3, 1.0, 3.0, math.inf))}
"""Bands of noise levels, for images in [-1, 1], by which the training loss is logged."""


def starting_prior(config: TrainConfig) -> Denoiser:
    """The prior that a training starts from, or a new one; in fp32, the trainer's precision decides."""
    if not config.prior:
        net = config.network
        return build_prior(net.channels, net.layers, net.patch, net.prediction)
    return open_prior(PriorConfig(config.prior, config.adapter, config.prior_sha256, "fp32"))


def choose_weights(denoiser: Denoiser, adapt: AdaptConfig) -> Denoiser:
    """Lets the weights of a mode of adaptation learn, and no others."""
    mode = adapt.mode.removesuffix("+weights")
    denoiser.requires_grad_(mode == "full").train()
    if mode == "lora":
        add_adapter(denoiser, adapt.rank, adapt.alpha)
    elif mode == "last":
        unet: Any = denoiser.network.unet
        outer = [part for name, part in unet.named_children() if name in ("conv_norm_out", "conv_out")]
        for part in ([*unet.up_blocks] or [unet.mid_block])[-1:] + outer:
            part.requires_grad_(True)
    return denoiser


def speed_up(denoiser: Denoiser, config: TrainConfig) -> None:
    """Lets a prior that learns keep less, or run faster, as the configuration asks."""
    if config.recompute:
        recompute(denoiser)
    if config.compile:
        denoiser.network.compile()  # in place: weights keep their names


class PriorModule(Learner):
    """Trains a prior on single images.

    Noise and times come from each sample's index: a resumed run sees what an uninterrupted one would have. Validation
    measures how well the prior denoises single images and, where there are pairs to fuse, what it does to fusions and
    gains. Without a denoiser, the configuration names the prior.
    """

    def __init__(self, config: TrainConfig | Mapping[str, Any], denoiser: Denoiser | None = None) -> None:
        super().__init__(config)
        self.denoiser = denoiser or choose_weights(starting_prior(self.config), self.config.adapt)
        speed_up(self.denoiser, self.config)
        self.bands: Tensor | float = 0.0  # running sums of losses, and counts, by band

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Mean weighted loss of the batch at drawn noise levels."""
        x0, o = 2 * batch["image"] - 1, self.config.optim
        uniform, noise = draws(self.config.seed, batch["index"], x0.shape[1:])
        t = draw_times(uniform, self.denoiser.alpha_bar, o.sigma_min, o.sigma_max)
        losses = diffusion_loss(self.denoiser, x0, noise, t)
        loss = (loss_weight(o.weighting, o.gamma, self.denoiser, t).to(losses) * losses).mean()
        self.parts[index % o.accumulate :] = [loss.detach()]
        self.log("train/loss", self.shared(torch.stack(self.parts).mean(0)), prog_bar=True)
        sigma = noise_level(at(self.denoiser.alpha_bar, t, losses))
        inside = torch.stack([(sigma >= low) & (sigma < high) for low, high in NOISE_BANDS.values()])
        self.bands = bands = 0.98 * self.bands + torch.stack([(inside * losses.detach()).sum(1), inside.sum(1)])
        if self.due:  # numbers are read then only: to read them waits for the device
            for name, total, count in zip(NOISE_BANDS, *self.shared(bands).tolist(), strict=True):
                if count:
                    self.log(f"train/loss_sigma_{name}", total / count)
        return loss

    def validation_step(self, batch: Any, _: int, dataloader_idx: int = 0) -> dict[str, list[Result]] | None:
        """Denoising PSNR of images at the usual noise levels, or scores of fused pairs."""
        if isinstance(batch, dict):
            rows = psnr_by_noise(self.denoiser, batch)
            self.scores.rows += [{f"val/{name}": psnr for name, psnr in row.items()} for row in rows]
            return None
        return self.score(batch, self.denoiser)
