"""The noise schedule: alpha_bar, noising, and grids of time indices."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dig2dig.errors import UserError
from dig2dig.shapes import Image, Timestep

AlphaBar = Float[Tensor, " schedule"]
Times = Int[Tensor, " n"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


def alpha_bar(
    kind: BetaSchedule = "linear", beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000
) -> AlphaBar:
    r"""Share of the signal's variance that is left at each time index.

    .. math:: \bar\alpha_t = \prod_{i \le t} (1 - \beta_i)

    Betas run from ``beta_start`` to ``beta_end`` as ``kind`` says, named as in diffusers' schedulers: linear (Ho et
    al., "Denoising diffusion probabilistic models", 2020) or squared cosine (Nichol and Dhariwal, "Improved denoising
    diffusion probabilistic models", 2021). Values decrease within (0, 1), float64, shape (steps,).
    """
    if kind == "linear":
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    else:
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        cosine = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, dim=0)


def noise_level(alpha_bar: Tensor) -> Tensor:
    r"""Standard deviation of the noise relative to the signal, :math:`\sqrt{(1-\bar\alpha)/\bar\alpha}`."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def time_of_noise_level(alpha_bar: AlphaBar, sigma: Tensor) -> Tensor:
    """Time index whose noise level is nearest in log to ``sigma`` (> 0, in the unit of [-1, 1] images)."""
    log_sigma = noise_level(alpha_bar).log()
    midpoints = (log_sigma[1:] + log_sigma[:-1]) / 2
    return torch.bucketize(sigma.to(midpoints).log(), midpoints)


def at(alpha_bar: AlphaBar, t: Timestep, like: Tensor) -> Tensor:
    """The schedule's value at each sample's time, shaped (b, 1, …) and typed to multiply ``like``."""
    return _placed(alpha_bar, like.dtype, t.device)[0, t].view(-1, *[1] * (like.ndim - 1))


def amplitudes(alpha_bar: AlphaBar, t: Timestep, like: Tensor) -> tuple[Tensor, ...]:
    r""":math:`\sqrt{\bar\alpha_t}` and :math:`\sqrt{1-\bar\alpha_t}`, as :func:`at`; subtracted in float64."""
    return _placed(alpha_bar, like.dtype, t.device)[1:, t].view(2, -1, *[1] * (like.ndim - 1)).unbind()


@lru_cache(maxsize=16)
def _placed(alpha_bar: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The schedule and its amplitudes on a device, (3, n), copied there once and not in every step."""
    return torch.stack([alpha_bar, alpha_bar.sqrt(), (1 - alpha_bar).sqrt()]).to(dtype).to(device)


def add_noise(x0: Image, noise: Image, t: Timestep, alpha_bar: AlphaBar) -> Image:
    r"""Noised image at time t, :math:`x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon`."""
    image, share = amplitudes(alpha_bar, t, x0)
    return image * x0 + share * noise


def generators(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """A random generator for each sample, whatever batch it is in; ValueError if seeds are not one or one for each."""
    seeds = [int(one) for one in seed] if isinstance(seed, Iterable) else [int(seed)] * count
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} images: give one, or one for each")
    return [torch.Generator().manual_seed(one) for one in seeds]


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Gaussian noise, shape (len(generators), *shape), drawn on the CPU so that every device sees the same."""
    return torch.stack([torch.randn(tuple(shape), generator=one) for one in generators]).to(like.device, like.dtype)


def time_grid(
    kind: Literal["uniform", "logsnr"],
    steps: int,
    alpha_bar: AlphaBar,
    sigma_start: float | None = None,
    sigma_end: float | None = None,
) -> Times:
    r"""Decreasing time indices that a sampler visits.

    ``uniform`` spaces the indices evenly, ``logsnr`` the logarithm of the noise level. The first and the last one have
    the noise levels ``sigma_start`` and ``sigma_end``; None stands for the schedule's own end. Fewer indices between
    them than steps are a ValueError.
    """
    first = len(alpha_bar) - 1 if sigma_start is None else _index(alpha_bar, sigma_start)
    last = 0 if sigma_end is None else _index(alpha_bar, sigma_end)
    if first - last < steps - 1:
        told = f"{steps} steps do not fit between times {first} and {last}"
        raise UserError(f"{told}: take fewer, or a larger sigma_start")
    if kind == "uniform":
        times = torch.linspace(first, last, steps, dtype=torch.float64).round().long()
    else:
        log_sigma = noise_level(alpha_bar).log()
        sigmas = torch.linspace(float(log_sigma[first]), float(log_sigma[last]), steps, dtype=torch.float64)
        times = time_of_noise_level(alpha_bar, sigmas.exp())
    return strictly_decreasing(times)


def _index(alpha_bar: AlphaBar, sigma: float) -> int:
    return int(time_of_noise_level(alpha_bar, torch.tensor(sigma)))


def strictly_decreasing(times: Times) -> Times:
    """The nearest grid below or at ``times`` that repeats no index, first and last kept."""
    rank = torch.arange(len(times))
    falling = (times + rank).cummin(0).values - rank
    return torch.maximum(falling, times[-1:] + len(times) - 1 - rank)


def gain_grid(cost: Float[Tensor, " m"], coarse: Int[Tensor, " m"], steps: int) -> Times:
    """Time indices that share a summed gain equally: few steps where the denoiser learns little.

    ``cost[i]`` is the gain from ``coarse[i]`` to ``coarse[i + 1]``, m ≥ 2; the last one, to the clean
    image, is not divided. Gives strictly decreasing indices from ``coarse[0]`` to ``coarse[-1]``, on the CPU.
    """
    cost, coarse = cost.cpu().double().clamp(min=0)[:-1], coarse.cpu()
    cost = cost + 0.05 * cost.mean(0) + 1e-12  # no interval may be left without any step
    total = torch.cat([torch.zeros_like(cost[:1]), cost.cumsum(0)])
    share = total[-1] * torch.linspace(0, 1, steps, dtype=torch.float64)
    right = torch.searchsorted(total, share).clamp(1, len(coarse) - 1)
    fraction = (share - total[right - 1]) / (total[right] - total[right - 1])
    edges = coarse.to(cost)
    times = edges[right - 1] + fraction * (edges[right] - edges[right - 1])
    return strictly_decreasing(times.round().long())
