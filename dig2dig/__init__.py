"""dig2dig: training-free image fusion with diffusion information gain.

from dig2dig import fuse, fuse_files, load_prior
picture = fuse_files(["visible.png", "infrared.png"], task="ivf")
fused = fuse(sources, load_prior())  # (b, k, c, h, w) in [0, 1] -> (b, c, h, w)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dig2dig.api import fuse_files, preset
    from dig2dig.config import DigConfig, GuidanceConfig, SamplerConfig
    from dig2dig.errors import PriorError
    from dig2dig.fusion.gain import information_gain
    from dig2dig.fusion.guidance import Guidance, Step
    from dig2dig.fusion.plan import Snapshot
    from dig2dig.fusion.sampler import fuse
    from dig2dig.fusion.weight import fusion_weight
    from dig2dig.priors.build import save_prior
    from dig2dig.priors.denoiser import Denoiser
    from dig2dig.priors.load import load_prior

_HOMES = {
    "api": ("fuse_files", "preset"),
    "config": ("DigConfig", "GuidanceConfig", "SamplerConfig"),
    "errors": ("PriorError",),
    "fusion.gain": ("information_gain",),
    "fusion.guidance": ("Guidance", "Step"),
    "fusion.plan": ("Snapshot",),
    "fusion.sampler": ("fuse",),
    "fusion.weight": ("fusion_weight",),
    "priors.build": ("save_prior",),
    "priors.denoiser": ("Denoiser",),
    "priors.load": ("load_prior",),
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
    "fuse_files",
    "fusion_weight",
    "information_gain",
    "load_prior",
    "preset",
    "save_prior",
]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use: ``--help`` must not wait for torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dig2dig")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"dig2dig.{module}"), name)
    raise AttributeError(f"module 'dig2dig' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
