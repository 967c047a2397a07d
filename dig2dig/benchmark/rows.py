"""``results.csv``: one row per picture, kept between runs."""

import csv
import io
from pathlib import Path

from dig2dig.atomic import write_atomically

Row = dict[str, str]
IDENTITY = ("dataset", "name", "method", "stretch")


class Rows:
    """The rows of a table by what they are about, read from disk and written back whole.

    Args:
        path: The CSV file; need not exist.
        identity: Columns that name a row.
    """

    def __init__(self, path: Path, identity: tuple[str, ...] = IDENTITY) -> None:
        self.path, self.identity = path, identity
        self.rows: dict[tuple[str, ...], Row] = {}
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    self.rows[tuple(row[column] for column in identity)] = row

    def find(self, *identity: str) -> Row | None:
        """The row with these first columns of the identity."""
        if len(identity) == len(self.identity):
            return self.rows.get(identity)
        return next((row for key, row in self.rows.items() if key[: len(identity)] == identity), None)

    def put(self, *identity_and_row: str | Row) -> Row:
        """Adds or replaces a row."""
        *identity, row = identity_and_row
        assert isinstance(row, dict)
        named = dict(zip(self.identity, map(str, identity), strict=True))
        self.rows[tuple(named.values())] = named | row
        return named | row

    def save(self) -> None:
        """Writes all rows, sorted."""
        columns = list(dict.fromkeys([*self.identity, *(name for row in self.rows.values() for name in row)]))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows[key] for key in sorted(self.rows))
        write_atomically(self.path, text.getvalue().encode())
