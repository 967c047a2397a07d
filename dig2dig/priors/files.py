"""Files of a prior: judged by its JSON files, fetched if need be, read whole and unaltered, or refused in one line."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dig2dig.cli import is_hub_id
from dig2dig.errors import PriorError, first_line
from dig2dig.priors.judge import check_network, check_pipeline, check_scheduler

CHECKSUMS = "SHA256SUMS"
BUNDLED = Path(__file__).parent / "bundled"
ADM_URL = "https://github.com/openai/guided-diffusion (256x256_diffusion_uncond.pt, 2.2 GB)"
LAYOUT = "unet/config.json, unet/diffusion_pytorch_model.safetensors and scheduler/scheduler_config.json"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Answer = tuple[str | None, list[str]]  # the revision, and the names of its files
LIMIT = 20.0  # seconds for a hub's answers about a prior, before its weights are fetched
FRESH = 2e9  # nanoseconds in which a file may be written again without another time: what coarse file systems tell
_hashes: dict[tuple[tuple[object, ...], ...], str] = {}  # by what identifies the files
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of early diffusers releases, and those of today."""


class PriorFiles(NamedTuple):
    """Where the files of a diffusers pipeline are."""

    folder: Path
    config: Path
    scheduler: Path
    weights: list[Path]  # one file, or shards in the order of their names


def file_sha256(*paths: Path) -> str:
    """SHA-256 of a file, or of several in a row; a process reads a file once, if inode, size and times stay."""
    known, whole = tuple(map(_identity, paths)), hashlib.sha256()
    if known in _hashes:
        return _hashes[known]
    for path, one in zip(paths, known, strict=True):
        part = hashlib.sha256() if len(paths) > 1 else whole
        with path.open("rb") as file:
            while block := file.read(2**20):
                for digest in {part, whole}:
                    digest.update(block)
        _hashes[(one,)] = part.hexdigest()
    return _hashes.setdefault(known, whole.hexdigest())


