"""Ctrl-C, SIGTERM and SIGHUP as one exception, so that a run ends in order: what is fused is written, then it stops."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]
HEEDED = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]


class Interrupted(BaseException):
    """A signal asked to stop. The exit code is 128 and the signal's number, as in shells."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def _raise(number: int, _: FrameType | None) -> None:
    if multiprocessing.parent_process():  # a worker of the data loader: torch ends it in order
        raise KeyboardInterrupt
    for one in HEEDED:  # impatience must not break the orderly end
        signal.signal(one, signal.SIG_IGN)
    raise Interrupted(number)


def handle(handler: Handler) -> dict[int, Any]:
    """Has those signals handled from now on, unless they are ignored, as nohup ignores SIGHUP; gives what did before.

    Only the main thread can.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    heeded = [number for number in HEEDED if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heeded}


@contextmanager
def heed_signals(handler: Handler = _raise) -> Iterator[None]:
    """Raises :class:`Interrupted` on those signals inside, or does what ``handler`` does; see :func:`handle`."""
    before = handle(handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
