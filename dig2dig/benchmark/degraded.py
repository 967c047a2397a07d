"""``benchmark degraded``: noisy sources are fused, and the result is measured against the clean ones."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from skimage.restoration import denoise_nl_means
from torch import Tensor
from tqdm import tqdm

from datamodules.pairs import Reading, Sample, pair_digest
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import DegradedConfig
from dig2dig.benchmark.datasets import Case, Failures, find_cases, names, read_case
from dig2dig.benchmark.methods import Fuser, hashed, open_fuser, sampler_of
from dig2dig.benchmark.rows import Row, Rows
from dig2dig.benchmark.tables import collect, markdown, means_table
from dig2dig.color import luminance
from dig2dig.config import SamplerConfig
from dig2dig.errors import MethodError
from dig2dig.fusion import comparators as baselines
from dig2dig.fusion.noise import NoiseLevels, denoise, estimate_noise
from dig2dig.fusion.sampler import fuse
from dig2dig.metrics import MAIN, fusion_metrics
from dig2dig.priors.schedule import draw_noise, generators
from dig2dig.priors.windows import crop, pad
from dig2dig.shapes import Image, Sources
from dig2dig.tracking.panels import fusion_panel, to_png

IDENTITY = ("dataset", "name", "method", "sigma")
ENDINGS = ("-noise", "-auto")
"""Endings of methods that are told the noise, or estimate it."""


def run(config: DegradedConfig) -> int:
    """Fuses what is not yet fused, and writes the tables."""
    cases = find_cases(config.data, config.datasets, config.half, config.limit)
    out, methods = Path(config.out), [*names(config.methods), *config.variants]
    rows = Rows(out / "results.csv", IDENTITY)
    fuser = open_fuser(config.prior, config.seed, config.device)
    for method in methods:
        make(method, "ivf", config, fuser)  # an unknown name is told before any work
    kept: list[Row] = []
    failed = Failures()
    for case in tqdm(cases, desc="pairs"):
        with failed.told():
            sample = read_case(case, config.crop)
            for sigma in names(config.sigmas):
                kept += [score(case, sample, method, sigma, config, fuser, rows) for method in methods]
        rows.save()
    write_atomically(out / "table.md", tables(kept, config).encode())
    print(f"{len(kept)} rows in {out / 'results.csv'}, tables in {out / 'table.md'}")
    return failed.exit_code


def add_gaussian(sample: Sample, sigma: float, which: str, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy sources (1, k, c, h, w), not clipped, and the level of the noise in each (1, k), for images in [0, 1]."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{sample.name}/{sigma}".encode()))
    level = torch.full((1, len(sample.sources)), sigma / 255)
    if which == "first":
        level[:, 1:] = 0
    clean = sample.sources[None]
    return clean + torch.randn(clean.shape, generator=generator) * level.view(1, -1, 1, 1, 1), level


def score(case: Case, sample: Sample, method: str, sigma: str, config: DegradedConfig, fuser: Fuser, rows: Rows) -> Row:
    """The row of one method, kept from an earlier run if nothing has changed."""
    task_method = make(method, case.task, config, fuser)
    key = hashed(
        task_method.told, config.noisy, config.crop, config.seed, fuser.identity, pair_digest(case.pair, Reading())
    )
    identity = (case.dataset, case.pair.name, method, sigma)
    known = rows.find(*identity)
    if known and known["key"] == key:
        return known
    noisy, level = add_gaussian(sample, float(sigma), config.noisy, config.seed)
    fused = fuser(noisy, lambda sources: task_method.fuse(sources, level.to(fuser.device)))
    image = fused.image.clamp(0, 1)
    panel = fusion_panel(noisy[0], image[0], sample.modalities)
    picture = Path(config.out) / "pictures" / case.dataset / f"{case.pair.name}_{sigma}_{method}.png"
    write_atomically(picture, to_png(panel))
    scores = fusion_metrics(luminance(image), luminance(sample.sources)[None])
    row = {"task": case.task, "key": key, "seconds": f"{fused.seconds:.3f}", "evaluations": str(fused.evaluations)}
    return rows.put(*identity, row | {name: f"{float(value):.7g}" for name, value in scores.items()})


@dataclass(frozen=True)
class Method:
    """A way from noisy sources to a fused image.

    Attributes:
        told: What identifies its settings.
        fuse: Takes sources and their noise levels.
    """

    told: str
    fuse: Callable[[Sources, NoiseLevels], Image]


def make(method: str, task: str, config: DegradedConfig, fuser: Fuser) -> Method:
    """The method of a name: blind, told the noise, or denoising first.

    Raises:
        MethodError: There is none of this name.
    """
    first, _, then = method.partition("+")
    if then in baselines.CLASSICAL and first in ("nlm", "prior"):
        clean = non_local_means if first == "nlm" else partial(prior_estimate, fuser=fuser)
        return Method(method, lambda sources, level: baselines.CLASSICAL[then](clean(sources, level)))
    if method in baselines.CLASSICAL:
        return Method(method, lambda sources, level: baselines.CLASSICAL[method](sources))
    ending = next((ending for ending in ENDINGS if method.endswith(ending)), "")
    if method in config.variants:
        ending, sampler = "-noise", sampler_of(method, task, config.variants)
    else:
        sampler = sampler_of(method.removesuffix(ending), task, {})
    if sampler is None:
        raise MethodError(f"methods: '{method}' has no prior that could be told the noise")
    return Method(repr((sampler, ending)), partial(fuse_ours, sampler=sampler, ending=ending, fuser=fuser))


def fuse_ours(sources: Sources, level: NoiseLevels, *, sampler: SamplerConfig, ending: str, fuser: Fuser) -> Image:
    """Our sampler: blind, told the noise, or estimating it."""
    blind = torch.zeros_like(level)
    noise = {"-noise": lambda: level, "-auto": lambda: estimate_noise(sources), "": lambda: blind}[ending]()
    return fuse(sources, fuser.denoiser, sampler, fuser.seed, noise=noise)


def prior_estimate(sources: Sources, level: NoiseLevels, fuser: Fuser) -> Sources:
    """The prior's one-step estimate of each source."""
    h, w = sources.shape[-2:]
    padded = pad(2 * sources - 1, fuser.denoiser.multiple)
    shape = (fuser.denoiser.channels, *padded.shape[-2:])
    fresh = draw_noise(shape, generators(fuser.seed, len(sources)), padded)
    with torch.no_grad():
        return crop((denoise(padded, level, fuser.denoiser, fresh) + 1) / 2, h, w)


