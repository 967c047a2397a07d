"""The schemas of both scripts: every option with its type, default, help and limits."""

from dataclasses import dataclass, field
from typing import Any, Literal


def option(default: Any, help: str) -> Any:
    """A dataclass field with its default and the sentence that ``--help`` prints."""
    metadata = {"help": help}
    if isinstance(default, (type, dict, list)):
        factory = default if isinstance(default, type) else lambda: type(default)(default)
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclass
class DigConfig:
    """How information gains are measured and turned into weights."""

    kind: Literal["gain", "change", "residual", "static"] = option(
        "gain",
        "what a step is worth: loss removed, change of the estimate, loss that is left; static = 1/K",
    )
    loss: Literal["l2", "l1", "gradient"] = option("l2", "per-pixel distance between two estimates")
    normalise: Literal["none", "sum", "mean"] = option(
        "sum", "divide gains by their sum over sources, by the image's mean, or not at all"
    )
    temperature: float = option(0.1, "softness of the weights, in the unit of the normalised gain")
    smoothing: float = option(2.0, "standard deviation of the Gaussian that smooths gains, in pixels")
    smoothing_noise: float = option(24.0, "pixels of smoothing added per unit of noise level: early gains are coarse")
    refresh: int = option(1, "measure gains every so many steps, and interpolate between")
    draws: int = option(1, "noise draws averaged, in pairs of opposite sign")

    def __post_init__(self) -> None:
        _require(self.temperature > 0, f"dig.temperature must be above 0, not {self.temperature}")
        _require(self.smoothing >= 0, f"dig.smoothing must not be negative, not {self.smoothing}")
        _require(self.smoothing_noise >= 0, f"dig.smoothing_noise must not be negative, not {self.smoothing_noise}")
        _require(self.refresh >= 1, f"dig.refresh must be at least 1, not {self.refresh}")
        _require(self.draws >= 1, f"dig.draws must be at least 1, not {self.draws}")


@dataclass
class GuidanceConfig:
    """How the estimate is pulled to the weighted sources."""

    kind: Literal["blend", "increments", "em", "posterior"] = option(
        "increments", "proximal to the weighted mean; to the summed increments; DDFM's EM; posterior gradient"
    )
    sigma_n: float = option(0.01, "noise assumed in the sources, for [-1, 1]: the larger, the more the prior decides")
    strength: float = option(1.0, "strength lambda of the pull")
    em_form: Literal["paper", "code"] = option("paper", "em only: f = x + v, or DDFM's published code, i - x")

    def __post_init__(self) -> None:
        _require(self.sigma_n >= 0, f"guidance.sigma_n must not be negative, not {self.sigma_n}")
        _require(self.strength > 0, f"guidance.strength must be above 0, not {self.strength}")


@dataclass
class SamplerConfig:
    """The sampling loop."""

    steps: int = option(8, "network evaluations of the sampling loop")
    grid: Literal["uniform", "logsnr", "gain"] = option(
        "logsnr", "how steps are spread over time: evenly, evenly in log-SNR, or by equal shares of gain"
    )
    sigma_start: float | None = option(8.0, "noise level of the first step, for images in [-1, 1]; null = pure noise")
    sigma_end: float | None = option(0.03, "noise level of the last step; null = the smallest of the schedule")
    noise: Literal["recomputed", "network"] = option(
        "recomputed",
        "noise of the next state: from the guided estimate (DDFM, DiffPIR) or the network's (CCF)",
    )
    eta: float = option(0.0, "share of fresh noise in each step: 0 is DDIM, 1 is DDPM")
    dig: DigConfig = option(DigConfig, "information gains")
    guidance: GuidanceConfig = option(GuidanceConfig, "pull to the sources")

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"sampler.steps must be at least 1, not {self.steps}")
        _require(0 <= self.eta <= 1, f"sampler.eta must lie in [0, 1], not {self.eta}")
        for name in ("sigma_start", "sigma_end"):
            level = getattr(self, name)
            _require(level is None or level > 0, f"sampler.{name} must be above 0 or null, not {level}")
        contradiction = self.grid == "gain" and self.dig.kind == "static"
        _require(not contradiction, "sampler.grid=gain needs gains: choose another sampler.dig.kind than static")


@dataclass
class PriorConfig:
    """Which pretrained denoiser, and how it is run."""

    path: str = option("bundled", "bundled, a diffusers folder or hub id, or an ADM .pt checkpoint")
    sha256: str | None = option(None, "refuse weights whose file has another SHA-256")
    precision: Literal["auto", "fp32", "bf16"] = option("auto", "auto = bf16 where the device has it natively")


@dataclass
class SaveConfig:
    """What is written beside the fused image."""

    weights: bool = option(False, "weight and gain maps of each step, as pictures in OUT/NAME_maps/")


