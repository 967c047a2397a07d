"""Who may ask the page for something, how much lies in its folder and how long, and what killed servers left."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX, LOCK = "dig2dig-app-", ".lock"
LOCAL = ("localhost", "127.0.0.1", "[::1]")
HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d+)?", re.ASCII)


class Gate:
    """Refuses requests under a foreign name, those that another site sends, and uploads that there is no room for.

    A foreign site can make its visitor's browser ask 127.0.0.1. The browser then names that site in the header Origin,
    or in Host if the site's name leads to 127.0.0.1.

    Args:
        app: What is asked if nothing is refused.
        hosts: Names of the page beside those of this machine.
        folder: Where uploads and results lie.
        room: Bytes that they may take together.
        age: Seconds after which they are removed.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], folder: Path, room: int, age: float) -> None:
        self.app, self.folder, self.room, self.age = app, folder, room, age
        self.hosts = {*LOCAL, *map(str.lower, hosts)}
        self.coming = 0  # bytes of uploads that are on their way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request that is refused, and hands on any other."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal, length = self.refusal(scope, headers), 0
        if not refusal and scope.get("method") == "POST" and scope["path"].rstrip("/").endswith("/upload"):
            said = headers.get("content-length", "")
            length = int(said) if said.isascii() and said.isdecimal() else 0
            refusal = self.overflow(length)
        if refusal and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        elif refusal:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)
        else:
            self.coming += length
            try:
                await self.app(scope, receive, send)
            finally:
                self.coming -= length

    def refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Status and reason if the request came under a foreign name, or from a foreign site."""
        asked = headers.getlist("host")
        found = HOST.fullmatch(asked[0]) if len(asked) == 1 else None
        if not found or found[1].lower() not in self.hosts:
            return 400, "this page has another name: see the option hosts"
        origin, changes = headers.get("origin"), scope.get("method") not in ("GET", "HEAD")
        foreign = origin is not None and origin.lower().partition("://")[2] != asked[0].lower()
        if foreign or (changes and headers.get("sec-fetch-site", "none") not in ("none", "same-origin")):
            return 403, "another site must not use this page"
        return None

    def overflow(self, length: int) -> tuple[int, str] | None:
        """Status and reason if an upload says no length, or finds no room when old files are gone."""
        if not length:
            return 411, "an upload must say its length"
        used, now = 0, time.time()
        for path in self.folder.rglob("*"):
            with suppress(OSError):  # removed meanwhile
                found = path.lstat()
                if not path.is_dir() and now - found.st_mtime > self.age:
                    path.unlink()
                elif not path.is_dir():
                    used += found.st_size
        if used + self.coming + length > self.room:
            return 413, f"no room: uploads may take {self.room / 1e6:.0f} MB together; wait, or ask for more"
        return None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed in the end, or when the next server starts if this one is killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):  # another user's, or a server's that runs
            found = left.lstat()
            ours = not hasattr(os, "getuid") or found.st_uid == os.getuid()
            if ours and not left.is_symlink() and time.time() - found.st_mtime > 5:  # a new one may not be locked yet
                with FileLock(left / LOCK, timeout=0):
                    pass
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, FileLock(Path(folder) / LOCK):
        yield Path(folder)
