"""Opens pretrained networks: the bundled prior, diffusers pipelines, OpenAI's ADM checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from dig2dig.config import PriorConfig
from dig2dig.errors import PriorError, first_line
from dig2dig.priors import adm
from dig2dig.priors.build import SCHEDULE, as_denoiser, new_unet
from dig2dig.priors.denoiser import WINDOW, Denoiser, Precision, Prediction
from dig2dig.priors.files import CHECKSUMS, check_sha256, find_folder, read_json, read_weights, unet_files
from dig2dig.priors.lora import merge_adapter
from dig2dig.priors.schedule import BetaSchedule

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

ADM_URL = "https://github.com/openai/guided-diffusion (256x256_diffusion_uncond.pt, 2.2 GB)"


def load_prior(
    path: str | Path = "bundled",
    sha256: str | None = None,
    precision: Precision = "auto",
    window: int = WINDOW,
    device: str | torch.device = "cpu",
) -> Denoiser:
    """The pretrained denoiser at ``path``; PriorError if files are missing, short, altered, or do not fit it.

    Args:
        path: ``bundled``; a folder in diffusers' layout of an unconditional pipeline (epsilon, v or sample
            prediction, its own betas); a hub id of one; or an ADM checkpoint (``.pt``).
        sha256: Refuse weights whose file has another SHA-256.
        precision: ``fp32``, ``bf16`` (autocast), or ``auto``: bf16 where the device has it natively.
        window: Side of the windows that larger images are processed in, see :class:`Denoiser`.
        device: Where the network runs.
    """
    file = Path(path)
    if file.suffix in (".pt", ".pth"):
        unet, scheduler = _read_adm(file, sha256)
    else:
        unet, scheduler = _read_folder(find_folder(str(path)), sha256)
    denoiser = as_denoiser(unet, scheduler, precision, window)
    return denoiser.requires_grad_(False).eval().to(device)


def open_prior(config: PriorConfig) -> Denoiser:
    """The prior of a configuration, with its adapter merged, in the precision and windows that it asks for."""
    denoiser = load_prior(config.path, config.sha256, config.precision, config.window)
    if config.adapter:
        merge_adapter(denoiser, Path(config.adapter), config.path)
    if config.precision == "bf16":
        denoiser.network.to(torch.bfloat16)
    if config.compile:
        denoiser.network.compile()
    return denoiser


def _read_folder(folder: Path, sha256: str | None) -> tuple["UNet2DModel", Mapping[str, Any]]:
    config_file, weights, scheduler_file = unet_files(folder)
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
    return _build(config, read_weights(weights), weights), scheduler


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


def _read_adm(path: Path, sha256: str | None) -> tuple["UNet2DModel", Mapping[str, Any]]:
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
    return _build(config, converted, path), SCHEDULE


def _build(config: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> "UNet2DModel":
    try:
        with torch.device("meta"):  # every weight must come from the file
            unet = new_unet(config)
    except (ValueError, TypeError, KeyError) as error:
        raise PriorError(f"{path}: its config does not describe a network ({first_line(error)})") from error
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
