"""dig2dig: training-free image fusion with diffusion information gain.

from dig2dig import fuse, load_prior
fused = fuse(sources, load_prior())  # (b, k, c, h, w) in [0, 1] -> (b, c, h, w)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dig2dig.config import DigConfig, GuidanceConfig, SamplerConfig
    from dig2dig.fusion.guidance import Guidance, Step
    from dig2dig.fusion.sampler import Snapshot, fuse
    from dig2dig.fusion.weight import fusion_weight, information_gain
    from dig2dig.priors.denoiser import Denoiser
    from dig2dig.priors.load import PriorError, load_prior, save_prior

_HOMES = {
    "priors.load": ("load_prior", "save_prior"),
    "priors.files": ("PriorError",),
    "config": ("DigConfig", "GuidanceConfig", "SamplerConfig"),
    "priors.denoiser": ("Denoiser",),
    "fusion.gain": (),
    "fusion.weight": ("fusion_weight", "information_gain"),
    "fusion.guidance": ("Guidance", "Step"),
    "fusion.sampler": ("Snapshot", "fuse"),
}
__all__ = [
    "Denoiser",
    "DigConfig",
    "Guidance",
    "GuidanceConfig",
    "PriorError",
    "SamplerConfig",
    "Snapshot",
    "Step",
    "fuse",
    "fusion_weight",
    "information_gain",
    "load_prior",
    "save_prior",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: the scripts' ``--help`` must not wait for torch."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"dig2dig.{module}"), name)
    raise AttributeError(f"module 'dig2dig' has no attribute '{name}'")
