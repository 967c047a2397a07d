"""``benchmark degraded``: noisy, compressed or blurred sources are fused, and measured against the clean ones."""

import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage.restoration import denoise_nl_means
from torch import Tensor
from tqdm import tqdm

from datamodules.pairs import Reading, Sample, pair_digest
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import DegradedConfig
from dig2dig.benchmark.datasets import Case, find_cases, names, noted, read_case
from dig2dig.benchmark.methods import DDFM, Fuser, hashed, open_fuser, sampler_of
from dig2dig.benchmark.tables import Row, Rows, collect, markdown, means_table
from dig2dig.color import luminance
from dig2dig.errors import UserError
from dig2dig.fusion import comparators
from dig2dig.fusion.noise import NoiseLevels, cleaned, denoise
from dig2dig.fusion.resample import smooth
from dig2dig.fusion.sampler import fuse
from dig2dig.fusion.weight import weights_sha256
from dig2dig.metrics import MAIN, fusion_metrics
from dig2dig.priors.schedule import draw_noise, generators
from dig2dig.priors.windows import pad
from dig2dig.shapes import Image, Sources
from dig2dig.tracking.panels import fusion_panel, to_png

Method = Callable[[Sources, NoiseLevels], Image]
Denoise = Callable[[Sources, NoiseLevels], Sources]


def run(config: DegradedConfig) -> int:
    """Fuses and scores all that an earlier run has not, and writes the tables."""
    cases = find_cases(config.data, config.datasets, config.half, config.limit)
    methods = [*names(config.methods), *config.variants]
    rows, fuser = Rows(Path(config.out) / "results.csv", ("dataset", "name", "method", "sigma")), open_fuser(config)
    for task, method in dict.fromkeys((case.task, method) for case in cases for method in methods):
        make(method, task, config, fuser)  # refuses what is no method of a task before any work
    two = {f"{one}{end}" for one, form in DDFM.items() if form == "code" for end in ("", "-noise", "-auto")}
    kept, failed = list[Row](), list[str]()
    for case in tqdm(cases, desc="pairs"):
        with noted(failed):
            sample, clean = read_case(case, config.crop), dict[str, Image]()
            fits = [method for method in methods if len(sample.sources) == 2 or method.split("+")[-1] not in two]
            for sigma in names(config.sigmas):
                kept += [score(case, sample, method, sigma, config, fuser, rows, clean) for method in fits]
        rows.save()
    rows.finish(kept, tables(kept, config))
    return int(bool(failed))


