"""Pretrained networks behind one contract: the bundled prior, diffusers pipelines, OpenAI's ADM checkpoints.

``python -m dig2dig.priors.load convert CHECKPOINT.pt FOLDER`` writes an ADM checkpoint as a diffusers folder, once.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from dig2dig.priors import adm
from dig2dig.priors.denoiser import Denoiser, Precision, Prediction
from dig2dig.priors.files import CHECKSUMS, PriorError, check_sha256, file_sha256, read_json, read_weights
from dig2dig.priors.schedule import BetaSchedule, alpha_bar

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

BUNDLED = Path(__file__).parent / "bundled"
SCHEDULE = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
ADM_URL = "https://github.com/openai/guided-diffusion (256x256_diffusion_uncond.pt, 2.2 GB)"


class TensorUNet(nn.Module):
    """A diffusers UNet that takes and gives plain tensors, so that it fits :class:`Denoiser`."""

    def __init__(self, unet: "UNet2DModel") -> None:
        super().__init__()
        self.unet = unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's raw output."""
        return self.unet(x.to(memory_format=torch.channels_last), t, return_dict=False)[0]


def load_prior(
    path: str | Path = "bundled",
    sha256: str | None = None,
    precision: Precision = "auto",
    device: str | torch.device = "cpu",
) -> Denoiser:
    """The pretrained denoiser at ``path``, ready to be called.

    Args:
        path: ``bundled``; a folder in diffusers' layout of an unconditional pipeline (epsilon, v or sample
            prediction, its own betas); a hub id of one; or an ADM checkpoint (``.pt``).
        sha256: Refuse weights whose file has another SHA-256.
        precision: ``fp32``, ``bf16`` (autocast), or ``auto``: bf16 where the device has it natively.
        device: Where the network runs.

    Raises:
        PriorError: Files are missing, short, altered, or do not fit the architecture. Weights are never random.
    """
    file = Path(path)
    if file.suffix in (".pt", ".pth"):
        denoiser = _load_adm(file, sha256)
    else:
        denoiser = _load_folder(_find_folder(str(path)), sha256)
    denoiser.requires_grad_(False).eval().to(device)
    denoiser.precision = precision
    return denoiser


def weights_file(path: str | Path = "bundled") -> Path:
    """The file that holds a prior's weights."""
    file = Path(path)
    return file if file.suffix in (".pt", ".pth") else _unet_files(_find_folder(str(path)))[1]


def as_denoiser(unet: "UNet2DModel", scheduler: Mapping[str, Any]) -> Denoiser:
    """Wraps a UNet and the entries of its ``scheduler_config.json`` into the contract.

    4 or 12 input channels mean grey or colour images as patches of 2×2 pixels.
    """
    from diffusers.models.attention_processor import Attention

    inputs = int(unet.config["in_channels"])
    patch = 2 if inputs in (4, 12) else 1
    levels = len(unet.config["down_block_types"])
    denoiser = Denoiser(
        TensorUNet(unet),
        _alpha_bar(scheduler),
        scheduler.get("prediction_type", "epsilon"),
        channels=inputs // patch**2,
        patch=patch,
        multiple=patch * 2 ** (levels - 1),
    )
    if any(isinstance(module, Attention) for module in unet.modules()) and isinstance(unet.config["sample_size"], int):
        denoiser.native = unet.config["sample_size"] * patch
    return denoiser


def _alpha_bar(scheduler: Mapping[str, Any]) -> Tensor:
    if scheduler.get("trained_betas") is not None:
        return torch.cumprod(1 - torch.tensor(scheduler["trained_betas"], dtype=torch.float64), dim=0)
    merged = SCHEDULE | {name: value for name, value in scheduler.items() if name in SCHEDULE}
    return alpha_bar(merged["beta_schedule"], merged["beta_start"], merged["beta_end"], merged["num_train_timesteps"])


