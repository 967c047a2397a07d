"""What better weights could bring to noisy focal planes: python -m docs.oracle.

The prior's estimates of noisy sources are fused with the weights of the clean ones, which no method knows.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dig2dig.benchmark.config import DegradedConfig
from dig2dig.benchmark.datasets import find_cases, read_case
from dig2dig.benchmark.degraded import degrade, make, prior_estimate
from dig2dig.benchmark.methods import Fuser, open_fuser, sampler_of
from dig2dig.benchmark.tables import markdown
from dig2dig.color import luminance
from dig2dig.config import SamplerConfig
from dig2dig.errors import exits_in_one_line
from dig2dig.fusion.guidance import Step, make_guidance
from dig2dig.fusion.sampler import fuse
from dig2dig.metrics import fusion_metrics
from dig2dig.priors.windows import pad
from dig2dig.shapes import Sources

METHODS = "dig2dig-noise", "prior+laplacian"
SHOWN = ("SD", "SF", "SCD", "VIF", "Qabf", "SSIM", "Nabf")


def with_weights_of(clean: Sources, estimates: Sources, fuser: Fuser, config: SamplerConfig) -> Tensor:
    """The preset on ``estimates``, weighted as ``clean`` sources are."""
    guide, shown = make_guidance(config), pad(2 * estimates - 1, fuser.denoiser.multiple)

    def swapped(x0_hat: Tensor, step: Step, state: Any) -> tuple[Tensor, Any]:
        return guide(x0_hat, replace(step, sources=shown), state)

    swapped.needs_estimate = swapped.needs_reconstructions = False  # pyright: ignore[reportFunctionMemberAccess]
    return fuse(clean, fuser.denoiser, config, fuser.seed, guidance=swapped)


def main() -> int:
    """Prints means over the second halves, 256 px, as the table of degraded sources has them."""
    config = DegradedConfig(half="second", crop=256, limit=2, datasets="multi_focus")
    fuser, preset = open_fuser(config), sampler_of("dig2dig", "mff", {})
    assert preset is not None
    cases, lines = find_cases(config.data, config.datasets, config.half, config.limit), []
    for sigma in (25.0, 50.0):
        found: dict[str, list[list[float]]] = {}
        for case in cases:
            sample = read_case(case, config.crop)
            clean, (noisy, level) = sample.sources[None], degrade(sample, sigma, config)
            (_, ours), (_, pyramid) = (make(name, "mff", config, fuser) for name in METHODS)
            ideal = fuse(clean, fuser.denoiser, preset, fuser.seed).clamp(0, 1)
            images = {
                "preset": ours(noisy, level),
                "preset, weights of the clean sources": with_weights_of(
                    clean, prior_estimate(noisy, level, fuser), fuser, preset
                ),
                "the prior's estimates, then a pyramid": pyramid(noisy, level),
            }
            for name, image in images.items():
                image = image.clamp(0, 1)
                scores = fusion_metrics(luminance(image), luminance(sample.sources)[None], names=SHOWN)
                psnr = -10 * (image - ideal).square().mean().log10()
                found.setdefault(name, []).append([*(float(scores[one]) for one in SHOWN), float(psnr)])
        means = {name: torch.tensor(values).mean(0).tolist() for name, values in found.items()}
        lines += [[f"{sigma:g}", name, *(f"{value:.4g}" for value in row)] for name, row in means.items()]
    print(markdown(["sigma", "method", *SHOWN, "PSNR to the preset, clean"], lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(exits_in_one_line(main)())
