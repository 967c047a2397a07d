"""Files that are either there whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name for what is written inside; synced and renamed in the end, removed if something went wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # short: a name may be as long as the file system allows; with its suffix, which some writers go by
    temporary = path.with_name(f".{token_hex(8)}.part{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, syncs it and renames it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
