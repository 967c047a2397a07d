"""The schema of ``train.py``: every option with its type, default, help and limits."""

from dataclasses import dataclass
from typing import Literal

from dig2dig.config import LoggerConfig, SamplerConfig, Task, TrainerConfig, of_task
from dig2dig.options import Checked, check_range, common, option, require


@dataclass
class ImageDataConfig(Checked, heading="data."):
    """Single images that a prior learns from, or pairs and stacks that weights learn from."""

    root: str = common("", "folder tree with training images, or a text file with a path on each line")
    sources: dict[str, str] = common({}, "weights: pairs to learn from, as sources of infer.py")
    manifest: str = common("", "weights: pairs from a CSV table; a column mask names masks of targets")
    stacks: str = common("", "weights: folder of folders; the images of each are one stack")
    mask: str = common("", "weights: folder of masks of targets for data.sources, white on black")
    variants: int = option(
        1, "weights: versions of each scene, all but the first of another size, contrast and gamma", least=1
    )
    made: Literal["", "focus", "exposures"] = common(
        "", "weights: make focal planes, whose truth is known, or exposures from the photographs of data.root"
    )
    exclude: list[str] = option([], "path parts to leave out, as in [Kodak]")
    val: str = common("", "validation images, a folder tree or list; they never train; empty = none")
    val_share: float = common(0.0, "share of root held out by seed, if val is empty, one image at least", least=0)
    crop: int = common(64, "side of a training crop, pixels", least=1)
    val_crop: int = option(256, "side of a validation image's centre crop, pixels", least=1, most=2**14)
    scales: list[float] = option([1.0, 1.5, 2.0], "crops are taken this many times larger and reduced")
    grey: float = option(0.2, "share of crops that lose their colour: infrared and CT are grey", least=0, most=1)
    range: str = option("percentile", "black and white of deep files, as range of infer.py; pairs have auto")
    licence: str = option("", "licence of the training data, for the card")
    cache: bool = option(True, "keep decoded images in memory, up to a quarter of the machine's")
    batch_size: int = common(8, "crops per step and device", least=1)
    workers: int = common(1, "processes that prepare crops", least=0, most=1024)

    def _check(self) -> None:
        require(self.val_share < 1, f"data.val_share must be below 1, not {self.val_share}")
        fits = bool(self.scales) and all(1 <= round(self.crop * scale) <= 2**14 for scale in self.scales)
        require(fits, f"data.scales={self.scales}: data.crop={self.crop} times each must be 1 to {2**14} pixels")
        check_range("data.range", self.range)

    @property
    def names_scenes(self) -> bool:
        """Whether there are pairs, stacks or photographs that weights can learn from."""
        return bool(self.sources or self.manifest or self.stacks or (self.made and self.root))


@dataclass
class NetworkConfig(Checked, heading="network."):
    """A network trained from scratch: a UNet of residual blocks without norms."""

    channels: list[int] = option([64, 96, 128, 192], "channels of each level")
    layers: int = option(3, "residual blocks per level, on the way down and up", least=1)
    patch: Literal[1, 2] = option(2, "side of the pixel patches the network works on: 2 halves the cost")
    prediction: Literal["epsilon", "v_prediction", "sample"] = option(
        "v_prediction", "what the network predicts: the noise, v, or the image"
    )

    def _check(self) -> None:
        fits = bool(self.channels) and all(width > 0 for width in self.channels)
        require(fits, f"network.channels must be positive, not {self.channels}")


@dataclass
class AdaptConfig(Checked, heading="adapt."):
    """Which weights learn."""

    mode: Literal["full", "lora", "last", "weights", "lora+weights", "full+weights"] = common(
        "full",
        "the whole prior; adapters beside it; its last block; the network that makes fusion weights from gains; both",
    )
    rank: int = common(8, "lora: rank of the adapters", least=1)
    alpha: float = option(8.0, "lora: adapters count alpha / rank times", above=0)


@dataclass
class OptimConfig(Checked, heading="optim."):
    """Optimisation."""

    steps: int = common(10000, "optimiser steps", least=1)
    accumulate: int = option(1, "batches whose gradients make one step", least=1)
    lr: float = common(8e-4, "peak learning rate; cosine decay after the warm-up", least=0)
    prior_share: float = option(0.02, "weights with a prior that learns: its rate as a share of lr", above=0)
    warmup: int = option(300, "steps of linear warm-up", least=0)
    weight_decay: float = option(0.0, "AdamW's weight decay", least=0)
    clip: float = option(1.0, "gradient norm is clipped to this; 0 = not at all", least=0)
    ema: float = common(0.999, "decay of the weights' moving average, lower in the first steps; 0 = none", least=0)
    sigma_min: float = option(0.02, "smallest noise level drawn; levels are drawn uniformly in log sigma", above=0)
    sigma_max: float = option(10.0, "largest noise level drawn")
    weighting: Literal["none", "min_snr"] = option("none", "weight of noise levels in the loss")
    gamma: float = option(5.0, "min_snr: signal-to-noise ratio at which weights are cut", above=0)

    def _check(self) -> None:
        require(self.sigma_min <= self.sigma_max, "optim.sigma_min must be at most optim.sigma_max")
        require(self.ema < 1, f"optim.ema must be below 1, not {self.ema}")


