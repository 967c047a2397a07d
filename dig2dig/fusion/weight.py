"""Fusion weights: what share each source has at each pixel, from what the denoiser learns about it."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, silu

from dig2dig.atomic import write_atomically
from dig2dig.cli import from_yaml, to_yaml
from dig2dig.config import BROUGHT, SamplerConfig
from dig2dig.errors import PriorError
from dig2dig.fusion.bands import blurred
from dig2dig.fusion.resample import SMALL, coarseness, grouped, resample
from dig2dig.priors.files import fetched_folder, file_sha256
from dig2dig.shapes import Gains, Image, Maps, Sources, Weights

BUNDLED = Path(__file__).with_name("bundled")
FILE, SETTINGS = "weights.safetensors", "sampler.yaml"
FEATURES = 8


def fusion_weight(gain: Gains, temperature: float = 1.0) -> Weights:
    r"""Weights in [0, 1] of the sources at each pixel, which sum to one over k, from their gains.

    .. math:: w_k = \exp(g_k / \tau) \,/\, \sum_j \exp(g_j / \tau)

    Equal gains give the plain average. A small temperature picks the source that the denoiser learns most about.

    Args:
        gain: Gain of each source, shape (b, k, 1, h, w), in squared intensity or normalised.
        temperature: Softness tau > 0, in the unit of the gain.

    Reference: Cao et al., "Dig2DIG", arXiv:2503.18627.
    """
    return (gain / temperature).softmax(1)


def scoped(weights: Sequence[Maps], scope: str) -> list[Maps]:
    """Weights of all times as they are (``full``), their mean over time (``spatial``) or over space (``temporal``)."""
    if scope == "spatial":
        height, width = max(maps.shape[-2:] for maps in weights)
        return [torch.stack([resample(maps, height, width) for maps in weights]).mean(0)] * len(weights)
    if scope == "temporal":
        return [maps.mean((-2, -1), keepdim=True).expand_as(maps) for maps in weights]  # on a grid, for masks
    return list(weights)


def preferred(weights: Weights, prefer: Sequence[float]) -> Weights:
    """Weights with a factor on the say of each source, again of sum one; without factors as they are."""
    if not prefer:
        return weights
    if len(prefer) != weights.shape[1]:
        raise ValueError(f"prefer has {len(prefer)} factors for {weights.shape[1]} sources")
    return scaled(weights, torch.tensor(prefer).to(weights).view(1, -1, 1, 1, 1))


def scaled(weights: Weights, factors: Tensor) -> Weights:
    """Weights times positive factors of the same or broadcast shape, again of sum one over k."""
    raised = weights * factors
    return raised / raised.sum(1, keepdim=True)


def masked(weights: Weights, valid: Tensor | None) -> Weights:
    """Weights without say where a source is not valid, (b, k, 1, h, w) of any grid; as they are where none is."""
    if valid is None:
        return weights
    shown = torch.cat([resample(one.to(weights), *weights.shape[-2:]) for one in valid.split(1, 1)], 1)
    return scaled(weights + 1e-12, shown + (shown.sum(1, keepdim=True) == 0))  # all of them where none is valid


@dataclass(frozen=True)
class Level:
    """What learned weights say of one level: the base, or the band of one step."""

    weight: Maps  # (b, k, 1, h / f, w / f), sums to one over k
    factor: Image  # factor on the weighted sum of the sources' bands, (b, 1, h / f, w / f)


class WeightNetwork(nn.Module):
    r"""A small network from features of each source to its weight in each band.

    .. math:: w_k = \mathrm{softmax}_k\, u(z_k, \bar z, \max_j z_j), \qquad
              z_k = h(\text{features of source } k,\; \text{level},\; z_k \text{ of the coarser level})

    All sources and levels share its layers; a level has a learned vector. Sources meet in a mean and a maximum alone:
    any number of them in any order. A second output, averaged over the sources, is the log of a factor on the band.
    The last layer starts at zero: equal weights.

    It is made for ``settings``, the steps, gains and bands that it was trained with. The first level is the base: what
    is coarser than the first step. Our own form.
    """

    def __init__(self, settings: SamplerConfig, width: int = 16) -> None:
        super().__init__()
        self.settings = settings
        self.level = nn.Parameter(0.1 * torch.randn(settings.steps + 1, width))
        self.first = nn.Conv2d(FEATURES, width, 3)
        self.second = nn.Conv2d(width, width, 3)
        self.own = nn.Conv2d(width, width, 1)
        self.shared = nn.Conv2d(2 * width, width, 1, bias=False)
        self.last = nn.Conv2d(width, 2, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, space: Sequence[Maps], gains: Sequence[Maps], sigmas: Sequence[float]) -> list[Level]:
        """The base and a level for each step.

        Args:
            space: Sources in [-1, 1] of any size, see :func:`scale_space`.
            gains: Gains above all steps, at ``plan.SIGMA_TOP``, and at each step, not normalised.
            sigmas: Noise level of each step, decreasing.
        """
        b, k = space[0].shape[:2]
        hidden, levels = list[Tensor](), list[Level]()
        spare = not torch.is_grad_enabled()  # large images have no room for all features of all sources at once
        together = len(grouped(b * k, space[-1].shape)) if spare else 1
        for i, maps in enumerate(features(space, gains, sigmas, self.settings.guidance.scale)):
            parts, (height, width) = maps.flatten(0, 1).chunk(together), maps.shape[-2:]
            coarser = hidden or [None] * len(parts)
            hidden = [self._hidden(*both, i) for both in zip(parts, coarser, strict=True)]
            rows = max(SMALL // width, 1) if spare else height
            strips = ([part[..., top : top + rows, :] for part in hidden] for top in range(0, height, rows))
            logit, scale = torch.cat([self._outputs(torch.cat(strip), k) for strip in strips], -2).split(1, 2)
            levels.append(Level(logit.softmax(1), scale.mean(1).tanh().exp()))
        return levels

    def _hidden(self, maps: Tensor, coarser: Tensor | None, level: int) -> Tensor:
        """Features of some sources at a level, from maps of them (n, 8, h, w) and their features at the coarser one."""
        z = self.first(bordered(maps.contiguous(memory_format=torch.channels_last)))
        z += self.level[level, :, None, None]
        if coarser is not None:
            z += interpolate(coarser, maps.shape[-2:], mode="bilinear")
        z = bordered(silu(z, not torch.is_grad_enabled()))  # here, so that what has no border is freed
        return self.second(z)

    def _outputs(self, hidden: Tensor, k: int) -> Tensor:
        """Both outputs of each source, (b, k, 2, h, w), from what was learned of it; each pixel by itself."""
        own = silu(hidden)
        each = own.unflatten(0, (-1, k)).unbind(1)  # reductions over so short an axis take several times as long
        shared = self.shared(torch.cat([reduce(torch.add, each) / k, reduce(torch.maximum, each)], 1))
        joint = self.own(own).unflatten(0, (-1, k)) + shared[:, None]
        return self.last(silu(joint.flatten(0, 1))).float().unflatten(0, (-1, k))


def bordered(maps: Tensor) -> Tensor:
    """Maps with their outermost pixels repeated, for a filter of 3×3."""
    return pad(maps, (1, 1, 1, 1), mode="replicate")


def scale_space(sources: Sources, sigmas: Sequence[float], scale: float) -> list[Maps]:
    """The sources blurred as at each step, and last the sources themselves."""
    return [blurred(sources, sigma, scale) for sigma in [*sigmas, 0.0]]


def features(space: Sequence[Maps], gains: Sequence[Maps], sigmas: Sequence[float], scale: float) -> list[Maps]:
    """What the network sees of each source at each level, (b, k, 8, h / f, w / f), about in [-1, 1].

    The logs of the gain at the level's noise, at the next coarser one and at the largest; the band, signed, and the log
    of its local mean size; the image without it; the spread of its channels; the log of the local size of all finer
    bands.
    """

    def log(maps: Maps) -> Maps:
        return (maps.clamp(min=0) + 1e-3).log() / 4 + 1

    h, w = space[-1].shape[-2:]
    grids = [coarseness(max(scale * sigma, 4.0)) for sigma in (sigmas[0], *sigmas)]
    parts, finer = grouped(space[0].shape[1], space[-1].shape), None
    levels: list[Maps] = []
    for i in reversed(range(len(grids))):  # from the finest band to the base
        size, seen, sharper = (-(-h // grids[i]), -(-w // grids[i])), space[max(i - 1, 0)], space[i]
        shown = torch.cat([_shown(seen[:, part], sharper[:, part], size) for part in parts], 1)
        plain, energy = shown.split((3, 1), 2)
        finer = torch.zeros_like(energy) if finer is None else resample(finer, *size)
        maps = [log(resample(one, *size)) for one in (gains[i], gains[max(i - 1, 0)], gains[0])]
        levels.append(torch.cat([*maps, plain, log(energy), log(finer)], 2))
        finer = finer + energy
    return levels[::-1]


def _shown(seen: Maps, sharper: Maps, size: tuple[int, int]) -> Maps:
    """Band, image without it, spread of its channels and local mean size of the band, (b, k, 4, *size)."""
    band = sharper - resample(seen, *sharper.shape[-2:])
    spread = seen.amax(2, keepdim=True) - seen.amin(2, keepdim=True)
    maps = 4 * band.mean(2, keepdim=True), seen.mean(2, keepdim=True), spread, band.abs().mean(2, keepdim=True)
    return torch.cat([resample(one, *size) for one in maps], 2)


def save_weights(network: WeightNetwork, folder: Path) -> None:
    """Writes ``weights.safetensors``, and ``sampler.yaml`` with the settings that the weights belong to."""
    tensors = {name: value.detach().cpu().float().contiguous() for name, value in network.state_dict().items()}
    write_atomically(folder / FILE, save(tensors))
    write_atomically(folder / SETTINGS, to_yaml(network.settings).encode())


def weights_folder(name: str) -> Path:
    """The folder that ``sampler.weights`` names; PriorError if there is none."""
    bundled = name.startswith("bundled/")
    folder = BUNDLED / name.removeprefix("bundled/") if bundled else fetched_folder(name, SETTINGS, FILE)
    if not (folder / FILE).is_file():
        sets = ", ".join(f"bundled/{path.name}" for path in sorted(BUNDLED.glob("*/")))
        raise PriorError(f"sampler.weights={name}: no {FILE} there; give gain, {sets}, a folder or a hub id")
    return folder


def weights_sha256(name: str) -> str:
    """SHA-256 of the learned weights that ``sampler.weights`` names; empty for ``gain``."""
    return "" if name == "gain" else file_sha256(weights_folder(name) / FILE)


def load_weights(name: str) -> WeightNetwork:
    """Learned weights from a folder or a bundled set, for the caller alone; PriorError if missing or damaged."""
    return deepcopy(_load(weights_folder(name), weights_sha256(name)))


@lru_cache(maxsize=8)
def _load(folder: Path, _: str) -> WeightNetwork:
    """Once for each content of the file."""
    settings = from_yaml(SamplerConfig, folder / SETTINGS)
    if settings is None:
        raise PriorError(f"{folder / 'sampler.yaml'}: missing or damaged; export the weights again")
    try:
        found: dict[str, Any] = load((folder / FILE).read_bytes())
        with torch.random.fork_rng([]):  # what it draws for a start is not the caller's
            network = WeightNetwork(settings)
        network.load_state_dict(found)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise PriorError(f"{folder / FILE}: damaged, or of another version; learn the weights again") from error
    return network.eval().requires_grad_(False)


def adopted(config: SamplerConfig, settings: SamplerConfig) -> SamplerConfig:
    """A configuration with the steps, gains and bands that learned weights were trained with."""
    told = settings.guidance
    guidance = replace(config.guidance, kind="bands", scale=told.scale, energy=told.energy)
    return replace(config, guidance=guidance, **{name: getattr(settings, name) for name in BROUGHT})
