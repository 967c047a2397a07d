"""Keeps what the report of a run shows, pair by pair as they are fused, and writes the page."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from dig2dig.atomic import write_atomically
from dig2dig.errors import first_line
from dig2dig.inference.state import Run
from dig2dig.modules.results import Result
from dig2dig.report.page import render
from dig2dig.report.pictures import pair_view
from dig2dig.report.runs import run_page
from dig2dig.report.views import FOLDER, fragment_file, read_fragment

FRAGMENT = re.compile(rf"{FOLDER}/[0-9a-f]{{20}}\.json")


class ReportWriter:
    """Writes a fragment for each pair that the report shows, then the page; its errors never stop a run.

    Pairs that an earlier run has left a fragment of come first, then those to fuse in their order, up to the limit.
    """

    side = 320

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config.report
        kept = run.done.items() if self.config.pairs else ()
        views = [view for name, row in kept if (view := read_fragment(run.out, name, run.key, row["inputs"]))]
        todo = [pair for pair in run.todo if not pair.missing or len(pair.files) > 1]
        self.files = {pair.name: pair.files for pair in todo[: max(self.config.pairs - len(views), 0)]}
        wanted = set(self.config.compared)
        self.stale = [view.name for view in views if wanted - {panel.label for panel in view.panels}]
        made = sum(any(step.estimate for step in view.views) for view in views)
        self.names = set(self.files)
        fragments = [fragment_file(run.out, name) for name in (*self.files, *run.done)]
        self.written = [*["report.html"] * bool(self.config.pairs), *(f"{FOLDER}/{file.name}" for file in fragments)]
        self.estimates = set(list(self.files)[: max(self.config.estimates - made, 0)])

    def start(self) -> None:
        """Removes the fragments of pairs that are fused anew, and the page that showed them."""
        kept = {fragment_file(self.run.out, name).name for name in self.run.done}
        names = [name for name in self.run.owned if FRAGMENT.fullmatch(name) and name.partition("/")[2] not in kept]
        for name in [*names, *["report.html"] * ("report.html" in self.run.owned and bool(names))]:
            (self.run.out / name).unlink(missing_ok=True)

    def write(self, result: Result, file: str) -> None:
        """Writes the fragment of a fused pair, whose picture is in ``file``, before the table says that it is done."""
        if result.name not in self.files or result.sample is None:
            return
        try:
            view = pair_view(result, file, self.files[result.name], self.run.out, self.config.compared)
            content = {"key": self.run.key, "inputs": result.sample.digest, "card": asdict(view)}
            write_atomically(fragment_file(self.run.out, result.name), json.dumps(content).encode())
        except Exception as error:  # the picture is there all the same
            reason = f"{type(error).__name__}: {first_line(error)}"
            print(f"report: {result.name} is shown without its details ({reason})", file=sys.stderr)

    def conclude(self, rows: Mapping[str, Mapping[str, str]], command: Sequence[str]) -> None:
        """Writes the page of the whole run and prints where it is."""
        if not self.config.pairs:
            return
        path = self.run.out / "report.html"
        try:
            write_atomically(path, render(run_page(self.run, rows, shlex.join(command))))
            print(f"report: {path}")
            if self.stale:
                lacking = f"{len(self.stale)} pairs of an earlier run lack {', '.join(self.config.compared)}"
                print(f"report: {lacking}; overwrite=true fuses them anew", file=sys.stderr)
        except Exception as error:  # the pictures are there all the same
            print(f"report: not written ({type(error).__name__}: {error})", file=sys.stderr)