def _identity(path: Path) -> tuple[object, ...]:
    at, now = path.stat(), time.time_ns()
    fresh = now - max(at.st_mtime_ns, at.st_ctime_ns) < FRESH and now  # equal to no other
    return path.absolute(), at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns, fresh


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
    if foreign := {name: value.dtype for name, value in state.items() if value.dtype not in DTYPES}:
        name, dtype = next(iter(foreign.items()))
        told = "weights are float32, float16, bfloat16 or float64 here: get those that are not quantized"
        raise PriorError(f"{path}: {name} is {str(dtype).removeprefix('torch.')}; {told}")
    pattern = rf"(?<=\.)({'|'.join(OLD_ATTENTION)})(?=\.(weight|bias)$)"
    return {re.sub(pattern, lambda match: OLD_ATTENTION[match[1]], name): value for name, value in state.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # ValueError: also no text, and numbers of 5000 digits
        raise PriorError(f"{path}: not valid JSON ({error}); get it again") from error
    if not isinstance(content, dict):
        raise PriorError(f"{path}: expected names and values in JSON, found a {type(content).__name__}; get it again")
    return content


def check_sha256(paths: list[Path], expected: str | None) -> None:
    """Refuses files that together have another SHA-256 than expected, if one is."""
    if expected is not None and (found := file_sha256(*paths)) != expected.lower():
        told = f"SHA-256 is {found}, expected {expected}: the file was altered or cut"
        raise PriorError(f"{paths[0]}: {told}; get it again")


def check_sums(folder: Path) -> None:
    """Refuses a folder whose files differ from those that its checksums list, if it has any."""
    sums = folder / CHECKSUMS
    lines = sums.read_text(errors="replace").splitlines() if sums.is_file() else []
    for expected, _, name in (line.strip().partition(" ") for line in lines if line.strip()):
        file = folder / name.strip(" *")
        if not file.is_file():
            raise PriorError(f"{file}: no such file, though {CHECKSUMS} lists it; get it again")
        check_sha256([file], expected)


def weights_files(path: str | Path = "bundled") -> list[Path]:
    """The files that hold a prior's weights: one, or its shards in the order of their names."""
    file = Path(path)
    if file.suffix not in (".pt", ".pth"):
        return prior_files(str(path)).weights
    if not file.is_file():
        raise PriorError(f"{path}: no such checkpoint; ADM's are at {ADM_URL}")
    return [file]


def prior_sha256(path: str | Path = "bundled") -> str:
    """SHA-256 of a prior's weights; of shards one after the other, as ``cat SHARDS | sha256sum`` prints it."""
    return file_sha256(*weights_files(path))


def prior_files(path: str) -> PriorFiles:
    """The files of the bundled prior, of a folder, or of a hub id, which are fetched."""
    return _on_disk(path, BUNDLED if path == "bundled" else fetched_folder(path))


def _on_disk(name: str, folder: Path) -> PriorFiles:
    parts = [folder, folder / "unet", folder / "scheduler"]
    names = [file.relative_to(folder).as_posix() for part in parts for file in part.glob("*") if file.is_file()]
    config, scheduler, *weights = (folder / file for file in _judged(name, names, folder.joinpath))
    return PriorFiles(folder, config, scheduler, weights)


@cache  # a process keeps the revision that it began with, and asks for it once
def fetched_folder(name: str, *files: str) -> Path:
    """The folder that a name stands for; of a hub id ``files`` are fetched, or those of a prior once it is judged."""
    if not is_hub_id(name):
        return Path(name)
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    repository, _, revision = name.partition("@")
    asked: dict[str, Any] = {"repo_id": repository, "revision": revision or None}

    def get(file: str) -> Path:  # by the revision's name: so the cache notes what it stands for without a network
        return Path(hf_hub_download(**asked, filename=file, etag_timeout=LIMIT / 2))

    def choose() -> Answer:
        info = HfApi().model_info(**asked, timeout=LIMIT / 2)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        return info.sha, [get(files[0]).name, *files[1:]] if files else _judged(name, names, get)

    try:
        asked["revision"], chosen = _answer(choose)
        *_, last = [Path(hf_hub_download(**asked, filename=file)) for file in chosen]
        return last.parents[chosen[-1].count("/")]
    except PriorError:
        raise
    except Exception as error:  # what the hub's client raises differs from release to release
        silent = isinstance(error, TimeoutError) or "Timeout" in type(error).__name__
        reason = "it does not answer" if silent else f"{type(error).__name__}: {first_line(error)}"
        asked["revision"] = revision or None
        try:  # what an earlier run has fetched
            kept = Path(snapshot_download(**asked, local_files_only=True, allow_patterns=[]))
            return kept if files else _on_disk(name, kept).folder
        except PriorError as missing:
            raise PriorError(f"{missing} (the Hugging Face hub: {reason})") from error
        except (OSError, ValueError):
            raise PriorError(
                f"{name}: neither a local folder nor to be had from the Hugging Face hub ({reason}); give a folder, "
                f"or fetch it where the hub can be reached: hf download {repository}"
            ) from error


def _answer(ask: Callable[[], Answer]) -> Answer:
    """What a hub answers, or TimeoutError: its client repeats a silent request for minutes."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:  # raised where the result is awaited
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result(LIMIT)


def _judged(name: str, names: Iterable[str], get: Callable[[str], Path]) -> list[str]:
    """Names of config, scheduler config and weights, if all are there and fit; only JSON files are opened."""
    names = set(names)
    if "model_index.json" in names:
        check_pipeline(name, read_json(get("model_index.json")))
    unet = "unet/" if any(file.startswith("unet/") for file in names) else ""
    part = "scheduler/" if any(file.startswith("scheduler/") for file in names) else ""
    config, scheduler, weights = f"{unet}config.json", f"{part}scheduler_config.json", _choose(names, unet)
    for file, check in ((config, check_network), (scheduler, check_scheduler), (weights, None)):
        if file not in names:
            raise PriorError(f"{name}/{file}: no such file; a prior is a diffusers folder with {LAYOUT}")
        if check:
            check(f"{name}/{file}", read_json(get(file)))
    if not weights.endswith(".json"):
        return [config, scheduler, weights]
    listed = read_json(get(weights)).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise PriorError(f"{name}/{weights}: lists no shards; get it again")
    shards = [f"{unet}{file}" for file in sorted(set(listed.values()))]
    if lost := next((shard for shard in shards if shard not in names), None):
        raise PriorError(f"{name}/{lost}: no such file, though {weights} lists it; get it again")
    return [config, scheduler, *shards]


def _choose(names: Iterable[str], unet: str) -> str:
    """Plain names before variants such as fp16, safetensors before pickles, whole files before shards."""
    pattern = re.compile(rf"{unet}diffusion_pytorch_model(\.\w+)?\.(safetensors|bin)(\.index(\.\w+)?\.json)?")
    found = [match for match in map(pattern.fullmatch, names) if match]
    ranks = [(bool(match[1] or match[4]), match[2] == "bin", bool(match[3]), match[0]) for match in found]
    return min(ranks)[-1] if ranks else f"{unet}diffusion_pytorch_model.safetensors"
