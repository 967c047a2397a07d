"""Random numbers of training samples: functions of seed, index and position, the same in each batch, on each device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # SplitMix64's, as signed numbers


def mixed(z: Tensor) -> Tensor:
    """SplitMix64's hash of 64-bit integers, in place; products wrap around.

    Reference: Steele et al., "Fast splittable pseudorandom number generators", 2014.
    """
    z ^= (z >> 30).bitwise_and_(2**34 - 1)  # the shift of an unsigned number
    z *= FIRST
    z ^= (z >> 27).bitwise_and_(2**37 - 1)
    z *= SECOND
    z ^= (z >> 31).bitwise_and_(2**33 - 1)
    return z


def draws(seed: int, index: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    r"""Random numbers of each sample: two that are uniform in [0, 1), (b, 2), and Gaussian noise, (b, \*shape).

    Each pair of them comes from one hashed counter; noise by Box and Muller. Sample indices are int64, shape (b,), and
    all is float32 on their device. Nothing is read back, so a GPU goes on without a pause.
    """
    key = mixed(mixed(index.clone()).add_(seed + 1).mul_(GOLDEN))[:, None]
    bits = mixed(key + GOLDEN * torch.arange(1 + math.ceil(math.prod(shape) / 2), device=index.device))
    u, v = ((bits >> place).bitwise_and_(2**24 - 1).float().mul_(2**-24) for place in (40, 8))
    radius, angle = (1 - u[:, 1:]).log_().mul_(-2).sqrt_(), v[:, 1:] * math.tau  # 1 - u is exact, and not 0
    noise = torch.stack([angle.cos(), angle.sin()], 1).mul_(radius[:, None]).flatten(1)
    return torch.stack([u[:, 0], v[:, 0]], 1), noise[:, : math.prod(shape)].unflatten(1, tuple(shape))