def degrade(sample: Sample, strength: float, config: DegradedConfig) -> tuple[Tensor, Tensor]:
    """Degraded sources (1, k, c, h, w), noise not clipped, and the deviation from the clean ones in each, (1, k).

    Thermal noise has half of its variance in proportion to the signal (0.5 has ``strength`` / 255), and each column an
    offset with a quarter of its deviation. A blur counts as no noise. A dark source has a quarter of the light.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{config.seed}/{sample.name}/{strength}".encode()))
    clean = sample.sources[None]
    noise = torch.randn(clean.shape, generator=generator) * strength / 255
    match config.kind:
        case "gaussian" | "dark":
            light, level = 0.25 if config.kind == "dark" else 1.0, torch.full(clean.shape[:2], strength / 255)
            degraded = light * clean + noise
        case "thermal":
            stripes = torch.randn((*clean.shape[:2], 1, 1, clean.shape[-1]), generator=generator) * strength / 255 / 4
            degraded = clean + noise * (0.5 + clean).sqrt() + stripes
            level = (degraded - clean).std((2, 3, 4))
        case "jpeg":
            degraded = compressed(clean, int(strength))
            level = (degraded - clean).std((2, 3, 4))
        case _:
            degraded, level = smooth(clean, strength), torch.zeros(1)
    chosen = torch.arange(clean.shape[1]) < (1 if config.noisy == "first" else clean.shape[1])
    return torch.where(chosen.view(1, -1, 1, 1, 1), degraded, clean), torch.where(chosen, level, 0.0).view(1, -1)


def compressed(sources: Sources, quality: int) -> Sources:
    """What JPEG leaves of each source, (1, k, c, h, w), grey or RGB in [0, 1]."""
    found = []
    for pixels in (255 * sources[0]).round().byte().permute(0, 2, 3, 1).numpy()[..., ::-1]:
        _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        found.append(np.atleast_3d(np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED)))[..., ::-1])
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)[None].to(sources) / 255


def score(
    case: Case,
    sample: Sample,
    method: str,
    sigma: str,
    config: DegradedConfig,
    fuser: Fuser,
    rows: Rows,
    clean: dict[str, Image],
) -> Row:
    """The row of one method, kept from an earlier run if nothing has changed; ``clean`` keeps results without noise.

    PSNR, in dB, is that of the result to the method's own result on the clean sources.
    """
    (settings, run_method), digest = make(method, case.task, config, fuser), pair_digest(case.pair, Reading())
    key = hashed(settings, config.kind, config.noisy, config.crop, config.seed, fuser.identity, digest)
    identity = (case.dataset, case.pair.name, method, sigma)
    if known := rows.find(*identity, key=key):
        return known
    noisy, level = degrade(sample, float(sigma), config)
    fused = fuser(noisy, lambda sources: run_method(sources, level.to(fuser.device)))
    image = fused.image.clamp(0, 1)
    if method not in clean:
        known = method if method in config.variants else method.replace("-auto", "-noise")
        _, plain = make(known, case.task, config, fuser)
        no_noise = torch.zeros_like(level).to(fuser.device)
        clean[method] = fuser(sample.sources[None], lambda sources: plain(sources, no_noise)).image.clamp(0, 1)
    picture = Path(config.out) / "pictures" / case.dataset / f"{case.pair.name}_{sigma}_{method}.png"
    write_atomically(picture, to_png(fusion_panel(noisy[0], image[0], sample.modalities)))
    scores = fusion_metrics(luminance(image), luminance(sample.sources)[None])
    psnr = -10 * (image - clean[method]).square().mean().log10()
    row = {"task": case.task, "key": key, "PSNR": f"{float(psnr):.2f}"} | fused.cost
    return rows.put(*identity, row=row | {name: f"{float(value):.7g}" for name, value in scores.items()})


def make(method: str, task: str, config: DegradedConfig, fuser: Fuser) -> tuple[str, Method]:
    """Settings and function of a method: blind, given the noise, estimating it, or denoising first."""
    first, _, then = method.partition("+")
    if then and first in (denoisers := DENOISERS | {"prior": partial(prior_estimate, fuser=fuser)}):
        settings, after = make(then, task, config, fuser)
        return f"{first}+{settings}", lambda sources, level: after(denoisers[first](sources, level), 0 * level)
    if method in comparators.CLASSICAL:
        return method, (lambda sources, level: comparators.CLASSICAL[method](sources))
    ending = next((ending for ending in ("-noise", "-auto") if method.endswith(ending)), "")
    if method in config.variants:
        ending, sampler = "-noise", sampler_of(method, task, config.variants)
    else:
        sampler = sampler_of(method.removesuffix(ending), task, {})
    if sampler is None:
        raise UserError(f"methods: '{method}' has no prior, and so no use for the noise")

    def ours(sources: Sources, level: NoiseLevels) -> Image:
        noise = level * (ending == "-noise")
        if ending == "-auto":
            sources, noise, _ = cleaned(sources, [""] * sources.shape[1], {"": "auto"})
        return fuse(sources, fuser.denoiser, sampler, fuser.seed, noise=noise)

    return repr((sampler, ending, weights_sha256(sampler.weights))), ours


def prior_estimate(sources: Sources, level: NoiseLevels, fuser: Fuser) -> Sources:
    """The prior's one-step estimate of each source."""
    h, w = sources.shape[-2:]
    padded = pad(2 * sources - 1, fuser.denoiser.multiple)
    shape = (fuser.denoiser.channels, *padded.shape[-2:])
    fresh = draw_noise(shape, generators(fuser.seed, len(sources)), padded)
    with torch.no_grad():
        return (denoise(padded, level, fuser.denoiser, fresh)[..., :h, :w] + 1) / 2


def non_local_means(sources: Sources, level: NoiseLevels) -> Sources:
    """Non-local means (Buades, Coll and Morel, 2005) of each source, with h = 0.8 sigma as scikit-image recommends."""
    grey = sources.shape[2] == 1
    clean = partial(denoise_nl_means, patch_size=5, patch_distance=6, fast_mode=True, channel_axis=None if grey else 0)
    images = sources.flatten(0, 2 if grey else 1).cpu().numpy()
    pairs = zip(images, level.flatten().tolist(), strict=True)
    cleaned = [clean(image, h=0.8 * sigma, sigma=sigma) if sigma else image for image, sigma in pairs]
    return torch.from_numpy(np.stack(cleaned)).to(sources).view(sources.shape)


DENOISERS: dict[str, Denoise] = {"nlm": non_local_means}  # what may come before a method, as in nlm+laplacian


def tables(rows: list[Row], config: DegradedConfig) -> str:
    """By task and noise level: means, ranks, and on how many metrics each method has the best mean."""
    parts = [
        f"Degraded ({config.kind}): {config.noisy} sources. Metrics are against the clean sources, PSNR in dB to the "
        "method's own result on them.\n"
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        for sigma in names(config.sigmas):
            shown = [row for row in rows if (row["task"], row["sigma"]) == (task, sigma)]
            count = len({(row["dataset"], row["name"]) for row in shown})
            scores = collect(shown)
            best = scores.signed.mean(1).argmax(0)
            won = {method: np.array(scores.metrics)[best == i] for i, method in enumerate(scores.methods)}
            lines = [[method, str(len(metrics)), ", ".join(metrics)] for method, metrics in won.items() if len(metrics)]
            parts += [f"## {task}, sigma {sigma} ({count} pairs or stacks)\n", means_table(scores)]
            parts.append(markdown(["method", f"best of {len(MAIN)}", "on"], lines))
    return "\n".join(parts)
