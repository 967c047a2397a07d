"""The schema of ``train.py``: every option with its type, default, help and limits."""

from dataclasses import dataclass
from typing import Literal

from dig2dig.config import LoggerConfig, SamplerConfig, TrainerConfig
from dig2dig.options import option, parse_range, require


@dataclass
class ImageDataConfig:
    """Single images that a prior learns from."""

    root: str = option("", "folder tree with training images, or a text file with a path on each line", common=True)
    exclude: list[str] = option([], "path parts to leave out, as in [Kodak]")
    val: str = option("", "the same for validation images; they never train; empty = none", common=True)
    val_share: float = option(
        0.0, "share of root held out by seed, if val is empty; files of one stem stay together", common=True
    )
    crop: int = option(64, "side of a training crop, pixels", common=True)
    val_crop: int = option(256, "side of a validation image's centre crop, pixels")
    scales: list[float] = option([1.0, 1.5, 2.0], "crops are taken this many times larger and reduced")
    grey: float = option(0.2, "share of crops that lose their colour: infrared and CT are grey")
    range: str = option(
        "percentile", "files of more than 8 bits, stored values that are black and white: as range.MODALITY of infer.py"
    )
    cache: bool = option(True, "keep decoded images in memory")
    batch_size: int = option(8, "crops per step and device", common=True)
    workers: int = option(1, "processes that prepare crops", common=True)

    def __post_init__(self) -> None:
        require(0 <= self.val_share < 1, f"data.val_share must lie in [0, 1), not {self.val_share}")
        require(bool(self.scales), "data.scales must name one scale at least")
        try:
            parse_range(self.range)
        except ValueError as error:
            raise ValueError(f"data.range {error}") from error
        for name in ("crop", "val_crop", "batch_size"):
            require(getattr(self, name) >= 1, f"data.{name} must be at least 1, not {getattr(self, name)}")


@dataclass
class NetworkConfig:
    """A UNet2DModel trained from scratch."""

    channels: list[int] = option([64, 96, 128], "channels of each level")
    layers: int = option(1, "residual blocks per level")
    patch: Literal[1, 2] = option(2, "side of the pixel patches the network works on: 2 halves the cost")
    prediction: Literal["epsilon", "v_prediction", "sample"] = option(
        "v_prediction", "what the network predicts: the noise, v, or the image"
    )

    def __post_init__(self) -> None:
        fits = bool(self.channels) and all(width > 0 and width % 32 == 0 for width in self.channels)
        require(fits, f"network.channels must be multiples of 32, not {self.channels}")
        require(self.layers >= 1, f"network.layers must be at least 1, not {self.layers}")


@dataclass
class AdaptConfig:
    """Which weights learn."""

    mode: Literal["full", "lora", "last"] = option(
        "full", "all weights; low-rank adapters beside them; only the last block", common=True
    )
    rank: int = option(8, "lora: rank of the adapters", common=True)
    alpha: float = option(8.0, "lora: adapters count alpha / rank times")

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"adapt.rank must be at least 1, not {self.rank}")


@dataclass
class OptimConfig:
    """Optimisation of the prior."""

    steps: int = option(10000, "optimiser steps", common=True)
    accumulate: int = option(1, "batches whose gradients make one step")
    lr: float = option(8e-4, "peak learning rate; cosine decay after the warm-up", common=True)
    warmup: int = option(300, "steps of linear warm-up")
    weight_decay: float = option(0.0, "AdamW's weight decay")
    clip: float = option(1.0, "gradient norm is clipped to this; 0 = not at all")
    ema: float = option(
        0.999, "decay of the moving average of the weights, lower in the first steps; 0 = none", common=True
    )
    sigma_min: float = option(0.02, "smallest noise level drawn; levels are drawn uniformly in log sigma")
    sigma_max: float = option(10.0, "largest noise level drawn")
    weighting: Literal["none", "min_snr"] = option("none", "weight of noise levels in the loss")
    gamma: float = option(5.0, "min_snr only: the signal-to-noise ratio at which weights are cut")
    variance_weight: float = option(0.001, "weight of the variational term for networks that learn variances, as ADM's")

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate"):
            require(getattr(self, name) >= 1, f"optim.{name} must be at least 1, not {getattr(self, name)}")
        require(0 < self.sigma_min <= self.sigma_max, "optim.sigma_min must be above 0, and at most optim.sigma_max")
        require(0 <= self.ema < 1, f"optim.ema must lie in [0, 1), not {self.ema}")


@dataclass
class FusionCheckConfig:
    """Pairs that are fused at each validation: what training does to the result and to the gains."""

    sources: dict[str, str] = option({}, "as in infer.py; empty = no fusion during training", common=True)
    task: Literal["ivf", "mif", "mef", "mff"] = option("ivf", "as in infer.py", common=True)
    crop: int = option(256, "side of the centre crop that is fused, pixels; 0 = whole images")
    sampler: SamplerConfig = option(SamplerConfig, "as in infer.py")

    def __post_init__(self) -> None:
        require(len(self.sources) != 1, "fusion.sources: give at least two, or none")


@dataclass
class TrainConfig:
    """Trains a prior: python train.py configs/prior.yaml data.root=DIR out=DIR [key=value …]."""

    data: ImageDataConfig = option(ImageDataConfig, "training and validation images")
    network: NetworkConfig = option(NetworkConfig, "the network, when it starts from scratch")
    adapt: AdaptConfig = option(AdaptConfig, "which weights learn")
    optim: OptimConfig = option(OptimConfig, "optimisation")
    fusion: FusionCheckConfig = option(FusionCheckConfig, "pairs that are fused during training")
    trainer: TrainerConfig = option(TrainerConfig, "devices and machines")
    logger: LoggerConfig = option(LoggerConfig, "dashboards")
    out: str = option("runs/prior", "folder for checkpoints, logs and the finished prior; resumes from it", common=True)
    prior: str = option("", "start from this prior (bundled, folder, hub id or .pt); empty = from scratch", common=True)
    prior_sha256: str | None = option(None, "refuse a prior whose weights have another SHA-256")
    adapter: str = option("", "LoRA adapter that is merged into the prior before anything else")
    validate: bool = option(False, "only measure how well the prior denoises the validation images", common=True)
    seed: int = option(0, "seed of weights, crops and noise", common=True)
    val_every: int = option(1000, "steps between validations", common=True)
    save_every: int = option(250, "steps between checkpoints")
    precision: Literal["32-true", "bf16-mixed"] = option(
        "32-true", "bf16-mixed on recent GPUs, and CPUs with AMX", common=True
    )
    fast_dev_run: bool = option(False, "one training and one validation step, nothing saved", common=True)
    overfit: bool = option(False, "learn the first batch again and again: its loss must fall, or something is wrong")

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**23, f"seed must lie in [0, 2^23), not {self.seed}")
        require(bool(self.data.root) or self.validate, "no training images: give data.root=DIR")
        for name in ("val_every", "save_every"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        held_out = bool(self.data.val or (self.data.val_share and self.data.root))
        require(bool(held_out and self.prior) or not self.validate, "validate=true needs data.val and prior")
        adapts = self.adapt.mode != "full" or self.adapter
        require(bool(self.prior) or not adapts, "adapters and last blocks belong to a prior: give prior=")
        both = self.adapter and self.adapt.mode == "lora"
        require(not both, "adapter= with adapt.mode=lora: merge it first, with python -m dig2dig.priors.lora merge")
        sharded = "fsdp" in self.trainer.strategy and bool(self.optim.ema or self.optim.clip)
        require(not sharded, "fsdp knows neither averaged weights nor clipping by norm: optim.ema=0 optim.clip=0")
