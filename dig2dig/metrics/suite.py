"""The table of metrics: definition, range and source of each metric, and the conventions of published values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from dig2dig.metrics import gradient, information, perception, structure, tone
from dig2dig.metrics.levels import Grey, Levels, PerSource, Score, Scores, both, by_channel, grey_levels
from dig2dig.shapes import Image, Sources

CONVENTIONS = ("standard", "cddfuse", "tang", "vifb")
"""Our form of the metrics, and those of CDDFuse, of Tang's toolkit for MATLAB, and of the benchmark VIFB."""


@dataclass(frozen=True)
class Metric:
    """A metric, and the facts that explain its values."""

    name: str
    score: Score  # the standard form: one value for each image
    definition: str
    range: str
    source: str
    higher_is_better: bool = True
    many: str = "fused image only"  # how the values of K sources are combined
    smallest: int = 2  # pixels of the shorter side that the metric needs
    variants: dict[str, Score] = field(default_factory=dict)  # other published forms, by convention

    @property
    def arrow(self) -> str:
        """The direction of better values."""
        return "↑" if self.higher_is_better else "↓"

    def __call__(self, fused: Image, sources: Sources, convention: str = "standard") -> Scores:
        """The value of each image in a convention; in the standard form if the convention has no form of its own."""
        return self.variants.get(convention, self.score)(fused, sources)


def _alone(score: Callable[[Image], Scores]) -> Score:
    return lambda fused, _: score(fused)


def _jointly(score: Callable[[Grey, Levels], Scores]) -> Score:
    return lambda fused, sources: score(*both(fused, sources))


def _singly(score: Callable[[Grey, Levels], Scores]) -> Score:  # derivatives and squares of whole numbers stay exact
    return lambda fused, sources: score(*(levels.float() for levels in both(fused, sources))).double()


def _sum(score: Callable[[Grey, Levels], PerSource]) -> Score:
    return lambda fused, sources: score(*both(fused, sources)).sum(1)


def _mean(score: Callable[[Grey, Levels], PerSource]) -> Score:
    return lambda fused, sources: score(*both(fused, sources)).mean(1)


def _nats(fused: Image, sources: Sources) -> Scores:
    """MI as in scikit-learn and VIFB."""
    return _sum(information.mutual_information)(fused, sources) * math.log(2)


def _vifb(score: Score) -> dict[str, Score]:
    return {"vifb": by_channel(score)}


