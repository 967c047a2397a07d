"""Runs that are killed, interrupted, doubled or short of memory: nothing is lost, the next one completes."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import infer
from datamodules.readers.pixels import read_image
from dig2dig.atomic import write_atomically
from dig2dig.fusion.sampler import fuse
from dig2dig.fusion.weight import load_weights, weights_folder
from dig2dig.inference.interrupts import Interrupted, heed_signals
from dig2dig.modules.fuser import SMALL_WINDOW
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.files import CHECKSUMS, weights_files
from dig2dig.priors.load import load_prior, open_prior
from dig2dig.priors.lora import adapter_file, add_adapter, save_adapter
from tests.conftest import EXAMPLES, ROOT
from tests.corpus import picture, png
from tests.runs import rows, run, save
from tests.survive import command, contents, kills, make_pairs, survive


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for seed, side in enumerate(("visible", "infrared")):
        for i in range(6):
            save(tmp_path / side / f"{i}.png", picture(10 * seed + i, height=24 + 8 * (i % 2)))
    return tmp_path


@pytest.mark.slow
def test_a_killed_run_is_completed_by_the_next(tmp_path: Path) -> None:
    make_pairs(tmp_path, 6)
    loggers = ["logger.tensorboard=true", "logger.wandb.mode=offline"]
    assert survive(lambda out: [*command(tmp_path, out), *loggers], contents, tmp_path, kills(1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_one_exception(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name) as caught, heed_signals():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert caught.value.exit_code == 128 + number and signal.getsignal(number) is before


def heed_in_a_worker() -> None:
    try:
        with heed_signals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    except KeyboardInterrupt:  # what torch's workers end on in order
        os._exit(7)


def test_a_worker_ends_as_torch_wants_it() -> None:
    worker = multiprocessing.get_context("spawn").Process(target=heed_in_a_worker)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 7


@pytest.mark.slow
def test_sigterm_ends_a_run_in_order(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    sources = [f"sources.{side}={tmp_path / side}" for side in ("visible", "infrared")]
    slow = [
        "sampler.weights=gain",
        "sampler.guidance.sigma_n=0.01",
        "sampler.steps=200",
        "batch_size=1",
        "trainer.accelerator=cpu",
    ]
    command = [sys.executable, "infer.py", "configs/ivf.yaml", *sources, *slow, f"out={tmp_path / 'out'}"]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 2 and "another run is at work there" in second.stderr
    running.send_signal(signal.SIGTERM)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 143
    assert "interrupted: what is fused is kept" in error and "Traceback" not in error
    made = {path.stem for path in (tmp_path / "out").glob("*.png")}
    table = rows(tmp_path / "out")
    assert 0 < len(made) < 30 and made == {name for name, row in table.items() if row["status"] == "done"}
    assert not list((tmp_path / "out").glob(".*.part*"))


def test_bytes_do_not_depend_on_workers_or_the_rest_of_a_run_and_hardly_on_batches(pairs: Path) -> None:
    prior = "sampler.guidance.sigma_n=0.01"
    for name, options in {"one": [], "four": ["batch_size=4"], "workers": ["workers=2"]}.items():
        assert run(pairs, prior, *options, f"out={pairs / name}") == 0
    (pairs / "visible" / "0.png").unlink()
    assert run(pairs, prior, f"out={pairs / 'fewer'}", "allow_missing=true") == 1
    for i in range(1, 6):
        for name in ("workers", "fewer"):
            assert (pairs / name / f"{i}.png").read_bytes() == (pairs / "one" / f"{i}.png").read_bytes()
        one, four = (read_image(pairs / name / f"{i}.png").astype(float) for name in ("one", "four"))
        assert np.abs(four - one).max() <= 1


def test_a_record_repeats_its_run_from_anywhere(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pairs)
    config = str(ROOT / "configs" / "ivf.yaml")
    arguments = ["sources.visible=visible", "sources.infrared=infrared", "out=out", "seed=3"]
    assert infer.main([config, *arguments, "trainer.accelerator=cpu"]) == 0
    monkeypatch.chdir("/")
    assert infer.main([str(pairs / "out" / "run.yaml"), f"out={pairs / 'again'}"]) == 0
    before, after = contents(pairs / "out"), contents(pairs / "again")
    assert before == after


def alter(path: Path) -> None:
    """One bit of a file, whose size and time stay as they are."""
    content, before = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("what", ["prior", "adapter", "weights"])
def test_a_network_with_other_bytes_ends_a_resumed_and_a_repeated_run(
    what: str, pairs: Path, tiny: Path, capsys: pytest.CaptureFixture
) -> None:
    prior = shutil.copytree(tiny, pairs / "prior")
    (prior / CHECKSUMS).unlink()
    options = [f"prior.path={prior}"]
    file = weights_files(prior)[0]
    if what == "adapter":
        denoiser = load_prior(prior)
        add_adapter(denoiser, 2, 2.0)
        save_adapter(denoiser, pairs / "adapter", str(prior), 2, 2.0)
        options, file = [*options, f"prior.adapter={pairs / 'adapter'}"], adapter_file(str(pairs / "adapter"))
    if what == "weights":
        shutil.copytree(weights_folder("bundled/ivf"), pairs / "weights")
        options, file = [*options, f"sampler.weights={pairs / 'weights'}"], pairs / "weights" / "weights.safetensors"
    record, out = str(pairs / "out" / "run.yaml"), f"out={pairs / 'out'}"
    assert run(pairs, *options) == 0
    assert infer.main([record, out]) == 0 == infer.main([record, f"out={pairs / 'again'}"])
    before = contents(pairs / "out")
    alter(file)
    capsys.readouterr()
    assert run(pairs, *options) == 2  # resumed
    for more in ([out], [f"out={pairs / 'third'}"], [f"out={pairs / 'third'}", "overwrite=true"]):  # repeated
        assert infer.main([record, *more]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(f"that in the record {record} is " in line for line in lines)
    assert contents(pairs / "out") == before and not list((pairs / "third").glob("*.png"))
    assert run(pairs, *options, "overwrite=true") == 0
    if what == "prior":
        assert infer.main([record, f"out={pairs / 'bundled'}", "prior.path=bundled"]) == 0


@pytest.mark.parametrize("what", ["prior", "weights"])
def test_a_network_that_is_replaced_while_a_run_begins_ends_it(
    what: str, pairs: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    prior, learned = shutil.copytree(tiny, pairs / "prior"), pairs / "weights"
    (prior / CHECKSUMS).unlink()
    shutil.copytree(weights_folder("bundled/ivf"), learned)
    file, name, opens = {
        "prior": (weights_files(prior)[0], "open_prior", open_prior),
        "weights": (learned / "weights.safetensors", "load_weights", load_weights),
    }[what]

    def late(asked: Any) -> object:
        alter(file)
        return opens(asked)

    monkeypatch.setattr(f"dig2dig.modules.fusion.{name}", late)
    assert run(pairs, f"prior.path={prior}", f"sampler.weights={learned}") == 2
    assert "were written while they were read" in capsys.readouterr().err
    assert not (pairs / "out" / "run.yaml").exists()


def test_memory_that_runs_out_costs_windows_then_the_pair(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Pairs of 32 rows fit in small windows only, those of 24 not at all."""

    def short(sources, denoiser, *arguments, **options):
        rows_, whole = sources.shape[-2], denoiser.window > SMALL_WINDOW
        if rows_ == 24 or whole:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return fuse(sources, denoiser, *arguments, **options)

    monkeypatch.setattr("dig2dig.modules.fuser.fuse", short)
    assert run(pairs) == 1
    table = rows(pairs / "out")
    assert {name: row["status"] for name, row in table.items()} == {
        str(i): "done" if i % 2 else "failed" for i in range(6)
    }
    assert "fused in small windows" in table["1"]["note"] and "do not fit into memory" in table["0"]["reason"]
    assert "Traceback" not in capsys.readouterr().err


