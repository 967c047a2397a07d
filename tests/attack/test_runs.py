"""A run goes on: kills, orphans, full disks, pipes and odd names cost a pair at most."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import infer
from dig2dig.atomic import LOCK, replacing, write_atomically
from dig2dig.inference.interrupts import Interrupted, heed_signals
from tests.conftest import ROOT
from tests.corpus import picture
from tests.runs import FAST, rows, run, save
from tests.survive import command, contents, left_of, linux, make_pairs, start
from tests.training.test_train import arguments as training

IVF = str(ROOT / "configs" / "ivf.yaml")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for seed, side in enumerate(("visible", "infrared")):
        for i in range(2):
            save(tmp_path / side / f"{i}.png", picture(10 * seed + i, height=24))
    return tmp_path


@linux
@pytest.mark.slow
def test_orphans_end_with_their_parent_and_leave_the_folder_to_the_next_run(tmp_path: Path) -> None:
    make_pairs(tmp_path, 24)
    slow = ["sampler.weights=gain", "sampler.guidance.sigma_n=0.01", "sampler.steps=60", "batch_size=1", "workers=1"]
    two = [*command(tmp_path, tmp_path / "out"), *slow, "trainer.devices=2", "trainer.strategy=ddp"]
    first = start(two)
    deadline = time.monotonic() + 180
    while len(list((tmp_path / "out").glob("*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(left_of(first)) > 3
    first.kill()
    killed = time.monotonic()
    again = [*command(tmp_path, tmp_path / "out"), "save.weights=false"]  # other options take the folder at once
    assert subprocess.run(again, cwd=ROOT, capture_output=True).returncode == 0
    time.sleep(max(0.0, 10 - (time.monotonic() - killed)))
    assert not left_of(first)
    first.communicate()
    assert subprocess.run([*again, f"out={tmp_path / 'whole'}"], cwd=ROOT, capture_output=True).returncode == 0
    found, whole = contents(tmp_path / "out"), contents(tmp_path / "whole")
    assert {name: found[name] for name in whole if name != "dig2dig.json"} == {
        name: content for name, content in whole.items() if name != "dig2dig.json"
    }
    assert not list((tmp_path / "out").glob("summary.*.csv")) and not list((tmp_path / "out").glob(f"{LOCK}*"))


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    make_pairs(tmp_path, 5)
    one = [*command(tmp_path, tmp_path / "one"), "logger.csv=true"]
    two = [*command(tmp_path, tmp_path / "two"), "trainer.devices=2", "trainer.strategy=ddp"]
    for arguments in (one, two):
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    names = [f"{i:02d}.png" for i in range(5)]
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    assert rows(tmp_path / "one").keys() == rows(tmp_path / "two").keys()


@pytest.mark.slow
def test_processes_of_torchrun_fuse_and_train(tmp_path: Path) -> None:
    """Each process is a device, without an option that says so; a pair is fused once, a batch is both processes'."""
    make_pairs(tmp_path, 5)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one, two = (command(tmp_path, tmp_path / name)[1:] for name in ("one", "two"))
    learn = ["train.py", *training(tmp_path / "trained", "optim.steps=2", "data.batch_size=1")]
    said = list[str]()
    for arguments in ([sys.executable, *one], [*torchrun, *two], [*torchrun, *learn]):
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
    assert rows(tmp_path / "one").keys() == rows(tmp_path / "two").keys()
    for i in range(5):
        assert (tmp_path / "one" / f"{i:02d}.png").read_bytes() == (tmp_path / "two" / f"{i:02d}.png").read_bytes()
    assert said[2].count("2 devices: each batch is 2 times data.batch_size") == 1
    assert (tmp_path / "trained" / "prior" / "SHA256SUMS").is_file()
    assert not list(tmp_path.glob(f"*/{LOCK}*"))


def test_sighup_ends_as_sigterm_does_unless_it_is_ignored() -> None:
    with pytest.raises(Interrupted, match="SIGHUP") as caught, heed_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)
    assert caught.value.exit_code == 129
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with heed_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_full_disk_names_the_path(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no full device")
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    with full, pytest.raises(OSError, match=r"No space .*x\.png") as caught, replacing(tmp_path / "x.png"):
        full.write(b"x")
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="longer"):
        write_atomically(tmp_path / ("longer" * 99), b"")


