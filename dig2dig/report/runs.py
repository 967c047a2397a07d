"""The page of one run of ``infer.py``, and the page that compares several."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datamodules.pairing import Pair, scenes
from datamodules.pairs import Sample, read_pair
from dig2dig.cli import flat, from_yaml, read_record, to_yaml
from dig2dig.config import InferConfig
from dig2dig.errors import UserError
from dig2dig.inference.state import Run, remembering
from dig2dig.inference.table import read_summary
from dig2dig.metrics import ALL, METRICS
from dig2dig.report.page import Page, Row
from dig2dig.report.pictures import load_picture, scores, view_of_files
from dig2dig.report.views import PairView, Panel, read_fragment

ASIDE = ("out", "shard", "report", "save", "logger", "trainer", "workers", "dry_run", "overwrite")  # shape no picture
Rows = Mapping[str, Mapping[str, str]]


def facts(config: InferConfig, record: Mapping[str, Any], rows: Rows) -> list[tuple[str, str]]:
    """What was run, in a line."""
    done = [row for row in rows.values() if row["status"] == "done"]
    s, prior = config.sampler, config.prior
    pull = "sources alone" if s.guidance.sigma_n == 0 else f"sigma_n {s.guidance.sigma_n:g}"
    adapter = f" + {prior.adapter} {record.get('adapter_sha256', '')[:10]}" if prior.adapter else ""
    versions = record.get("versions", {})
    learned = s.weights != "gain"
    known = [
        ("pairs", f"{len(done)} fused, {len(rows) - len(done)} failed"),
        ("time", f"{sum(float(row['seconds']) for row in done):.1f} s"),
        ("task", config.task),
        ("sources", ", ".join(config.sources)),
        ("weights", f"{s.weights} {record.get('weights_sha256', '')[:10]}" if learned else None),
        ("sampling", None if learned else f"{s.steps} steps, {s.grid}"),
        ("gains", None if learned else f"{s.dig.kind}, temperature {s.dig.temperature:g}, {s.research.scope}"),
        ("prefer", ", ".join(f"{modality} {factor:g}" for modality, factor in config.prefer.items()) or None),
        ("tone", None if s.tone == "balanced" else s.tone),
        ("guidance", f"{s.guidance.kind}, {pull}"),
        ("noise", ", ".join(f"{modality} {sigma}" for modality, sigma in config.noise.items()) or None),
        ("prior", f"{prior.path} {record.get('prior_sha256', '')[:10]}{adapter}"),
        ("seed", str(config.seed)),
        ("dig2dig", f"{versions.get('dig2dig', '?')}, torch {versions.get('torch', '?')}"),
    ]
    return [(term, value) for term, value in known if value is not None]


def run_page(run: Run, rows: Rows, command: str) -> Page:
    """The page of a run from its table, the fragments of its pairs and, where there is none, its pictures."""
    out, config = run.out, run.config
    done = {name: row for name, row in sorted(rows.items()) if row["status"] == "done"}
    found = {name: read_fragment(out, name, run.key, row.get("inputs", "")) for name, row in done.items()}
    chosen = sorted(done, key=lambda name: (found[name] is None, name))[: config.report.pairs]
    files = {pair.name: pair.files for pair in run.pairs if pair.frame is None}  # no other frame
    cards = []
    for name, row in sorted((name, done[name]) for name in chosen):
        lead = f"{row['seconds']} s", f"seed {row['seed']}"
        card = found[name] or view_of_files(name, files.get(name, {}), {"fused": out / row["file"]}, out, lead)
        cards.append(replace(card, facts=[*card.facts, *row["note"].split("; ")]))
    return Page(
        title=out.resolve().name,
        lead="What dig2dig fused in this run: the sources, the results, and the weights in each step.",
        facts=facts(config, run.record, rows),
        command=command,
        record=to_yaml(config, run.record),
        scores=scores_over_pairs(cards),
        failed=[Row(name, row["reason"]) for name, row in sorted(rows.items()) if row["status"] == "failed"],
        cards=cards,
        others=[Row(n, f"{row['size']} {row['note']}", row["file"]) for n, row in done.items() if n not in chosen],
    )


def scores_over_pairs(cards: Sequence[PairView]) -> list[list[str]]:
    """Means of each method over the shown pairs, then the result of each pair in a line; empty for one pair."""
    results = [(card.name, panel) for card in cards for panel in card.panels if panel.scores]
    names = [name for name in ALL if any(name in panel.scores for _, panel in results)]
    if len(cards) < 2 or not names:
        return []

    def line(pair: str, label: str, panels: Sequence[Panel]) -> list[str]:
        values = {name: [panel.scores[name] for panel in panels if name in panel.scores] for name in names}
        return [pair, label, *(f"{sum(found) / len(found):.4g}" if found else "" for found in values.values())]

    methods: dict[str, list[Panel]] = {}
    for _, panel in results:
        methods.setdefault(panel.label, []).append(panel)
    head = ["pair", "method", *(f"{name} {METRICS[name].arrow}" for name in names)]
    means = [line(f"mean of {len(panels)} pairs", label, panels) for label, panels in methods.items()]
    return [head, *means, *(line(pair, panel.label, [panel]) for pair, panel in results if panel.role == "result")]


@dataclass(frozen=True)
class Finished:
    """A run on disk."""

    label: str  # its name in the comparison
    folder: Path
    config: InferConfig
    record: dict[str, Any]  # hashes and versions
    rows: dict[str, dict[str, str]]  # its table


def open_runs(folders: Sequence[str]) -> list[Finished]:
    """Runs by folder, called by as much of their path as tells them apart; UserError if one is none, or twice."""
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError("a run stands there twice: give different folders")
    depth = next((n for n in range(1, 99) if len({path.parts[-n:] for path in paths}) == len(paths)), 99)
    runs = []
    for path in paths:
        config, rows = from_yaml(InferConfig, path / "run.yaml"), read_summary(path / "summary.csv")
        if config is None or not rows:
            raise UserError(f"{path}: no finished run of infer.py lies there (run.yaml and summary.csv)")
        runs.append(Finished("/".join(path.parts[-depth:]), path, config, read_record(path / "run.yaml"), rows))
    return runs


def differences(runs: Sequence[Finished]) -> list[list[str]]:
    """A table of the options that are not the same in all runs."""
    kept = [{n: value for n, value in asdict(run.config).items() if n not in ASIDE} for run in runs]
    options = [flat(one | run.record) for one, run in zip(kept, runs, strict=True)]
    names = dict.fromkeys(name for one in options for name in one)
    unequal = [name for name in names if len({one.get(name, "") for one in options}) > 1]
    length = {name: 10 if name.endswith("sha256") else None for name in unequal}
    lines = [[name, *(one.get(name, "")[: length[name]] or "–" for one in options)] for name in unequal]
    counts = [f"{sum(row['status'] == 'done' for row in run.rows.values())} of {len(run.rows)}" for run in runs]
    return [["", *(run.label for run in runs)], ["fused", *counts], *lines]


def measured(run: Finished, row: Mapping[str, str], pair: Pair | None) -> dict[str, float]:
    """Metrics of a run's picture against its sources, read as the run read them; none if these are other ones now."""
    sample = read_pair(pair, remembering(run.config, run.folder)) if pair else None
    image = load_picture(run.folder / row["file"], "full")
    if not isinstance(sample, Sample) or sample.digest != row.get("inputs") or image is None:
        return {}
    return scores(image, sample.sources) if image.shape[-2:] == sample.sources.shape[-2:] else {}


