"""The page of one run of ``infer.py``, and the page that compares several."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datamodules.pairing import scenes
from dig2dig.atomic import write_atomically
from dig2dig.cli import from_yaml, read_record, to_yaml
from dig2dig.config import InferConfig
from dig2dig.errors import PairingError, ReportError
from dig2dig.inference.state import Run
from dig2dig.inference.table import read_summary
from dig2dig.metrics import ALL, METRICS
from dig2dig.report.fragments import read_fragment
from dig2dig.report.page import Page, Row, render
from dig2dig.report.pictures import view_of_files
from dig2dig.report.views import PairView, Panel

LISTED = 300
"""Most pairs that are told in one line each."""

ASIDE = ("out", "report", "save", "logger", "trainer", "workers", "dry_run", "overwrite")
"""Options that leave the pictures as they are."""

Rows = Mapping[str, Mapping[str, str]]


def files_of(config: InferConfig) -> dict[str, dict[str, Path]]:
    """Where the sources of each pair lie, as far as they still do."""
    try:
        return {pair.name: pair.files for pair in scenes(config)}
    except (PairingError, OSError):
        return {}


def facts(config: InferConfig, record: Mapping[str, Any], rows: Rows) -> list[tuple[str, str]]:
    """What was run, in a line."""
    done = [row for row in rows.values() if row["status"] == "done"]
    s, prior = config.sampler, config.prior
    pull = "sources alone" if s.guidance.sigma_n == 0 else f"sigma_n {s.guidance.sigma_n:g}"
    adapter = f" + {prior.adapter} {record.get('adapter_sha256', '')[:10]}" if prior.adapter else ""
    noise = ", ".join(f"{modality} {sigma}" for modality, sigma in config.noise.items())
    versions = record.get("versions", {})
    return [
        ("pairs", f"{len(done)} fused, {len(rows) - len(done)} failed"),
        ("time", f"{sum(float(row['seconds']) for row in done):.1f} s"),
        ("task", config.task),
        ("sources", ", ".join(config.sources)),
        ("sampling", f"{s.steps} steps, {s.grid}"),
        ("gains", f"{s.dig.kind}, temperature {s.dig.temperature:g}, {s.research.scope}"),
        ("guidance", f"{s.guidance.kind}, {pull}"),
        *([("noise", noise)] if noise else []),
        ("prior", f"{prior.path} {record.get('prior_sha256', '')[:10]}{adapter}"),
        ("seed", str(config.seed)),
        ("dig2dig", f"{versions.get('dig2dig', '?')}, torch {versions.get('torch', '?')}"),
    ]


def run_page(run: Run, rows: Rows, command: str) -> Page:
    """The page of a run from its table, the fragments of its pairs and, where there is none, its pictures."""
    out, config = run.out, run.config
    done = {name: row for name, row in rows.items() if row["status"] == "done"}
    found = {name: read_fragment(out, name, run.key, row.get("inputs", "")) for name, row in done.items()}
    chosen = sorted(found, key=lambda name: (found[name] is None, name))[: config.report.pairs]
    files = {pair.name: pair.files for pair in run.pairs}
    cards = [found[name] or _from_files(name, files.get(name, {}), out, done[name]) for name in sorted(chosen)]
    cards = [replace(card, facts=[*card.facts, *notes(done[card.name])]) for card in cards]
    others = [
        Row(name, "; ".join([row["size"], *notes(row)]), row["file"])
        for name, row in sorted(done.items())
        if name not in chosen
    ]
    failed = [Row(name, row["reason"]) for name, row in sorted(rows.items()) if row["status"] == "failed"]
    hidden = max(len(others) - LISTED, 0) + max(len(failed) - LISTED, 0)
    return Page(
        title=out.resolve().name,
        lead="What dig2dig fused in this run: the sources, the results, and the weights in each step.",
        facts=facts(config, run.record, rows),
        command=command,
        record=to_yaml(config, run.record),
        scores=scores_over_pairs(cards),
        failed=failed[:LISTED],
        cards=cards,
        others=others[:LISTED],
        left_out=hidden,
        unlisted=max(len(failed) - LISTED, 0),
    )


def notes(row: Mapping[str, str]) -> list[str]:
    """What the table says of a pair beside its size."""
    return [note for note in row.get("note", "").split("; ") if note]


def scores_over_pairs(cards: Sequence[PairView]) -> list[list[str]]:
    """Metrics of the results of all shown pairs, a line each, and the means of every method; empty for one pair."""
    results = [(card.name, panel) for card in cards for panel in card.panels if panel.scores]
    names = [name for name in ALL if any(name in panel.scores for _, panel in results)]
    if len(cards) < 2 or not names:
        return []
    lines = [[card, *_cells(panel.scores, names)] for card, panel in results if panel.role == "result"]
    means = []
    for label in dict.fromkeys(panel.label for _, panel in results):
        found = [panel.scores for _, panel in results if panel.label == label]
        mean = {n: sum(s[n] for s in found if n in s) / max(sum(n in s for s in found), 1) for n in names}
        means.append([f"mean of {label}, {len(found)} pairs", *_cells(mean, names)])
    return [["", *(f"{name} {'↑' if METRICS[name].higher_is_better else '↓'}" for name in names)], *means, *lines]


def _cells(scores: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [f"{scores[name]:.4g}" if name in scores else "" for name in names]


def _from_files(name: str, files: Mapping[str, Path], out: Path, row: Mapping[str, str]) -> PairView:
    told = [f"{row['seconds']} s", f"seed {row['seed']}"]
    return view_of_files(name, files, {"fused": out / row["file"]}, out, told)


def write_run_page(run: Run, rows: Rows, command: str) -> Path:
    """Writes ``OUT/report.html`` and gives its path."""
    path = run.out / "report.html"
    write_atomically(path, render(run_page(run, rows, command)))
    return path


@dataclass(frozen=True)
class Finished:
    """A run on disk.

    Attributes:
        label: What it is called in the comparison.
        folder: Where it lies.
        config: Its options.
        record: Hashes and versions.
        rows: Its table.
    """

    label: str
    folder: Path
    config: InferConfig
    record: dict[str, Any]
    rows: dict[str, dict[str, str]]


def open_runs(folders: Sequence[str]) -> list[Finished]:
    """Runs by folder, called by as much of their path as tells them apart.

    Raises:
        ReportError: A folder is none of a run, or stands there twice.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise ReportError("a run stands there twice: give different folders")
    depth = next((n for n in range(1, 99) if len({path.parts[-n:] for path in paths}) == len(paths)), 99)
    runs = []
    for path in paths:
        config, rows = from_yaml(InferConfig, path / "run.yaml"), read_summary(path / "summary.csv")
        if config is None or not rows:
            raise ReportError(f"{path}: no finished run of infer.py lies there (run.yaml and summary.csv)")
        runs.append(Finished("/".join(path.parts[-depth:]), path, config, read_record(path / "run.yaml"), rows))
    return runs


