"""The methods that are compared: each one fuses the sources of one case on the same prior and seed."""

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from dig2dig.api import preset
from dig2dig.config import PriorConfig, SamplerConfig
from dig2dig.errors import MethodError
from dig2dig.fusion import comparators as baselines
from dig2dig.fusion.sampler import fuse
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.files import file_sha256, weights_file
from dig2dig.priors.load import open_prior
from dig2dig.priors.lora import adapter_file
from dig2dig.shapes import Image, Sources

SCOPES = {
    "static": "sampler.dig.kind=static",
    "spatial": "research.scope=spatial",
    "temporal": "research.scope=temporal",
}
"""What each ablation changes in the task's preset."""

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
        return preset(task, SCOPES[method])
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

    def seeing(self, window: int) -> "Fuser":
        """The same prior with windows of another side."""
        return Fuser(self.denoiser.in_windows(window), self.seed, self.device, self.identity)

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
