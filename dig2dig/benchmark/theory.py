"""``benchmark theory``: the paper's bound, measured where the ideal image is known.

The generalisation error is bounded by :math:`C - \\sum_{t,k} \\mathrm{Cov}(w_k, B_k)`: weights that go with what a
source can still contribute should end nearer to the ideal. Both sides are measured here, on pairs made from sharp
photographs.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from datamodules.readers.pixels import list_images, read_image
from dig2dig.api import preset
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import TheoryConfig
from dig2dig.benchmark.datasets import centre
from dig2dig.benchmark.methods import SCOPES, hashed, open_fuser
from dig2dig.benchmark.rows import Row, Rows
from dig2dig.benchmark.tables import markdown
from dig2dig.config import SamplerConfig
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.resample import smooth
from dig2dig.fusion.sampler import fuse
from dig2dig.fusion.statistics import dig_statistics
from dig2dig.priors.denoiser import Denoiser

IDENTITY = ("scene", "photo", "method")


def run(config: TheoryConfig) -> int:
    """Fuses every photograph's variants with every method, and writes rows, tables and plots."""
    photos, out = list_images(config.data)[: config.limit or None], Path(config.out)
    rows, kept = Rows(out / "results.csv", IDENTITY), []
    fuser = open_fuser(config.prior, config.seed, config.device)
    for index, photo in enumerate(tqdm(photos, desc="photos")):
        pixels = torch.from_numpy(read_image(photo, "RGB").copy()).permute(2, 0, 1).float() / 255
        ideal = centre(pixels, config.crop).to(fuser.device)[None]
        for scene, sources in make_scenes(ideal, config, index).items():
            for method, sampler in methods(config).items():
                key = hashed(sampler, config.crop, config.blur, config.sigma, config.seed, fuser.identity, photo.name)
                known = rows.find(scene, photo.stem, method)
                if not (known and known["key"] == key):
                    measured = measure_bound(sources, ideal, fuser.denoiser, sampler, config.seed)
                    known = rows.put(scene, photo.stem, method, {"key": key} | measured)
                kept.append(known)
        rows.save()
    write_atomically(out / "table.md", tables(kept).encode())
    plot(kept, out / "covariance.png")
    print(f"{len(kept)} rows in {out / 'results.csv'}, tables in {out / 'table.md'}")
    return 0


def make_scenes(ideal: Tensor, config: TheoryConfig, index: int) -> dict[str, Tensor]:
    """Two sources of an ideal image (1, 3, h, w), each spoilt where the other is not, by what spoils them."""
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
    ours = preset("mff")
    found = {"dig2dig": ours} | {name: preset("mff", change) for name, change in SCOPES.items()}
    for kind in ("gain", "change", "residual"):
        found[f"kind {kind}"] = replace(ours, dig=replace(ours.dig, kind=kind))
    for loss in ("l2", "l1", "gradient"):
        found[f"loss {loss}"] = replace(ours, dig=replace(ours.dig, loss=loss))
    for guidance in ("blend", "increments"):
        found[guidance] = replace(ours, guidance=replace(ours.guidance, kind=guidance))
    return found | {name: preset("mff", *overrides.split()) for name, overrides in config.variants.items()}


def measure_bound(sources: Tensor, ideal: Tensor, denoiser: Denoiser, sampler: SamplerConfig, seed: int) -> Row:
    """Covariance of weights and contributions in each step, summed over sources, and the final squared error."""
    trace: list[Snapshot] = []
    fused = fuse(sources, denoiser, sampler, seed, observe=trace.append)
    covariance = dig_statistics(trace, sources, ideal).covariance.sum(1)
    error = float((fused - ideal).square().mean())
    row = {
        "error": f"{error:.7g}",
        "psnr": f"{-10 * np.log10(error):.3f}",
        "covariance": f"{float(covariance.sum()):.7g}",
    }
    return row | {f"step_{i}": f"{float(value):.7g}" for i, value in enumerate(covariance)}


def tables(rows: list[Row]) -> str:
    """Covariance and error of each method, and their rank correlations over methods and over photographs."""
    parts = ["Covariance of weight and guidance contribution, summed over sources and steps, images in [-1, 1].\n"]
    for scene in dict.fromkeys(row["scene"] for row in rows):
        shown = [row for row in rows if row["scene"] == scene]
        names, photos = (list(dict.fromkeys(row[c] for row in shown)) for c in ("method", "photo"))
        value = {(row["method"], row["photo"]): row for row in shown}
        table = {c: np.array([[float(value[m, p][c]) for p in photos] for m in names]) for c in ("covariance", "psnr")}
        error = -table["psnr"]
        steps = [column for column in shown[0] if column.startswith("step_")]
        lines = []
        for i in np.argsort(-table["psnr"].mean(1)):
            by_step = [np.mean([float(value[names[i], p].get(s) or 0) for p in photos]) for s in steps]
            over = spearman(table["covariance"][i], error[i])
            cells = [f"{table['psnr'][i].mean():.2f}", f"{table['covariance'][i].mean():.4f}", over]
            lines.append([names[i], *cells, *(f"{step:.4f}" for step in by_step)])
        header = ["method", "PSNR, dB", "Cov", "rank correlation with the error over photos", *steps]
        within = [spearman(table["covariance"][:, j], error[:, j]) for j in range(len(photos))]
        parts += [f"## {scene} ({len(photos)} photographs)\n", markdown(header, lines)]
        numbers = [float(one) for one in within if one]
        parts.append(
            f"Rank correlation of Cov and final error over the {len(names)} methods, mean over photographs: "
            f"**{np.mean(numbers):+.2f}** (negative in {sum(n < 0 for n in numbers)} of {len(numbers)}).\n"
        )
    return "\n".join(parts)


def spearman(a: np.ndarray, b: np.ndarray) -> str:
    """Spearman's rank correlation; nothing where one side is constant."""
    if np.ptp(a) < 1e-12 or np.ptp(b) < 1e-12:
        return ""
    return f"{float(np.asarray(spearmanr(a, b))[0]):+.2f}"


def plot(rows: list[Row], path: Path) -> None:
    """Covariance against PSNR, one point for each photograph and method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scenes = list(dict.fromkeys(row["scene"] for row in rows))
    figure = Figure(figsize=(5.5 * len(scenes), 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, scene in zip(figure.subplots(1, len(scenes), squeeze=False)[0], scenes, strict=True):
        for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            points = [
                (float(r["covariance"]), float(r["psnr"])) for r in rows if (r["scene"], r["method"]) == (scene, method)
            ]
            axis.plot(*zip(*points, strict=True), "os^vD<>ph*x+"[i % 12], ms=4, label=method)
        axis.set_title(scene, fontsize=10)
        axis.set_xlabel("summed covariance of weight and contribution")
        axis.set_ylabel("PSNR against the ideal, dB")
        axis.legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