def compared_view(name: str, runs: Sequence[Finished], pairs: Mapping[str, Pair], folder: Path) -> PairView:
    """One pair as every run made it; ``pairs`` has its files in each run whose sources are still there."""
    rows = {run.label: run.rows.get(name) for run in runs}
    done = [(run, row) for run in runs if (row := rows[run.label]) and row["status"] == "done"]
    times = [f"{run.label} {float(row['seconds']):.1f} s" for run, row in done]
    known = {run.label: measured(run, row, pairs.get(run.label)) for run, row in done}
    pictures = {run.label: run.folder / row["file"] for run, row in done}
    files = next((pair.files for pair in pairs.values() if pair.frame is None), {})  # no other frame
    card = view_of_files(name, files, pictures, folder, known=known)
    panels = {panel.label: panel for panel in card.panels if panel.role == "result"}
    for label, row in rows.items():
        note = f"failed: {row['reason']}" if row else "not in this run"
        panels.setdefault(label, Panel(label, "result", note=note))
    sources = [panel for panel in card.panels if panel.role == "source"]
    return replace(card, panels=[*(panels[label] for label in rows), *sources], facts=[*card.facts, *times])


def comparison(runs: Sequence[Finished], folder: Path, pairs: int, command: str) -> Page:
    """The page that shows each pair as every run made it; those with most results first, then by name."""
    found: dict[str, dict[str, Pair]] = defaultdict(dict)
    for run in runs:
        try:
            for pair in scenes(run.config):
                found[pair.name][run.label] = pair
        except (UserError, OSError):  # the sources are no longer there
            continue
    rows = [(f"{run.label}: {name}", row) for run in runs for name, row in sorted(run.rows.items())]
    count = Counter(name for run in runs for name, row in run.rows.items() if row["status"] == "done")
    names = sorted(count, key=lambda name: (-count[name], name))
    return Page(
        title=" / ".join(run.label for run in runs),
        lead=f"{len(runs)} runs side by side: what each made of the same pairs, and how their options differ.",
        command=command,
        table=differences(runs),
        failed=[Row(name, row["reason"]) for name, row in rows if row["status"] == "failed"],
        cards=[compared_view(name, runs, found[name], folder) for name in names[:pairs]],
        others=[Row(name) for name in names[pairs:]],
    )
