"""Noisy sources: how noisy they are, and the prior's estimates of the clean ones."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dig2dig.color import rgb_to_ycbcr, to_channels, ycbcr_to_rgb
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import amplitudes, draw_noise, generators, time_of_noise_level
from dig2dig.priors.windows import pad
from dig2dig.shapes import Sources, State

BLOCK, QUANTILE = 16, 1.07  # side of a block; the deviation of white noise, of the 15th percentile over blocks
STRIPE = 4 / 255  # largest of a line
CLEAN = 2.5 / 255  # what compression and texture leave
IN_LUMINANCE, IN_CHROMA = 0.669, 0.640  # deviation that white noise in RGB has there, see dig2dig.color

NoiseLevels = Float[Tensor, "b k"]
"""Standard deviation of the noise in each source, for images in [0, 1]."""


def estimate_noise(sources: Sources, valid: Tensor | None = None) -> NoiseLevels:
    """Standard deviation of Gaussian noise in each source, mean over channels, from its smoothest blocks.

    The diagonal difference of 2×2 pixels has the deviation of the noise. The deviation in blocks of 16 pixels is taken
    at its 15th percentile, since texture adds to it, among blocks that are valid and not clipped: else it is missing.

    Reference: Olsen, "Estimation of noise in images: an evaluation", 1993: block-based methods.
    """
    images = sources.flatten(0, 1)
    lines = images[..., 1:, :] - images[..., :-1, :]
    difference = (lines[..., 1:] - lines[..., :-1]) / 2
    side = min(BLOCK, *difference.shape[-2:])
    known = torch.ones_like(images) if valid is None else valid.flatten(0, 1).to(images).expand_as(images)
    shown, known = ((images > 2 / 255) & (images < 253 / 255)) * known, known[..., 1:, 1:]
    energy, inside, known = (
        one.unfold(-2, side, side).unfold(-2, side, side).mean((-2, -1)).flatten(2)
        for one in (difference.square() * known, shown[..., 1:, 1:], known)
    )
    energy = energy / known.clamp(min=1e-3)
    least = inside.topk(min(20, inside.shape[-1])).values[..., -1:].clamp(1e-3, 0.95)
    smoothest = energy.sqrt().masked_fill(inside < least, torch.nan).nanquantile(0.15, -1)
    return QUANTILE * smoothest.nan_to_num().mean(1).view(sources.shape[:2])


def without_stripes(images: Sources) -> Sources:
    """Images without the pattern of a sensor that is read line by line, at most 4 of 255.

    It is what four parts of each column, and then of each row, have in common beyond their neighbours: the least of the
    medians of their difference to the mean of seven pixels, if all have one sign. So texture and edges are none.
    """
    flat = images.flatten(0, 1)
    for window, axis in (((1, 7), -2), ((7, 1), -1)):
        around = avg_pool2d(flat, window, 1, (window[0] // 2, window[1] // 2), count_include_pad=False)
        parts = [part.median(axis, keepdim=True).values for part in (flat - around).chunk(4, axis)]
        least, most = torch.cat(parts, axis).aminmax(dim=axis, keepdim=True)
        flat = flat - (least.clamp(0, STRIPE) + most.clamp(-STRIPE, 0))
    return flat.view(images.shape)


def cleaned(
    sources: Sources, modalities: Sequence[str], noise: Mapping[str, str], valid: Tensor | None = None
) -> tuple[Sources, NoiseLevels | None, list[list[str]]]:
    """Sources without stripes, their noise in [0, 1], and what was found in each image.

    ``noise`` has a number of 255 or ``auto`` by modality, ``all`` stands for those that it does not name, and others
    are clean. ``auto`` takes stripes out, and takes noise below 2.5 of 255 for none.
    """
    wanted = [noise.get(modality, noise.get("all", "0")) for modality in modalities]
    notes: list[list[str]] = [[] for _ in sources]
    if not any(one == "auto" or float(one) for one in wanted):
        return sources, None, notes
    auto = [k for k, one in enumerate(wanted) if one == "auto"]
    given = [0.0 if one == "auto" else float(one) / 255 for one in wanted]
    levels = torch.tensor(given).to(sources).repeat(len(sources), 1)
    sources = sources.clone() if auto else sources
    for k in auto:
        plain = without_stripes(sources[:, k : k + 1])
        stripes = (255 * (plain - sources[:, k : k + 1]).std((1, 2, 3, 4))).cpu().tolist()
        sources[:, k : k + 1] = plain
        found = estimate_noise(plain, None if valid is None else valid[:, k : k + 1])[:, 0]
        levels[:, k] = found * (found >= CLEAN)
        for i, (level, stripe) in enumerate(zip((255 * levels[:, k]).cpu().tolist(), stripes, strict=True)):
            told = [f"noise of {level:.1f} of 255"] * (level > 0) + [f"stripes of {stripe:.1f} of 255"] * (stripe > 0.5)
            notes[i].append(f"{modalities[k]}: {' and '.join(told) or 'no noise'} found")
    return sources, levels, notes


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


@torch.no_grad()
def clean_chroma(
    fused: Tensor, chroma: Tensor, denoiser: Denoiser, seed: int, valid: Tensor | None = None
) -> tuple[Tensor, list[str]]:
    """Chroma (2, h, w) without its noise, for the fused luminance (1, h, w), and what was found.

    The level is measured, among pixels that are ``valid``, (1, h, w). The fused luminance has no noise left: with fresh
    noise it and the chroma are an RGB image with white noise, a state of the diffusion. The estimates for fresh noise
    and its opposite are averaged. Priors for grey images leave chroma as it is.
    """
    if denoiser.channels != 3:
        return chroma, []
    level = estimate_noise(chroma[None, None] + 0.5, None if valid is None else valid[None, None])
    if level < CLEAN:
        return chroma, []
    sigma, (h, w) = level / IN_CHROMA, chroma.shape[-2:]
    fresh = IN_LUMINANCE * sigma[0] * draw_noise((1, h, w), generators([seed], 1), chroma[None])[0]
    noisy = torch.stack([ycbcr_to_rgb(torch.cat([fused + one, chroma])) for one in (fresh, -fresh)])
    padded = pad(2 * noisy[:, None] - 1, denoiser.multiple)
    found = denoise(padded, sigma.expand(2, 1), denoiser, torch.zeros_like(padded[:, 0]))[..., :h, :w]
    return rgb_to_ycbcr((found.mean((0, 1)) + 1) / 2)[1:], [f"colour noise of {255 * float(sigma):.1f} of 255 found"]
