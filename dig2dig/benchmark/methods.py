"""The methods that are compared: each one fuses the sources of one case on the same prior and seed."""

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from dig2dig.api import preset
from dig2dig.benchmark.config import BenchmarkConfig
from dig2dig.config import SamplerConfig
from dig2dig.errors import UserError
from dig2dig.fusion import comparators
from dig2dig.fusion.sampler import fuse
from dig2dig.priors.denoiser import Denoiser, pick_device
from dig2dig.priors.files import file_sha256, prior_sha256
from dig2dig.priors.load import open_prior
from dig2dig.priors.lora import adapter_file
from dig2dig.shapes import Image, Sources

# the change of each ablation in the task's preset
GAIN = "sampler.weights=gain"
SCOPES = {"static": f"{GAIN} sampler.dig.kind=static"}
SCOPES |= {scope: f"{GAIN} research.scope={scope}" for scope in ("spatial", "temporal")}
DDFM = {"ddfm": "code", "ddfm-unstretched": "code", "ddfm-paper": "paper"}  # the first ends with a stretch


@dataclass(frozen=True)
class Fused:
    """A result with its cost."""

    image: Image  # (1, c, h, w) in [0, 1]
    seconds: float  # wall time of the fusion alone
    evaluations: float  # pixels that passed the network, in units of the image's: a smaller copy counts for less

    @property
    def cost(self) -> dict[str, str]:
        """Columns of a row."""
        return {"seconds": f"{self.seconds:.3f}", "evaluations": str(self.evaluations)}


def sampler_of(method: str, task: str, variants: dict[str, str]) -> SamplerConfig | None:
    """The setting of our sampler that a method is; None for a method without a prior; a UserError for no method."""
    kind, _, folder = method.partition(":")
    if kind == "peers" and folder and not Path(folder).is_dir():
        raise UserError(f"methods: {method}: no such folder")
    if kind == "peers" or method in comparators.CLASSICAL:
        return None
    changes = {"dig2dig": "", "gain": GAIN, **SCOPES, **variants}
    if method in changes:
        return preset(task, *changes[method].split())
    if method in DDFM:
        return comparators.ddfm(DDFM[method])
    if method in ("universal", "paper"):
        return preset(method)
    known = dict.fromkeys([*comparators.CLASSICAL, *DDFM, "universal", "paper", *changes])
    raise UserError(f"methods: no '{method}'; there are {', '.join(known)}, peers and peers:DIR")


class Fuser:
    """Runs methods on one prior and counts their cost; ``identity`` distinguishes this prior from others."""

    def __init__(self, denoiser: Denoiser, seed: int, device: torch.device, identity: tuple[str, ...] = ()) -> None:
        self.denoiser, self.seed, self.device, self.identity = denoiser.to(device), seed, device, identity
        self.pixels, self.patch = 0, denoiser.patch
        denoiser.network.register_forward_pre_hook(self._count)

    def _count(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.pixels += inputs[0][:, :1].numel() * self.patch**2

    def __call__(self, sources: Sources, sampler: SamplerConfig | Callable[[Sources], Image]) -> Fused:
        """Fuses sources (1, k, c, h, w) with a setting of our sampler or with a function."""
        sources, before = sources.to(self.device), self.pixels
        started = time.perf_counter()
        ours = isinstance(sampler, SamplerConfig)
        image = fuse(sources, self.denoiser, sampler, self.seed) if ours else sampler(sources)
        image = image.cpu()  # waits for the device
        seconds, (h, w) = time.perf_counter() - started, sources.shape[-2:]
        return Fused(image, seconds, round((self.pixels - before) / (h * w), 1))


def open_fuser(config: BenchmarkConfig) -> Fuser:
    """The prior on its device, warmed up."""
    prior, device = config.prior, pick_device(config.device)
    adapter = file_sha256(adapter_file(prior.adapter)) if prior.adapter else ""
    identity = (prior_sha256(prior.path), adapter, prior.precision, str(prior.window), version("dig2dig"))
    fuser = Fuser(open_prior(prior, device), config.seed, device, identity)
    fuser(torch.zeros(1, 2, 1, 64, 64), SamplerConfig(2))
    return fuser


def hashed(*parts: object) -> str:
    """A short fingerprint of all that shaped a result."""
    return f"{zlib.crc32(repr(parts).encode()):08x}"
