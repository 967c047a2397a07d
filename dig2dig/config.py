"""The schema of ``infer.py`` and what both scripts share: every option with its type, default, help and limits."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from dig2dig.options import Checked, check_range, common, option, require

Task = Literal["ivf", "mif", "mef", "mff"]
BUNDLED = {"ivf": "ivf", "mif": "ivf"}
"""The bundled set of learned weights of each task that has one."""


@dataclass
class DigConfig(Checked, heading="sampler.dig."):
    """How information gains are measured and turned into weights."""

    kind: Literal["gain", "change", "residual", "static"] = common(
        "residual", "what a step is worth: loss removed, change of the estimate, loss that is left; static = 1/K"
    )
    loss: Literal["l2", "l1", "gradient"] = option("l2", "per-pixel distance between two estimates")
    normalise: Literal["none", "sum", "mean"] = option(
        "sum", "divide gains by twice their mean over sources, or by the image's"
    )
    temperature: float = common(0.1, "softness of the weights, in the unit of the normalised gain", above=0)
    smoothing: float = option(2.0, "standard deviation of the Gaussian that smooths gains, in pixels", least=0)
    base: float = option(
        0.0, "softness of the weights of what is coarser than all steps, from gains on pure noise; 0 = 1/K", least=0
    )
    share: float = option(
        0.0, "power of the variance that the steps explain in each source, to weigh what is coarser than all", least=0
    )
    smoothing_noise: float = option(16.0, "pixels of smoothing added per unit of noise level", least=0)
    refresh: int = option(2, "measure gains every so many steps, and interpolate between", least=1)
    reduce: float = option(
        0.007, "measure gains on images f times smaller while noise level / f is at least this; 0 = never", least=0
    )


@dataclass
class GuidanceConfig(Checked, heading="sampler.guidance."):
    """How the estimate is pulled to the weighted sources."""

    kind: Literal["bands", "blend", "increments", "em", "posterior"] = option(
        "bands",
        "pull to the weighted sources, summed band by band; to their mean; to the sum of the denoiser's increments; "
        "DDFM's EM; the posterior's gradient",
    )
    sigma_n: float = common(
        0.0, "noise assumed in the sources, for [-1, 1]: more favours the prior; 0 = sources alone", least=0, most=100
    )
    scale: float = option(32.0, "bands: pixels of blur per unit of noise level", above=0)
    energy: float = option(1.0, "bands: share of the energy lost by averaging that is restored", least=0, most=1)


@dataclass
class ResearchConfig(Checked, heading="research."):
    """Variants of the method that only experiments need: research.NAME=VALUE is short for sampler.research.NAME."""

    noise: Literal["recomputed", "network"] = option(
        "recomputed", "noise of the next state: from the guided estimate (DDFM, DiffPIR) or the network's (CCF)"
    )
    eta: float = option(0.0, "share of fresh noise in each step: 0 is DDIM, 1 is DDPM", least=0, most=1)
    scope: Literal["full", "spatial", "temporal"] = option(
        "full", "weights vary over space and time; over space alone, the mean of all steps; over time alone"
    )
    draws: int = option(1, "noise draws that gains are averaged over, in pairs of opposite sign", least=1)
    em_form: Literal["paper", "code"] = option("paper", "guidance em: f = x + v (DDFM's paper) or i - x (its code)")


@dataclass
class SamplerConfig(Checked, heading="sampler."):
    """The sampling loop."""

    steps: int = common(8, "steps of the sampling loop; learned weights bring their own", least=1)
    grid: Literal["uniform", "logsnr", "gain"] = option("logsnr", "steps are spread evenly in time, log-SNR or gain")
    sigma_start: float | None = option(8.0, "noise level of the first step; null = pure noise", above=0)
    sigma_end: float | None = option(0.03, "noise level of the last step; null = the schedule's smallest", above=0)
    weights: str = common("gain", "gain: a softmax of the gains; bundled: learned from them; or a folder or hub id")
    tone: Literal["natural", "balanced", "vivid"] = common(
        "balanced", "contrast: every band times 0.8, 1 or 1.25; tone=vivid is short for it"
    )
    prefer: list[float] = option([], "factor on the weight of each source, in their order; see prefer")
    dig: DigConfig = option(DigConfig, "information gains")
    guidance: GuidanceConfig = option(GuidanceConfig, "pull to the sources")
    research: ResearchConfig = option(ResearchConfig, "variants that only experiments need")

    def _check(self) -> None:
        contradiction = self.grid == "gain" and self.dig.kind == "static"
        require(not contradiction, "sampler.grid=gain needs gains: choose another sampler.dig.kind than static")
        require(all(factor > 0 for factor in self.prefer), "sampler.prefer: factors must be above 0")
        fits = self.weights == "gain" or self.guidance.kind == "bands"
        told = f"sampler.guidance.kind={self.guidance.kind} needs sampler.weights=gain"
        require(fits, f"learned weights are for bands: {told}")


@dataclass
class PriorConfig(Checked, heading="prior."):
    """Which pretrained denoiser, and how it is run."""

    path: str = common("bundled", "bundled, a diffusers folder, a hub id (OWNER/NAME@REVISION) or an ADM .pt file")
    adapter: str = common("", "folder or hub id of a LoRA adapter that train.py made for this prior; empty = none")
    sha256: str | None = option(None, "refuse weights whose file has another SHA-256")
    precision: Literal["auto", "fp32", "bf16"] = common(
        "auto", "auto = bf16 where the device has it natively; bf16 also keeps the weights in it, half the memory"
    )
    window: int = common(1408, "process larger images in windows of this side, pixels; 0 = whole", least=0)
    compile: bool = option(False, "torch.compile: a minute or more at first; may pay on a GPU, hardly on a CPU")
    offload: bool = option(False, "keep the weights in main memory, and on the GPU only those in use")


@dataclass
class TrainerConfig(Checked, heading="trainer."):
    """What passes straight to Lightning's Trainer."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = option("auto", "kind of device")
    devices: str = common("auto", "how many devices of each machine, or which, as in 0,2; auto = all that have work")
    num_nodes: int = option(1, "machines", least=1)
    strategy: str = option("auto", "auto, ddp or another of Lightning's strategies that keep whole weights")

    def _check(self) -> None:
        self.devices = re.sub(r"\[(.*)\]", r"\1,", self.devices).replace(" ", "")  # a list of one is no number
        known = re.fullmatch(r"auto|-1|\d+(,\d+)*,?", self.devices)
        require(bool(known), f"trainer.devices must be auto, a number or a list as 0,2, not {self.devices}")
        copied = any(word in self.strategy for word in ("spawn", "fork", "notebook"))
        require(not copied, f"trainer.strategy={self.strategy} is not supported; take ddp")


