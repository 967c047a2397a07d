"""The unconditional UNet in diffusers' layout (ADM, DDPM, the bundled prior), without the seconds its import takes."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "add_attention": True,
}
"""What a ``config.json`` means where it leaves something out, as diffusers 0.36 has it."""

FIXED = {"time_embedding_type": ("positional",), "mid_block_type": ("UNetMidBlock2D",), "act_fn": ("silu", "swish")}
FIXED |= {"center_input_sample": (False,), "mid_block_scale_factor": (1,), "class_embed_type": (None,)}
FIXED |= {"num_class_embeds": (None,), "resnet_time_scale_shift": ("default", "scale_shift")}
FIXED |= {"downsample_type": ("conv", "resnet"), "upsample_type": ("conv", "resnet")}
BLOCKS = {"DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "UpBlock2D", "AttnUpBlock2D"}
BLOCKS |= {"ResnetUpsampleBlock2D"}


def fits(config: Mapping[str, Any]) -> bool:
    """Whether :class:`UNet` is the network of a configuration; other kinds are left to diffusers."""
    whole = DEFAULTS | dict(config)
    plain = all(whole[name] in values for name, values in FIXED.items()) and isinstance(whole["norm_num_groups"], int)
    return plain and {*whole["down_block_types"], *whole["up_block_types"]} <= BLOCKS


class Resnet(nn.Module):
    """Two convolutions around the embedded time, beside a shortcut; ``resize`` first halves (-1) or doubles (1)."""

    def __init__(self, inputs: int, outputs: int, time: int, config: Mapping[str, Any], resize: int = 0) -> None:
        super().__init__()
        groups, eps = config["norm_num_groups"], config["norm_eps"]
        self.scale_shift, self.resize = config["resnet_time_scale_shift"] == "scale_shift", resize
        self.norm1 = nn.GroupNorm(groups, inputs, eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, 2 * outputs if self.scale_shift else outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps)
        self.dropout = nn.Dropout(config["dropout"])
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The features (b, outputs, h, w) of features (b, inputs, h, w) and the embedding (b, time)."""
        inner = resized(F.silu(self.norm1(x)), self.resize)
        x = resized(x, self.resize)
        inner = self.conv1(inner)
        time = self.time_emb_proj(F.silu(time))[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, 1)
            inner = self.norm2(inner) * (1 + scale) + shift
        else:
            inner = self.norm2(inner + time)
        inner = self.conv2(self.dropout(F.silu(inner)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x.contiguous() if self.training else x)  # gradients of one layout, as DDP wants them
        return x + inner


def resized(x: Tensor, resize: int) -> Tensor:
    """Features of half the size by means, of twice the size by repetition, or as they are."""
    if resize < 0:
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if resize > 0 else x


class Attention(nn.Module):
    """Self-attention over all places, beside a shortcut."""

    def __init__(self, channels: int, groups: int | None, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.heads = channels // (config["attention_head_dim"] or channels)
        self.group_norm = None if groups is None else nn.GroupNorm(groups, channels, config["norm_eps"])
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Dropout(0.0)])

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape (b, c, h, w)."""
        flat = x.flatten(2)
        flat = (flat if self.group_norm is None else self.group_norm(flat)).transpose(1, 2)
        layers = (self.to_q, self.to_k, self.to_v)
        parts = (layer(flat).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in layers)
        found = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return self.to_out[0](found).transpose(1, 2).reshape(x.shape) + x


class Conv(nn.Module):
    """A convolution that halves (-1) or doubles (1) the size."""

    def __init__(self, channels: int, resize: int, padding: int = 1) -> None:
        super().__init__()
        self.resize, self.padding = resize, padding
        self.conv = nn.Conv2d(channels, channels, 3, 2 if resize < 0 else 1, padding)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """Features of the other size."""
        if self.resize > 0:
            return self.conv(resized(x, 1))
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Block(nn.Module):
    """All layers of one resolution on the way down, up, or in the middle."""

    def __init__(
        self, kind: str, sizes: list[tuple[int, int]], time: int, config: Mapping[str, Any], resize: int
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(*size, time, config) for size in sizes])
        channels, groups = sizes[-1][1], config["norm_num_groups"]
        if kind.startswith("Attn"):
            self.attentions = nn.ModuleList([Attention(channels, groups, config) for _ in sizes])
        elif kind == "Mid" and config["add_attention"]:
            shared = groups if config["resnet_time_scale_shift"] == "default" else None
            self.attentions = nn.ModuleList([Attention(channels, config["attn_norm_num_groups"] or shared, config)])
        name = "downsample_type" if resize < 0 else "upsample_type"
        how = config[name] if kind.startswith("Attn") else "resnet" if kind.startswith("Resnet") else "conv"
        if resize:
            padding = config["downsample_padding"] if resize < 0 else 1
            layer = (
                Conv(channels, resize, padding) if how == "conv" else Resnet(channels, channels, time, config, resize)
            )
            setattr(self, "downsamplers" if resize < 0 else "upsamplers", nn.ModuleList([layer]))

    def down(self, x: Tensor, time: Tensor, kept: list[Tensor]) -> Tensor:
        """Features of the next resolution; those of each layer are kept."""
        for i, resnet in enumerate(self.resnets):
            x = self.attended(resnet(x, time), i)
            kept.append(x)
        for layer in getattr(self, "downsamplers", ()):
            x = layer(x, time)
            kept.append(x)
        return x

    def up(self, x: Tensor, time: Tensor, kept: list[Tensor]) -> Tensor:
        """Features of the previous resolution, from those that were kept on the way down."""
        for i, resnet in enumerate(self.resnets):
            x = self.attended(resnet(torch.cat([x, kept.pop()], 1), time), i)
        for layer in getattr(self, "upsamplers", ()):
            x = layer(x, time)
        return x

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Features in the middle: attention lies between two layers."""
        x = self.attended(self.resnets[0](x, time), 0)
        return self.resnets[1](x, time)

    def attended(self, x: Tensor, i: int) -> Tensor:
        """Features after the attention of layer i, if it has one."""
        return self.attentions[i](x) if hasattr(self, "attentions") else x