def test_scarce_memory_means_one_small_window_at_a_time(bundled: Denoiser) -> None:
    sizes: list[tuple[int, ...]] = []
    handle = bundled.network.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    small = bundled.in_windows(SMALL_WINDOW)
    assert small(torch.zeros(2, 3, 320, 400), torch.tensor([5, 5])).shape == (2, 3, 320, 400)
    handle.remove()
    assert max(count * 4 * height * width for count, _, height, width in sizes) <= SMALL_WINDOW**2


def test_numbers_that_are_not_finite_fail_the_pair(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dig2dig.modules.fuser.fuse", lambda *a, **k: fuse(*a, **k) * float("nan"))
    assert run(pairs) == 1
    table = rows(pairs / "out")
    assert all("not finite" in row["reason"] and not row["file"] for row in table.values()) and len(table) == 6
    assert not list((pairs / "out").glob("*.png"))


def test_other_faults_are_not_taken_for_memory(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dig2dig.modules.fuser.fuse", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        run(pairs)


def test_a_folder_that_cannot_be_written_is_one_line(mortal: Path, capsys: pytest.CaptureFixture) -> None:
    make_pairs(mortal, 2)
    (mortal / "out").mkdir(mode=0o500)
    assert run(mortal) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_the_next_run_completes(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sound, written = write_atomically, []

    def full(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sound(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("dig2dig.inference.writer.write_atomically", full)
        assert run(pairs, "batch_size=1") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "No space left on device" in error
    kept = {path.name: path.stat().st_mtime_ns for path in (pairs / "out").glob("*.png")}
    assert run(pairs, "batch_size=1") == 0
    after = {path.name: path.stat().st_mtime_ns for path in (pairs / "out").glob("*.png")}
    assert len(after) == 6 and 0 < len(kept) < 6
    assert all(row["status"] == "done" for row in rows(pairs / "out").values())


def test_leftovers_of_killed_runs_are_swept(pairs: Path) -> None:
    (pairs / "out").mkdir()
    (pairs / "out" / ".0123456789abcdef.part").write_bytes(b"half a picture")
    other = pairs / "out" / "another run" / ".fedcba9876543210.part"
    other.parent.mkdir()
    other.write_bytes(b"at work")
    assert run(pairs) == 0
    assert not list((pairs / "out").glob(".*")) and other.is_file()


def test_a_malicious_checkpoint_does_not_run(pairs: Path, capsys: pytest.CaptureFixture) -> None:
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {pairs / 'owned'}",))

    torch.save({"weights": Evil()}, pairs / "evil.pt")
    assert run(pairs, f"prior.path={pairs / 'evil.pt'}") == 2
    assert capsys.readouterr().err.startswith("error: ") and not (pairs / "owned").exists()


def test_frames_of_a_sequence_share_their_noise(tmp_path: Path) -> None:
    for side in ("visible", "infrared"):
        pixels = np.asarray(Image.open(EXAMPLES / "infrared_visible" / side / "00537D.png").convert("L"))[
            200:264, 250:314
        ]
        for i in range(2):  # a scene that stands still
            (tmp_path / side).mkdir(exist_ok=True)
            (tmp_path / side / f"{i:03d}.png").write_bytes(png(pixels))
    for name, option in (("still", "sequence=true"), ("alone", "sequence=false")):
        assert run(tmp_path, option, f"out={tmp_path / name}") == 0
    frames = {name: [(tmp_path / name / f"{i:03d}.png").read_bytes() for i in range(2)] for name in ("still", "alone")}
    assert frames["still"][0] == frames["still"][1] and frames["alone"][0] != frames["alone"][1]