@dataclass
class WandbConfig(Checked, heading="logger.wandb."):
    """Weights & Biases."""

    mode: Literal["disabled", "offline", "online"] = common("offline", "W&B: offline runs are sent by wandb sync")
    project: str = option("dig2dig", "project")
    entity: str | None = option(None, "user or team")
    name: str | None = option(None, "name of the run; null = the folder's name")


@dataclass
class LoggerConfig(Checked, heading="logger."):
    """Where a run is logged, always under OUT; a resumed run goes on with the same logs."""

    wandb: WandbConfig = option(WandbConfig, "Weights & Biases")
    csv: bool = option(True, "metrics.csv in OUT/log")
    tensorboard: bool = option(False, "TensorBoard events in OUT/tensorboard")
    every: int = option(50, "steps between log entries", least=1)
    pairs: int = option(4, "pairs whose fusion is shown with its information gains", least=0)

    @property
    def active(self) -> bool:
        """Whether anything is logged."""
        return self.csv or self.tensorboard or self.wandb.mode != "disabled"


@dataclass
class SaveConfig(Checked, heading="save."):
    """What is written beside the fused image."""

    weights: bool = common(False, "weight and gain maps of each step, as pictures in OUT/NAME_maps/")
    format: Literal["reference", "png", "tif", "jpg", "webp", "bmp", "dcm", "nii"] = common(
        "reference", "format of the fused pictures; reference = that of the reference source, with its 8 or 16 bits"
    )
    metadata: bool = common(True, "keep the reference's colour profile, EXIF, place, resolution; false for privacy")


