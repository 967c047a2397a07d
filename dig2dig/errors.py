"""What a user can mend, told in one line."""

import io
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from types import TracebackType

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # set by launchers, as Lightning reads them


class UserError(ValueError):
    """Something that the user can mend: one line that says what is wrong, with which file, and what to do."""


class PriorError(UserError):
    """A prior or an adapter that cannot be used."""


class PairingError(UserError):
    """Sources that cannot be paired at all."""


class ImageError(UserError):
    """A file that cannot be used."""


class AlignmentError(UserError):
    """Sources that cannot be brought onto each other."""


class RunError(UserError):
    """A run that cannot start or go on: its folder, its checkpoint, its devices, a package that is not installed."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def one_line(error: BaseException | str) -> str:
    """An error's message in one line; of a worker's traceback only the last line."""
    text = str(error).strip()
    return " ".join((text.splitlines()[-1] if "Traceback" in text else text).split())


def note(line: str) -> None:
    """Prints a line about a run; of several processes only the first one does."""
    if all(os.environ.get(rank, "0") == "0" for rank in RANKS):
        print(one_line(line), file=sys.stderr)


def last_resort(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Tells a fault of the program in one line, with the file that holds its traceback; for ``sys.excepthook``."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return
    if issubclass(kind, BrokenPipeError) and hasattr(select, "poll"):
        (watch := select.poll()).register(sys.stdout, 0)
        if watch.poll(0):  # the reader of standard output is gone, as head after some lines
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
    with tempfile.NamedTemporaryFile("w", prefix="dig2dig-", suffix=".log", delete=False, errors="replace") as log:
        log.write("".join(traceback.format_exception(kind, error, trace)))
    reason = f"{kind.__name__}: {one_line(first_line(error))}"
    print(f"error: {reason}; this is a fault of dig2dig, whose traceback is in {log.name}", file=sys.stderr)


def usage(text: str, arguments: Sequence[str]) -> int:
    """Prints how a command is used, on standard output where that was asked for; gives the exit code."""
    asked = bool({"--help", "-h"} & set(arguments))
    print(text, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def exits_in_one_line(main: Callable[..., int]) -> Callable[..., int]:
    """A command that prints any name, and a user's mistake in one line, then exits with 2; others are raised."""

    @wraps(main)
    def run(*arguments: object) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(*arguments)
        except BrokenPipeError:
            raise
        except (UserError, OSError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2

    return run
