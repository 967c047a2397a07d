"""Low-rank adapters: a few weights beside a frozen prior, in a small file, merged when the prior is used."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from dig2dig.atomic import write_atomically
from dig2dig.errors import PriorError, RunError, first_line
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.files import fetched_folder, prior_sha256, read_json, read_weights

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]  # attention, and the residual blocks' convolutions
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's own names


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise RunError("adapters need peft: pip install 'dig2dig[finetune]'") from error
    return peft


def add_adapter(denoiser: Denoiser, rank: int, alpha: float) -> Any:
    r"""Freezes a prior and puts trainable adapters beside its convolutions and attention; gives peft's tuner of them.

    .. math:: W' = W + \frac{\alpha}{r} B A, \qquad B = 0 \text{ at the start}

    The prior is unchanged until its first step (Hu et al., "LoRA: low-rank adaptation of large language models", 2021).
    """
    peft = _peft()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS)
    tuner = peft.LoraModel(denoiser.network.unet, config, "default")
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return tuner


def save_adapter(denoiser: Denoiser, folder: Path, prior: str, rank: int, alpha: float) -> None:
    """Writes the adapters alone, in peft's file format, with the hash of the prior that they belong to."""
    folder.mkdir(parents=True, exist_ok=True)
    state = _peft().get_peft_model_state_dict(denoiser.network.unet)
    write_atomically(folder / WEIGHTS, save({name: tensor.contiguous().cpu() for name, tensor in state.items()}))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": TARGETS,
        "base_model_name_or_path": prior,
        "base_sha256": prior_sha256(prior),
    }
    write_atomically(folder / CONFIG, f"{json.dumps(config, indent=2)}\n".encode())


def adapter_file(name: str) -> Path:
    """The file with the weights of an adapter, a folder or hub id; PriorError if there is none."""
    folder = fetched_folder(name, CONFIG, WEIGHTS)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise PriorError(f"{folder / file}: no such file; an adapter is a folder with {CONFIG} and {WEIGHTS}")
    return folder / WEIGHTS


def merge_adapter(denoiser: Denoiser, adapter: str, prior: str) -> None:
    """Adds adapters to the prior's weights; PriorError if files are missing, damaged, or belong to another prior."""
    weights = adapter_file(adapter)
    folder = weights.parent
    config, state = read_json(folder / CONFIG), read_weights(weights)
    expected, found = config.get("base_sha256"), prior_sha256(prior)
    if expected not in (None, found):
        raise PriorError(
            f"{folder}: the adapter belongs to {config.get('base_model_name_or_path')} with SHA-256 {expected}, "
            f"not to {prior} with {found}"
        )
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (KeyError, TypeError, ValueError) as error:
        raise PriorError(f"{folder / CONFIG}: r and lora_alpha are no numbers ({first_line(error)})") from error
    tuner = add_adapter(denoiser, rank, alpha)
    try:
        left = _peft().set_peft_model_state_dict(denoiser.network.unet, state)
    except RuntimeError as error:
        raise PriorError(f"{folder}: adapters do not fit the prior ({str(error).splitlines()[-1].strip()})") from error
    if left.unexpected_keys or any("lora_" in name for name in left.missing_keys):
        raise PriorError(f"{folder}: adapters do not fit the prior: other layers than this prior has")
    tuner.merge_and_unload(safe_merge=True)  # into plain layers, whose weights hold the sum
