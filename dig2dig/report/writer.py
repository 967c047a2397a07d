"""Keeps what the report of a run shows, pair by pair as they are fused, and writes the page."""

import shlex
import sys
from collections.abc import Mapping, Sequence

from dig2dig.errors import first_line
from dig2dig.inference.state import Run
from dig2dig.modules.results import Result
from dig2dig.report.fragments import pair_view, prune, read_fragment, write_fragment
from dig2dig.report.runs import write_run_page


class ReportWriter:
    """Writes a fragment for each pair that the report shows, then the page; its errors never stop a run.

    Pairs that an earlier run has left a fragment of come first, then those to fuse in their order, up to the limit.

    Args:
        run: What is to do, and what was done.
    """

    side = 512

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config.report
        kept = run.done.items() if self.config.pairs else ()
        found = [read_fragment(run.out, name, run.key, row["inputs"]) for name, row in kept]
        views = [view for view in found if view]
        todo = [pair for pair in run.todo if not pair.missing or len(pair.files) > 1]
        self.files = {pair.name: pair.files for pair in todo[: max(self.config.pairs - len(views), 0)]}
        known = sum(any(step.estimate for step in view.views) for view in views)
        self.names = set(self.files)
        self.estimates = set(list(self.files)[: max(self.config.estimates - known, 0)])

    def start(self) -> None:
        """Removes the fragments of pairs that are fused anew."""
        prune(self.run.out, list(self.run.done))

    def write(self, result: Result, file: str) -> None:
        """Writes the fragment of a fused pair, whose picture is in ``file``, before the table says that it is done."""
        if result.name not in self.files or result.sample is None:
            return
        try:
            view = pair_view(result, file, self.files[result.name], self.run.out, self.config.compared)
            write_fragment(self.run.out, view, self.run.key, result.sample.digest)
        except Exception as error:  # the picture is there all the same
            reason = f"{type(error).__name__}: {first_line(error)}"
            print(f"report: {result.name} is shown without its details ({reason})", file=sys.stderr)

    def conclude(self, rows: Mapping[str, Mapping[str, str]], command: Sequence[str]) -> None:
        """Writes the page of the whole run and prints where it is."""
        if not self.config.pairs:
            return
        try:
            print(f"report: {write_run_page(self.run, rows, shlex.join(command))}")
        except Exception as error:  # the pictures are there all the same
            print(f"report: not written ({type(error).__name__}: {error})", file=sys.stderr)
