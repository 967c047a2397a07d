"""The methods that are compared: each one fuses the sources of one case on the same prior and seed."""

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from dig2dig.cli import load
from dig2dig.config import InferConfig, PriorConfig, SamplerConfig
from dig2dig.fusion import comparators as baselines
from dig2dig.fusion.sampler import fuse
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.files import file_sha256
from dig2dig.priors.load import weights_file
from dig2dig.shapes import Image, Sources


class MethodError(ValueError):
    """A method that does not exist, or a picture that cannot be compared; told in one line."""


CONFIGS = Path(__file__).parents[2] / "configs"

SCOPES = {"static": {"kind": "static"}, "spatial": {"scope": "spatial"}, "temporal": {"scope": "temporal"}}
"""What each ablation changes in the gains of the task's preset."""

DDFM = {"ddfm": "code", "ddfm-unstretched": "code", "ddfm-paper": "paper"}
STRETCHED = ("ddfm",)
"""Methods whose published form ends with a stretch."""


@dataclass(frozen=True)
class Fused:
    """A result with its cost.

    Attributes:
        image: (1, c, h, w) in [0, 1].
        seconds: Wall time of the fusion alone.
        evaluations: Pixels that passed the network, in units of the image's: a smaller copy counts for less.
    """

    image: Image
    seconds: float
    evaluations: float


def preset(task: str, *overrides: str) -> SamplerConfig:
    """The sampler of ``configs/TASK.yaml`` with overrides.

    Raises:
        MethodError: There is no such file.
    """
    path = CONFIGS / f"{task}.yaml"
    if not path.is_file():
        raise MethodError(f"{path}: no such preset; the benchmark needs the checkout, not the installed package alone")
    return load(InferConfig, [str(path), "sources.a=a", "sources.b=b", *overrides]).sampler


def sampler_of(method: str, task: str, variants: dict[str, str]) -> SamplerConfig | None:
    """The setting of our sampler that a method is; None for what has no prior.

    Raises:
        MethodError: No such method.
    """
    if method in baselines.CLASSICAL:
        return None
    if method in variants:
        return preset(task, *variants[method].split())
    if method in DDFM:
        return baselines.ddfm(DDFM[method])
    if method == "universal":
        return preset("universal")
    sampler = preset(task)
    if method == "dig2dig":
        return sampler
    if method in SCOPES:
        return replace(sampler, dig=replace(sampler.dig, **SCOPES[method]))
    known = [*baselines.CLASSICAL, *DDFM, "dig2dig", *SCOPES, "universal", *variants]
    raise MethodError(f"methods: no '{method}'; there are {', '.join(known)}, peers and peers:DIR")


def applies(method: str, task: str, k: int) -> bool:
    """Whether a method is made for a case: OpenCV's exposure fusion for exposures, DDFM's code for two sources."""
    return (method != "mertens" or task == "mef") and (DDFM.get(method) != "code" or k == 2)


class Fuser:
    """Runs methods on one prior and counts what they cost.

    Args:
        denoiser: The prior.
        seed: Seed of the noise.
        device: Where to compute.
        identity: What tells this prior from others.
    """

    def __init__(self, denoiser: Denoiser, seed: int, device: torch.device, identity: tuple[str, ...] = ()) -> None:
        self.denoiser, self.seed, self.device, self.identity = denoiser.to(device), seed, device, identity
        self.pixels, self.patch = 0, denoiser.patch
        denoiser.network.register_forward_pre_hook(self._count)

    def _count(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        patches = inputs[0][:, :1].numel()
        self.pixels += patches * self.patch**2

    def __call__(self, sources: Sources, sampler: SamplerConfig | Callable[[Sources], Image]) -> Fused:
        """Fuses sources (1, k, c, h, w) with a setting of our sampler or with a function."""
        sources, before = sources.to(self.device), self.pixels
        started = time.perf_counter()
        if isinstance(sampler, SamplerConfig):
            image = fuse(sources, self.denoiser, sampler, self.seed)
        else:
            image = sampler(sources)
        image = image.cpu()  # waits for the device
        seconds, (h, w) = time.perf_counter() - started, sources.shape[-2:]
        return Fused(image, seconds, round((self.pixels - before) / (h * w), 1))


def open_fuser(prior: PriorConfig, seed: int, device: str) -> Fuser:
    """The prior on its device, warmed up."""
    from dig2dig.priors.lora import adapter_file, open_prior

    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    denoiser = open_prior(prior)
    adapter = file_sha256(adapter_file(Path(prior.adapter))) if prior.adapter else ""
    identity = (file_sha256(weights_file(prior.path)), adapter, prior.precision, version("dig2dig"))
    fuser = Fuser(denoiser, seed, torch.device(name), identity)
    fuser(torch.zeros(1, 2, 1, 64, 64), SamplerConfig(2))
    return fuser


def hashed(*parts: object) -> str:
    """A short fingerprint of whatever shaped a result."""
    return f"{zlib.crc32(repr(parts).encode()):08x}"
