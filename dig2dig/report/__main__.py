"""Compares runs of infer.py on one page.

python -m dig2dig.report RUN … [out=FILE] [pairs=N]

  RUN    folders that infer.py wrote, in the order in which they are shown
  out    the page; comparison.html if not given
  pairs  most pairs shown, 20 if not given
"""

import shlex
import sys
from pathlib import Path

from dig2dig.errors import ReportError

OPTIONS = {"out": "comparison.html", "pairs": "20"}


def main(argv: list[str]) -> int:
    """Writes the page and gives the exit code."""
    if {"--help", "-h"} & set(argv) or not argv:
        print(__doc__, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    named = [argument.partition("=") for argument in argv if argument.partition("=")[0] in OPTIONS and "=" in argument]
    folders = [argument for argument in argv if argument.partition("=") not in named]
    options = OPTIONS | {name: value for name, _, value in named}
    from dig2dig.atomic import write_atomically
    from dig2dig.report.page import render
    from dig2dig.report.runs import comparison, open_runs

    try:
        if len(folders) < 2:
            raise ReportError("give at least two folders that infer.py wrote")
        if not options["pairs"].isdecimal() or int(options["pairs"]) < 1:
            raise ReportError(f"pairs must be a number from 1, not {options['pairs']}")
        runs, path = open_runs(folders), Path(options["out"])
        command = shlex.join(["python", "-m", "dig2dig.report", *argv])
        page = comparison(runs, path.resolve().parent, int(options["pairs"]), command)
        write_atomically(path, render(page))
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"comparison: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