def non_local_means(sources: Sources, level: NoiseLevels) -> Sources:
    """Non-local means of each source, told the noise: patches of 5 px in windows of 13 px, h = 0.8 sigma.

    References:
        Buades, Coll and Morel, "A non-local algorithm for image denoising", 2005; h as scikit-image recommends.
    """

    def clean(image: np.ndarray, sigma: float) -> np.ndarray:
        grey = len(image) == 1
        return np.reshape(
            denoise_nl_means(
                image[0] if grey else image,
                5,
                6,
                h=0.8 * sigma,
                sigma=sigma,
                fast_mode=True,
                channel_axis=None if grey else 0,
            ),
            image.shape,
        )

    images, sigmas = sources.flatten(0, 1).cpu().numpy(), level.flatten().tolist()
    cleaned = [clean(image, sigma) if sigma else image for image, sigma in zip(images, sigmas, strict=True)]
    return torch.from_numpy(np.stack(cleaned)).to(sources).view(sources.shape)


def tables(rows: list[Row], config: DegradedConfig) -> str:
    """By task and noise level: means, ranks, and on how many metrics each method has the best mean."""
    parts = [f"Noise on {config.noisy} sources; metrics against the clean sources.\n"]
    for task in dict.fromkeys(row["task"] for row in rows):
        for sigma in names(config.sigmas):
            shown = [row for row in rows if (row["task"], row["sigma"]) == (task, sigma)]
            count = len({(row["dataset"], row["name"]) for row in shown})
            scores = collect(shown)
            best = scores.signed.mean(1).argmax(0)
            lines = [
                [method, str(int((best == i).sum())), ", ".join(np.array(scores.metrics)[best == i])]
                for i, method in enumerate(scores.methods)
                if (best == i).any()
            ]
            parts += [f"## {task}, sigma {sigma} ({count} pairs or stacks)\n", means_table(scores)]
            parts.append(markdown(["method", f"best of {len(MAIN)}", "on"], lines))
    return "\n".join(parts)
