"""The schema of ``infer.py`` and what both scripts share: every option with its type, default, help and limits."""

from dataclasses import dataclass
from typing import Literal

from dig2dig.options import option, parse_range, require, require_choices


@dataclass
class DigConfig:
    """How information gains are measured and turned into weights."""

    kind: Literal["gain", "change", "residual", "static"] = option(
        "residual",
        "what a step is worth: loss removed, change of the estimate, loss that is left; static = 1/K",
        common=True,
    )
    loss: Literal["l2", "l1", "gradient"] = option("l2", "per-pixel distance between two estimates")
    normalise: Literal["none", "sum", "mean"] = option(
        "sum", "divide gains by their sum over sources, by the image's mean, or not at all"
    )
    temperature: float = option(0.1, "softness of the weights, in the unit of the normalised gain", common=True)
    smoothing: float = option(2.0, "standard deviation of the Gaussian that smooths gains, in pixels")
    smoothing_noise: float = option(16.0, "pixels of smoothing added per unit of noise level: early gains are coarse")
    refresh: int = option(2, "measure gains every so many steps, and interpolate between")
    reduce: float = option(
        0.007,
        "measure gains on smaller images as long as their noise level stays above this, at least 0.15 for kinds of "
        "guidance that need estimates; 0 = always at full size",
    )

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.temperature > 0, f"dig.temperature must be above 0, not {self.temperature}")
        require(self.smoothing >= 0, f"dig.smoothing must not be negative, not {self.smoothing}")
        require(self.smoothing_noise >= 0, f"dig.smoothing_noise must not be negative, not {self.smoothing_noise}")
        require(self.reduce >= 0, f"dig.reduce must not be negative, not {self.reduce}")
        require(self.refresh >= 1, f"dig.refresh must be at least 1, not {self.refresh}")


@dataclass
class GuidanceConfig:
    """How the estimate is pulled to the weighted sources."""

    kind: Literal["bands", "blend", "increments", "em", "posterior"] = option(
        "bands",
        "proximal to the weighted sources: summed band by band; their mean; the denoiser's increments summed; "
        "or DDFM's EM; or the posterior's gradient",
    )
    sigma_n: float = option(
        0.0,
        "noise assumed in the sources, for [-1, 1]: the larger, the more the prior decides; 0 = the sources alone",
        common=True,
    )
    scale: float = option(32.0, "bands only: pixels of blur per unit of noise level")
    energy: float = option(1.0, "bands only: how much of the energy that averaging cancels is given back, 0 to 1")

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.sigma_n >= 0, f"guidance.sigma_n must not be negative, not {self.sigma_n}")
        require(self.scale > 0, f"guidance.scale must be above 0, not {self.scale}")
        require(0 <= self.energy <= 1, f"guidance.energy must lie in [0, 1], not {self.energy}")


@dataclass
class ResearchConfig:
    """Variants of the method that only experiments need: research.NAME=VALUE is short for sampler.research.NAME."""

    noise: Literal["recomputed", "network"] = option(
        "recomputed", "noise of the next state: from the guided estimate (DDFM, DiffPIR) or the network's (CCF)"
    )
    eta: float = option(0.0, "share of fresh noise in each step: 0 is DDIM, 1 is DDPM")
    scope: Literal["full", "spatial", "temporal"] = option(
        "full", "weights vary over space and time; over space alone, the mean of all steps; over time alone"
    )
    draws: int = option(1, "noise draws that gains are averaged over, in pairs of opposite sign")
    em_form: Literal["paper", "code"] = option(
        "paper", "guidance em: f = x + v as in DDFM's paper, or i - x as in its published code"
    )

    def __post_init__(self) -> None:
        require_choices(self)
        require(0 <= self.eta <= 1, f"research.eta must lie in [0, 1], not {self.eta}")
        require(self.draws >= 1, f"research.draws must be at least 1, not {self.draws}")