@dataclass
class InferConfig:
    """Fuses images: python infer.py configs/TASK.yaml sources.MODALITY=DIR_OR_FILE … out=DIR [key=value …]."""

    task: Literal["ivf", "mif", "mef", "mff"] = option(
        "ivf", "infrared-visible, medical, multi-exposure, multi-focus: decides how colour is treated"
    )
    sources: dict[str, str] = option({}, "a folder or a file per modality; files are paired by stem")
    allow_missing: bool = option(False, "fuse stacks that stop before others with the sources they have, at least 2")
    out: str = option("out", "folder for the results")
    prior: PriorConfig = option(PriorConfig, "the pretrained denoiser")
    sampler: SamplerConfig = option(SamplerConfig, "the sampling loop")
    save: SaveConfig = option(SaveConfig, "what is written beside the fused image")
    seed: int = option(0, "seed of the noise; each image draws its own from it and its name")
    batch_size: int = option(4, "images of equal size that are fused together")
    workers: int = option(0, "processes that read images ahead")
    accelerator: str = option("auto", "auto, cpu, gpu, mps")
    devices: str = option("auto", "how many devices, as in Lightning")
    dry_run: bool = option(False, "only list what would be fused")
    overwrite: bool = option(False, "fuse again what an earlier run with the same configuration has done")
    versions: dict[str, str] = option({}, "recorded in run.yaml, never read")

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"batch_size must be at least 1, not {self.batch_size}")
        _require(
            len(self.sources) >= 2,
            f"{len(self.sources) or 'no'} sources given: at least two, as in sources.visible=DIR sources.infrared=DIR",
        )


@dataclass
class ImageDataConfig:
    """Single images that a prior learns from."""

    root: str = option("", "folder tree with training images")
    exclude: list[str] = option([], "path parts to leave out, as in [Kodak]")
    val: str = option("", "folder tree with validation images; empty = none")
    crop: int = option(64, "side of a training crop, pixels")
    scales: list[float] = option([1.0, 1.5, 2.0], "crops are taken this many times larger and reduced")
    grey: float = option(0.2, "share of crops that lose their colour: infrared and CT are grey")
    cache: bool = option(True, "keep decoded images in memory")
    batch_size: int = option(8, "crops per step and device")
    workers: int = option(1, "processes that prepare crops")


@dataclass
class NetworkConfig:
    """A UNet2DModel trained from scratch."""

    channels: list[int] = option([64, 96, 128], "channels of each level")
    layers: int = option(1, "residual blocks per level")
    patch: Literal[1, 2] = option(2, "side of the pixel patches the network works on: 2 halves the cost")

    def __post_init__(self) -> None:
        fits = bool(self.channels) and all(width > 0 and width % 32 == 0 for width in self.channels)
        _require(fits, f"network.channels must be multiples of 32, not {self.channels}")
        _require(self.layers >= 1, f"network.layers must be at least 1, not {self.layers}")


@dataclass
class OptimConfig:
    """Optimisation of the prior."""

    steps: int = option(10000, "optimiser steps")
    lr: float = option(8e-4, "peak learning rate; cosine decay after the warm-up")
    warmup: int = option(300, "steps of linear warm-up")
    weight_decay: float = option(0.0, "AdamW's weight decay")
    clip: float = option(1.0, "gradient norm is clipped to this")
    ema: float = option(0.999, "decay of the exponential moving average of the weights")
    sigma_min: float = option(0.02, "smallest noise level drawn; levels are drawn uniformly in log sigma")
    sigma_max: float = option(10.0, "largest noise level drawn")
    uniform_share: float = option(0.1, "share of samples whose time is drawn uniformly instead")


@dataclass
class TrainConfig:
    """Trains a prior: python train.py configs/prior.yaml data.root=DIR out=DIR [key=value …]."""

    data: ImageDataConfig = option(ImageDataConfig, "training and validation images")
    network: NetworkConfig = option(NetworkConfig, "the network, when it starts from scratch")
    optim: OptimConfig = option(OptimConfig, "optimisation")
    out: str = option("runs/prior", "folder for checkpoints, logs and the finished prior; resumes from it")
    prior: str = option("", "start from this prior (bundled, folder, hub id or .pt); empty = from scratch")
    validate: bool = option(False, "only measure how well the prior denoises the validation images")
    seed: int = option(0, "seed of weights, crops and noise")
    val_every: int = option(1000, "steps between validations")
    save_every: int = option(250, "steps between checkpoints")
    precision: str = option("32-true", "Lightning's precision: 32-true or bf16-mixed")
    accelerator: str = option("auto", "auto, cpu, gpu, mps")
    devices: str = option("auto", "how many devices, as in Lightning")
    num_nodes: int = option(1, "machines")
    strategy: str = option("auto", "Lightning's strategy, as auto or ddp")
    fast_dev_run: bool = option(False, "one training and one validation step, nothing saved")

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**23, f"seed must lie in [0, 2^23), not {self.seed}")
        _require(bool(self.data.root) or self.validate, "no training images: give data.root=DIR")
        _require(bool(self.data.val and self.prior) or not self.validate, "validate=true needs data.val and prior")