@dataclass
class FusionCheckConfig(Checked, heading="fusion."):
    """Pairs that are fused at each validation: what training does to the result and to the gains."""

    sources: dict[str, str] = common({}, "as in infer.py; empty = no fusion during training")
    task: Task = common("ivf", "as in infer.py")
    crop: int = option(256, "side of the centre crop that is fused, pixels; 0 = whole images")
    sampler: SamplerConfig = option(SamplerConfig, "as in infer.py")

    def _check(self) -> None:
        require(len(self.sources) != 1, "fusion.sources: give at least two, or none")
        self.sampler = of_task(self.sampler, self.task)


@dataclass
class TrainConfig(Checked):
    """Trains a prior, or learns fusion weights: dig2dig train PRESET data.root=DIR out=DIR [key=value …]."""

    data: ImageDataConfig = option(ImageDataConfig, "training and validation images")
    network: NetworkConfig = option(NetworkConfig, "the network, when it starts from scratch")
    adapt: AdaptConfig = option(AdaptConfig, "which weights learn")
    optim: OptimConfig = option(OptimConfig, "optimisation")
    fusion: FusionCheckConfig = option(FusionCheckConfig, "pairs that are fused at each validation")
    trainer: TrainerConfig = option(TrainerConfig, "devices and machines")
    logger: LoggerConfig = option(LoggerConfig, "dashboards")
    out: str = common("runs/prior", "folder for checkpoints, logs and the finished prior; resumes from it")
    prior: str = common("", "start from this prior (bundled, folder, hub id or .pt); empty = from scratch")
    prior_sha256: str | None = option(None, "refuse a prior whose weights have another SHA-256")
    weights: str = common("", "weights: start from these learned ones, a folder or bundled/TASK; empty = from scratch")
    objective: dict[str, float] = option({}, "weights: factor of each term of the objective, see docs/training.md")
    adapter: str = option("", "LoRA adapter that is merged into the prior before anything else")
    validate: bool = common(False, "only measure how well the prior denoises the validation images")
    seed: int = common(0, "seed of weights, crops and noise", least=0, most=2**23 - 1)
    val_every: int = common(1000, "steps between validations", least=1)
    save_every: int = option(250, "steps between checkpoints", least=1)
    precision: Literal["32-true", "bf16-mixed"] = common("32-true", "bf16-mixed on recent GPUs, and CPUs with AMX")
    recompute: bool = option(False, "compute features again in the backward pass: far less memory, a third more time")
    compile: bool = option(False, "compile the network: may pay in long runs on a GPU; the first step takes a minute")

    def _check(self) -> None:
        require(bool(self.out.strip()), "out is empty: give a folder, as out=runs/prior")
        shares = any(word in self.trainer.strategy for word in ("fsdp", "deepspeed", "model_parallel"))
        require(not shares, f"trainer.strategy={self.trainer.strategy}: exports need whole weights; take ddp")
        both = self.adapter and self.adapt.mode.startswith("lora") and not self.validate
        require(not both, f"adapter= with adapt.mode={self.adapt.mode}: merge it first, with dig2dig prior merge")
        if self.learns_weights:
            self._check_weights()
            return
        require(bool(self.data.root) or self.validate, "no training images: give data.root=DIR")
        held_out = bool(self.data.val or (self.data.val_share and self.data.root))
        require(bool(held_out and self.prior) or not self.validate, "validate=true needs data.val and prior")
        adapts = self.adapt.mode != "full" or self.adapter
        require(bool(self.prior) or not adapts, "adapters and last blocks belong to a prior: give prior=")

    @property
    def learns_weights(self) -> bool:
        """Whether the fusion weights learn, alone or with the prior beneath them."""
        return "weights" in self.adapt.mode

    @property
    def learns_prior(self) -> bool:
        """Whether the prior learns, alone or with the weights above it."""
        return self.adapt.mode != "weights"

    def _check_weights(self) -> None:
        data = self.data
        known = data.names_scenes or bool(self.validate and self.fusion.sources)
        require(known, "no pairs: give data.sources.NAME=DIR, data.manifest, data.stacks, or data.made and data.root")
        require(bool(self.weights) or not self.validate, "validate=true needs weights=, as weights=OUT/weights")
        require(not data.val, "data.val is for priors: weights hold out data.val_share, or take fusion.sources")
        require(not data.mask or bool(data.sources), "data.mask goes with data.sources; a manifest has a column mask")
        told = "data.exclude leaves out photographs of data.root; of pairs, give lists or a manifest without them"
        require(not data.exclude or bool(data.made and data.root), told)
        require(len(data.sources) != 1, "data.sources: give at least two, as data.sources.visible=DIR")
        require(bool(self.prior), "learned weights need a prior: give prior=bundled, a folder or a hub id")
        require(bool(self.objective), "no objective: start from a preset, as configs/weights_ivf.yaml")
        fits = data.crop % 32 == 0 and data.crop >= 64
        require(fits, f"data.crop={data.crop}: weights learn from crops of multiples of 32, at least 64")
        require(self.fusion.sampler.guidance.kind == "bands", "learned weights are for sampler.guidance.kind=bands")
        sampler = self.fusion.sampler
        require(sampler.dig.refresh == 1, "learned weights need gains in every step: sampler.dig.refresh=1")
        own = "learned weights have levels of their own: give fusion.sampler."
        require(None not in (sampler.sigma_start, sampler.sigma_end), f"{own}sigma_start and sigma_end")
        require(sampler.grid != "gain", f"{own}grid=logsnr or uniform")
