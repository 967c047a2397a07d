"""The UNet against diffusers', layer by layer of every kind that both have."""

import json
from typing import Any

import pytest
import torch

from dig2dig.priors.adm import ADM_256
from dig2dig.priors.build import new_unet
from dig2dig.priors.files import BUNDLED
from dig2dig.priors.unet import UNet, fits

SMALL: dict[str, Any] = {"block_out_channels": (32, 64, 64), "norm_num_groups": 8}
PLAIN = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")}
PLAIN |= {"up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")}
RESNET = {"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")}
RESNET |= {"up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")}
RESNET |= {"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"}
OTHER = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "attention_head_dim": None}
ADM = {"block_out_channels": (32, 32, 64, 64, 96, 96), "norm_num_groups": 8, "attn_norm_num_groups": 8}
CONFIGS = {
    "bundled": json.loads((BUNDLED / "unet" / "config.json").read_text()),
    "adm": ADM_256 | ADM | {"attention_head_dim": 16},
    "ddpm": SMALL | PLAIN,
    "ddpm, other details": SMALL | PLAIN | OTHER | {"time_embedding_dim": 96, "layers_per_block": 1},
    "resnets": SMALL | RESNET | {"add_attention": False},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_diffusers_network(name: str) -> None:
    from diffusers.models.unets.unet_2d import UNet2DModel

    config = {key: value for key, value in CONFIGS[name].items() if not key.startswith("_")}
    assert fits(config)
    theirs, ours = UNet2DModel(**config).eval(), UNet(config).eval()
    assert [*ours.state_dict()] != [] and ours.load_state_dict(theirs.state_dict(), strict=True)
    assert {key: ours.config[key] for key in config} == config
    x, t = torch.randn(2, theirs.config["in_channels"], 64, 64), torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.equal(theirs(x, t, return_dict=False)[0], ours(x, t))
    theirs.train()
    ours.train()
    for network, found in ((theirs, theirs(x, t, return_dict=False)[0]), (ours, ours(x, t))):
        found.square().mean().backward()
        assert network.conv_in.weight.grad is not None
    torch.testing.assert_close(ours.conv_in.weight.grad, theirs.conv_in.weight.grad)


def test_rarer_blocks_are_left_to_diffusers() -> None:
    rare = SMALL | PLAIN | {"down_block_types": ("DownBlock2D", "AttnSkipDownBlock2D", "DownBlock2D")}
    assert not fits(rare) and not fits(SMALL | PLAIN | {"time_embedding_type": "fourier"})
    network = new_unet(SMALL | PLAIN | {"time_embedding_type": "fourier"})
    assert type(network).__name__ == "UNet2DModel"


def test_levels_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        UNet(SMALL | {"down_block_types": ("DownBlock2D",)})