def _find_folder(path: str) -> Path:
    if path == "bundled":
        return BUNDLED
    if Path(path).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise PriorError(
            f"{path}: neither a local folder nor to be had from the Hugging Face hub ({str(error).splitlines()[0]})"
        ) from error


def _unet_files(folder: Path) -> tuple[Path, Path, Path]:
    """Config, weights and scheduler config of a pipeline folder, with or without subfolders."""
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    weights = unet / "diffusion_pytorch_model.safetensors"
    if not weights.is_file() and weights.with_suffix(".bin").is_file():
        weights = weights.with_suffix(".bin")
    files = unet / "config.json", weights, scheduler / "scheduler_config.json"
    for file in files:
        if not file.is_file():
            raise PriorError(
                f"{file}: no such file; a prior is a diffusers folder with unet/config.json, "
                "unet/diffusion_pytorch_model.safetensors and scheduler/scheduler_config.json"
            )
    return files


def _load_folder(folder: Path, sha256: str | None) -> Denoiser:
    config_file, weights, scheduler_file = _unet_files(folder)
    sums = folder / CHECKSUMS
    if sums.is_file():
        for line in filter(None, map(str.strip, sums.read_text().splitlines())):
            expected, name = line.split(maxsplit=1)
            check_sha256(folder / name, expected)
    check_sha256(weights, sha256)
    config, scheduler = read_json(config_file), read_json(scheduler_file)
    if config.get("_class_name") != "UNet2DModel":
        raise PriorError(f"{config_file}: holds a {config.get('_class_name')}, not an unconditional UNet2DModel")
    _check_scheduler(scheduler, scheduler_file)
    return as_denoiser(_build(config, read_weights(weights), weights), scheduler)


def _check_scheduler(scheduler: Mapping[str, Any], path: Path) -> None:
    """Refuses a schedule that is not computed here, instead of taking another for it."""
    betas = scheduler.get("beta_schedule", "linear")
    known = scheduler.get("trained_betas") is not None or betas in get_args(BetaSchedule)
    prediction = scheduler.get("prediction_type", "epsilon")
    variance_preserving = "sigma_max" not in scheduler and not scheduler.get("rescale_betas_zero_snr")
    if not (known and prediction in get_args(Prediction) and variance_preserving):
        raise PriorError(
            f"{path}: {scheduler.get('_class_name')} with betas '{betas}' and prediction '{prediction}'; known are "
            f"{', '.join(get_args(BetaSchedule))} without rescaling, and {', '.join(get_args(Prediction))}"
        )


def _load_adm(path: Path, sha256: str | None) -> Denoiser:
    if not path.is_file():
        raise PriorError(f"{path}: no such checkpoint; ADM's are at {ADM_URL}")
    check_sha256(path, sha256)
    state = read_weights(path)
    if not adm.is_adm(state):
        raise PriorError(
            f"{path}: not an ADM checkpoint: expected keys like input_blocks.0.0.weight, "
            f"found {', '.join(sorted(state)[:3]) or 'none'}; ADM's are at {ADM_URL}"
        )
    try:
        config, converted = adm.unet_config(state), adm.convert(state)
    except KeyError as error:
        raise PriorError(f"{path}: an ADM checkpoint without a place for {error}; get it at {ADM_URL}") from error
    return as_denoiser(_build(config, converted, path), SCHEDULE)


def _build(config: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> "UNet2DModel":
    from diffusers.models.unets.unet_2d import UNet2DModel

    try:
        with torch.device("meta"):  # every weight must come from the file
            unet = UNet2DModel.from_config(dict(config))
    except (ValueError, TypeError, KeyError) as error:
        raise PriorError(f"{path}: its config does not describe a network ({str(error).splitlines()[0]})") from error
    assert isinstance(unet, UNet2DModel)
    try:
        unet.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True, assign=True)
    except RuntimeError as error:
        expected, found = unet.state_dict().keys(), state.keys()
        missing, extra = sorted(expected - found), sorted(found - expected)
        raise PriorError(
            f"{path}: weights do not fit the network: {len(missing)} missing ({', '.join(missing[:2])}), "
            f"{len(extra)} unknown ({', '.join(extra[:2])})"
            + ("" if missing or extra else f"; {str(error).splitlines()[-1].strip()}")
        ) from error
    return unet


