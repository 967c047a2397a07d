"""A pull to the prior where it disagrees with the sources by more than noise explains, and nowhere else.

``python -m docs.residual`` prints mean ranks and metrics of the presets, of the plain pull, and of this one.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from tqdm import tqdm

from dig2dig.benchmark.config import DegradedConfig
from dig2dig.benchmark.datasets import find_cases, read_case
from dig2dig.benchmark.degraded import degrade
from dig2dig.benchmark.methods import open_fuser, sampler_of
from dig2dig.benchmark.tables import Row, collect, means_table
from dig2dig.color import luminance
from dig2dig.errors import exits_in_one_line
from dig2dig.fusion.guidance import Guidance, Step, make_guidance, proximal
from dig2dig.fusion.resample import smooth
from dig2dig.fusion.sampler import fuse
from dig2dig.metrics import fusion_metrics

SOURCES = {"clean": ("gaussian", 0.0), "JPEG of quality 20": ("jpeg", 20.0), "noise of 10": ("gaussian", 10.0)}
LEVELS = 0.02, 0.05, 0.1
WIDTH = 2.0  # pixels around each one in which the disagreement is averaged


def residual(x0_hat: Tensor, step: Step, state: Any, *, plain: Guidance, sigma_n: float) -> tuple[Tensor, Any]:
    r"""The pull of ``proximal``, times the share of the disagreement that a noise of sigma_n in the target leaves open.

    .. math:: x' = m + g\,\frac{\rho_t}{\rho_t + 1}\,(\hat x_0 - m), \qquad
              g = \max\Big(0,\ 1 - \frac{\sigma_n^2}{G |\hat x_0 - m|^2}\Big)
    """
    target, state = plain(x0_hat, step, state)
    difference = x0_hat - target
    energy = smooth(difference.square().mean(1, keepdim=True)[:, None], WIDTH)[:, 0]
    gate = (1 - sigma_n**2 / (energy + 1e-12)).clamp(min=0)
    return proximal(target + gate * difference, target, step.sigma, sigma_n), state


residual.needs_reconstructions = False  # pyright: ignore[reportFunctionMemberAccess]


def main() -> int:
    """Fuses pairs of the second halves, 256 px, and prints a table for each task and kind of sources."""
    config = DegradedConfig(half="second", crop=256, limit=2)
    fuser, rows = open_fuser(config), dict[tuple[str, str], list[Row]]()
    for case in tqdm(find_cases(config.data, config.datasets, config.half, config.limit)):
        sample, preset = read_case(case, config.crop), sampler_of("dig2dig", case.task, {})
        assert preset is not None
        methods: dict[str, Guidance] = {"preset": make_guidance(preset)}
        for level in LEVELS:
            methods[f"pull {level}"] = make_guidance(replace(preset, guidance=replace(preset.guidance, sigma_n=level)))
            methods[f"residual {level}"] = partial(residual, plain=methods["preset"], sigma_n=level)
        for kind, (degradation, strength) in SOURCES.items():
            shown, _ = degrade(sample, strength, replace(config, kind=degradation))
            for name, guide in methods.items():
                image = fuse(shown.clamp(0, 1), fuser.denoiser, preset, fuser.seed, guide).clamp(0, 1)
                scores = fusion_metrics(luminance(image), luminance(sample.sources)[None])
                row = {"dataset": case.dataset, "name": case.pair.name, "method": name}
                row |= {metric: f"{float(value):.7g}" for metric, value in scores.items()}
                rows.setdefault((case.task, kind), []).append(row)
    for (task, kind), found in sorted(rows.items()):
        print(f"## {task}, {kind}\n\n{means_table(collect(found))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(exits_in_one_line(main)())
