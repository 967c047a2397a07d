"""The network of new priors: its formula, its independence of the image's size, and its files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from dig2dig.__main__ import main
from dig2dig.config_train import AdaptConfig
from dig2dig.errors import PriorError
from dig2dig.modules.prior import choose_weights
from dig2dig.priors.build import build_prior, new_unet, recompute, save_prior
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.load import load_prior
from dig2dig.priors.residual import ResidualUNet, waves

SIZES = {"in_channels": 3, "out_channels": 6, "block_out_channels": [8, 12, 20], "layers_per_block": 2}


@pytest.fixture
def network() -> ResidualUNet:
    """All weights random, also those that start at 0."""
    torch.manual_seed(0)
    unet = ResidualUNet(SIZES)
    for block in unet.modules():
        if hasattr(block, "conv2"):
            torch.nn.init.normal_(block.conv2.weight, std=0.1)  # pyright: ignore
    return unet.eval().requires_grad_(False)


def by_hand(state: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    """The network from its tensors, written down without its classes."""

    def conv(name: str, x: Tensor, padding: int = 1, stride: int = 1) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def block(name: str, x: Tensor) -> Tensor:
        scale, shift = linear(f"{name}.time_emb_proj", time)[:, :, None, None].chunk(2, 1)
        return x + conv(f"{name}.conv2", (conv(f"{name}.conv1", x) * (1 + scale) + shift).clamp(min=0))

    angles = torch.stack([t / 10000 ** (k / 32) for k in range(32)], 1)
    hidden = linear("time_embedding.linear_1", torch.cat([angles.cos(), angles.sin()], 1))
    time = linear("time_embedding.linear_2", hidden * hidden.sigmoid())
    time = time * time.sigmoid()
    first = conv("conv_in", x)
    fine = block("down_blocks.0.1", block("down_blocks.0.0", first))
    middle = conv("downsamplers.0", fine, 0, 2)
    middle = block("down_blocks.1.1", block("down_blocks.1.0", middle))
    coarse = block("mid_block.1", block("mid_block.0", conv("downsamplers.1", middle, 0, 2)))
    for level, kept in enumerate((middle, fine)):
        weight, bias = (state[f"upsamplers.{level}.{part}"] for part in ("weight", "bias"))
        coarse = F.conv_transpose2d(coarse, weight, bias, 2) + kept
        coarse = block(f"up_blocks.{level}.1", block(f"up_blocks.{level}.0", coarse))
    return conv("conv_out", coarse + first)


def test_it_is_its_formula(network: ResidualUNet) -> None:
    x, t = torch.randn(2, 3, 16, 24), torch.tensor([3, 700])
    torch.testing.assert_close(network(x, t), by_hand(network.state_dict(), x, t), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(x, t), network(x, t.flip(0)), atol=1e-3)


def test_a_new_network_starts_as_its_outer_layers() -> None:
    """Each block adds its last bias at first, and nothing else."""
    unet = ResidualUNet(SIZES | {"block_out_channels": [8]})
    for part in unet.mid_block:
        torch.nn.init.zeros_(part.conv2.bias)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(unet(x, torch.tensor([9])), unet.conv_out(2 * unet.conv_in(x)))


def test_what_lies_far_away_changes_nothing(network: ResidualUNet) -> None:
    """No statistics over the image: inside, a crop gives what the whole image gives there."""
    x, t = torch.randn(1, 3, 32, 256), torch.tensor([300])
    whole, crop = network(x, t), network(x[..., :192], t)
    torch.testing.assert_close(crop[..., :96], whole[..., :96], rtol=1e-5, atol=1e-6)


def test_waves_are_cosines_and_sines() -> None:
    found = waves(torch.tensor([0, 250]), 4)
    angles = torch.tensor([250.0, 2.5])
    torch.testing.assert_close(
        found, torch.stack([torch.tensor([1.0, 1, 0, 0]), torch.cat([angles.cos(), angles.sin()])])
    )


def test_features_computed_again_give_the_same_gradients_and_are_not_kept(network: ResidualUNet) -> None:
    network.requires_grad_(True)
    x, t, found, held = torch.randn(1, 3, 64, 64), torch.tensor([300]), [], [0, 0]
    for again in (False, True):
        if again:
            recompute(network)

        def keep(tensor: Tensor, again: bool = again) -> Tensor:
            held[again] += tensor.nbytes
            return tensor

        network.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(x, t).square().mean()
        loss.backward()
        found.append([weight.grad.clone() for weight in network.parameters() if weight.grad is not None])
    assert len(found[0]) == len([*network.parameters()]) and held[1] < held[0] / 2
    torch.testing.assert_close(found[1], found[0])


def test_the_last_block_alone_learns() -> None:
    denoiser = choose_weights(build_prior([8, 12], 1, 2), AdaptConfig("last"))
    learning = {name.removeprefix("network.unet.") for name, part in denoiser.named_parameters() if part.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"up_blocks", "conv_out"}


@pytest.fixture
def prior(tmp_path: Path) -> tuple[Denoiser, Path]:
    torch.manual_seed(0)
    denoiser = build_prior([8, 12], 1, 2).eval().requires_grad_(False)
    save_prior(denoiser, tmp_path / "prior")
    return denoiser, tmp_path / "prior"


def test_its_folder_names_its_class_and_opens_as_it_was(prior: tuple[Denoiser, Path]) -> None:
    denoiser, folder = prior
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([300])
    assert torch.equal(load_prior(folder, precision="fp32")(x, t), denoiser(x, t))
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len({file.stat().st_mode for file in files}) == 1  # all that may read one may read each
    config = json.loads((folder / "unet" / "config.json").read_text())
    assert config["_class_name"] == "ResidualUNet" and isinstance(new_unet(config), ResidualUNet)
    assert json.loads((folder / "model_index.json").read_text())["unet"] == ["dig2dig", "ResidualUNet"]
    assert denoiser.multiple == 4 and denoiser.patch == 2 and denoiser.layout.native is None


def test_half_precision_halves_the_file(
    prior: tuple[Denoiser, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, folder = prior
    monkeypatch.chdir(tmp_path)
    assert main(["prior", "convert", str(folder), str(tmp_path / "small"), "half"]) == 0
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([300])
    torch.testing.assert_close(
        load_prior(tmp_path / "small", precision="fp32")(x, t), denoiser(x, t), rtol=0, atol=2e-3
    )
    state = load_file(tmp_path / "small" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert main(["prior", "convert", str(folder), "half"]) == 0  # a folder of that name
    state = load_file(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_a_config_without_sizes_is_refused_in_a_line(prior: tuple[Denoiser, Path]) -> None:
    _, folder = prior
    (folder / "SHA256SUMS").unlink()
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({"_class_name": "ResidualUNet", "in_channels": 12, "out_channels": 12}))
    with pytest.raises(PriorError, match="its config does not describe a network"):
        load_prior(folder)