def offload(denoiser: Denoiser, device: torch.device) -> None:
    """Keeps the weights in main memory; each layer's travel to the device when it is needed, and back."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    unet = denoiser.network.unet
    assert isinstance(unet, nn.Module)
    apply_group_offloading(
        unet.cpu(), device, torch.device("cpu"), offload_type="leaf_level", use_stream=device.type == "cuda"
    )


def build_adm(side: int = 256) -> Denoiser:
    """OpenAI's network for 256 × 256 pixels, 552,814,086 parameters, with random weights: for measurements."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    with torch.device("meta"):
        unet = UNet2DModel.from_config(adm.ADM_256 | {"sample_size": side})
    assert isinstance(unet, UNet2DModel)
    unet.to_empty(device="cpu")
    for weight in unet.parameters():
        nn.init.normal_(weight, std=0.7 / weight[0].numel() ** 0.5 if weight.ndim > 1 else 0.1)
    return as_denoiser(unet.requires_grad_(False).eval(), SCHEDULE)


def build_prior(channels: list[int], layers: int, patch: int, prediction: Prediction = "v_prediction") -> Denoiser:
    """A new prior for colour images with random weights, to be trained."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    unet = UNet2DModel(
        sample_size=256 // patch,
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        block_out_channels=tuple(channels),  # pyright: ignore[reportArgumentType]
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) * len(channels),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpBlock2D",) * len(channels),  # pyright: ignore[reportArgumentType]
        add_attention=False,
    )
    return as_denoiser(unet, SCHEDULE | {"prediction_type": prediction})


def save_prior(denoiser: Denoiser, folder: Path) -> None:
    """Writes a prior as a diffusers DDPM pipeline: model index, UNet with safetensors, scheduler, checksums.

    The checksums go first and come last: a folder that was cut off is not mistaken for a whole one.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    unet = denoiser.network.unet
    assert isinstance(unet, UNet2DModel)
    copy = UNet2DModel.from_config(unet.config)  # in the plain memory layout that files have
    assert isinstance(copy, UNet2DModel)
    copy.load_state_dict(unet.state_dict())
    (folder / CHECKSUMS).unlink(missing_ok=True)
    copy.save_pretrained(folder / "unet")
    signal = denoiser.alpha_bar
    betas = 1 - signal / torch.cat([signal.new_ones(1), signal[:-1]])
    schedule = SCHEDULE if torch.equal(_alpha_bar(SCHEDULE), signal) else {"trained_betas": betas.tolist()}
    kind = {"_class_name": "DDPMScheduler", "clip_sample": False, "prediction_type": denoiser.prediction}
    scheduler = DDPMScheduler.from_config(kind | schedule | {"num_train_timesteps": len(signal)})
    assert isinstance(scheduler, DDPMScheduler)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": "DDPMPipeline"}
    index |= {part: ["diffusers", name] for part, name in (("scheduler", "DDPMScheduler"), ("unet", "UNet2DModel"))}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    listed = sorted(file for file in folder.rglob("*") if file.suffix in (".json", ".safetensors"))
    sums = [f"{file_sha256(file)}  {file.relative_to(folder).as_posix()}" for file in listed]
    (folder / CHECKSUMS).write_text("\n".join(sums) + "\n")


def main(argv: list[str]) -> int:
    """``convert CHECKPOINT.pt FOLDER``."""
    if len(argv) != 3 or argv[0] != "convert":
        print("usage: python -m dig2dig.priors.load convert CHECKPOINT.pt FOLDER", file=sys.stderr)
        return 2
    try:
        save_prior(load_prior(argv[1]), Path(argv[2]))
    except PriorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{argv[2]}: diffusers folder written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
