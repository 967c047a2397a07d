"""Work in a thread of its own, which is given up when nobody waits for it any more."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")
BEAT = 0.5  # seconds in which a page that left is noticed
_left: ContextVar[Event | None] = ContextVar("left", default=None)  # set when nobody waits for this thread's work
_running: dict[Thread, Event] = {}


class Stopped(Exception):
    """Nobody waits for the result."""


def check(*_: Any) -> None:
    """Ends the work of this thread if nobody waits for it."""
    if (left := _left.get()) and left.is_set():
        raise Stopped


def leave_all() -> None:
    """Gives all work up, and waits for its end: a process that ends while a thread is within torch is aborted."""
    for thread, left in [*_running.items()]:
        left.set()
        thread.join()


def followed(work: Callable[[Callable[[T], None]], T]) -> Iterator[T | None]:
    """What ``work`` shows with the function that it gets, then what it returns; None each half second beside.

    An iterator that is closed early returns at once. The work ends at its next :func:`check`.
    """
    shown: SimpleQueue[T | None] = SimpleQueue()
    future: Future[T] = Future()
    left = Event()

    def show(item: T) -> None:
        check()
        shown.put(item)

    def run() -> None:
        _left.set(left)
        try:
            future.set_result(work(show))
        except BaseException as error:  # raised where the result is awaited
            future.set_exception(error)
        shown.put(None)
        _running.pop(thread, None)

    _running[thread := Thread(target=run, daemon=True)] = left
    thread.start()
    try:
        while not future.done() or not shown.empty():
            try:
                yield shown.get(timeout=BEAT)
            except Empty:
                yield None
        with suppress(Stopped):  # as at the end of the page
            yield future.result()
    finally:
        left.set()
