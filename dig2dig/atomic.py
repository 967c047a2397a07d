"""Files that are whole or absent, and folders that one run holds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from filelock import FileLock, Timeout

from dig2dig.errors import RunError

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # set by launchers, as Lightning reads them


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to. The file is synced and renamed at the end, or removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # short: a name may be as long as the file system allows; with its suffix, which some writers need
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


def is_first_process() -> bool:
    """Whether this process is the first of those that share a run."""
    return int(next((os.environ[name] for name in RANKS if name in os.environ), 0)) == 0


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder while this process lives, the first one for all; RunError if one is at work."""
    if not is_first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / ".lock", timeout=0)
    try:
        held.acquire()
    except Timeout as error:
        raise RunError(f"out={folder}: another run is at work there; wait for it or give another folder") from error
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        held.release()
