"""The page of ``benchmark quality``: the results of all methods on a pair, side by side, with metrics and ranks."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import QualityConfig
from dig2dig.benchmark.datasets import Case, centre, names
from dig2dig.benchmark.tables import Row as Scored
from dig2dig.benchmark.tables import collect
from dig2dig.cli import flat, to_yaml
from dig2dig.metrics import MAIN
from dig2dig.priors.files import prior_sha256
from dig2dig.report.page import Page, Row, render
from dig2dig.report.pictures import view_of_files
from dig2dig.report.views import PairView, finite

Pictures = Mapping[tuple[str, str], Mapping[str, Path]]  # file of each method, by dataset and name


def write_gallery(
    config: QualityConfig, cases: Sequence[Case], pictures: Pictures, rows: Sequence[Scored], failed: Sequence[str]
) -> Path:
    """Writes ``report.html`` with the pairs of each task on which the reference is worst, and gives its path."""
    path = Path(config.out) / "report.html"
    made = [case for case in cases if _shown(case, rows, config)]
    cards = [_card(case, pictures, rows, config) for case in worst(made, rows, config)]
    options, usual = flat(asdict(config)), flat(asdict(QualityConfig()))
    changed = [f"{name}={value}" for name, value in options.items() if value != usual.get(name)]
    facts = {
        "pairs": str(len(made)),
        "methods": str(len({row["method"] for row in rows})),
        "reference": config.reference,
        "convention": config.convention,
        "crop": f"{config.crop} px" if config.crop else "",
        "prior": f"{config.prior.path} {prior_sha256(config.prior.path)[:10]}",
        "dig2dig": version("dig2dig"),
    }
    page = Page(
        title=f"Quality of {', '.join(dict.fromkeys(case.dataset for case in cases))}",
        lead=f"Every method on the same pairs: {len(cards)} of {len(made)}, those of each task on which "
        f"{config.reference} ranks worst, the worst first. Metrics are those of the "
        f"pictures shown{', stretched' if config.stretch == 'minmax' else ''}; ranks are among the methods of a pair.",
        facts=[(name, fact) for name, fact in facts.items() if fact],
        command=shlex.join(["python", "-m", "dig2dig.benchmark", "quality", *changed]),
        record=to_yaml(config),
        failed=[Row(reason) for reason in failed],
        cards=cards,
    )
    write_atomically(path, render(page))
    return path


def worst(cases: Sequence[Case], rows: Sequence[Scored], config: QualityConfig) -> list[Case]:
    """The pairs of each task on which the reference has the worst mean rank, as a share of the methods there."""

    def standing(case: Case) -> float:
        scores = collect(_shown(case, rows, config))
        ranks = dict(zip(scores.methods, scores.ranks.mean(1) / max(1, len(scores.methods)), strict=True))
        return float(ranks.get(config.reference, 0.0))

    tasks = {case.task: [one for one in cases if one.task == case.task] for case in cases}
    each = max(1, config.report // max(1, len(tasks)))
    return [case for some in tasks.values() for case in sorted(some, key=standing, reverse=True)[:each]]


def _shown(case: Case, rows: Sequence[Scored], config: QualityConfig) -> list[Scored]:
    """The rows of a case as its pictures are shown."""
    wanted = (case.dataset, case.pair.name, "minmax" if config.stretch == "minmax" else "none")
    return [row for row in rows if (row["dataset"], row["name"], row["stretch"]) == wanted]


def _card(case: Case, pictures: Pictures, rows: Sequence[Scored], config: QualityConfig) -> PairView:
    name, shown = case.pair.name, _shown(case, rows, config)
    known = {row["method"]: finite({key: row[key] for key in MAIN if row.get(key)}) for row in shown}
    found = pictures[case.dataset, name]
    order = dict.fromkeys([config.reference, *names(config.methods), *config.variants, *found])
    ordered = {method: found[method] for method in order if method in found}
    known = {method: {} for method in ordered} | known
    title, folder, cut = f"{case.dataset} {name}", Path(config.out), partial(centre, height=config.crop)
    return view_of_files(title, case.pair.files, ordered, folder, known=known, ours=[config.reference], prepare=cut)