@dataclass
class SamplerConfig:
    """The sampling loop."""

    steps: int = option(8, "network evaluations of the sampling loop", common=True)
    grid: Literal["uniform", "logsnr", "gain"] = option(
        "logsnr", "how steps are spread over time: evenly, evenly in log-SNR, or by equal shares of gain"
    )
    sigma_start: float | None = option(8.0, "noise level of the first step, for images in [-1, 1]; null = pure noise")
    sigma_end: float | None = option(0.03, "noise level of the last step; null = the smallest of the schedule")
    dig: DigConfig = option(DigConfig, "information gains")
    guidance: GuidanceConfig = option(GuidanceConfig, "pull to the sources")
    research: ResearchConfig = option(ResearchConfig, "variants that only experiments need")

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.steps >= 1, f"sampler.steps must be at least 1, not {self.steps}")
        for name in ("sigma_start", "sigma_end"):
            level = getattr(self, name)
            require(level is None or level > 0, f"sampler.{name} must be above 0 or null, not {level}")
        contradiction = self.grid == "gain" and self.dig.kind == "static"
        require(not contradiction, "sampler.grid=gain needs gains: choose another sampler.dig.kind than static")


@dataclass
class PriorConfig:
    """Which pretrained denoiser, and how it is run."""

    path: str = option("bundled", "bundled, a diffusers folder or hub id, or an ADM .pt checkpoint", common=True)
    adapter: str = option("", "folder of a LoRA adapter that train.py made for this prior; empty = none", common=True)
    sha256: str | None = option(None, "refuse weights whose file has another SHA-256")
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto",
        "auto = bf16 where the device has it natively; bf16 also keeps the weights in it, half the memory",
        common=True,
    )
    window: int = option(
        1408, "larger images are processed in windows of this side, pixels; 0 = always whole", common=True
    )
    compile: bool = option(False, "torch.compile: a minute or more at first; may pay on a GPU, hardly on a CPU")
    offload: bool = option(False, "keep the weights in main memory, and on the GPU only those in use")

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.window >= 0, f"prior.window must not be negative, not {self.window}")


@dataclass
class TrainerConfig:
    """What passes straight to Lightning's Trainer."""

    accelerator: str = option("auto", "auto, cpu, gpu, mps")
    devices: str = option("auto", "how many devices of each machine, or which, as in 0,2", common=True)
    num_nodes: int = option(1, "machines")
    strategy: str = option("auto", "auto, ddp, fsdp or another of Lightning's strategies")


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: Literal["disabled", "offline", "online"] = option(
        "offline", "offline runs are sent later by wandb sync", common=True
    )
    project: str = option("dig2dig", "project")
    entity: str | None = option(None, "user or team")
    name: str | None = option(None, "name of the run; null = the folder's name")


@dataclass
class LoggerConfig:
    """Where a run is logged, always under OUT; a resumed run goes on with the same logs."""

    wandb: WandbConfig = option(WandbConfig, "Weights & Biases")
    csv: bool = option(True, "metrics.csv in OUT/log")
    tensorboard: bool = option(False, "TensorBoard events in OUT/tensorboard")
    every: int = option(50, "steps between log entries")
    pairs: int = option(4, "pairs whose fusion is shown with its information gains")


def _unlogged() -> LoggerConfig:
    return LoggerConfig(WandbConfig("disabled"), csv=False)


@dataclass
class SaveConfig:
    """What is written beside the fused image."""

    weights: bool = option(False, "weight and gain maps of each step, as pictures in OUT/NAME_maps/", common=True)
    format: Literal["reference", "png", "tif", "jpg", "webp", "bmp"] = option(
        "reference",
        "format of the fused pictures; reference = that of the reference source, with its 8 or 16 bits",
        common=True,
    )


@dataclass
class ReportConfig:
    """The page to look at what a run made, OUT/report.html."""

    pairs: int = option(20, "most pairs shown with pictures, metrics up to four megapixels; 0 = no report", common=True)
    estimates: int = option(0, "of so many of them also the prior's estimates: the network then runs in each step")
    baselines: str = option(
        "",
        "classical fusions shown and ranked beside: mean, laplacian, wavelet, guided, mertens, separated by commas",
        common=True,
    )

    def __post_init__(self) -> None:
        require(self.pairs >= 0 and self.estimates >= 0, "report.pairs and report.estimates must not be negative")
        unknown = sorted(set(self.compared) - {"mean", "laplacian", "wavelet", "guided", "mertens"})
        require(not unknown, f"report.baselines: no {', '.join(unknown)}; see --help")

    @property
    def compared(self) -> list[str]:
        """The baselines by name."""
        return [name.strip() for name in self.baselines.split(",") if name.strip()]


