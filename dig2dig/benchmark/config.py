"""The schemas of the benchmarks."""

from dataclasses import dataclass
from typing import Literal

from dig2dig.config import PriorConfig
from dig2dig.options import Checked, common, option

VARIANTS = "further methods: options that change the preset, as in variants.l1='sampler.dig.loss=l1'"


@dataclass
class BenchmarkConfig(Checked):
    """Options of every benchmark."""

    prior: PriorConfig = option(PriorConfig, "the prior of all methods that need one")
    seed: int = common(0, "seed of the noise")
    device: Literal["auto", "cpu", "cuda", "mps"] = common("auto", "kind of device")


@dataclass
class CasesConfig(BenchmarkConfig):
    """Options of benchmarks on DIR/TASK/DATASET/SIDE/NAME.png."""

    data: str = common("../shared/data", "folder of the tasks")
    datasets: str = common("", "datasets or tasks to use, separated by commas; empty = all")
    half: Literal["all", "first", "second"] = common("all", "half of each dataset; presets were tuned on the first")
    limit: int = common(0, "largest number of pairs of each dataset; 0 = all", least=0)
    crop: int = common(0, "side of a centre crop of all images, pixels; 0 = whole images", least=0)


@dataclass
class QualityConfig(CasesConfig):
    """Compares methods: python -m dig2dig.benchmark quality data=DIR out=DIR [key=value …].

    DIR holds TASK/DATASET/SIDE/NAME.png. TASK is infrared_visible, medical, multi_exposure or multi_focus.
    TASK/DATASET/peers/METHOD/NAME.png holds the results of other methods.
    """

    methods: str = common(
        "dig2dig, gain, static, spatial, temporal, universal, paper, "
        "mean, laplacian, wavelet, guided, mertens, ddfm, ddfm-unstretched, ddfm-paper, peers",
        "methods, separated by commas; peers = all in the peers folders, peers:DIR = images in DIR/NAME.*",
    )
    variants: dict[str, str] = common({}, VARIANTS)
    stretch: Literal["none", "minmax", "both"] = common("both", "stretch of the luminance of every method's result")
    metrics: Literal["main", "all"] = common("main", "the eight main metrics, or all metrics")
    convention: Literal["standard", "cddfuse", "tang", "vifb"] = common("standard", "form of the metrics")
    reference: str = common("dig2dig", "method that is tested against each other method")
    report: int = common(20, "largest number of pairs in report.html; 0 = no report", least=0)
    out: str = common("out/quality", "folder of the pictures, tables and report.html; a run resumes from it")


@dataclass
class TheoryConfig(BenchmarkConfig):
    """Measures the bound of the paper where the ideal is known: python -m dig2dig.benchmark theory data=DIR out=DIR."""

    data: str = common("../shared/data/natural/Kodak", "folder of sharp photographs")
    limit: int = common(0, "largest number of photographs; 0 = all", least=0)
    crop: int = common(256, "side of the centre crop, pixels", least=0)
    blur: float = common(3.0, "standard deviation of the defocus, pixels")
    sigma: float = common(25.0, "standard deviation of the noise in the noisy variants, of 255")
    variants: dict[str, str] = common({}, VARIANTS)
    out: str = common("out/theory", "folder of results.csv and table.md")


@dataclass
class DegradedConfig(CasesConfig):
    """Fuses degraded sources: python -m dig2dig.benchmark degraded data=DIR out=DIR [key=value …]."""

    kind: Literal["gaussian", "thermal", "jpeg", "blur", "dark"] = common(
        "gaussian",
        "noise; noise that grows with the signal, and stripes; JPEG; a Gaussian blur; a quarter of the light",
    )
    sigmas: str = common("25", "of 255, separated by commas; the quality of jpeg; pixels of blur", each=0)
    noisy: Literal["all", "first"] = common("all", "sources that are degraded")
    methods: str = common(
        "dig2dig-noise, dig2dig-auto, dig2dig, static, mean, laplacian, guided, nlm+laplacian, prior+laplacian",
        "methods, separated by commas; nlm+METHOD and prior+METHOD denoise first",
    )
    variants: dict[str, str] = common({}, VARIANTS)
    out: str = common("out/degraded", "folder of pictures, results.csv and table.md; a run resumes from it")


@dataclass
class FlickerConfig(BenchmarkConfig):
    """Fuses frames of a scene where little moves: python -m dig2dig.benchmark flicker out=DIR [key=value …]."""

    frames: int = common(12, "frames of the sequence", least=2)
    crop: int = common(256, "side of the frames, pixels", least=64)
    sensor: str = common("0, 1", "standard deviations of each frame's own noise, of 255, separated by commas", each=0)
    task: Literal["ivf", "mif", "mef", "mff"] = common("ivf", "task of the preset")
    pulls: str = common("0, 0.01, 0.03", "values of sampler.guidance.sigma_n, separated by commas", each=0)
    out: str = common("out/flicker", "folder of table.md and pictures")


@dataclass
class GhostsConfig(CasesConfig):
    """Fuses stacks in which a thing moves: python -m dig2dig.benchmark ghosts data=DIR out=DIR [key=value …]."""

    datasets: str = common(
        "MEFB, SICE_HoLoCo, Waterloo_stacks, IFCNN_stacks, Lytro, Lytro_triple, MFFW",
        "stacks of exposures or focal planes, separated by commas",
    )
    out: str = common("out/ghosts", "folder of table.md and pictures")


@dataclass
class StackConfig(BenchmarkConfig):
    """Fuses focal planes of many depths: python -m dig2dig.benchmark stack out=DIR [key=value …]."""

    counts: str = common("2, 5, 10, 30", "numbers of planes, separated by commas", each=2)
    megapixels: str = common("1", "areas of a plane, separated by commas", each=0.01)
    task: Literal["mff", "universal"] = common("mff", "preset")
    out: str = common("out/stack", "folder of table.md and pictures")


@dataclass
class SpeedConfig(BenchmarkConfig):
    """Measures time and memory as ratios within one run: python -m dig2dig.benchmark speed out=DIR [key=value …]."""

    sections: str = common(
        "cost, profile, batches, sizes, windows, start, throughput, train",
        "measurements, separated by commas; also adm",
    )
    repeats: int = common(5, "paired rounds of each measurement, after one warm-up round", least=1)
    task: Literal["ivf", "mif", "mef", "mff"] = common("ivf", "task of the preset")
    pull: float = common(0.01, "sigma_n of the settings with the prior in the loop; 0 in the presets", above=0)
    megapixels: str = common("0.25, 1, 3, 12", "sizes: areas of a 4:3 pair, separated by commas", each=0.01)
    out: str = common("out/speed", "folder of speed.json, table.md and pictures")


@dataclass
class AlignConfig(Checked):
    """Registers pairs whose source was moved: python -m dig2dig.benchmark align data=DIR out=DIR [key=value …]."""

    data: str = common("../shared/data", "folder of the tasks")
    datasets: str = common("MSRS, LLVIP, M3FD, VIFB, Harvard_CT-MRI", "datasets, separated by commas")
    limit: int = common(0, "largest number of pairs of each dataset; 0 = all", least=0)
    warps: int = common(4, "warps of each pair, every second one with perspective", least=1)
    seed: int = common(0, "seed of the warps")
    out: str = common("out/align", "folder of results.csv and table.md; a run resumes from it")