def test_a_name_too_long_fails_its_pair_alone(tmp_path: Path) -> None:
    long, fits = "x" * 252, "y" * 246
    for seed, side in enumerate(("visible", "infrared")):
        save(tmp_path / side / "a.bmp", picture(seed, height=24))
        (tmp_path / side / f"{long[:251]}.bmp").write_bytes((tmp_path / side / "a.bmp").read_bytes())
        (tmp_path / side / f"{fits}.bmp").write_bytes((tmp_path / side / "a.bmp").read_bytes())
    assert run(tmp_path, "save.format=webp", "save.weights=true", "logger.csv=true") == 1
    table = rows(tmp_path / "out")
    assert [table[name]["status"] for name in ("a", fits, long[:251])] == ["done", "done", "failed"]
    assert "too long" in table[long[:251]]["reason"]


def test_a_link_in_the_place_of_maps_is_not_followed(pairs: Path) -> None:
    assert run(pairs, "save.weights=true") == 0
    aside = pairs / "aside"
    (pairs / "out" / "0_maps").rename(aside)
    (pairs / "out" / "0_maps").symlink_to(aside)
    before = sorted(aside.iterdir())
    assert run(pairs, "save.weights=true", "sampler.steps=3") == 2
    assert sorted(aside.iterdir()) == before


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_refused_unopened(kind: str, pairs: Path, capsys) -> None:
    odd, short = pairs / "visible" / "0.png", Path("/tmp") / f"dig2dig-{os.getpid()}.png"
    odd.unlink()
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(short))
        short.rename(odd)
    else:
        odd.symlink_to("/dev/zero")
    for suffix in (".png", ".tif", ".jpg", ".nii", ".mp4", ".cr2", ".exr"):
        odd = odd.rename(odd.with_suffix(suffix))
        other = pairs / "infrared" / "0.png"
        arguments = [f"sources.visible={odd}", f"sources.infrared={other}", f"out={pairs / suffix[1:]}"]
        assert infer.main([IVF, *arguments, *FAST]) in (1, 2)
        assert "Traceback" not in capsys.readouterr().err
    manifest = pairs / "m.csv"
    os.mkfifo(manifest)
    assert infer.main([IVF, f"manifest={manifest}", f"out={pairs / 'x'}", *FAST]) == 2


def test_folders_that_are_not_utf8_resume(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    for seed, side in enumerate(("visible", "infrared")):
        for name in ("0", os.fsdecode(b"n\xe9")):
            save(tmp_path / side / "0.png", picture(seed, height=24))
            (folder / side).mkdir(exist_ok=True)
            (folder / side / f"{name}.png").write_bytes((tmp_path / side / "0.png").read_bytes())
    options = ["save.weights=true", "logger.csv=true"]
    assert run(folder, *options) == 0
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("*.png")}
    assert run(folder, *options) == 0 and len(times) == 2
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("*.png")} == times
    assert infer.main([str(folder / "out" / "run.yaml"), f"out={folder / 'again'}", "save.weights=false"]) == 0


def test_one_call_prints_names_that_are_not_utf8(tmp_path: Path, tiny: Path) -> None:
    for seed, name in enumerate((b"v\xff.png", b"i\xff.png")):
        save(tmp_path / "one.png", picture(seed, height=24))
        try:
            (tmp_path / "one.png").rename(tmp_path / os.fsdecode(name))
        except OSError:
            pytest.skip("the file system takes UTF-8 alone")
    files = [os.fsdecode(name) for name in (b"v\xff.png", b"i\xff.png")]
    call = [
        sys.executable,
        "-m",
        "dig2dig",
        "fuse",
        "ivf",
        *files,
        os.fsdecode(b"out=o\xff.png"),
        f"prior.path={tiny}",
        *FAST,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and r"o\udcff.png: " in done.stdout, done.stderr
