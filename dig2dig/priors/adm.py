"""OpenAI's ADM checkpoints in terms of diffusers' ``UNet2DModel``: architecture and names, from the tensors alone.

References:
    Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", 2021 (guided-diffusion's key names).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def upsamplers(state: State) -> list[int]:
    """Output blocks that end in a residual upsampler: those that close a level."""
    found = (re.match(r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight", key) for key in state)
    return sorted(int(match[1]) for match in found if match)


def _sizes(state: State) -> tuple[int, int]:
    """(levels, residual blocks per level on the way down)."""
    blocks = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("output_blocks."))
    per_level = upsamplers(state)[0] + 1
    return blocks // per_level, per_level - 1


def unet_config(state: State, head_channels: int = 64) -> dict[str, Any]:
    """The ``UNet2DModel`` arguments of an ADM state dict.

    Class-conditional networks are not supported. The tensors do not tell the channels of an attention head; they are
    64 in all published networks. A missing tensor is a KeyError.
    """
    levels, layers = _sizes(state)
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    channels = tuple(len(state[f"input_blocks.{first}.0.in_layers.2.weight"]) for first in firsts)
    attends = [f"input_blocks.{first}.1.qkv.weight" in state for first in firsts]
    in_out = state["input_blocks.0.0.weight"].shape[1], len(state["out.2.weight"])
    return _arguments(2 ** (levels + 2), in_out, channels, layers, attends) | {"attention_head_dim": head_channels}


def _arguments(
    side: int, in_out: tuple[int, int], channels: tuple[int, ...], layers: int, attends: Sequence[bool]
) -> dict[str, Any]:
    return {
        "sample_size": side,
        "in_channels": in_out[0],
        "out_channels": in_out[1],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
        "attention_head_dim": 64,
    }


ADM_256 = _arguments(256, (3, 6), (256, 256, 512, 512, 1024, 1024), 2, [False] * 3 + [True] * 3)
"""The ``UNet2DModel`` arguments of 256x256_diffusion_uncond.pt."""


def convert(state: State, head_channels: int = 64) -> dict[str, Tensor]:
    """ADM's tensors under ``UNet2DModel``'s names; a key without a place in the architecture is a KeyError."""
    layers = _sizes(state)[1]
    converted: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if outer := re.match(rf"({'|'.join(map(re.escape, OUTER))})\.(weight|bias)$", key):
            converted[f"{OUTER[outer[1]]}.{outer[2]}"] = tensor
            continue
        match = re.match(r"(input_blocks|output_blocks|middle_block)\.(?:(\d+)\.)?(\d+)\.(.+)\.(weight|bias)$", key)
        if not match:
            raise KeyError(key)
        section, block, part, name, kind = match.groups()
        place = _place(section, int(block or 0), int(part), name in RESIDUAL, layers)
        if name in RESIDUAL:
            converted[f"{place}.{RESIDUAL[name]}.{kind}"] = tensor
        else:
            converted |= {f"{place}.{to}.{kind}": value for to, value in _attention(name, tensor, head_channels)}
    return converted


def _place(section: str, block: int, part: int, residual: bool, layers: int) -> str:
    """The module of ``UNet2DModel`` that a part of a block becomes."""
    if section == "middle_block":
        return f"mid_block.resnets.{part // 2}" if residual else "mid_block.attentions.0"
    down = section == "input_blocks"
    level, item = divmod(block - down, layers + 1)
    blocks = f"{'down' if down else 'up'}_blocks.{level}"
    if not residual:
        return f"{blocks}.attentions.{item}"
    if down and item == layers:
        return f"{blocks}.downsamplers.0"
    if not down and part > 0:
        return f"{blocks}.upsamplers.0"
    return f"{blocks}.resnets.{item}"


def _attention(name: str, tensor: Tensor, head_channels: int) -> list[tuple[str, Tensor]]:
    """Attention's tensors; ADM keeps q, k and v of each head together, in the legacy order (heads, 3, channels)."""
    if name == "norm":
        return [("group_norm", tensor)]
    tensor = tensor.squeeze(-1) if tensor.ndim == 3 else tensor  # 1x1 convolutions become linear layers
    if name == "proj_out":
        return [("to_out.0", tensor)]
    if name != "qkv":
        raise KeyError(name)
    parts = tensor.unflatten(0, (-1, 3, head_channels)).unbind(1)
    return [(to, part.flatten(0, 1)) for to, part in zip(("to_q", "to_k", "to_v"), parts, strict=True)]
