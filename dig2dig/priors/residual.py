"""The network of new priors: a UNet of residual blocks without norms, so without statistics over the image."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KIND = "ResidualUNet"
WAVES, EMBEDDED = 64, 128  # sines and cosines of the time, and channels of its embedding


class TimeEmbedding(nn.Module):
    """Two layers above the sines and cosines of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(WAVES, EMBEDDED), nn.Linear(EMBEDDED, EMBEDDED)

    def forward(self, t: Tensor) -> Tensor:
        """The embedding (b, EMBEDDED) of time indices (b,)."""
        return F.silu(self.linear_2(F.silu(self.linear_1(waves(t, WAVES).to(self.linear_1.weight.dtype)))))


class ResidualBlock(nn.Module):
    r"""Two convolutions beside a shortcut; the embedded time scales and shifts between them.

    .. math:: y = x + W_2 * \max\big(0,\ (1 + a_t) \cdot (W_1 * x) + b_t\big), \qquad W_2 = 0 \text{ at the start}
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.time_emb_proj = nn.Linear(EMBEDDED, 2 * channels)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Features of the same shape (b, channels, h, w), from the embedding (b, EMBEDDED)."""
        scale, shift = self.time_emb_proj(time)[:, :, None, None].chunk(2, 1)
        return x + self.conv2(F.relu_(torch.addcmul(shift, self.conv1(x), 1 + scale)))


class ResidualUNet(nn.Module):
    """Residual blocks at each resolution on the way down and up; what was on the way down is added on the way up.

    Its configuration has ``in_channels``, ``out_channels``, ``block_out_channels`` (of each resolution) and
    ``layers_per_block``. Reference: Zhang et al., "Plug-and-play image restoration with deep denoiser prior", 2022
    (DRUNet, which has a map of the noise level where this has the embedded time).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = {"_class_name": KIND, **config}
        channels, layers = list(config["block_out_channels"]), config["layers_per_block"]
        self.time_embedding = TimeEmbedding()
        self.conv_in = nn.Conv2d(config["in_channels"], channels[0], 3, padding=1)
        self.down_blocks, self.up_blocks = (_blocks(widths, layers) for widths in (channels[:-1], channels[-2::-1]))
        (self.mid_block,) = _blocks(channels[-1:], layers)
        self.downsamplers = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in pairwise(channels))
        self.upsamplers = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairwise(channels[::-1]))
        self.conv_out = nn.Conv2d(channels[0], config["out_channels"], 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The raw output (b, out_channels, h, w) of noisy states (b, in_channels, h, w) at time indices (b,)."""
        time = self.time_embedding(t)
        x = self.conv_in(x)
        kept = [x]
        for blocks, halve in zip(self.down_blocks, self.downsamplers, strict=True):
            kept.append(x := _through(blocks, x, time))
            x = halve(x)
        x = _through(self.mid_block, x, time)
        for double, blocks in zip(self.upsamplers, self.up_blocks, strict=True):
            x = _through(blocks, double(x) + kept.pop(), time)
        return self.conv_out(x + kept.pop())


def waves(t: Tensor, count: int) -> Tensor:
    """Cosines and sines of time indices (b,) at geometric frequencies, (b, count)."""
    steps = torch.arange(count // 2, dtype=torch.float32, device=t.device)
    angles = t[:, None].float() * (-math.log(10000) * 2 / count * steps).exp()
    return torch.cat([angles.cos(), angles.sin()], 1)


def _blocks(widths: Sequence[int], layers: int) -> Any:
    return nn.ModuleList(nn.ModuleList(ResidualBlock(width) for _ in range(layers)) for width in widths)


def _through(blocks: Any, x: Tensor, time: Tensor) -> Tensor:
    for block in blocks:
        x = block(x, time)
    return x
