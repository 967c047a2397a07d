"""``summary.csv``: one row for each pair of a run.

The csv module suffices: names that are not UTF-8 pass through it, and pandas would add half a second to each start.
"""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dig2dig.atomic import write_atomically

COLUMNS = ("name", "status", "file", "seconds", "size", "seed", "inputs", "note", "reason", "run")
Rows = dict[str, dict[str, str]]  # by the name of their pair


def read_summary(path: Path, run: str | None = None) -> Rows:
    """Rows of an earlier table, of the ``run`` with this key if one is given.

    None of them if there is no such file or it has other columns; rows that no run writes are left out.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            rows = list(reader) if reader.fieldnames == list(COLUMNS) else []
    except (OSError, csv.Error):
        return {}
    return {row["name"]: row for row in rows if _is_sound(row) and run in (None, row["run"])}


def _is_sound(row: Mapping[Any, Any]) -> bool:
    """Whether a run may have written a row: a file name leads nowhere else, seconds are a number."""
    if set(row) != set(COLUMNS) or not all(isinstance(value, str) for value in row.values()):
        return False
    if row["status"] != "done":
        return row["status"] == "failed"
    try:
        seconds = float(row["seconds"])
    except ValueError:
        return False
    return math.isfinite(seconds) and Path(row["file"]).name == row["file"] != "" and "\0" not in row["file"]


def write_summary(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the table, sorted by name."""
    write_atomically(path, _lines([dict(zip(COLUMNS, COLUMNS, strict=True)), *(rows[name] for name in sorted(rows))]))


def append_summary(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows at the end of a table, which is made where there is none."""
    if not path.exists():
        write_summary(path, {})
    with path.open("ab", buffering=0) as file:
        file.write(_lines(rows))
        os.fsync(file.fileno())


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if any("\r" in str(value) for row in rows for value in row.values()) else csv.QUOTE_MINIMAL
    writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n", quoting=quoting)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", errors="surrogateescape")
