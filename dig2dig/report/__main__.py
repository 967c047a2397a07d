"""Compares runs of infer.py on one page.

dig2dig report RUN RUN … [out=FILE] [pairs=N]

  RUN    folders that infer.py wrote, in the order in which they are shown
  out    the page; comparison.html if not given
  pairs  most pairs shown, 20 if not given
"""

import shlex
import sys
from pathlib import Path

from dig2dig.errors import UserError, exits_in_one_line, usage


@exits_in_one_line
def main(argv: list[str]) -> int:
    """Writes the page and gives the exit code."""
    if {"--help", "-h"} & set(argv) or not argv:
        return usage(__doc__ or "", argv)
    given = dict(argument.split("=", 1) for argument in argv if argument.startswith(("out=", "pairs=")))
    folders = [argument for argument in argv if not argument.startswith(("out=", "pairs="))]
    path, pairs = Path(given.get("out", "comparison.html")).expanduser(), given.get("pairs", "20")
    if len(folders) < 2:
        raise UserError("give at least two folders that infer.py wrote")
    if not pairs.isdecimal() or int(pairs) < 1:
        raise UserError(f"pairs must be a number from 1, not {pairs}")
    own = [Path(folder, "report.html").resolve() for folder in folders]
    if path.suffix.lower() not in (".html", ".htm") or path.resolve() in own:
        raise UserError(f"out={path}: give a page of its own, as out=comparison.html")
    from dig2dig.atomic import write_atomically
    from dig2dig.report.page import render
    from dig2dig.report.runs import comparison, open_runs

    page = comparison(open_runs(folders), path.resolve().parent, int(pairs), shlex.join(["dig2dig", "report", *argv]))
    write_atomically(path, render(page))
    print(f"comparison: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
