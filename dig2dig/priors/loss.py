"""What a prior is trained on: which noise levels, the distance to the network's target, and how levels are weighted."""

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import (
    AlphaBar,
    add_noise,
    amplitudes,
    draw_noise,
    generators,
    noise_level,
    time_of_noise_level,
)
from dig2dig.shapes import Image, Timestep

VALIDATION_SIGMAS = (15, 25, 50, 100)  # noise levels at which denoising is measured, in grey levels of 255
UNIFORM_SHARE = 0.1  # of the training samples, whose time is drawn uniformly over all indices


def draw_times(uniform: Tensor, alpha_bar: AlphaBar, sigma_min: float, sigma_max: float) -> Timestep:
    """Time indices whose noise levels are uniform in log sigma, ``UNIFORM_SHARE`` of them uniform in time instead.

    ``uniform`` holds two random numbers in [0, 1) for each sample, (b, 2); noise levels are for images in [-1, 1].
    """
    position, choice = uniform.T.contiguous()
    by_sigma = torch.bucketize(position, _positions(alpha_bar, sigma_min, sigma_max, uniform.device))
    by_index = (position * len(alpha_bar)).long()
    return torch.where(choice < UNIFORM_SHARE, by_index, by_sigma)


@lru_cache
def _positions(alpha_bar: AlphaBar, sigma_min: float, sigma_max: float, device: torch.device) -> Tensor:
    """Random positions at which the next time index begins: in float32, so that all devices draw the same times."""
    log_sigma, width = noise_level(alpha_bar).log(), max(math.log(sigma_max / sigma_min), 1e-12)
    return (((log_sigma[1:] + log_sigma[:-1]) / 2 - math.log(sigma_min)) / width).float().to(device)


def diffusion_loss(denoiser: Denoiser, x0: Image, noise: Image, t: Timestep) -> Tensor:
    r"""Squared distance of the network's prediction to its target, for each sample, shape (b,).

    .. math:: \varepsilon, \qquad v = \sqrt{\bar\alpha_t}\,\varepsilon - \sqrt{1-\bar\alpha_t}\,x_0
              \qquad\text{or}\qquad x_0
    """
    x_t = add_noise(x0, noise, t, denoiser.alpha_bar)
    prediction = denoiser.outputs(x_t, t)
    target = noise if denoiser.prediction == "epsilon" else x0
    if denoiser.prediction == "v_prediction":
        image, level = amplitudes(denoiser.alpha_bar, t, x0)
        target = image * noise - level * x0
    return (prediction - target).square().flatten(1).mean(1)


def loss_weight(kind: Literal["none", "min_snr"], gamma: float, denoiser: Denoiser, t: Timestep) -> Tensor:
    r"""Weight of each sample's loss by its signal-to-noise ratio, shape (b,).

    .. math:: w = \min(\mathrm{SNR}, \gamma) \cdot \{1,\ 1/\mathrm{SNR},\ 1/(\mathrm{SNR} + 1)\}, \qquad
              \mathrm{SNR} = \bar\alpha_t / (1 - \bar\alpha_t)

    for networks that predict the image, the noise or v. Small noise levels, whose predictions err most, no longer
    outweigh the others (Hang et al., "Efficient diffusion training via min-SNR weighting strategy", 2023).
    """
    image, level = amplitudes(denoiser.alpha_bar, t, t.float())
    if kind == "none":
        return torch.ones_like(image)
    snr = (image / level).square()
    unit = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[denoiser.prediction]
    return snr.clamp(max=gamma) / unit


def denoising_psnr(denoiser: Denoiser, images: Image, noise: Image, sigma: float) -> Tensor:
    """PSNR in dB of the one-step estimate of images in [0, 1] with Gaussian noise of ``sigma`` / 255, shape (b,)."""
    t = time_of_noise_level(denoiser.alpha_bar, torch.tensor([2 * sigma / 255])).expand(len(images)).to(images.device)
    x_t = add_noise(2 * images - 1, noise, t, denoiser.alpha_bar)
    estimate = ((denoiser(x_t, t) + 1) / 2).clamp(0, 1)
    return -10 * torch.log10((estimate - images).square().flatten(1).mean(1))


@torch.no_grad()
def psnr_by_noise(denoiser: Denoiser, batch: dict[str, Tensor]) -> list[dict[str, float]]:
    """``psnr_SIGMA`` of each image at the usual noise levels, one noise draw for each image."""
    images = batch["image"]
    noise = draw_noise(images.shape[1:], generators(batch["index"].tolist(), len(images)), images)
    found = {f"psnr_{sigma}": denoising_psnr(denoiser, images, noise, float(sigma)) for sigma in VALIDATION_SIGMAS}
    return [{name: float(psnr[i]) for name, psnr in found.items()} for i in range(len(images))]
