"""What a prior is trained on: which noise levels, and the distance to the network's own target."""

import torch
from torch import Tensor

from dig2dig.denoiser import Denoiser
from dig2dig.schedule import AlphaBar, add_noise, at, time_of_noise_level
from dig2dig.shapes import Image, Timestep


def draw_times(
    uniform: Tensor, alpha_bar: AlphaBar, sigma_min: float, sigma_max: float, uniform_share: float
) -> Timestep:
    """Time indices whose noise levels are uniform in log sigma, a share of them uniform in time instead.

    Args:
        uniform: Two random numbers in [0, 1) for each sample, shape (b, 2).
        alpha_bar: Schedule, shape (n,).
        sigma_min: Smallest noise level, for images in [-1, 1].
        sigma_max: Largest noise level.
        uniform_share: Share of samples drawn uniformly over all indices.
    """
    position, choice = uniform.double().unbind(1)
    levels = sigma_min * (sigma_max / sigma_min) ** position
    by_level = time_of_noise_level(alpha_bar, levels)
    by_index = (position * len(alpha_bar)).long()
    return torch.where(choice < uniform_share, by_index, by_level)


def diffusion_loss(denoiser: Denoiser, x0: Image, noise: Image, t: Timestep) -> Tensor:
    r"""Squared distance of the network's prediction to its target, for each sample, shape (b,).

    .. math:: \varepsilon, \qquad v = \sqrt{\bar\alpha_t}\,\varepsilon - \sqrt{1-\bar\alpha_t}\,x_0
              \qquad\text{or}\qquad x_0
    """
    prediction = denoiser.predict(add_noise(x0, noise, t, denoiser.alpha_bar), t)
    signal = at(denoiser.alpha_bar, t, x0)
    if denoiser.prediction == "epsilon":
        target = noise
    elif denoiser.prediction == "v_prediction":
        target = signal.sqrt() * noise - (1 - signal).sqrt() * x0
    else:
        target = x0
    return (prediction - target).square().flatten(1).mean(1)
