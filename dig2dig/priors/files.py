"""Files of a prior: read whole and unaltered, or one line that says what is wrong with which."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dig2dig.errors import PriorError, first_line

CHECKSUMS = "SHA256SUMS"
BUNDLED = Path(__file__).parent / "bundled"
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of early diffusers releases, and those of today."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or a pickle of tensors alone, whose code, if it holds any, is never run."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise PriorError(f"{path}: damaged or cut short ({first_line(error)})") from error
    except Exception as error:  # UnpicklingError and what else a foreign pickle can raise
        code = "weights_only" in str(error).lower()
        reason = "holds more than tensors, so it was not loaded" if code else first_line(error)
        raise PriorError(f"{path}: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise PriorError(f"{path}: expected a state dict of tensors, found {type(state).__name__}")
    pattern = rf"(?<=\.)({'|'.join(OLD_ATTENTION)})(?=\.(weight|bias)$)"
    return {re.sub(pattern, lambda match: OLD_ATTENTION[match[1]], name): value for name, value in state.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PriorError(f"{path}: not valid JSON ({error})") from error


def check_sha256(path: Path, expected: str | None) -> None:
    """Refuses a file that has another SHA-256 than expected, if one is."""
    if expected is None:
        return
    if not path.is_file():
        raise PriorError(f"{path}: no such file, though {CHECKSUMS} lists it")
    found = file_sha256(path)
    if found != expected.lower():
        raise PriorError(f"{path}: SHA-256 is {found}, expected {expected}: the file was altered or cut; get it again")


def weights_file(path: str | Path = "bundled") -> Path:
    """The file that holds a prior's weights."""
    file = Path(path)
    return file if file.suffix in (".pt", ".pth") else unet_files(find_folder(str(path)))[1]


def find_folder(path: str) -> Path:
    """The folder of a prior: the bundled one, one on this disk, or one fetched from the Hugging Face hub."""
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
            f"{path}: neither a local folder nor to be had from the Hugging Face hub ({first_line(error)})"
        ) from error


def unet_files(folder: Path) -> tuple[Path, Path, Path]:
    """Config, weights and scheduler config of a pipeline folder, with or without subfolders."""
    unet, scheduler = (folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler"))
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
