"""Attacks on parts of the page: uploads without end, work that nobody waits for."""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
from dig2dig.app.gate import Gate
from dig2dig.app.worker import Stopped, check, followed

API = "/gradio_api"


def test_work_that_nobody_waits_for_is_given_up() -> None:
    ended: list[str] = []

    def work(show: Any) -> int:
        show(1)
        try:
            for _ in range(100):
                time.sleep(0.2)
                check()
        except Stopped:
            ended.append("stopped")
            raise
        return 2

    followed_work = followed(work)
    assert next(followed_work) == 1 and next(followed_work) is None  # half a second later
    started = time.monotonic()
    followed_work.close()
    assert time.monotonic() - started < 0.4  # the work ends after it
    time.sleep(0.5)
    assert ended == ["stopped"]
    assert [one for one in followed(lambda show: show(1) or 2) if one] == [1, 2]

    def leave(_: Any) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(followed(leave))


def gate(folder: Path, room: int = 1000, age: float = 60.0, **more: Any) -> Gate:
    async def app(*_: Any) -> None:
        await asyncio.sleep(0.05)

    return Gate(app, more.get("hosts", ()), folder, room, age)


def statuses(one: Gate, *lengths: str | None, host: str = "localhost") -> list[int]:
    """The answers to uploads at once; 0 for those that are let in."""

    async def post(length: str | None) -> int:
        headers = [(b"host", host.encode())] + ([(b"content-length", length.encode())] if length is not None else [])
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": f"{API}/upload", "headers": headers}
        await one(scope, None, send)  # pyright: ignore[reportArgumentType]
        return sent[0]["status"] if sent else 0

    async def all_at_once() -> list[int]:
        return await asyncio.gather(*map(post, lengths))

    with ThreadPoolExecutor(1) as pool:  # a browser of another test may leave a running loop in this thread
        return pool.submit(lambda: asyncio.run(all_at_once())).result()


def test_uploads_have_a_total_and_an_age(tmp_path: Path) -> None:
    one = gate(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_bytes(bytes(900))
    assert statuses(one, "100", "200") == [0, 413]
    os.utime(tmp_path / "a" / "old", (0, 0))
    assert statuses(one, "600", "600") == [0, 413]  # both on their way
    assert not (tmp_path / "a" / "old").exists()
    assert statuses(one, None, "0", "-5", "²", "x") == [411] * 5
    assert statuses(one, "5", host="photos.example") == [400]
    assert statuses(gate(tmp_path, hosts=["Photos.example"]), "5", host="photos.example") == [0]