@dataclass
class FusionConfig:
    """How one pair becomes one picture."""

    prior: PriorConfig = option(PriorConfig, "the pretrained denoiser")
    sampler: SamplerConfig = option(SamplerConfig, "the sampling loop")
    noise: dict[str, str] = option(
        {}, "per modality the noise of its images: standard deviation of 255, or auto; those not named are clean", True
    )
    seed: int = option(0, "seed of the noise; each image draws its own from it and its name", True)
    exact: bool = option(
        True, "the same bytes whatever the batch size; false = batches, faster on GPUs, the last bit may differ"
    )

    def __post_init__(self) -> None:
        for modality, sigma in self.noise.items():
            number = sigma.replace(".", "", 1).isdecimal()
            require(number or sigma == "auto", f"noise.{modality} must be a number of 255 or auto, not {sigma}")


@dataclass
class InferConfig(FusionConfig):
    """Fuses images: python infer.py configs/TASK.yaml sources.MODALITY=DIR_OR_FILE … out=DIR [key=value …]."""

    task: Literal["ivf", "mif", "mef", "mff"] = option(
        "ivf", "infrared-visible, medical, multi-exposure, multi-focus: decides how colour is treated", common=True
    )
    sources: dict[str, str] = option(
        {},
        "per modality a folder or a list (.txt), paired by stem; a pattern as DIR/{name}_ir.png; one image, video "
        "or volume",
        common=True,
    )
    manifest: str = option("", "instead of sources: a CSV table with a column for each modality, and name", common=True)
    stacks: str = option("", "instead of sources: a folder of folders, the images of each are fused", common=True)
    sequence: bool = option(
        False, "the pairs are frames of one scene: they share their noise; videos always do", common=True
    )
    reference: str = option(
        "", "modality whose size, depth and format the result keeps; empty = the first", common=True
    )
    align: Literal["none", "resize", "ecc", "phase"] = option(
        "none",
        "sources of another size or place: none = refuse sizes, resize, phase = find the shift, ecc = the homography",
        common=True,
    )
    range: dict[str, str] = option(
        {}, "per modality the stored values that are black and white: auto, full, percentile or LOW-HIGH", common=True
    )
    allow_missing: bool = option(
        False, "fuse stacks that stop before others with the sources they have, at least 2", common=True
    )
    out: str = option("out", "folder for the results", common=True)
    save: SaveConfig = option(SaveConfig, "what is written beside the fused image")
    report: ReportConfig = option(ReportConfig, "the page to look at results")
    batch_size: int = option(
        4, "images of equal size that are read together, and fused together if not exact", common=True
    )
    workers: int = option(0, "processes that read images ahead", common=True)
    trainer: TrainerConfig = option(TrainerConfig, "devices")
    logger: LoggerConfig = option(_unlogged, "dashboards that show the fusion of a few pairs")
    dry_run: bool = option(False, "only list what would be fused", common=True)
    overwrite: bool = option(False, "fuse again what an earlier run with the same configuration has done", common=True)
    validate: bool = option(
        False, "print fusion metrics and statistics of the gains; no picture is written", common=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choices(self)
        require(self.batch_size >= 1, f"batch_size must be at least 1, not {self.batch_size}")
        ways = [name for name in ("sources", "manifest", "stacks") if getattr(self, name)]
        require(bool(ways), "no sources given: at least two, as in sources.visible=DIR sources.infrared=DIR")
        require(len(ways) == 1, f"{' and '.join(ways)} contradict each other: give one of them")
        require(
            ways != ["sources"] or len(self.sources) >= 2,
            "one source given: at least two are needed, as in sources.visible=DIR sources.infrared=DIR",
        )
        named = {f"noise.{m}": m for m in self.noise} | {f"range.{m}": m for m in self.range}
        for option_name, modality in (named | {"reference": self.reference or None}).items():
            known = not self.sources or modality is None or modality in self.sources
            require(known, f"{option_name}: no source of that name")
        for modality, text in self.range.items():
            try:
                parse_range(text)
            except ValueError as error:
                raise ValueError(f"range.{modality} {error}") from error
