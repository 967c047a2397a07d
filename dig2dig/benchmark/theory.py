"""``benchmark theory``: the paper's bound, measured where the ideal image is known.

The generalisation error is bounded by :math:`C - \\sum_{t,k} \\mathrm{Cov}(w_k, B_k)`: weights that follow the
contribution of a source should give a smaller error. Both sides are measured on pairs with a known ideal image.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from datamodules.readers.pixels import list_images, read_image
from datamodules.readers.source import source_digest
from dig2dig.api import preset
from dig2dig.benchmark.config import TheoryConfig
from dig2dig.benchmark.datasets import centre
from dig2dig.benchmark.methods import SCOPES, hashed, open_fuser
from dig2dig.benchmark.tables import Row, Rows, markdown
from dig2dig.config import SamplerConfig
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.resample import smooth
from dig2dig.fusion.sampler import fuse
from dig2dig.fusion.statistics import dig_statistics
from dig2dig.fusion.weight import weights_sha256
from dig2dig.priors.denoiser import Denoiser


def run(config: TheoryConfig) -> int:
    """Fuses every photograph's variants with every method, and writes rows and tables."""
    photos, out = list_images(config.data)[: config.limit or None], Path(config.out)
    rows, kept = Rows(out / "results.csv", ("scene", "photo", "method")), []
    fuser = open_fuser(config)
    for index, photo in enumerate(tqdm(photos, desc="photos")):
        known = source_digest(photo), index, fuser.identity  # the noise goes by the index
        pixels = torch.from_numpy(read_image(photo, "RGB").copy()).permute(2, 0, 1).float() / 255
        ideal = centre(pixels, config.crop).to(fuser.device)[None]
        for scene, sources in make_scenes(ideal, config, index).items():
            for method, sampler in methods(config).items():
                learned = weights_sha256(sampler.weights)
                key = hashed(sampler, learned, config.crop, config.blur, config.sigma, config.seed, known)
                row = rows.find(scene, str(photo), method, key=key)
                row = row or {"key": key} | measure_bound(sources, ideal, fuser.denoiser, sampler, config.seed)
                kept.append(rows.put(scene, str(photo), method, row=row))
        rows.save()
    rows.finish(kept, tables(kept))
    return 0


def make_scenes(ideal: Tensor, config: TheoryConfig, index: int) -> dict[str, Tensor]:
    """Two sources of an ideal image (1, 3, h, w), each degraded where the other is not, by defocus or noise."""
    generator = torch.Generator().manual_seed(config.seed * 100003 + index)
    field = torch.randn((1, 1, 1, *ideal.shape[-2:]), generator=generator).to(ideal)
    near = (smooth(field, ideal.shape[-1] / 8)[:, 0] > 0).float()  # two regions with a winding border
    blurred = smooth(ideal[:, None], config.blur)[:, 0]
    noise = torch.randn((2, *ideal.shape), generator=generator).to(ideal) * config.sigma / 255
    defocused = [near * ideal + (1 - near) * blurred, near * blurred + (1 - near) * ideal]
    noisy = [ideal + (1 - near) * noise[0], ideal + near * noise[1]]
    return {name: torch.stack(pair, 1).clamp(0, 1) for name, pair in (("defocus", defocused), ("noise", noisy))}


def methods(config: TheoryConfig) -> dict[str, SamplerConfig]:
    """The multi-focus preset, its ablations in space and time, its other kinds and losses, and the plain blend."""
    changes = {"dig2dig": ""} | SCOPES
    changes |= {f"kind {kind}": f"sampler.dig.kind={kind}" for kind in ("gain", "change", "residual")}
    changes |= {f"loss {loss}": f"sampler.dig.loss={loss}" for loss in ("l2", "l1", "gradient")}
    changes |= {guidance: f"sampler.guidance.kind={guidance}" for guidance in ("blend", "increments")}
    return {name: preset("mff", *change.split()) for name, change in (changes | config.variants).items()}


def measure_bound(sources: Tensor, ideal: Tensor, denoiser: Denoiser, sampler: SamplerConfig, seed: int) -> Row:
    """Covariance of weights and contributions in each step, summed over sources, and the final squared error."""
    trace: list[Snapshot] = []
    fused = fuse(sources, denoiser, sampler, seed, observe=trace.append)
    covariance = dig_statistics(trace, sources, ideal).covariance.sum(1)
    error = float((fused - ideal).square().mean())
    numbers = {"error": f"{error:.7g}", "psnr": f"{-10 * np.log10(error):.3f}"}
    steps = {f"step_{i}": f"{float(value):.7g}" for i, value in enumerate(covariance)}
    return numbers | {"covariance": f"{float(covariance.sum()):.7g}"} | steps


def tables(rows: list[Row]) -> str:
    """Covariance and error of each method, and their rank correlations over methods and over photographs."""
    parts = ["Covariance of weight and guidance contribution, summed over sources and steps, images in [-1, 1].\n"]
    for scene, shown in pd.DataFrame(rows).groupby("scene", sort=False):
        names, photos = list(shown["method"].unique()), len(shown["photo"].unique())
        steps = [column for column in rows[0] if column.startswith("step_")]
        table = shown.set_index(["method", "photo"])[["psnr", "covariance", *steps]].replace("", "0").fillna("0")
        values = table.astype(float).to_numpy().reshape(photos, len(names), -1).transpose(2, 1, 0)  # rows go by photo
        psnr, covariance, by_step = values[0], values[1], values[2:].mean(-1)
        lines = []
        for i in np.argsort(-psnr.mean(1)):
            cells = [f"{psnr[i].mean():.2f}", f"{covariance[i].mean():.4f}", spearman(covariance[i], -psnr[i])]
            lines.append([names[i], *cells, *(f"{step:.4f}" for step in by_step[:, i])])
        header = ["method", "PSNR, dB", "Cov", "rank correlation with the error over photos", *steps]
        within = (spearman(covariance[:, j], -psnr[:, j]) for j in range(photos))
        numbers = [float(one) for one in within if one]
        parts += [f"## {scene} ({photos} photographs)\n", markdown(header, lines)]
        parts.append(
            f"Rank correlation of Cov and final error over the {len(names)} methods, mean over photographs: "
            f"**{np.mean(numbers):+.2f}** (negative in {sum(n < 0 for n in numbers)} of {len(numbers)}).\n"
        )
    return "\n".join(parts)


def spearman(a: np.ndarray, b: np.ndarray) -> str:
    """Spearman's rank correlation; empty where one side is constant."""
    if np.ptp(a) < 1e-12 or np.ptp(b) < 1e-12:
        return ""
    return f"{float(np.asarray(spearmanr(a, b))[0]):+.2f}"
