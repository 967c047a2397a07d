"""Opens pretrained networks: the bundled prior, diffusers pipelines, OpenAI's ADM checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dig2dig.config import PriorConfig
from dig2dig.errors import PriorError, first_line
from dig2dig.priors import adm
from dig2dig.priors.build import SCHEDULE, AnyUNet, as_denoiser, new_unet, offload
from dig2dig.priors.denoiser import WINDOW, Denoiser, Precision
from dig2dig.priors.files import ADM_URL, check_sha256, check_sums, prior_files, read_json, read_weights, weights_files
from dig2dig.priors.lora import merge_adapter


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
        sha256: Refuse weights that have another SHA-256; of shards, that of all one after the other.
        precision: ``fp32``, ``bf16`` (autocast), or ``auto``: bf16 where the device has it natively.
        window: Side of the windows that larger images are processed in, see :class:`Denoiser`.
        device: Where the network runs.
    """
    file = Path(path)
    if file.suffix in (".pt", ".pth"):
        unet, scheduler = _read_adm(file, sha256)
    else:
        unet, scheduler = _read_folder(str(path), sha256)
    denoiser = as_denoiser(unet, scheduler, precision, window)
    return denoiser.requires_grad_(False).eval().to(device)


def open_prior(config: PriorConfig, device: str | torch.device = "cpu") -> Denoiser:
    """The prior of a configuration on a device, its adapter merged, in the precision and windows that it asks for."""
    denoiser = load_prior(config.path, config.sha256, config.precision, config.window)
    if config.adapter:
        merge_adapter(denoiser, config.adapter, config.path)
    if config.precision == "bf16":
        denoiser.network.to(torch.bfloat16)
    if config.compile:
        denoiser.network.compile()
    if config.offload:
        offload(denoiser, torch.device(device))
    return denoiser.to(device)


def _read_folder(path: str, sha256: str | None) -> tuple[AnyUNet, Mapping[str, Any]]:
    files = prior_files(path)
    check_sha256(files.weights, sha256)  # first: shards are read once for both
    check_sums(files.folder)
    state = {name: tensor for file in files.weights for name, tensor in read_weights(file).items()}
    check_sha256(files.weights, sha256)  # again: what was read is what was hashed
    return _build(read_json(files.config), state, files.weights[0]), read_json(files.scheduler)


def _read_adm(path: Path, sha256: str | None) -> tuple[AnyUNet, Mapping[str, Any]]:
    check_sha256(weights_files(path), sha256)
    state = read_weights(path)
    check_sha256([path], sha256)
    if not {"input_blocks.0.0.weight", "time_embed.0.weight"} <= state.keys() or not adm.upsamplers(state):
        raise PriorError(
            f"{path}: not an ADM checkpoint: expected keys like input_blocks.0.0.weight, "
            f"found {', '.join(sorted(state)[:3]) or 'none'}; ADM's are at {ADM_URL}"
        )
    try:
        config, converted = adm.unet_config(state), adm.convert(state)
    except KeyError as error:
        raise PriorError(f"{path}: an ADM checkpoint without a place for {error}; get it at {ADM_URL}") from error
    return _build(config, converted, path), SCHEDULE


def _build(config: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> AnyUNet:
    try:
        with torch.device("meta"):  # every weight must come from the file
            unet = new_unet(config)
    except Exception as error:  # whatever diffusers raises for a foreign config
        raise PriorError(f"{path}: its config does not describe a network ({first_line(error)})") from error
    try:
        unet.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        expected, found = unet.state_dict().keys(), state.keys()
        missing, extra = sorted(expected - found), sorted(found - expected)
        raise PriorError(
            f"{path}: weights do not fit the network: {len(missing)} missing ({', '.join(missing[:2])}), "
            f"{len(extra)} unknown ({', '.join(extra[:2])})"
            + ("" if missing or extra else f"; {str(error).splitlines()[-1].strip()}")
        ) from error
    return unet.float()
