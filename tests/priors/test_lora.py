import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

from dig2dig.__main__ import prior as convert
from dig2dig.config import PriorConfig
from dig2dig.errors import PriorError
from dig2dig.priors.build import SCHEDULE, as_denoiser, save_prior
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.load import load_prior, open_prior
from dig2dig.priors.lora import adapter_file, add_adapter, merge_adapter, save_adapter


def estimate(denoiser: Denoiser) -> torch.Tensor:
    with torch.no_grad():
        return denoiser(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32), torch.tensor([300]))


def trained(denoiser: Denoiser) -> Denoiser:
    """As if it had learned: adapters that are no longer zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in denoiser.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return denoiser


@pytest.fixture
def attentive(tmp_path: Path) -> Path:
    """A small prior with attention, as ADM has, on disk."""
    torch.manual_seed(1)
    unet = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )
    save_prior(as_denoiser(unet, SCHEDULE), tmp_path / "attentive")
    return tmp_path / "attentive"


def test_adapters_are_the_identity_at_the_start(attentive: Path) -> None:
    for prior in ("bundled", str(attentive)):
        denoiser = load_prior(prior, precision="fp32")
        before = estimate(denoiser)
        add_adapter(denoiser, 4, 4.0)
        assert torch.equal(estimate(denoiser), before)
        learning = [name for name, weight in denoiser.named_parameters() if weight.requires_grad]
        assert learning and all("lora_" in name for name in learning)
    for layer in ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"):  # of the prior with attention
        assert any(f".{layer}.lora_A" in name for name in learning)


def test_adapters_are_a_small_file_that_merges(attentive: Path, tmp_path: Path) -> None:
    for prior, share in (("bundled", 0.1), (str(attentive), 0.5)):
        denoiser = load_prior(prior, precision="fp32")
        plain = estimate(denoiser)
        add_adapter(denoiser, 4, 8.0)
        expected = estimate(trained(denoiser))
        assert (expected - plain).abs().max() > 1e-3
        folder = tmp_path / "adapter"
        save_adapter(denoiser, folder, prior, 4, 8.0)
        merged = open_prior(PriorConfig(prior, str(folder), precision="fp32"))
        torch.testing.assert_close(estimate(merged), expected, rtol=1e-4, atol=1e-5)
        weights = sum(weight.numel() for weight in merged.parameters())
        assert adapter_file(str(folder)).stat().st_size < share * 4 * weights
        whole = tmp_path / f"merged_{share}"
        assert convert(["merge", prior, str(folder), str(whole)]) == 0
        torch.testing.assert_close(estimate(load_prior(whole, precision="fp32")), expected)


def test_adapters_of_another_prior_are_refused(attentive: Path, tmp_path: Path) -> None:
    denoiser = load_prior(attentive)
    add_adapter(denoiser, 2, 2.0)
    folder = tmp_path / "adapter"
    save_adapter(denoiser, folder, str(attentive), 2, 2.0)
    with pytest.raises(PriorError, match=r"belongs to .*not to bundled"):
        merge_adapter(load_prior(), str(folder), "bundled")
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_sha256": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(PriorError, match="do not fit"):
        merge_adapter(load_prior(), str(folder), "bundled")
    with pytest.raises(PriorError, match="no such file; an adapter is"):
        open_prior(PriorConfig("bundled", str(tmp_path)))
    assert convert(["merge", "bundled", str(tmp_path), str(tmp_path / "out")]) == 2
    assert convert([]) == 2


@pytest.mark.parametrize("config", [{}, {"r": "x", "lora_alpha": 8}, {"r": 8, "lora_alpha": None}])
def test_an_adapter_without_its_numbers_is_one_line(config: dict, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(PriorError, match="r and lora_alpha are no numbers"):
        open_prior(PriorConfig(adapter=str(tmp_path)))
