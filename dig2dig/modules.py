"""Lightning modules: fusing with a prior, and training one."""

import math
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import ModuleList
from torchmetrics.aggregation import RunningMean

from datamodules.pairs import Failure, Sample
from dig2dig.color import merge
from dig2dig.config import SamplerConfig
from dig2dig.config_train import OptimConfig
from dig2dig.fusion.noise import noise_levels
from dig2dig.fusion.sampler import Snapshot, fuse
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.files import PriorError
from dig2dig.priors.load import offload
from dig2dig.priors.loss import diffusion_loss, draw_times, loss_weight, psnr_by_noise
from dig2dig.priors.schedule import draw_noise, generators, noise_level

_EDGES = (0.0, 0.1, 0.3, 1.0, 3.0, math.inf)
NOISE_BANDS = {f"{low:g}-{high:g}": (low, high) for low, high in pairwise(_EDGES)}
"""Bands of noise levels, for images in [-1, 1], by which the training loss is logged."""


@dataclass(frozen=True)
class Result:
    """What became of one pair.

    Attributes:
        name: Name of the pair.
        image: The fused picture, (1 or 3, h, w) in [0, 1]; None if it failed.
        fused: The channels that were fused, before they got their colour back.
        modalities: Names of the sources.
        seconds: Time it took; a batch's time is shared equally.
        seed: Seed of its noise.
        trace: Every step of the sampling, if asked for.
        reason: Why it failed.
        depth: Bits of a channel that the picture's file should have.
        suffix: Format of the reference's file.
        digest: What identifies the sources' files.
        note: What a user may want to know.
    """

    name: str
    image: Tensor | None = None
    fused: Tensor | None = None
    modalities: tuple[str, ...] = ()
    seconds: float = 0.0
    seed: int = 0
    trace: list[Snapshot] = field(default_factory=list)
    reason: str = ""
    depth: int = 8
    suffix: str = ".png"
    digest: str = ""
    note: str = ""


@dataclass(frozen=True)
class Tracing:
    """What is kept of the sampling steps.

    Attributes:
        names: Of which pairs; None = of all.
        side: Longest side of what is kept, pixels; None = as large as the pictures.
        estimates: Keep the prior's estimates too, which may run the network in each step for them alone.
        watch: Called with each step when it is done, of whatever pair, for progress.
    """

    names: Collection[str] | None = None
    side: int | None = None
    estimates: bool = True
    watch: Callable[[Snapshot], None] | None = None


def pair_seed(seed: int, name: str) -> int:
    """The seed of one pair's noise: from the run's seed and its name, whatever else is fused with it."""
    return zlib.crc32(f"{seed}/{name}".encode(errors="surrogateescape"))


