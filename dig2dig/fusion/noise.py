"""Noisy sources: how noisy they are, and the prior's estimates of the clean ones."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dig2dig.color import to_channels
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import amplitudes, time_of_noise_level
from dig2dig.shapes import Sources, State

NoiseLevels = Float[Tensor, "b k"]
"""Standard deviation of the noise in each source, for images in [0, 1]."""


def estimate_noise(sources: Sources) -> NoiseLevels:
    """Standard deviation of Gaussian noise in each source, from its finest wavelets (scikit-image); 0 if constant.

    References:
        Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", 1994.
    """
    from skimage.restoration import estimate_sigma

    flat = sources.flatten(0, 1).cpu().double().numpy()
    sigmas = [
        float(estimate_sigma(image, average_sigmas=True, channel_axis=0)) if np.ptp(image, (1, 2)).all() else 0.0
        for image in flat
    ]
    return torch.tensor(sigmas).view(sources.shape[:2]).to(sources.device)


def noise_levels(sources: Sources, modalities: Sequence[str], noise: Mapping[str, str]) -> NoiseLevels | None:
    """The noise of each source in [0, 1], from a number of 255 or ``auto`` per modality; the others are clean."""
    if not set(noise) & set(modalities):
        return None
    found = estimate_noise(sources) if "auto" in noise.values() else torch.zeros(sources.shape[:2])
    wanted = [noise.get(modality, "0") for modality in modalities]
    columns = [found[:, k] if one == "auto" else found[:, k] * 0 + float(one) / 255 for k, one in enumerate(wanted)]
    return torch.stack(columns, 1)


def denoise(sources: Sources, noise: NoiseLevels, denoiser: Denoiser, fresh: State) -> Sources:
    r"""The prior's estimate of each noisy source; clean ones stay as they are.

    An image with noise of level sigma is a state of the diffusion, up to its scale, at the time

    .. math:: \sqrt{(1-\bar\alpha_t)/\bar\alpha_t} = \sigma, \qquad \hat c = \hat x_0(\sqrt{\bar\alpha_t}\, c,\, t)

    so that one evaluation gives the mean of all clean images that could lie beneath. A grey image in a colour prior
    has the same noise in its three channels, which no state has: with the chromatic part of fresh noise added, it is
    a state of level :math:`\sqrt 3\,\sigma`, whose mean over channels is what was observed. Two estimates are averaged:
    of the image, and of its mirror image with the fresh noise reversed.

    Sources are in [-1, 1] and padded, noise levels for images in [0, 1]; ``fresh`` is unit noise with the prior's
    channels.
    """
    b, k, c = sources.shape[:3]
    channels = denoiser.channels
    sigma = 2 * noise.flatten().cpu().double() * (channels / c) ** 0.5  # [-1, 1] is twice as wide as [0, 1]
    chosen = (sigma > 0).nonzero()[:, 0]
    if len(chosen) == 0:
        return sources
    t = time_of_noise_level(denoiser.alpha_bar, sigma[chosen]).to(sources.device)
    sigma, chosen = sigma[chosen].to(sources).view(-1, 1, 1, 1), chosen.to(sources.device)
    flat = sources.flatten(0, 1).clone()
    images, missing = to_channels(flat[chosen], channels), fresh[chosen // k]
    missing = (missing - missing.mean(1, keepdim=True)) * sigma * (c < channels)
    both = torch.cat([images + missing, (images - missing).flip(-1)])
    both = both * amplitudes(denoiser.alpha_bar, t, both)[0].repeat(2, 1, 1, 1)
    estimate, mirrored = denoiser(both, t.repeat(2)).chunk(2)
    flat[chosen] = to_channels((estimate + mirrored.flip(-1)) / 2, c)
    return flat.unflatten(0, (b, k))
