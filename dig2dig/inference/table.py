"""``summary.csv``: one row for each pair of a run.

The csv module suffices: names that are not UTF-8 pass through it, and pandas would add half a second to each start.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dig2dig.atomic import write_atomically

COLUMNS = ("name", "status", "file", "seconds", "size", "seed", "inputs", "note", "reason")
Rows = dict[str, dict[str, str]]  # by the name of their pair


def read_summary(path: Path) -> Rows:
    """Rows of an earlier table; none if there is no such file or it has other columns."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        return {row["name"]: row for row in reader} if reader.fieldnames == list(COLUMNS) else {}


def write_summary(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the table, sorted by name."""
    text = io.StringIO(newline="")
    writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows))
    write_atomically(path, text.getvalue().encode("utf-8", errors="surrogateescape"))
