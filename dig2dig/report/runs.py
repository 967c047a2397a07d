"""The page of one run of ``infer.py``, and the page that compares several."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datamodules.pairing import PairingError, scenes
from dig2dig.atomic import write_atomically
from dig2dig.cli import from_yaml, to_yaml
from dig2dig.config import InferConfig
from dig2dig.inference.writer import read_summary
from dig2dig.report.cards import Card, Panel
from dig2dig.report.fragments import read_fragment
from dig2dig.report.page import Page, Row, render
from dig2dig.report.pictures import picture_card

LISTED = 300
"""Most pairs that are told in one line each."""

ASIDE = ("out", "report", "save", "logger", "trainer", "workers", "dry_run", "overwrite")
"""Options that leave the pictures as they are."""

Rows = Mapping[str, Mapping[str, str]]


class ReportError(ValueError):
    """Runs that cannot be shown, told in one line."""


def files_of(record: InferConfig) -> dict[str, dict[str, Path]]:
    """Where the sources of each pair lie, as far as they still do."""
    try:
        return {pair.name: pair.files for pair in scenes(record)}
    except (PairingError, OSError):
        return {}


def facts(record: InferConfig, rows: Rows) -> list[tuple[str, str]]:
    """What was run, in a line."""
    done = [row for row in rows.values() if row["status"] == "done"]
    s, prior = record.sampler, record.prior
    pull = "sources alone" if s.guidance.sigma_n == 0 else f"sigma_n {s.guidance.sigma_n:g}"
    adapter = f" + {prior.adapter} {(prior.adapter_sha256 or '')[:10]}" if prior.adapter else ""
    noise = ", ".join(f"{modality} {level}" for modality, level in record.noise.items())
    return [
        ("pairs", f"{len(done)} fused, {len(rows) - len(done)} failed"),
        ("time", f"{sum(float(row['seconds']) for row in done):.1f} s"),
        ("task", record.task),
        ("sources", ", ".join(record.sources)),
        ("sampling", f"{s.steps} steps, {s.grid}"),
        ("gains", f"{s.dig.kind}, temperature {s.dig.temperature:g}, {s.dig.scope}"),
        ("guidance", f"{s.guidance.kind}, {pull}"),
        *([("noise", noise)] if noise else []),
        ("prior", f"{prior.path} {(prior.sha256 or '')[:10]}{adapter}"),
        ("seed", str(record.seed)),
        ("dig2dig", f"{record.versions.get('dig2dig', '?')}, torch {record.versions.get('torch', '?')}"),
    ]


def run_page(out: Path, record: InferConfig, key: str, rows: Rows, command: str) -> Page:
    """The page of a run from its table, the fragments of its pairs and, where there is none, its pictures."""
    done = {name: row for name, row in rows.items() if row["status"] == "done"}
    found = {name: read_fragment(out, name, key, row.get("inputs", "")) for name, row in done.items()}
    chosen = sorted(found, key=lambda name: (found[name] is None, name))[: record.report.pairs]
    files = files_of(record) if any(found[name] is None for name in chosen) else {}
    cards = [found[name] or _from_files(name, files.get(name, {}), out, done[name]) for name in sorted(chosen)]
    others = [Row(name, row["size"], row["file"]) for name, row in sorted(done.items()) if name not in chosen]
    failed = [Row(name, row["reason"]) for name, row in sorted(rows.items()) if row["status"] == "failed"]
    hidden = max(len(others) - LISTED, 0) + max(len(failed) - LISTED, 0)
    return Page(
        title=out.resolve().name,
        lead="What dig2dig fused in this run: the sources, the results, and how each step weighed them.",
        facts=facts(record, rows),
        command=command,
        record=to_yaml(record),
        failed=failed[:LISTED],
        cards=cards,
        others=others[:LISTED],
        left_out=hidden,
        unlisted=max(len(failed) - LISTED, 0),
    )


def _from_files(name: str, files: Mapping[str, Path], out: Path, row: Mapping[str, str]) -> Card:
    told = [f"{row['seconds']} s", f"seed {row['seed']}"]
    return picture_card(name, files, {"fused": out / row["file"]}, out, told)


def write_run_page(out: Path, record: InferConfig, key: str, rows: Rows, command: str) -> Path:
    """Writes ``OUT/report.html`` and gives its path."""
    path = out / "report.html"
    write_atomically(path, render(run_page(out, record, key, rows, command)))
    return path


@dataclass(frozen=True)
class Finished:
    """A run on disk.

    Attributes:
        label: What it is called in the comparison.
        folder: Where it lies.
        record: Its options.
        rows: Its table.
    """

    label: str
    folder: Path
    record: InferConfig
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
        record, rows = from_yaml(InferConfig, path / "run.yaml"), read_summary(path / "summary.csv")
        if record is None or not rows:
            raise ReportError(f"{path}: no finished run of infer.py lies there (run.yaml and summary.csv)")
        runs.append(Finished("/".join(path.parts[-depth:]), path, record, rows))
    return runs


def flat(values: object, prefix: str = "") -> dict[str, str]:
    """Nested options as ``a.b: value``."""
    if not isinstance(values, dict) or not values:
        return {prefix: "" if values in ({}, None) else str(values)}
    parts = (flat(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in values.items())
    return {name: value for part in parts for name, value in part.items()}


def differences(runs: Sequence[Finished]) -> list[list[str]]:
    """A table of the options that are not the same in all runs."""
    options = [flat({n: value for n, value in asdict(run.record).items() if n not in ASIDE}) for run in runs]
    names = dict.fromkeys(name for one in options for name in one)
    unequal = [name for name in names if len({one.get(name, "") for one in options}) > 1]
    lines = [[name, *(_short(name, one.get(name, "")) for one in options)] for name in unequal]
    counts = [f"{sum(row['status'] == 'done' for row in run.rows.values())} of {len(run.rows)}" for run in runs]
    return [["", *(run.label for run in runs)], ["fused", *counts], *lines]


def _short(name: str, value: str) -> str:
    return value[:10] if name.endswith("sha256") else value or "–"


def compared_card(name: str, runs: Sequence[Finished], files: Mapping[str, Path], folder: Path) -> Card:
    """One pair as every run made it."""
    rows = {run.label: run.rows.get(name, {}) for run in runs}
    there = {run.label: run.folder / rows[run.label]["file"] for run in runs if rows[run.label].get("status") == "done"}
    card = picture_card(name, files, there, folder)
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
        files |= files_of(run.record)
    cards = [compared_card(name, runs, files.get(name, {}), folder) for name in names[:pairs]]
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
