"""The schemas of the benchmarks."""

from dataclasses import dataclass
from typing import Literal

from dig2dig.config import PriorConfig
from dig2dig.options import option, require

OURS = "dig2dig, static, spatial, temporal, universal"
BASELINES = "mean, laplacian, wavelet, guided, mertens, ddfm, ddfm-unstretched, ddfm-paper"


@dataclass
class QualityConfig:
    """Compares methods: python -m dig2dig.benchmark quality data=DIR out=DIR [key=value …].

    DIR holds TASK/DATASET/SIDE/NAME.png, TASK being infrared_visible, medical, multi_exposure or multi_focus, and
    the results of others in TASK/DATASET/peers/METHOD/NAME.png.
    """

    data: str = option("../shared/data", "folder of the tasks")
    datasets: str = option("", "datasets or tasks to take, separated by commas; empty = all")
    half: Literal["all", "first", "second"] = option(
        "all", "of each dataset, in order of name: presets were sought on the first half and confirmed on the second"
    )
    limit: int = option(0, "at most so many pairs of each dataset; 0 = all")
    methods: str = option(
        f"{OURS}, {BASELINES}, peers",
        "separated by commas; peers = all in the peers folders, peers:DIR = images in DIR/NAME.*",
    )
    variants: dict[str, str] = option(
        {}, "further methods: options that change the task's preset, as in variants.l1='sampler.dig.loss=l1'"
    )
    stretch: Literal["none", "minmax", "both"] = option("both", "stretch the luminance of every method's result")
    metrics: Literal["main", "all"] = option("main", "the eight of the comparison, or the whole suite")
    convention: Literal["standard", "cddfuse", "tang", "vifb"] = option("standard", "whose variants of the metrics")
    reference: str = option("dig2dig", "method that the others are tested against")
    prior: PriorConfig = option(PriorConfig, "the prior of all methods that need one")
    crop: int = option(0, "side of a centre crop of all images, pixels; 0 = whole images")
    seed: int = option(0, "seed of the noise")
    device: str = option("auto", "auto, cpu, cuda")
    report: int = option(20, "most pairs shown in report.html; 0 = no report")
    out: str = option(
        "out/quality", "folder for pictures, results.csv, table.md, report.html and plots; resumes from it"
    )

    def __post_init__(self) -> None:
        require(min(self.crop, self.limit, self.report) >= 0, "crop, limit and report must not be negative")


@dataclass
class TheoryConfig:
    """Measures the bound of the paper where the ideal is known: python -m dig2dig.benchmark theory data=DIR out=DIR."""

    data: str = option("../shared/data/natural/Kodak", "folder of sharp photographs")
    limit: int = option(0, "at most so many photographs; 0 = all")
    crop: int = option(256, "side of the centre crop, pixels")
    blur: float = option(3.0, "standard deviation of the defocus, pixels")
    sigma: float = option(25.0, "noisy variants: standard deviation of the noise, of 255")
    variants: dict[str, str] = option(
        {}, "further methods: options that change the preset, as in variants.l1='sampler.dig.loss=l1'"
    )
    prior: PriorConfig = option(PriorConfig, "the prior")
    seed: int = option(0, "seed of the noise")
    device: str = option("auto", "auto, cpu, cuda")
    out: str = option("out/theory", "folder for results.csv, table.md and plots")


@dataclass
class DegradedConfig:
    """Fuses noisy sources: python -m dig2dig.benchmark degraded data=DIR out=DIR [key=value …]."""

    data: str = option("../shared/data", "folder of the tasks, as for quality")
    datasets: str = option("", "datasets or tasks to take, separated by commas; empty = all")
    half: Literal["all", "first", "second"] = option("all", "of each dataset, in order of name")
    limit: int = option(0, "at most so many pairs of each dataset; 0 = all")
    sigmas: str = option("25", "standard deviations of the noise, of 255, separated by commas")
    noisy: Literal["all", "first"] = option("all", "which sources are noisy")
    methods: str = option(
        "dig2dig-noise, dig2dig-auto, dig2dig, static, mean, laplacian, guided, nlm+laplacian, prior+laplacian",
        "separated by commas",
    )
    variants: dict[str, str] = option({}, "further methods: options that change the noise-aware preset")
    prior: PriorConfig = option(PriorConfig, "the prior")
    crop: int = option(0, "side of a centre crop of all images, pixels; 0 = whole images")
    seed: int = option(0, "seed of the noise")
    device: str = option("auto", "auto, cpu, cuda")
    out: str = option("out/degraded", "folder for pictures, results.csv and table.md; resumes from it")


@dataclass
class FlickerConfig:
    """Fuses frames of a scene where little moves: python -m dig2dig.benchmark flicker out=DIR [key=value …]."""

    frames: int = option(12, "frames of the sequence")
    crop: int = option(256, "side of the frames, pixels")
    sensor: str = option("0, 1", "standard deviations of each frame's own noise, of 255, separated by commas")
    task: Literal["ivf", "mif", "mef", "mff"] = option("ivf", "whose preset")
    pulls: str = option("0, 0.01, 0.03", "values of sampler.guidance.sigma_n, separated by commas")
    prior: PriorConfig = option(PriorConfig, "the prior")
    seed: int = option(0, "seed of the noise")
    device: str = option("auto", "auto, cpu, cuda")
    out: str = option("out/flicker", "folder for table.md and pictures")

    def __post_init__(self) -> None:
        require(self.frames >= 2, f"frames must be at least 2, not {self.frames}")


@dataclass
class SpeedConfig:
    """Measures time and memory as ratios within one run: python -m dig2dig.benchmark speed out=DIR [key=value …]."""

    sections: str = option(
        "cost, profile, operators, batches, sizes, windows, spread",
        "what to measure, separated by commas; there is adm as well",
    )
    repeats: int = option(5, "paired rounds of each measurement, after one that does not count")
    task: Literal["ivf", "mif", "mef", "mff"] = option("ivf", "whose preset")
    pull: float = option(0.01, "sigma_n where the prior takes part in the loop; the presets' own is 0")
    megapixels: str = option("0.25, 1, 3, 12", "sizes: areas of a 4:3 pair, separated by commas")
    data: str = option("../shared/data", "spread: folder of the tasks, as for quality; the bundled examples without")
    limit: int = option(1, "spread: at most so many pairs of each dataset")
    seeds: int = option(5, "spread: seeds of the naive form")
    prior: PriorConfig = option(PriorConfig, "the prior")
    device: str = option("auto", "auto, cpu, cuda")
    out: str = option("out/speed", "folder for speed.json, table.md and pictures")

    def __post_init__(self) -> None:
        require(self.repeats >= 1, f"repeats must be at least 1, not {self.repeats}")
        require(self.pull > 0, f"pull must be above 0, not {self.pull}")
        require(self.seeds >= 2, f"seeds must be at least 2, not {self.seeds}")
