"""``results.csv``, with a row for each picture, and its tables: means, ranks, tests against one method."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata, wilcoxon

from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import QualityConfig
from dig2dig.errors import RunError
from dig2dig.metrics import ALL, MAIN, METRICS

Row = dict[str, str]
IDENTITY = ("dataset", "name", "method", "stretch")
LEVEL = 0.05  # a corrected p below this is significant
EYE = ("halo", "tone")  # measured beside the main metrics, shown without a rank
SHOWN = ("PSNR", "MEF-SSIM", *EYE, "targets", "lost", "saturation")
IMAGE, COST = ["dataset", "name"], ["seconds", "evaluations"]  # columns of an image's name and its fusion's cost


class Rows:
    """Rows of a table by their identity, read from a file and written back whole."""

    def __init__(self, path: Path, identity: tuple[str, ...] = IDENTITY) -> None:
        self.path, self.identity = path, identity
        empty = pd.DataFrame(columns=identity)
        known = pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else empty
        if not {*identity} <= {*known}:
            raise RunError(f"{path}: not a table of this benchmark; give another out=")
        self.rows: dict[tuple[str, ...], Row] = {tuple(r[c] for c in identity): r for r in known.to_dict("records")}

    def find(self, *identity: str, key: str = "") -> Row | None:
        """The row of an identity, or the first row whose identity starts with these columns; none of another key."""
        starts = (row for known, row in self.rows.items() if known[: len(identity)] == identity)
        found = self.rows.get(identity) or next(starts, None)
        return found if found and key in ("", found.get("key")) else None

    def drop(self, *identity: str) -> None:
        """Removes rows whose identity starts with these columns, on disk too: what they are about is made anew."""
        if self.find(*identity):
            self.rows = {known: row for known, row in self.rows.items() if known[: len(identity)] != identity}
            self.save()

    def put(self, *identity: str, row: Row) -> Row:
        """Adds or replaces a row."""
        named = dict(zip(self.identity, identity, strict=True))
        self.rows[tuple(named.values())] = named | row
        return named | row

    def save(self) -> None:
        """Writes all rows, sorted."""
        columns = dict.fromkeys([*self.identity, *(name for row in self.rows.values() for name in row)])
        table = pd.DataFrame([self.rows[key] for key in sorted(self.rows)], columns=list(columns))
        write_atomically(self.path, table.to_csv(index=False, lineterminator="\n").encode())

    def finish(self, kept: list[Row], table: str) -> None:
        """Writes ``table.md`` beside the rows, and prints where both are."""
        write_atomically(self.path.with_name("table.md"), table.encode())
        print(f"{len(kept)} rows in {self.path}, tables in {self.path.with_name('table.md')}")


@dataclass(frozen=True)
class Scores:
    """Scores of n methods on the same images."""

    methods: list[str]
    metrics: list[str]
    values: np.ndarray  # (methods, images, metrics); larger is not always better
    cost: np.ndarray  # mean seconds and network evaluations, (methods, 2); NaN for pictures of others
    left_out: list[str]  # methods that lack an image
    shown: dict[str, np.ndarray] = field(default_factory=dict)  # means that have no rank, by name, (methods,)

    @property
    def signed(self) -> np.ndarray:
        """The values, turned so that more is better."""
        return self.values * np.array([1 if METRICS[name].higher_is_better else -1 for name in self.metrics])

    @property
    def ranks(self) -> np.ndarray:
        """Mean over images of the rank among the methods, 1 is best, (methods, metrics)."""
        return rankdata(-self.signed.round(6), axis=0).mean(1)


def collect(rows: Sequence[Row] | pd.DataFrame) -> Scores:
    """Scores of all methods that have every image, on the metrics that every row has."""
    columns = ["method", *IMAGE, *dict.fromkeys([*ALL, *SHOWN]), *COST]
    table = pd.DataFrame(rows).reindex(columns=columns, fill_value="").fillna("")
    table = table.groupby(["method", *IMAGE], sort=False).last()
    made, images = Counter(table.index.get_level_values("method")), len(table.groupby(IMAGE))
    methods = [method for method in made if made[method] == images]
    chosen = table.sort_index().loc[methods]
    full = [name for name in ALL if (chosen[name] != "").all()]
    metrics = full if set(full) - {*MAIN, *SHOWN} else [name for name in full if name in MAIN]
    numbers = [np.array(chosen[name].replace("", "nan"), float).reshape(-1, images) for name in (*metrics, *COST)]
    values, cost = np.stack(numbers[:-2], -1), np.stack([column.mean(1) for column in numbers[-2:]], -1)
    others = chosen[[name for name in SHOWN if name not in metrics]].replace("", "nan").astype(float)
    means = others.groupby("method", sort=False).mean().reindex(methods).dropna(axis=1, how="all")
    shown = {str(name): column.to_numpy() for name, column in means.items()}
    return Scores(methods, metrics, values, cost, sorted(set(made) - set(methods)), shown)


def holm(p: np.ndarray) -> np.ndarray:
    """P values with Holm's correction (Holm, "A simple sequentially rejective multiple test procedure", 1979)."""
    order = np.argsort(p)
    corrected = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected[np.argsort(order)]