class TimeEmbedding(nn.Module):
    """Two layers above the sines and cosines of the time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)

    def forward(self, waves: Tensor) -> Tensor:
        """The embedding (b, outputs) of waves (b, inputs)."""
        return self.linear_2(F.silu(self.linear_1(waves)))


class UNet(nn.Module):
    """The network of a ``config.json`` that :func:`fits`; its parameters have diffusers' names.

    Reference: Ho et al., "Denoising diffusion probabilistic models", 2020; Dhariwal and Nichol, "Diffusion models beat
    GANs on image synthesis", 2021.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = whole = {name: dict(config).get(name, default) for name, default in DEFAULTS.items()}
        channels, layers = list(whole["block_out_channels"]), whole["layers_per_block"]
        if not len(channels) == len(whole["down_block_types"]) == len(whole["up_block_types"]):
            raise ValueError("block_out_channels, down_block_types and up_block_types differ in length")
        time, last = whole["time_embedding_dim"] or 4 * channels[0], len(channels) - 1
        self.conv_in = nn.Conv2d(whole["in_channels"], channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], time)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for i, kind in enumerate(whole["down_block_types"]):
            sizes = [(channels[max(i - 1, 0)] if j == 0 else channels[i], channels[i]) for j in range(layers)]
            self.down_blocks.append(Block(kind, sizes, time, whole, -1 if i < last else 0))
        self.mid_block = Block("Mid", [(channels[-1], channels[-1])] * 2, time, whole, 0)
        for i, kind in zip(range(last, -1, -1), whole["up_block_types"], strict=True):
            kept = [channels[i]] * layers + [channels[max(i - 1, 0)]]
            before = [channels[min(i + 1, last)]] + [channels[i]] * layers
            sizes = [(a + b, channels[i]) for a, b in zip(before, kept, strict=True)]
            self.up_blocks.append(Block(kind, sizes, time, whole, 1 if i > 0 else 0))
        self.conv_norm_out = nn.GroupNorm(whole["norm_num_groups"], channels[0], whole["norm_eps"])
        self.conv_out = nn.Conv2d(channels[0], whole["out_channels"], 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The raw output (b, out_channels, h, w) of noisy states (b, in_channels, h, w) at time indices (b,)."""
        time = self.time_embedding(self.waves(t).to(self.conv_in.weight.dtype))
        x = self.conv_in(x)
        kept = [x]
        for block in self.down_blocks:
            x = block.down(x, time, kept)  # pyright: ignore[reportCallIssue]
        x = self.mid_block(x, time)
        for block in self.up_blocks:
            x = block.up(x, time, kept)  # pyright: ignore[reportCallIssue]
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def waves(self, t: Tensor) -> Tensor:
        """Sines and cosines of time indices at geometric frequencies, (b, channels)."""
        half = self.config["block_out_channels"][0] // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t[:, None].float() * (-math.log(10000) * steps / (half - self.config["freq_shift"])).exp()[None]
        parts = (angles.cos(), angles.sin()) if self.config["flip_sin_to_cos"] else (angles.sin(), angles.cos())
        return torch.cat(parts, -1)


def recompute(network: nn.Module) -> None:
    """Lets residual blocks and attention compute their features again in the backward pass, instead of keeping them."""
    for part in network.modules():
        if isinstance(part, (Resnet, Attention)):
            part.forward = partial(checkpoint, part.forward, use_reentrant=False)
