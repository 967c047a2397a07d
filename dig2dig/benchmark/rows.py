"""``results.csv``: one row per picture, kept between runs."""

from pathlib import Path

import pandas as pd

from dig2dig.atomic import write_atomically

Row = dict[str, str]
IDENTITY = ("dataset", "name", "method", "stretch")


class Rows:
    """Rows of a table by their identity, read from a file and written back whole."""

    def __init__(self, path: Path, identity: tuple[str, ...] = IDENTITY) -> None:
        self.path, self.identity = path, identity
        known = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records") if path.is_file() else []
        self.rows: dict[tuple[str, ...], Row] = {tuple(row[column] for column in identity): row for row in known}

    def find(self, *identity: str, key: str = "") -> Row | None:
        """The row of an identity, or the first row whose identity starts with these columns; none of another key."""
        found = self.rows.get(identity)
        if len(identity) < len(self.identity):
            found = next((row for known, row in self.rows.items() if known[: len(identity)] == identity), None)
        return found if found and key in ("", found.get("key")) else None

    def put(self, *identity: str, row: Row) -> Row:
        """Adds or replaces a row."""
        named = dict(zip(self.identity, identity, strict=True))
        self.rows[tuple(named.values())] = named | row
        return named | row

    def save(self) -> None:
        """Writes all rows, sorted."""
        columns = dict.fromkeys([*self.identity, *(name for row in self.rows.values() for name in row)])
        table = pd.DataFrame([self.rows[key] for key in sorted(self.rows)], columns=list(columns))
        write_atomically(self.path, table.to_csv(index=False, lineterminator="\n").encode())

    def finish(self, kept: list[Row], table: str) -> None:
        """Writes ``table.md`` beside the rows, and prints where both are."""
        write_atomically(self.path.with_name("table.md"), table.encode())
        print(f"{len(kept)} rows in {self.path}, tables in {self.path.with_name('table.md')}")