def paired(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilcoxon's signed-rank test on scores (images, metrics), with Holm's correction over the metrics.

    Gives p, and the effect size: the rank-biserial correlation, 1 if ours is better on all images, -1 if worse on all.
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
        cost = ["" if np.isnan(x) else f"{x:.{digits}f}" for x, digits in zip(scores.cost[i], (2, 1), strict=True)]
        seen = ["" if np.isnan(column[i]) else f"{column[i]:.3g}" for column in scores.shown.values()]
        means = [f"{v:.4g}" for v in scores.values[i].mean(0)]
        lines.append([scores.methods[i], *means, f"{rank[i]:.2f}", *seen, *cost])
    arrows = [f"{name} {METRICS[name].arrow}" for name in scores.metrics]
    missing = f"\nWithout all images, and so left out: {', '.join(scores.left_out)}.\n" if scores.left_out else ""
    return markdown(["method", *arrows, "mean rank", *scores.shown, *COST], lines) + missing


def tests_table(scores: Scores, reference: str) -> str:
    """The reference against every other method: sign of the effect, its size, and corrected p.

    The smallest p of n images is 2 / 2^n, times the number of metrics; there is no p where that is not significant.
    """
    signed, us = scores.signed, scores.methods.index(reference)
    too_small = len(scores.metrics) * 2.0 ** (1 - signed.shape[1]) >= LEVEL
    lines = []
    for i, method in enumerate(scores.methods):
        if i != us:
            p, effect = paired(signed[us], signed[i])
            better, worse = int(((p < LEVEL) & (effect > 0)).sum()), int(((p < LEVEL) & (effect < 0)).sum())
            shown = ["" if too_small else f" ({'<0.001' if q < 1e-3 else f'{q:.3f}'})" for q in p]
            cells = [f"{e:+.2f}{q}" for e, q in zip(effect, shown, strict=True)]
            mean_better = int((signed[us].mean(0) > signed[i].mean(0)).sum())
            lines.append([method, f"{mean_better}", "n too small" if too_small else f"{better} / {worse}", *cells])
    return markdown(["against", "better means", "significant: better / worse", *scores.metrics], lines)


def all_tables(rows: Sequence[Row], config: QualityConfig) -> str:
    """By task for methods that have all images, by dataset with the peers."""
    parts = [
        f"Means over images, metrics on luminance (convention: {config.convention}). Mean rank: the mean over images "
        "and metrics of the rank among the methods shown, 1 is best. Paired tests of "
        f"{config.reference} against each method: rank-biserial effect size, positive where it is better, and in "
        "brackets Wilcoxon's p over images with Holm's correction over the metrics; significant is "
        f"p < {LEVEL}.\n"
    ]
    for stretch, shown in reversed([*pd.DataFrame(rows).groupby("stretch")] if rows else []):
        parts.append(f"# Stretch: {stretch}\n")
        for task, of_task in shown.groupby("task", sort=False):
            parts += _section(f"{task}, all datasets", of_task, config.reference)
            by_k = [(f"K = {k}", group) for k, group in of_task.groupby("k")]
            for name, group in (*of_task.groupby("dataset", sort=False), *(by_k if len(by_k) > 1 else ())):
                parts += _section(f"{task}: {name}", group, config.reference)
    return "\n".join(parts)


def _section(title: str, rows: pd.DataFrame, reference: str) -> list[str]:
    scores = collect(rows)
    parts = [f"## {title} ({len(rows.groupby(IMAGE))} pairs or stacks)\n", means_table(scores)]
    if reference in scores.methods and len(scores.methods) > 1:
        parts.append(tests_table(scores, reference))
    return parts
