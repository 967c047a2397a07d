"""Attacks on the page: foreign names and sites, bad values, uploads without end, visitors who leave, killed servers."""

import http.client
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image

from dig2dig.app import job
from dig2dig.app.config import AppConfig
from dig2dig.app.gate import temporary_folder
from dig2dig.errors import UserError
from dig2dig.priors.denoiser import Denoiser
from tests.conftest import ROOT
from tests.corpus import picture

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow
API = "/gradio_api"
EVIL = "https://evil.example"


def serve(folder: Path, prior: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    """The page in a process of its own, with its temporary folders in ``folder``, and its host and port."""
    command = [sys.executable, "-m", "dig2dig.app", "port=0", f"prior.path={prior}", *more]
    environment = os.environ | {"TMPDIR": str(folder)}
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    assert server.stdout
    for line in server.stdout:
        if found := re.search(r"http://(127\.0\.0\.1:\d+)/", line):
            return server, found[1]
    raise AssertionError("the page did not start")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[str]:
    server, place = serve(tmp_path_factory.mktemp("page"), tiny)
    with server:
        yield place
        server.terminate()


def ask(place: str, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Status and body; headers in capitals, as Host, may be given."""
    connection = http.client.HTTPConnection(place, timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body or None, {"Host": place} | given)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def upload(place: str, content: bytes, **headers: str) -> tuple[int, bytes]:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    return ask(place, f"{API}/upload", "POST", body, Content_Type="multipart/form-data; boundary=x", **headers)


def png(height: int, width: int, seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed)).resize((width, height)).save(file, "PNG")
    return file.getvalue()


def uploaded(place: str, height: int = 48, width: int = 64) -> list[dict[str, Any]]:
    """Two uploaded pictures, as Gradio's clients name them."""
    found = [json.loads(upload(place, png(height, width, seed))[1])[0] for seed in range(2)]
    return [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in found]


@contextmanager
def follow(place: str, session: str) -> Iterator[http.client.HTTPResponse]:
    with closing(http.client.HTTPConnection(place, timeout=60)) as connection:
        connection.request("GET", f"{API}/queue/data?session_hash={session}")
        with connection.getresponse() as answer:
            yield answer


def join(place: str, session: str, data: list[Any]) -> str:
    config = json.loads(ask(place, "/config")[1])
    (number,) = [one["id"] for one in config["dependencies"] if one["api_name"] == "fuse"]
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
    status, answer = ask(place, f"{API}/queue/join", "POST", body, Content_Type="application/json")
    assert status == 200, answer
    return json.loads(answer)["event_id"]


def fused(place: str, session: str, **change: Any) -> str:
    """All that is shown of a fusion, as text."""
    values = {"files": uploaded(place), "names": None, "task": "ivf", "tone": "balanced", "prefer": 1, "align": "none"}
    values |= {"seed": 0} | change
    join(place, session, list(values.values()))
    with follow(place, session) as stream:
        return stream.read().decode()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:7860", "", "[", "a@127.0.0.1:b"]
)
def test_a_foreign_name_is_refused(page: str, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/config"), ("POST", f"{API}/queue/join"), ("POST", f"{API}/upload")):
        assert ask(page, path, method, Host=host)[0] in (400, 403)


def test_its_own_names_are_answered(page: str) -> None:
    port = urlsplit(f"//{page}").port
    for host in (page, f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "127.0.0.1:9999"):
        assert ask(page, "/config", Host=host)[0] == 200


@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost:1", "http://127.0.0.1", "garbage", "http://["])
def test_a_foreign_site_cannot_upload_or_ask(page: str, origin: str) -> None:
    assert upload(page, png(8, 8), Origin=origin)[0] == 403
    assert ask(page, f"{API}/queue/join", "POST", b"{}", Origin=origin)[0] == 403
    assert upload(page, png(8, 8), Sec_Fetch_Site="cross-site")[0] == 403
    assert upload(page, png(8, 8), Origin=f"http://{page}", Sec_Fetch_Site="same-origin")[0] == 200


def test_the_page_leads_nowhere_else(page: str) -> None:
    for path in (f"{API}/file={EVIL}/x", f"{API}/file=/etc/passwd", f"{API}/proxy={EVIL}"):
        assert ask(page, path)[0] in (400, 403, 404)


BAD = [
    {"align": "rig.yaml"}, {"align": 3}, {"align": ["ecc"]}, {"align": {"a": 1}}, {"tone": 3},
    {"tone": []}, {"task": None}, {"task": "../../x"}, {"prefer": "x"}, {"prefer": None}, {"prefer": 1e300},
    {"seed": "x"}, {"seed": 2**80}, {"seed": {}}, {"files": None}, {"files": "x"}, {"files": [{"path": "/etc/passwd"}]},
    {"files": [{"path": "/no/such"}]}, {"files": [1, 2]},
]  # fmt: skip


def test_bad_values_are_answered_and_the_worker_lives(page: str) -> None:
    for k, change in enumerate(BAD):
        shown = fused(page, f"bad{k}", **change)
        refused = "Cannot be fused" in shown or '"success":false' in shown
        assert refused and "Fused:" not in shown, (change, shown[-500:])
    assert "Fused:" in fused(page, "good") and "Fused:" in fused(page, "none", align=None, tone=None)


@pytest.mark.parametrize("name", ["a\0.png", "x" * 300 + ".png", "..", "", "/", "../../evil.png"])
def test_names_of_uploads_lead_nowhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(png(8, 8))
    folder = tmp_path / "work"
    order = job.Order([(tmp_path / "a", name), (tmp_path / "a", "b.png")], "ivf")
    with pytest.raises(UserError):
        job.admit(order, AppConfig(), folder)
    assert not list(tmp_path.parent.glob("evil*"))


def test_limits_hold_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of a gigapixel: nothing of it is decoded, neither for the guess nor for the fusion."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16000, 16000, 8, 2, 0, 0, 0))
    files = [tmp_path / f"{k}.png" for k in range(3)]
    for file in files:
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    monkeypatch.setattr(job, "read_picture", lambda _: pytest.fail("decoded"))
    assert job.guess_task(list(map(str, files))) == "ivf"
    assert job.guess_task([str(files[0])] * 99) == "ivf"
    with pytest.raises(UserError, match="16000x16000 pixels"):
        job.admit(job.Order([(file, file.name) for file in files], "mef"), AppConfig(), tmp_path / "work")


def test_a_page_fuses_where_the_network_runs(
    tmp_path: Path, bundled: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that stay in main memory (prior.offload) do not say where images are fused."""
    for k in range(2):
        (tmp_path / f"{k}.png").write_bytes(png(16, 16, k))
    seen: list[torch.device] = []

    class Seen(Exception):
        pass

    def fuse(_: list[Any], device: torch.device) -> None:
        seen.append(device)
        raise Seen

    monkeypatch.setattr(job, "Fuser", lambda *_: SimpleNamespace(fuse=fuse))
    order = job.Order([(tmp_path / f"{k}.png", f"{k}.png") for k in range(2)], "ivf")
    with pytest.raises(Seen):
        away = bundled.in_windows(0)
        away.runs_on = torch.device("meta")
        job.fuse_order(order, away, AppConfig(), tmp_path / "w", print)
    assert seen == [torch.device("meta")]


@pytest.mark.parametrize(("how", "align"), [("cancel", "none"), ("leave", "none"), ("leave", "ecc")])
def test_who_cancels_or_leaves_frees_the_worker(page: str, how: str, align: str) -> None:
    """A fusion of many seconds ends, while it reads and while it fuses; the next one begins within two."""
    files, session = uploaded(page, 3600, 4400), f"long-{how}-{align}"
    event = join(page, session, [files, None, "universal", "balanced", 1, align, 0])
    with follow(page, session) as stream:
        while b"process_generating" not in stream.readline():
            pass
        time.sleep(0.5 if align == "ecc" else 3)
        started = time.monotonic()
        if how == "cancel":
            config = json.loads(ask(page, "/config")[1])
            (number,) = [one["id"] for one in config["dependencies"] if one["api_name"] == "fuse"]
            body = json.dumps({"session_hash": session, "fn_index": number, "event_id": event}).encode()
            assert ask(page, f"{API}/cancel", "POST", body, Content_Type="application/json")[0] == 200
    join(page, f"next-{session}", [uploaded(page), None, "ivf", "balanced", 1, "none", 0])
    with follow(page, f"next-{session}") as after:
        while b"process_generating" not in (line := after.readline()):
            assert line
        assert time.monotonic() - started < 6  # two seconds, on a machine that does nothing else
        assert b"Fused:" in after.read()


def test_folders_of_killed_servers_go_at_the_next_start(tmp_path: Path, tiny: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed, alive = (serve(tmp_path, tiny)[0] for _ in range(2))
    mine = {path.name for path in tmp_path.glob("dig2dig-app-*")}
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (tmp_path / "mine").mkdir()
    (tmp_path / "dig2dig-app-link").symlink_to(tmp_path / "mine")
    (tmp_path / "dig2dig-app-file").write_text("a file of somebody")
    for path in tmp_path.glob("dig2dig-app-*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    with temporary_folder() as folder:
        left = {path.name for path in tmp_path.glob("dig2dig-app-*")} - {folder.name}
    assert len(mine) == 2 and len(left & mine) == 1 and left - mine == {"dig2dig-app-link", "dig2dig-app-file"}
    assert (tmp_path / "mine").is_dir() and not folder.exists()
    alive.terminate()
    alive.communicate()
    assert not {path.name for path in tmp_path.glob("dig2dig-app-*")} & mine