_MATLAB = _alone(gradient.average_gradient_matlab)
_SATURATED = partial(information.mutual_information, brightest=254)  # MATLAB adds 1 to 8 bits: 254 and 255 are one
_TABLE = (
    Metric("EN", _alone(information.entropy), "entropy of the 256-bin histogram", "[0, 8] bits", "Roberts 2008",
           variants=_vifb(_alone(information.entropy))),
    Metric("SD", _alone(gradient.standard_deviation), "population standard deviation", "[0, 127.5] levels", "Rao 1997",
           variants=_vifb(_alone(gradient.standard_deviation))),
    Metric("SF", _alone(gradient.spatial_frequency), "root mean square of neighbours' differences, rows plus columns",
           "[0, 361] levels", "Eskicioglu 1995", variants={"vifb": _alone(gradient.spatial_frequency_vifb)}),
    Metric("SCD", _sum(structure.correlation_of_differences),
           "correlation of (fused minus the other sources' mean) with a source", "[-K, K]", "Aslantas 2015",
           many="sum"),
    Metric("VIF", _sum(perception.visual_information), "information of a source that passes, pixel domain, four scales",
           "[0, about K]", "Sheikh 2006", many="sum", smallest=41),
    Metric("Qabf", _singly(gradient.gradient_preservation), "kept strength and angle of edges, by Sobel", "[0, 1]",
           "Xydeas 2000", many="mean, weighted by edge strength", smallest=3,
           variants=_vifb(_singly(gradient.gradient_preservation))),
    Metric("SSIM", _mean(structure.similarity), "structural similarity, 7×7 windows", "[-1, 1]", "Wang 2004",
           many="mean", smallest=11,
           variants={"cddfuse": _sum(structure.similarity)} | _vifb(_sum(structure.similarity_gaussian))),
    Metric("Nabf", _singly(gradient.fusion_artefacts), "edges stronger than in every source, not explained by any",
           "[0, 1]", "Shreyamsha Kumar 2013", higher_is_better=False, many="mean, weighted by edge strength",
           smallest=3, variants={"tang": _singly(gradient.fusion_artefacts_misplaced)}),
    Metric("AG", _alone(gradient.average_gradient), "mean gradient by central differences", "[0, 255] levels",
           "Cui 2015", variants={"tang": _MATLAB} | _vifb(_MATLAB)),
    Metric("EI", _alone(gradient.edge_intensity), "mean gradient by Sobel", "[0, 1443] levels", "Rajalingam 2018",
           variants=_vifb(_alone(gradient.edge_intensity))),
    Metric("MI", _sum(information.mutual_information), "mutual information of grey levels", "[0, 8 K] bits", "Qu 2002",
           many="sum", variants={"cddfuse": _nats, "tang": _sum(_SATURATED)}
           | _vifb(_nats)),
    Metric("NMI", _sum(information.normalised_information), "2 MI over the sum of both entropies", "[0, K]",
           "Hossny 2008", many="sum"),
    Metric("FMI_pixel", _mean(information.feature_information_pixel), "normalised MI in 3×3 windows of grey levels",
           "[0, 1]", "Haghighat 2014", many="mean", smallest=3),
    Metric("FMI_gradient", _mean(information.feature_information_gradient),
           "normalised MI in 3×3 windows of horizontal gradients", "[0, 1]", "Haghighat 2014", many="mean", smallest=3),
    Metric("CC", _mean(structure.correlation), "Pearson's correlation with a source", "[-1, 1]",
           "Shah 2013", many="mean"),
    Metric("MSE", _mean(structure.squared_error), "mean squared error", "[0, 255²] levels²", "Jagalingam 2015",
           higher_is_better=False, many="mean",
           variants={"tang": _jointly(lambda f, s: structure.squared_error(f, s).mean(1) / 255**2)}  # images in [0, 1]
           | _vifb(_mean(structure.root_error_vifb))),
    Metric("PSNR", _jointly(structure.peak_signal_to_noise), "10 log10(255² / MSE)", "[0, ∞] dB", "Jagalingam 2015",
           many="of the mean error", variants={"cddfuse": _jointly(structure.peak_signal_to_noise_own_peak)}
           | {"tang": _jointly(lambda f, s: structure.peak_signal_to_noise(f, s) + 20 * math.log10(255))}
           | _vifb(_jointly(structure.peak_signal_to_noise_vifb))),  # in tang, 48.13 dB too much
    Metric("MS-SSIM", _mean(structure.multi_scale_similarity), "structural similarity on five scales", "[0, 1]",
           "Wang 2003", many="mean", smallest=176),
    Metric("MEF-SSIM", _jointly(structure.exposure_fusion_similarity),
           "likeness to the best patch the sources could make, three scales", "[0, 1]", "Ma 2015", many="jointly",
           smallest=44),
    Metric("Qcb", perception.contrast_preservation, "kept local contrast, as the eye sees it", "[0, 1]", "Chen 2009",
           many="mean, weighted by contrast²", variants=_vifb(perception.contrast_preservation)),
    Metric("Qcv", perception.visible_difference, "visible difference to a source, in blocks of 16", "[0, ∞) levels²",
           "Chen 2007", higher_is_better=False, many="mean, weighted by edges", smallest=3,
           variants=_vifb(perception.visible_difference)),
    Metric("halo", tone.halo, "share of the blurred gradient's energy that points against every source", "[0, 1]",
           "ours", higher_is_better=False, many="jointly", smallest=16),
    Metric("tone", tone.tone_order, "share of pairs of places whose order in brightness is turned round", "[0, 1]",
           "ours, after Wang 2013", higher_is_better=False, many="jointly", smallest=16),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _TABLE}
"""All metrics by name. A metric takes images in [0, 1] and gives one value for each."""

ALL = tuple(METRICS)
MAIN = ("EN", "SD", "SF", "SCD", "VIF", "Qabf", "SSIM", "Nabf")
"""The metrics that most papers report. Runs show these."""


def fusion_metrics(
    fused: Image, sources: Sources, convention: str = "standard", names: Sequence[str] = MAIN
) -> dict[str, Scores]:
    """Metrics of fused images by name, one value for each image; a metric that needs larger images is left out.

    Args:
        fused: Fused images in [0, 1], grey or RGB, shape (b, c, h, w).
        sources: Their K sources in [0, 1], shape (b, k, c, h, w); luminance counts, except in ``vifb``.
        convention: The form of each metric, see docs/metrics.md.
        names: Which metrics, of :data:`ALL`.

    Raises:
        ValueError: A name or the convention does not exist.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"no metric {', '.join(unknown)}; there are {', '.join(ALL)}")
    if convention not in CONVENTIONS:
        raise ValueError(f"no convention {convention!r}; there are {', '.join(CONVENTIONS)}")
    if convention != "vifb":  # once, not for each metric: all take luminance
        fused, sources = grey_levels(fused) / 255, grey_levels(sources) / 255
    side = min(fused.shape[-2:])
    return {name: METRICS[name](fused, sources, convention) for name in names if side >= METRICS[name].smallest}