@dataclass
class ReportConfig(Checked, heading="report."):
    """The page to look at what a run made, OUT/report.html."""

    pairs: int = common(20, "most pairs shown with pictures; 0 = no report", least=0)
    estimates: int = option(0, "pairs shown with the prior's estimates: the network runs in their steps", least=0)
    baselines: str = common("", "classical fusions to compare, with metrics: mean, laplacian, wavelet, guided, mertens")

    def _check(self) -> None:
        unknown = sorted(set(self.compared) - {"mean", "laplacian", "wavelet", "guided", "mertens"})
        require(not unknown, f"report.baselines: no {', '.join(unknown)}; see --help")

    @property
    def compared(self) -> list[str]:
        """The baselines by name."""
        return [name.strip() for name in self.baselines.split(",") if name.strip()]


BROUGHT = ("steps", "grid", "sigma_start", "sigma_end", "dig")
"""Options of the sampler that learned weights bring."""


@dataclass
class FusionConfig(Checked):
    """How one pair becomes one picture."""

    prior: PriorConfig = option(PriorConfig, "the pretrained denoiser")
    sampler: SamplerConfig = option(SamplerConfig, "the sampling loop")
    noise: dict[str, str] = common({}, "noise per modality, or of all: standard deviation of 255, or auto")
    prefer: dict[str, float] = common({}, "factor on the weight of a modality, as in prefer.infrared=1.5")
    seed: int = common(0, "seed of the noise; each image draws its own from it and its name")

    def _check(self) -> None:
        for modality, sigma in self.noise.items():
            number = sigma.replace(".", "", 1).isdecimal()
            require(number or sigma == "auto", f"noise.{modality} must be a number of 255 or auto, not {sigma}")
        for modality, factor in self.prefer.items():
            require(factor > 0, f"prefer.{modality} must be above 0, not {factor}")

    def check_given(self, keys: Iterable[str]) -> None:
        """Refuses options, typed by a person, that would have no effect."""
        idle = re.compile(rf"sampler\.({'|'.join(BROUGHT)}|guidance\.(scale|energy))(\..*)?")
        for key in keys if self.sampler.weights != "gain" else ():
            told = f"{key} has no effect: learned weights bring their own; give sampler.weights=gain with it"
            require(not idle.fullmatch(key), told)


def of_task(sampler: SamplerConfig, task: Task) -> SamplerConfig:
    """A sampler whose ``bundled`` weights are those of a task; a UserError if there are none."""
    if sampler.weights != "bundled":
        return sampler
    none = f"no weights are bundled for task={task}: give sampler.weights=gain, bundled/ivf or a folder"
    require(task in BUNDLED, none)
    return replace(sampler, weights=f"bundled/{BUNDLED[task]}")


