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

CHECKSUMS = "SHA256SUMS"


class PriorError(ValueError):
    """A prior that cannot be used, told in one line: path, what was expected, where to get it."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def first_line(error: Exception) -> str:
    """What an error says, of several lines the first; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or a pickle of tensors alone, whose code, if it holds any, is never run."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise PriorError(f"{path}: damaged or cut short ({first_line(error)})") from error
    except Exception as error:  # UnpicklingError and what else a foreign pickle can raise
        reason = (
            "holds more than tensors, so it was not loaded"
            if "weights_only" in str(error).lower()
            else first_line(error)
        )
        raise PriorError(f"{path}: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise PriorError(f"{path}: expected a state dict of tensors, found {type(state).__name__}")
    pattern = rf"(?<=\.)({'|'.join(OLD_ATTENTION)})(?=\.(weight|bias)$)"  # names of early diffusers releases
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
