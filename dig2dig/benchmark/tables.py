"""What the rows say: means, ranks, paired tests against one method, and plots."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, wilcoxon

from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import QualityConfig
from dig2dig.benchmark.rows import Row
from dig2dig.metrics import ALL, MAIN, METRICS

LEVEL = 0.05


@dataclass(frozen=True)
class Scores:
    """Scores of n methods on the same images.

    Attributes:
        methods: Their names.
        metrics: Names of the metrics.
        values: (methods, images, metrics); larger is not always better.
        seconds: Mean seconds, NaN for somebody else's pictures.
        evaluations: Mean network evaluations.
        left_out: Methods that have not made all images.
    """

    methods: list[str]
    metrics: list[str]
    values: np.ndarray
    seconds: np.ndarray
    evaluations: np.ndarray
    left_out: list[str]

    @property
    def signed(self) -> np.ndarray:
        """The values, turned so that more is better."""
        return self.values * np.array([1 if METRICS[name].higher_is_better else -1 for name in self.metrics])

    @property
    def ranks(self) -> np.ndarray:
        """Mean over images of the rank among the methods, 1 is best, (methods, metrics)."""
        return rankdata(-self.signed.round(6), axis=0).mean(1)


def collect(rows: Sequence[Row]) -> Scores:
    """Scores of all methods that have every image, on the metrics that every row has."""
    images = sorted({(row["dataset"], row["name"]) for row in rows})
    by_method: dict[str, dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in rows:
        by_method[row["method"]][row["dataset"], row["name"]] = row
    methods = [method for method, found in by_method.items() if len(found) == len(images)]
    chosen = [[by_method[method][image] for image in images] for method in methods]
    complete = [name for name in ALL if all(row.get(name) for line in chosen for row in line)]
    metrics = complete if set(complete) - set(MAIN) else [name for name in MAIN if name in complete]
    values = np.array([[[float(row[name]) for name in metrics] for row in line] for line in chosen])
    cost = [[[float(row.get(name) or "nan") for row in line] for line in chosen] for name in ("seconds", "evaluations")]
    seconds, evaluations = np.array(cost).mean(2)
    return Scores(methods, metrics, values, seconds, evaluations, sorted(set(by_method) - set(methods)))


def holm(p: np.ndarray) -> np.ndarray:
    """P values with Holm's correction for the number of tests.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p)
    corrected = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))).clip(max=1)
    result = np.empty_like(p)
    result[order] = corrected
    return result