def flat(values: object, prefix: str = "") -> dict[str, str]:
    """Nested options as ``a.b: value``."""
    if not isinstance(values, dict) or not values:
        return {prefix: "" if values in ({}, None) else str(values)}
    parts = (flat(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in values.items())
    return {name: value for part in parts for name, value in part.items()}


def differences(runs: Sequence[Finished]) -> list[list[str]]:
    """A table of the options that are not the same in all runs."""
    kept = [{n: value for n, value in asdict(run.config).items() if n not in ASIDE} for run in runs]
    options = [flat(one | run.record) for one, run in zip(kept, runs, strict=True)]
    names = dict.fromkeys(name for one in options for name in one)
    unequal = [name for name in names if len({one.get(name, "") for one in options}) > 1]
    lines = [[name, *(_short(name, one.get(name, "")) for one in options)] for name in unequal]
    counts = [f"{sum(row['status'] == 'done' for row in run.rows.values())} of {len(run.rows)}" for run in runs]
    return [["", *(run.label for run in runs)], ["fused", *counts], *lines]


def _short(name: str, value: str) -> str:
    return value[:10] if name.endswith("sha256") else value or "–"


def compared_view(name: str, runs: Sequence[Finished], files: Mapping[str, Path], folder: Path) -> PairView:
    """One pair as every run made it."""
    rows = {run.label: run.rows.get(name, {}) for run in runs}
    there = {run.label: run.folder / rows[run.label]["file"] for run in runs if rows[run.label].get("status") == "done"}
    card = view_of_files(name, files, there, folder)
    panels = {panel.label: panel for panel in card.panels if panel.role == "result"}
    results = [panels.get(run.label) or Panel(run.label, "result", note=_why(run, name)) for run in runs]
    times = [f"{run.label} {float(run.rows[name]['seconds']):.1f} s" for run in runs if run.label in there]
    sources = [panel for panel in card.panels if panel.role == "source"]
    return replace(card, panels=[*results, *sources], facts=[*card.facts, *times])


def _why(run: Finished, name: str) -> str:
    row = run.rows.get(name)
    return f"failed: {row['reason']}" if row else "not in this run"


def comparison(runs: Sequence[Finished], folder: Path, pairs: int, command: str) -> Page:
    """The page that shows each pair as every run made it; those with most results first, then by name."""
    count = {
        name: sum(run.rows.get(name, {}).get("status") == "done" for run in runs) for run in runs for name in run.rows
    }
    names = sorted(count, key=lambda name: (-count[name], name))
    names = [name for name in names if count[name]]
    files: dict[str, dict[str, Path]] = {}
    for run in reversed(runs):
        files |= files_of(run.config)
    cards = [compared_view(name, runs, files.get(name, {}), folder) for name in names[:pairs]]
    failed = [
        Row(f"{run.label}: {name}", row["reason"])
        for run in runs
        for name, row in sorted(run.rows.items())
        if row["status"] == "failed"
    ]
    return Page(
        title=" / ".join(run.label for run in runs),
        lead=f"{len(runs)} runs side by side: what each made of the same pairs, and how their options differ.",
        command=command,
        table=differences(runs),
        failed=failed[:LISTED],
        cards=cards,
        left_out=max(len(names) - pairs, 0) + max(len(failed) - LISTED, 0),
        unlisted=max(len(failed) - LISTED, 0),
    )
