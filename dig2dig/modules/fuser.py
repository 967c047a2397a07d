"""Fuses what was read, sample by sample or together, and copes with too little memory. No Lightning."""

import time
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from datamodules.pairs import Failure, Sample
from dig2dig.color import merge
from dig2dig.config import FusionConfig
from dig2dig.fusion.noise import NoiseLevels, clean_chroma, cleaned
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.sampler import fuse
from dig2dig.fusion.weight import WeightNetwork
from dig2dig.modules.results import Result, Tracing, among, failed
from dig2dig.priors.denoiser import Denoiser

SMALL_WINDOW = 192  # side of the windows where memory ran out, pixels: enough around each pixel for networks


def pair_seed(seed: int, name: str) -> int:
    """The seed of one pair's noise: from the run's seed and its name, whatever else is fused with it."""
    return zlib.crc32(f"{seed}/{name}".encode(errors="surrogateescape"))


class Fuser:
    """Fuses samples with a prior as a configuration says, and keeps of the steps what ``tracing`` asks for."""

    def __init__(
        self,
        denoiser: Denoiser,
        config: FusionConfig,
        tracing: Tracing | None = None,
        weights: WeightNetwork | None = None,
    ) -> None:
        self.denoiser, self.config, self.tracing, self.weights = denoiser, config, tracing or Tracing(), weights

    def __call__(self, batch: Sequence[Sample | Failure], device: torch.device) -> list[Result]:
        """Fuses a batch, samples of one shape and modalities together where that may be; failures pass through."""
        results = [Result(item.name, reason=item.reason) for item in batch if isinstance(item, Failure)]
        alike: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
        for item in batch:
            if isinstance(item, Sample):
                alone = self.config.sampler.grid == "gain" or among(item.name, self.tracing.estimates)
                alike[item.name if alone else "", item.sources.shape, item.modalities].append(item)
        return results + [result for samples in alike.values() for result in self.fuse(samples, device)]

    def fuse(self, samples: Sequence[Sample], device: torch.device) -> list[Result]:
        """Fuses samples of one shape and the same modalities; where memory runs out, one by one in small windows."""
        try:
            return self._fuse(samples, device, self.denoiser)
        except (ValueError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                if isinstance(error, ValueError):  # options do not fit these sources
                    return [failed(sample, error) for sample in samples]
                raise
        if len(samples) > 1:
            return [result for sample in samples for result in self.fuse([sample], device)]
        torch.cuda.empty_cache()
        try:
            (result,) = self._fuse(samples, device, self.denoiser.in_windows(SMALL_WINDOW))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            height, width = samples[0].sources.shape[-2:]
            return [failed(samples[0], f"{width}x{height} pixels do not fit into memory; make them smaller")]
        return [replace(result, note=joined(result.note, "memory ran out: fused in small windows"))]

    def _fuse(self, samples: Sequence[Sample], device: torch.device, denoiser: Denoiser) -> list[Result]:
        started, config, tracing, trace = time.perf_counter(), self.config, self.tracing, list[Snapshot]()
        seeds = [pair_seed(config.seed, sample.series or sample.name) for sample in samples]
        sources = together([sample.sources for sample in samples]).to(device)
        valid = None
        if any(sample.valid is not None for sample in samples):
            every = [torch.ones_like(one.sources[:, :1], dtype=torch.bool) for one in samples if one.valid is None]
            valid = together([every.pop() if one.valid is None else one.valid for one in samples]).to(device)
        traced = [among(sample.name, tracing.names) for sample in samples]

        def keep(step: Snapshot) -> None:
            trace.append(step)
            if tracing.watch:
                tracing.watch(step)

        factors = [config.prefer.get(modality, 1.0) for modality in samples[0].modalities]
        sampler = replace(config.sampler, prefer=factors) if config.prefer else config.sampler
        sources, noise, told = cleaned(sources, samples[0].modalities, config.noise, valid)
        fused = fuse(
            sources,
            denoiser,
            sampler,
            seeds,
            observe=keep if any(traced) or tracing.watch else None,
            noise=noise,
            estimates=any(among(sample.name, tracing.estimates) for sample in samples),
            weights=self.weights,
            valid=valid,
            side=tracing.side,
        )
        chromas = [chroma_of(sample, fused[i], noise, i, denoiser, seeds[i]) for i, sample in enumerate(samples)]
        fused = fused.cpu()
        seconds = (time.perf_counter() - started) / len(samples)
        results = []
        for i, sample in enumerate(samples):
            steps = [step.of(i) for step in trace] if traced[i] else []
            chroma, found = chromas[i]
            image, notes = merge(fused[i], chroma), [sample.note, *told[i], *found]
            if traced[i] and not steps and tracing.side is None:
                notes.append("no maps: the sources of a tall stack are read one by one")
            result = Result(sample.name, sample, image, fused[i], seconds, seeds[i], steps, note=joined(*notes))
            finite = bool(fused[i].isfinite().all())
            results.append(result if finite else failed(sample, "the prior gives numbers that are not finite"))
        return results


def chroma_of(
    sample: Sample, fused: Tensor, noise: NoiseLevels | None, i: int, denoiser: Denoiser, seed: int
) -> tuple[Tensor | None, list[str]]:
    """The chroma beside the fused luminance of image ``i``, without noise if a source in colour has some, and notes."""
    levels = [] if noise is None else zip(sample.modalities, noise[i].cpu().tolist(), strict=True)
    if sample.chroma is None or not any(level > 0 and modality in sample.coloured for modality, level in levels):
        return sample.chroma, []
    valid = None if sample.valid is None else sample.valid.any(0).to(fused.device)
    chroma, told = clean_chroma(fused, sample.chroma.to(fused.device), denoiser, seed, valid)
    return chroma.cpu(), told


def together(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape along a new first axis; one alone without a copy."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0][None]


def joined(*notes: str) -> str:
    """Notes in one line, empty ones left out."""
    return "; ".join(filter(None, notes))


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which torch reports in several ways."""
    texts = ("can't allocate memory", "not enough memory", "MPS backend out of memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in texts)
