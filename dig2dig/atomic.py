"""Files that are whole or absent, and folders that the processes of one run hold."""

import json
import os
import re
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from filelock import FileLock, Timeout

from dig2dig.errors import RANKS, RunError

RECORD = "dig2dig.json"  # in OUT: names of all that runs made there, a folder of maps with a slash
LOCK = ".dig2dig.lock"  # of the first process; those of others end in their number
PARENT = "DIG2DIG_PARENT"  # variable with the first process's number, for those that it starts
PART = re.compile(r"\.[0-9a-f]{16}\.part(\.\w+)?")
PATIENCE = 10.0  # seconds in which processes end after their parent
is_file = os.path.isfile  # unlike that of pathlib, it takes a name that no file can have


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to. The file is synced and renamed at the end, or removed after an error.

    An OSError names ``path``.
    """
    # short: a name may be as long as the file system allows; with its suffix, which some writers need
    temporary = path.with_name(f".{token_hex(8)}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):  # a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        if mode_of(temporary):  # on a read-only file system even the removal of nothing fails
            temporary.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, syncs it and renames it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def sweep(folder: Path) -> None:
    """Removes what killed runs left of files that they were writing into a folder; a link is not followed."""
    if stat.S_ISDIR(mode_of(folder)):
        for part in folder.glob(".*.part*"):
            if PART.fullmatch(part.name):
                part.unlink(missing_ok=True)


def mode_of(path: Path) -> int:
    """What a path itself is, a link not followed; 0 where nothing is, or a name that no file can have."""
    try:
        return path.lstat().st_mode
    except (OSError, ValueError):
        return 0


def read_names(out: Path) -> frozenset[str]:
    """What the record of a folder names; names that lead out of the folder are none of it."""
    try:
        names = json.loads((out / RECORD).read_bytes())["wrote"]
        return frozenset(name for name in names if _stays_inside(name))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return frozenset()


def _stays_inside(name: object) -> bool:
    parts = name.split("/") if isinstance(name, str) and "\0" not in name and "\\" not in name else [".."]
    return 1 <= len(parts) <= 2 and parts[0] not in ("", ".", "..") and parts[-1] not in (".", "..")


def same_file(path: Path) -> object:
    """What is equal for two paths of one file, also where links or a file system without case lead to it."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def refuse_inputs(out: str, written: Iterable[Path], inputs: Iterable[Path]) -> None:
    """RunError if one of the paths that a run writes is one of those that it reads."""
    read = {same_file(path) for path in inputs}
    if hit := next((path for path in sorted(written) if same_file(path) in read), None):
        raise RunError(f"out={out}: {hit} would be replaced, which this run reads; give another folder")


def process_number() -> int:
    """The number of this process among those that share a run, from 0."""
    return int(next((os.environ[name] for name in RANKS if name in os.environ), 0))


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder while any process of this one lives; RunError if one is at work.

    Processes that the first one started end when it does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = process_number()
    if number:
        _end_with_parent()
        with _held(folder, f"{LOCK}{number}", PATIENCE):
            yield
        return
    with _held(folder, LOCK, 0.0):
        size = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)  # launchers start all at once
        for left in {path.name for path in folder.glob(f"{LOCK}[0-9]*")} - {f"{LOCK}{rank}" for rank in range(size)}:
            with _held(folder, left, PATIENCE):
                pass
        os.environ[PARENT] = str(os.getpid())
        try:
            yield
        finally:
            os.environ.pop(PARENT, None)


@contextmanager
def _held(folder: Path, name: str, patience: float) -> Iterator[None]:
    path = folder / name
    if stat.S_ISLNK(mode_of(path)):
        raise RunError(f"{path} is a link; remove it")
    held = FileLock(path, timeout=patience)
    try:
        held.acquire()
    except Timeout as error:
        raise RunError(f"out={folder}: another run is at work there; wait for it or give another folder") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        held.release()


def _end_with_parent() -> None:
    """Ends this process at once when the one that started it is gone."""
    parent = int(os.environ.get(PARENT, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