def paired(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilcoxon's signed-rank test over images, for each metric, with Holm's correction over the metrics.

    Args:
        ours: (images, metrics), more is better.
        theirs: The same for the other method.

    Returns:
        Corrected p values, and the effect size: the rank-biserial correlation, 1 where ours is better on all images,
        -1 where it is worse on all.
    """
    difference = ours - theirs
    p = [1.0 if not column.any() else float(np.asarray(wilcoxon(column))[1]) for column in difference.T]
    ranks = rankdata(abs(difference), axis=0) * (difference != 0)
    effect = (ranks * np.sign(difference)).sum(0) / ranks.sum(0).clip(min=1)
    return holm(np.array(p)), effect


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines)) + "\n"


def means_table(scores: Scores) -> str:
    """Means, mean rank over images and metrics, seconds and network evaluations, best rank first."""
    rank = scores.ranks.mean(1)
    lines = []
    for i in np.argsort(rank, kind="stable"):
        cost = ["" if np.isnan(x[i]) else f"{x[i]:.{d}f}" for x, d in ((scores.seconds, 2), (scores.evaluations, 1))]
        lines.append([scores.methods[i], *(f"{v:.4g}" for v in scores.values[i].mean(0)), f"{rank[i]:.2f}", *cost])
    arrows = [f"{name} {'↑' if METRICS[name].higher_is_better else '↓'}" for name in scores.metrics]
    table = markdown(["method", *arrows, "mean rank", "seconds", "evaluations"], lines)
    missing = f"\nWithout all images, and so left out: {', '.join(scores.left_out)}.\n" if scores.left_out else ""
    return table + missing


def tests_table(scores: Scores, reference: str) -> str:
    """The reference against every other method: sign of the effect, its size, and corrected p."""
    signed, us = scores.signed, scores.methods.index(reference)
    lines = []
    for i, method in enumerate(scores.methods):
        if i != us:
            p, effect = paired(signed[us], signed[i])
            better, worse = int(((p < LEVEL) & (effect > 0)).sum()), int(((p < LEVEL) & (effect < 0)).sum())
            cells = [f"{e:+.2f} ({'<0.001' if q < 1e-3 else f'{q:.3f}'})" for e, q in zip(effect, p, strict=True)]
            mean_better = int((signed[us].mean(0) > signed[i].mean(0)).sum())
            lines.append([method, f"{mean_better}", f"{better} / {worse}", *cells])
    return markdown(["against", "better means", "significant: better / worse", *scores.metrics], lines)


def write_tables(rows: Sequence[Row], config: QualityConfig, out: Path) -> None:
    """Writes ``table.md`` and plots: by task for methods that have all images, by dataset with the peers."""
    parts = [_heading(config)]
    for stretch in sorted({row["stretch"] for row in rows}, reverse=True):
        shown = [row for row in rows if row["stretch"] == stretch]
        parts.append(f"# Stretch: {stretch}\n")
        for task in dict.fromkeys(row["task"] for row in shown):
            of_task = [row for row in shown if row["task"] == task]
            parts += _section(f"{task}, all datasets", of_task, config.reference, out / f"{stretch}_{task}.png")
            numbers = sorted({row["k"] for row in of_task})
            groups = {f"{task}: {name}": ("dataset", name) for name in dict.fromkeys(row["dataset"] for row in of_task)}
            groups |= {f"{task}: K = {k}": ("k", k) for k in numbers if len(numbers) > 1}
            for title, (column, value) in groups.items():
                of_group = [row for row in of_task if row[column] == value]
                parts += _section(title, of_group, config.reference, None)
    write_atomically(out / "table.md", "\n".join(parts).encode())


def _heading(config: QualityConfig) -> str:
    return (
        f"Means over images, metrics on luminance (convention: {config.convention}). Mean rank: the mean over images "
        "and metrics of the rank among the methods shown, 1 is best. Paired tests of "
        f"{config.reference} against each method: rank-biserial effect size, positive where it is better, and in "
        "brackets Wilcoxon's p over images with Holm's correction over the metrics; significant is "
        f"p < {LEVEL}.\n"
    )


def _section(title: str, rows: Sequence[Row], reference: str, plot: Path | None) -> list[str]:
    scores = collect(rows)
    count = len({(row["dataset"], row["name"]) for row in rows})
    parts = [f"## {title} ({count} pairs or stacks)\n", means_table(scores)]
    if reference in scores.methods and len(scores.methods) > 1:
        parts.append(tests_table(scores, reference))
    if plot:
        _plot(scores, title, plot)
        if families := _families(scores.methods):
            _plot_steps(scores, families, title, plot.with_stem(plot.stem + "_steps"))
    return parts


def _families(methods: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Methods called NAME-NUMBER by name: their numbers, rising, and places in the list."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for place, method in enumerate(methods):
        if match := re.fullmatch(r"(.+)-(\d+)", method):
            found[match[1]].append((int(match[2]), place))
    return {name: sorted(members) for name, members in found.items() if len(members) > 2}


def _plot_steps(scores: Scores, families: dict[str, list[tuple[int, int]]], title: str, path: Path) -> None:
    """Mean rank of families of methods against their number, with the other methods as level lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rank = scores.ranks.mean(1)
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for (name, members), marker in zip(families.items(), "os^vD", strict=False):
        axis.plot([n for n, _ in members], [rank[i] for _, i in members], f"{marker}-", ms=4, label=name)
    inside = {place for members in families.values() for _, place in members}
    for place, method in enumerate(scores.methods):
        if place not in inside:
            axis.axhline(rank[place], color="0.7", lw=0.8)
            axis.annotate(method, (axis.get_xlim()[1], rank[place]), fontsize=7, color="0.4", ha="right", va="bottom")
    axis.set_xscale("log")
    axis.set_xlabel("number")
    axis.set_ylabel("mean rank, 1 is best")
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    axis.set_title(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _plot(scores: Scores, title: str, path: Path) -> None:
    """Mean rank of each method, and rank against seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rank = scores.ranks.mean(1)
    order = np.argsort(-rank)
    figure = Figure(figsize=(10, 1.2 + 0.28 * len(order)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    bars, cloud = figure.subplots(1, 2)
    colours = ["#D55E00" if name in ("dig2dig", "universal") else "#0072B2" for name in scores.methods]
    bars.barh([scores.methods[i] for i in order], rank[order], color=[colours[i] for i in order])
    bars.set_xlabel("mean rank, 1 is best")
    for i, name in enumerate(scores.methods):
        if not np.isnan(scores.seconds[i]):
            at = max(scores.seconds[i], 1e-3), rank[i]
            cloud.plot(*at, "o", color=colours[i])
            cloud.annotate(name, at, xytext=(4, 2), textcoords="offset points", fontsize=7)
    cloud.set_xscale("log")
    cloud.invert_yaxis()
    cloud.set_xlabel("seconds an image")
    cloud.set_ylabel("mean rank")
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
