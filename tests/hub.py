"""A Hugging Face hub on this machine, which can be silent."""

import hashlib
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from huggingface_hub import constants


class Hub(BaseHTTPRequestHandler):
    """A Hugging Face hub with one model, the files of a folder."""

    root: ClassVar[Path]
    asked: ClassVar[list[str]]
    revisions: ClassVar[set[str]]  # of which files were asked for
    mute: ClassVar[str]  # what is not answered

    def do_GET(self) -> None:
        _, _, place = self.path.partition("/resolve/")
        revision, _, name = place.partition("/")
        Hub.revisions |= {revision} - {""}
        Hub.asked.append(f"{self.command} {name or self.path}")
        if Hub.mute and Hub.mute in self.path:
            time.sleep(10)
            self.send_error(404)  # ends the request that nobody waits for any more
            return
        if self.path.startswith("/api/"):
            names = [file.relative_to(Hub.root).as_posix() for file in Hub.root.rglob("*") if file.is_file()]
            body = json.dumps({"id": "x/y", "sha": "a" * 40, "siblings": [{"rfilename": name} for name in names]})
            content = body.encode()
        else:
            content = (Hub.root / name).read_bytes()
        self.send_response(200)
        headers = {"X-Repo-Commit": "a" * 40, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_: object, **__: object) -> None:
        """Prints nothing."""


class Server(ThreadingHTTPServer):
    """A server that says nothing of clients that have left, since its lines would show up in another test."""

    def handle_error(self, *_: object) -> None:
        pass


def serve(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub that has the files of a folder under any name."""
    Hub.root, Hub.asked, Hub.revisions, Hub.mute = root, [], set(), ""
    server = Server(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    use(monkeypatch, server.server_address[1])
    yield Hub
    server.shutdown()
    server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Makes huggingface_hub ask a server on this machine."""
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def got(hub: type[Hub]) -> set[str]:
    """The files whose content the hub has sent."""
    return {line.removeprefix("GET ") for line in hub.asked if line.startswith("GET ") and "/api/" not in line}
