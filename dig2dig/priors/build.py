"""Networks behind the contract: around a given UNet, new ones with random weights, and a prior written to disk."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dig2dig.priors.adm import ADM_256
from dig2dig.priors.denoiser import WINDOW, Denoiser, Layout, Precision, Prediction
from dig2dig.priors.files import CHECKSUMS, file_sha256
from dig2dig.priors.residual import KIND, ResidualUNet
from dig2dig.priors.schedule import alpha_bar

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

AnyUNet: TypeAlias = "ResidualUNet | UNet2DModel"
SCHEDULE = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}


class TensorUNet(nn.Module):
    """A UNet that takes and gives plain tensors, so that it fits :class:`Denoiser`."""

    def __init__(self, unet: AnyUNet) -> None:
        super().__init__()
        self.unet = unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's raw output."""
        x = x.to(memory_format=torch.channels_last)
        return self.unet(x, t) if isinstance(self.unet, ResidualUNet) else self.unet(x, t, return_dict=False)[0]


def new_unet(config: Mapping[str, Any]) -> AnyUNet:
    """A UNet by its configuration, with random weights: ours, or that of diffusers, whose import takes seconds."""
    if config.get("_class_name") == KIND:
        return ResidualUNet(config)
    from diffusers.models.unets.unet_2d import UNet2DModel

    unet = UNet2DModel.from_config(dict(config))
    assert isinstance(unet, UNet2DModel)
    return unet


def as_denoiser(
    unet: AnyUNet, scheduler: Mapping[str, Any], precision: Precision = "fp32", window: int = WINDOW
) -> Denoiser:
    """Wraps a UNet and its ``scheduler_config.json`` into the contract; 4 or 12 channels are patches of 2×2 pixels."""
    inputs, levels = int(unet.config["in_channels"]), len(unet.config["block_out_channels"])
    patch = 2 if inputs in (4, 12) else 1
    attends = any(type(module).__name__ == "Attention" for module in unet.modules())
    size = unet.config.get("sample_size")
    native = size * patch if attends and isinstance(size, int) else None
    prediction = scheduler.get("prediction_type", "epsilon")
    layout = Layout(prediction, inputs // patch**2, patch, patch * 2 ** (levels - 1), native)
    return Denoiser(TensorUNet(unet), _alpha_bar(scheduler), layout, precision, window)


def _alpha_bar(scheduler: Mapping[str, Any]) -> Tensor:
    if scheduler.get("trained_betas") is not None:
        return torch.cumprod(1 - torch.tensor(scheduler["trained_betas"], dtype=torch.float64), dim=0)
    merged = SCHEDULE | {name: value for name, value in scheduler.items() if name in SCHEDULE}
    return alpha_bar(merged["beta_schedule"], merged["beta_start"], merged["beta_end"], merged["num_train_timesteps"])


def offload(denoiser: Denoiser, device: torch.device) -> None:
    """Keeps the weights in main memory, whoever moves the denoiser; a layer's travel when it is needed, and back."""
    here = torch.device("cpu")
    if denoiser.runs_on in (None, here):  # else they travel already
        denoiser.network.cpu()
        denoiser.runs_on = device
        if device != here:
            from diffusers.hooks.group_offloading import apply_group_offloading

            unet, stream = denoiser.network.unet, device.type == "cuda"
            apply_group_offloading(unet, device, here, offload_type="leaf_level", use_stream=stream)  # pyright: ignore


def build_adm(side: int = 256, precision: Precision = "fp32") -> Denoiser:
    """OpenAI's network for 256 × 256 pixels, 552,814,086 parameters, with random weights: for measurements."""
    with torch.device("meta"):
        unet = new_unet(ADM_256 | {"sample_size": side})
    unet.to_empty(device="cpu")
    for weight in unet.parameters():
        nn.init.normal_(weight, std=0.7 / weight[0].numel() ** 0.5 if weight.ndim > 1 else 0.1)
    return as_denoiser(unet.requires_grad_(False).eval(), SCHEDULE, precision)


def build_prior(channels: list[int], layers: int, patch: int, prediction: Prediction = "v_prediction") -> Denoiser:
    """A new prior for colour images with random weights, to be trained."""
    inputs = 3 * patch**2
    config = {"in_channels": inputs, "out_channels": inputs, "block_out_channels": list(channels)}
    unet = ResidualUNet(config | {"layers_per_block": layers})
    return as_denoiser(unet, SCHEDULE | {"prediction_type": prediction})


def recompute(network: nn.Module) -> None:
    """Lets residual blocks and attention compute their features again in the backward pass, instead of keeping them."""
    for part in network.modules():
        if type(part).__name__ in ("Attention", "ResidualBlock", "ResnetBlock2D"):
            part.forward = partial(checkpoint, part.forward, use_reentrant=False)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file as diffusers writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(content), indent=2, sort_keys=True) + "\n")


def save_prior(denoiser: Denoiser, folder: str | Path) -> None:
    """Writes a prior as a diffusers DDPM pipeline: model index, UNet with safetensors, scheduler, checksums.

    The checksums are removed first and written last, so that a half-written folder is never taken for a whole one.
    """
    folder = Path(folder)
    unet: Any = denoiser.network.unet
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in unet.state_dict().items()}
    (folder / CHECKSUMS).unlink(missing_ok=True)
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(save(weights, {"format": "pt"}))  # save_file leaves it to its owner alone to read
    network = ("dig2dig", KIND) if isinstance(unet, ResidualUNet) else ("diffusers", "UNet2DModel")
    write_json(folder / "unet" / "config.json", {"_class_name": network[1], **unet.config})
    kept = denoiser.alpha_bar
    betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
    schedule = SCHEDULE if torch.equal(_alpha_bar(SCHEDULE), kept) else {"trained_betas": betas.tolist()}
    kind = {"_class_name": "DDPMScheduler", "clip_sample": False, "prediction_type": denoiser.prediction}
    write_json(folder / "scheduler" / "scheduler_config.json", kind | schedule | {"num_train_timesteps": len(kept)})
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": network}
    write_json(folder / "model_index.json", index)
    listed = sorted(file for file in folder.rglob("*") if file.suffix in (".json", ".safetensors"))
    sums = [f"{file_sha256(file)}  {file.relative_to(folder).as_posix()}" for file in listed]
    (folder / CHECKSUMS).write_text("\n".join(sums) + "\n")