class FusionModule(LightningModule):
    """Fuses pairs with a prior.

    Args:
        denoiser: The prior.
        sampler: Steps, gains and guidance.
        seed: The run's seed.
        tracing: What is kept of the sampling steps; None = nothing.
        noise: Per modality the noise of its images, see :func:`noise_levels`.
        offload: Keep the prior's weights in main memory.
        exact: Fuse each image alone: kernels round differently in batches of another size.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: SamplerConfig,
        seed: int = 0,
        tracing: Tracing | None = None,
        noise: Mapping[str, str] | None = None,
        offload: bool = False,
        exact: bool = True,
    ) -> None:
        super().__init__()
        self.offload, self.exact = offload, exact
        self.denoiser, self.sampler, self.seed, self.tracing = denoiser, sampler, seed, tracing
        self.noise = dict(noise or {})

    def on_predict_start(self) -> None:
        """Sends the weights back to main memory if they are to stay there."""
        if self.offload:
            offload(self.denoiser, self.device)

    def predict_step(self, batch: Sequence[Sample | Failure], _: int = 0) -> list[Result]:
        """Fuses the samples of a batch, those of one shape and the same modalities together; failures pass through."""
        results = [Result(item.name, reason=item.reason) for item in batch if isinstance(item, Failure)]
        alike: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
        for item in batch:
            if isinstance(item, Sample):
                alike[item.name if self.exact else "", item.sources.shape, item.modalities].append(item)
        for samples in alike.values():
            results += self.fuse_samples(samples)
        return results

    def fuse_samples(self, samples: list[Sample]) -> list[Result]:
        """Fuses samples of one shape and the same modalities; with less at once where memory runs out."""
        try:
            return self._fuse_samples(samples)
        except (ValueError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                if isinstance(error, ValueError):  # options do not fit these sources
                    return [_failed(sample, error) for sample in samples]
                raise
        if len(samples) > 1:
            return [result for sample in samples for result in self.fuse_samples([sample])]
        return [self._in_small_windows(samples[0])]

    def _in_small_windows(self, sample: Sample) -> Result:
        """One sample again, a smallest window at a time, or why that fails too."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.denoiser.scarce = True
        try:
            (result,) = self._fuse_samples([sample])
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            height, width = sample.sources.shape[-2:]
            return _failed(sample, f"{width}x{height} pixels do not fit into memory; make them smaller")
        finally:
            self.denoiser.scarce = False
        note = "memory ran out: fused in small windows"
        return replace(result, note="; ".join(filter(None, [result.note, note])))

    def _fuse_samples(self, samples: list[Sample]) -> list[Result]:
        started = time.perf_counter()
        seeds = [pair_seed(self.seed, sample.series or sample.name) for sample in samples]
        images = [sample.sources[None] for sample in samples]
        sources = (torch.cat(images) if len(images) > 1 else images[0]).to(self.device)  # large ones without a copy
        tracing, trace = self.tracing or Tracing(()), list[Snapshot]()
        traced = [tracing.names is None or sample.name in tracing.names for sample in samples]

        def keep(step: Snapshot) -> None:
            trace.append(step.fitted(tracing.side) if tracing.side else step)
            if tracing.watch:
                tracing.watch(trace[-1])

        noise = noise_levels(sources, samples[0].modalities, self.noise)
        observe, estimates = keep if any(traced) or tracing.watch else None, tracing.estimates
        fused = fuse(sources, self.denoiser, self.sampler, seeds, None, observe, noise, estimates).cpu()
        seconds = (time.perf_counter() - started) / len(samples)
        return [
            Result(
                one.name,
                merge(fused[i], one.chroma),
                fused[i],
                one.modalities,
                seconds,
                seeds[i],
                [step.of(i) for step in trace] if traced[i] else [],
                depth=one.depth,
                suffix=one.suffix,
                digest=one.digest,
                note=one.note,
            )
            if fused[i].isfinite().all()
            else _failed(one, "the prior gives numbers that are not finite")
            for i, one in enumerate(samples)
        ]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch tells so in several ways."""
    allocator = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or allocator


def _failed(sample: Sample, reason: object) -> Result:
    return Result(sample.name, reason=f"{sample.name}: {str(reason).splitlines()[0]}", digest=sample.digest)


class PriorModule(LightningModule):
    """Trains a prior on single images.

    Noise and times come from each sample's index: a resumed run sees what an uninterrupted one would have.
    Checkpoints hold the weights that learn, not those that an adaptation leaves frozen.

    Args:
        denoiser: The prior; its weights that require gradients learn.
        optim: Learning rate, noise levels, weighting.
        seed: Seed of noise and times.
    """

    def __init__(self, denoiser: Denoiser, optim: OptimConfig, seed: int = 0) -> None:
        super().__init__()
        self.denoiser, self.optim, self.seed = denoiser, optim, seed
        self.band_losses = ModuleList(RunningMean(50, sync_on_compute=False) for _ in NOISE_BANDS)
        self.strict_loading = False

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """Mean weighted loss of the batch at drawn noise levels."""
        x0 = 2 * batch["image"] - 1
        spread = 2654435761 * self.seed  # generators read 32 bits of their seed only
        random = generators([(index + spread) % 2**32 for index in batch["index"].tolist()], len(x0))
        uniform = torch.stack([torch.rand(2, generator=generator) for generator in random])
        noise = draw_noise(x0.shape[1:], random, x0)
        o = self.optim
        times = draw_times(uniform, self.denoiser.alpha_bar, o.sigma_min, o.sigma_max, o.uniform_share)
        t = times.to(x0.device)
        losses = diffusion_loss(self.denoiser, x0, noise, t, o.variance_weight)
        loss = (loss_weight(o.weighting, o.gamma, self.denoiser, times).to(losses) * losses).mean()
        self.log("train/loss", loss, prog_bar=True)
        self._log_bands(times, losses.detach())
        return loss

    def _log_bands(self, times: Tensor, losses: Tensor) -> None:
        """Unweighted loss by noise level, mean of the last 50 batches that had any."""
        sigma = noise_level(self.denoiser.alpha_bar)[times]
        for band, (name, (low, high)) in zip(self.band_losses, NOISE_BANDS.items(), strict=True):
            inside = ((sigma >= low) & (sigma < high)).nonzero()[:, 0]
            if len(inside):
                band.update(losses[inside.to(losses.device)])  # pyright: ignore[reportCallIssue]
                self.log(f"train/loss_sigma_{name}", band.compute())  # pyright: ignore[reportCallIssue]

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        """Denoising PSNR at the usual noise levels, one noise draw for each image."""
        for name, psnr in psnr_by_noise(self.denoiser, batch).items():
            shown = name in ("psnr_25", "psnr_50")
            self.log(f"val/{name}", psnr.mean(), prog_bar=shown, batch_size=len(psnr), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what is frozen."""
        learning = {name for name, weight in self.named_parameters() if weight.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weight for name, weight in state.items() if name in learning}
        checkpoint["processes"] = self.trainer.world_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on with another number of processes: the batches would be others."""
        if checkpoint["processes"] != self.trainer.world_size:
            raise PriorError(
                f"the run was made by {checkpoint['processes']} processes, now there are {self.trainer.world_size}: "
                "its batches would change; give as many, or another out="
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine decay to a hundredth of the peak rate."""
        o = self.optim
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, o.lr, (0.9, 0.99), weight_decay=o.weight_decay)

        def rate(step: int) -> float:
            progress = min(max(step - o.warmup, 0) / max(o.steps - o.warmup, 1), 1.0)
            return min((step + 1) / max(o.warmup, 1), 1.0) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