@dataclass
class InferConfig(FusionConfig):
    """Fuses images: dig2dig infer PRESET sources.MODALITY=DIR_OR_FILE … out=DIR [key=value …]."""

    task: Task = common("ivf", "infrared-visible, medical, exposures, focal planes; a PRESET also: universal, paper")
    sources: dict[str, str] = common(
        {}, "per modality a folder, tree or list (.txt), paired by name; a pattern, DIR/**/{name}_ir.png; one file"
    )
    manifest: str = common("", "instead of sources: a CSV table with a column for each modality, and name")
    stacks: str = common("", "instead of sources: a folder of folders, the images of each are fused")
    sequence: bool = common(False, "the pairs are frames of one scene: they share their noise; videos always do")
    reference: str = common("", "modality whose size, depth and format the result keeps; empty = the first")
    align: str = common(
        "none", "sources of another size or place: none, resize, auto (search, prove), ecc, phase, or a rig.yaml"
    )
    border: Literal["auto", "keep"] = option(
        "auto", "uniform borders that a registration left are no data; keep: they are part of the picture"
    )
    ghosts: Literal["remove", "keep"] = common(
        "keep", "what moves between the images of a stack is shown once, as in reference= or the best exposed; or kept"
    )
    range: dict[str, str] = common(
        {}, "values of black and white per modality: auto, full, percentile or LOW-HIGH; also nodata=VALUE or nan"
    )
    allow_missing: bool = common(False, "fuse stacks that stop before others with the sources they have, at least 2")
    out: str = common("out", "folder for the results")
    shard: str = option("1/1", "I/N: only part I of N of the pairs, for N jobs with a folder each")
    save: SaveConfig = option(SaveConfig, "what is written beside the fused image")
    report: ReportConfig = option(ReportConfig, "the page to look at results")
    batch_size: int = common(1, "images of one size fused together: faster on a GPU, last bits may differ", least=1)
    workers: int = common(0, "processes that read images ahead", least=0, most=1024)
    trainer: TrainerConfig = option(TrainerConfig, "devices")
    logger: LoggerConfig = option(lambda: LoggerConfig(WandbConfig("disabled"), csv=False), "dashboards of a few pairs")
    dry_run: bool = common(False, "only list what would be fused")
    overwrite: bool = common(False, "fuse again what an earlier run with the same configuration has done")
    validate: bool = common(False, "print fusion metrics and statistics of the gains; no picture is written")

    def _check(self) -> None:
        super()._check()
        ways = [name for name in ("sources", "manifest", "stacks") if getattr(self, name)]
        example = "at least two are needed, as in sources.visible=DIR sources.infrared=DIR"
        require(bool(ways), f"no sources given: {example}")
        require(bool(self.out.strip()), "out is empty: give a folder for the results, as out=results")
        index, _, count = self.shard.partition("/")
        numbers = index.isdecimal() and count.isdecimal() and 0 < int(index) <= int(count)
        require(numbers, f"shard must be I/N with I from 1 to N, as 2/8, not {self.shard!r}")
        require(len(ways) == 1, f"{' and '.join(ways)} contradict each other: give one of them")
        require(len(self.sources) != 1 and all(self.sources.values()), f"a source is missing: {example}")
        self.sampler = of_task(self.sampler, self.task)
        if self.sources:
            self.check_names(self.sources)
        placed = self.align in ("none", "resize", "auto", "ecc", "phase") or self.align.endswith((".yaml", ".yml"))
        require(placed, f"align must be none, resize, auto, ecc, phase or a rig, as rig.yaml, not {self.align!r}")
        compared = self.ghosts == "keep" or self.task in ("mef", "mff")
        require(compared, f"ghosts=remove compares images of one kind: task=mef or mff, not {self.task}")
        told = f"save.format={self.save.format} needs the reference's geometry, which save.metadata=false drops"
        require(self.save.metadata or self.save.format not in ("dcm", "nii"), told)
        require(not (self.dry_run and self.validate), "dry_run and validate contradict each other: give one of them")
        for modality, text in self.range.items():
            check_range(f"range.{modality}", text)

    def check_names(self, sources: Iterable[str]) -> None:
        """Raises a UserError where an option names a source that is not there."""
        named = {f"{name}.{m}": m for name in ("noise", "range", "prefer") for m in getattr(self, name)}
        named.pop("noise.all", None)
        known = list(dict.fromkeys(sources))
        for option_name, modality in (named | {"reference": self.reference}).items():
            there = not (modality and known) or modality in known
            require(there, f"{option_name}: no source is called {modality}; there are {', '.join(known)}")
