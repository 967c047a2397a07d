"""Attacks on a training: loss that is lost, damaged checkpoints, signals, a full disk, a silent W&B, kills."""

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from dig2dig.atomic import lock
from dig2dig.errors import RunError
from dig2dig.inference.ownership import record
from dig2dig.modules.prior import PriorModule
from dig2dig.priors.files import weights_files
from dig2dig.training.checkpoints import read_checkpoint
from tests import survive
from tests.conftest import EXAMPLES
from tests.training.test_train import STEPS, arguments, fit

pytestmark = pytest.mark.slow
MORE = [*STEPS, "val_every=4", "optim.steps=6"]
RARE = [*MORE, "save_every=1000", "val_every=1000"]
ENOUGH = 120  # seconds for a small training in a process of its own


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of six uninterrupted steps."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    fit(out, *MORE)
    return weights_files(out / "prior")[0].read_bytes()


@contextmanager
def at_step(step: int, act: Callable[[PriorModule, torch.Tensor], Any], name: str = "training_step") -> Iterator[None]:
    """Does something with the module and the loss after so many steps."""
    original = getattr(PriorModule, name)

    def changed(self: PriorModule, *arguments: Any, **more: Any) -> Any:
        loss = original(self, *arguments, **more)
        known = self.trainer.global_step == step and self.trainer.state.fn == "fit"
        return (act(self, loss) if known else None) or loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PriorModule, name, changed)
        yield


def poison(module: PriorModule, _: torch.Tensor) -> None:
    """The loss stays as it is, but its gradient is not finite."""
    parameter = next(parameter for parameter in module.parameters() if parameter.requires_grad)
    parameter.register_hook(lambda gradient: gradient * float("nan"))


def steps_of(out: Path) -> list[int]:
    """The steps of the last checkpoint and of the one before."""
    files = (out / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    return [read_checkpoint(file)["global_step"] for file in files if file.is_file()]


@pytest.mark.parametrize(
    ("what", "last"), [(lambda _, loss: loss * float("nan"), 3), (lambda _, loss: loss / 0, 3), (poison, 3)]
)
def test_a_training_that_is_lost_stops_and_keeps_what_is_good(
    what: Callable, last: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "model_index.json").write_text("the last good export")
    record(tmp_path, ["prior/"])  # made by a run
    with at_step(last, what):
        assert train.main(arguments(tmp_path, *MORE)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "finite" in line]
    assert len(lines) == 1 and lines[0].startswith("stopped: ") and "last good checkpoint" in lines[0]
    assert steps_of(tmp_path) == [3, 2]
    assert bytes_of(tmp_path / "prior") == {"model_index.json": b"the last good export"}
    assert not list(tmp_path.rglob("*.part*"))


def test_the_last_step_is_no_exception(tmp_path: Path) -> None:
    with at_step(5, poison):
        assert train.main(arguments(tmp_path / "last", *RARE)) == 1
    assert not (tmp_path / "last" / "prior").exists() and steps_of(tmp_path / "last") == []


def test_a_flipped_byte_is_seen_wherever_it_matters(tmp_path: Path) -> None:
    fit(tmp_path, *STEPS, "optim.steps=1")
    path = tmp_path / "checkpoints" / "last.ckpt"
    content, before, chance, seen = path.read_bytes(), read_checkpoint(path)["state_dict"], random.Random(0), 0
    for place in [*range(0, 400, 40), *(chance.randrange(len(content)) for _ in range(40)), len(content) - 10]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        try:
            after = read_checkpoint(path)["state_dict"]
        except RunError as error:
            assert "damaged checkpoint" in str(error) and "\n" not in str(error)
            seen += 1
        else:  # padding, or a date
            assert all(torch.equal(after[name], before[name]) for name in before)
    assert seen > 35
    for cut in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(RunError, match="damaged checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_the_older_checkpoint_is_taken_where_the_last_one_is_damaged(
    damage: str, unbroken: bytes, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise InterruptedError

    with at_step(4, stop):
        assert train.main(arguments(tmp_path, *MORE)) == 2
    assert steps_of(tmp_path) == [4, 3]
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink() if damage == "missing" else path.write_bytes(content if damage == "flip" else content[:1000])
    capsys.readouterr()
    with at_step(4, stop):  # the damaged one must not take the place of the good one
        assert train.main(arguments(tmp_path, *MORE)) == 2
    assert ("damaged checkpoint; goes on from the one before, step 3" in capsys.readouterr().err) == (
        damage != "missing"
    )
    assert steps_of(tmp_path) == [4, 3]
    fit(tmp_path, *MORE)
    assert weights_files(tmp_path / "prior")[0].read_bytes() == unbroken


def test_two_damaged_checkpoints_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fit(tmp_path, *STEPS, "optim.steps=2")
    for file in (tmp_path / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    before = bytes_of(tmp_path / "checkpoints")
    capsys.readouterr()
    assert train.main(arguments(tmp_path, *STEPS, "optim.steps=2")) == 2
    printed = capsys.readouterr().err.strip()
    assert "last.ckpt: damaged checkpoint" in printed and "\n" not in printed
    assert bytes_of(tmp_path / "checkpoints") == before


@pytest.mark.parametrize(
    ("number", "name", "more"),
    [
        (signal.SIGINT, "training_step", []),
        (signal.SIGTERM, "training_step", ["data.batch_size=1", "optim.accumulate=2"]),
        (signal.SIGHUP, "training_step", []),
        (signal.SIGINT, "validation_step", ["val_every=2"]),
    ],
)
def test_a_signal_writes_a_checkpoint_and_the_same_command_goes_on(
    number: signal.Signals, name: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    step = 2 if name == "validation_step" else 3
    with at_step(step, lambda *_: os.kill(os.getpid(), number), name):
        assert train.main(arguments(tmp_path / "parts", *RARE, *more)) == 128 + number
    assert handlers == {one: signal.getsignal(one) for one in handlers}
    assert f"interrupted: the same command goes on ({number.name})" in capsys.readouterr().err
    assert steps_of(tmp_path / "parts") == [step + (name == "training_step")]
    fit(tmp_path / "parts", *RARE, *more)
    fit(tmp_path / "whole", *RARE, *more)
    assert bytes_of(tmp_path / "parts" / "prior" / "unet") == bytes_of(tmp_path / "whole" / "prior" / "unet")


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with at_step(1, lambda *_: os.kill(os.getpid(), signal.SIGHUP)):
            fit(tmp_path, *RARE)
    finally:
        signal.signal(signal.SIGHUP, before)


def start(out: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    """A training in a process and a group of its own."""
    return survive.start([sys.executable, "train.py", *arguments(out, *more)], **environment)


def wait_for(path: Path, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + ENOUGH
    while not path.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize(
    "more", [["data.workers=1"], ["data.batch_size=1", "trainer.devices=2", "trainer.strategy=ddp"]]
)
def test_a_signal_to_all_processes_ends_them_all(more: list[str], tmp_path: Path) -> None:
    """To the whole group, where processes read images; to the first process alone, where two share the training."""
    run = start(tmp_path, *STEPS, "optim.steps=2000", "save_every=5", *more)
    wait_for(tmp_path / "checkpoints" / "last.ckpt", run)
    (os.killpg if "data.workers=1" in more else os.kill)(run.pid, signal.SIGTERM)
    _, printed = run.communicate(timeout=30)  # it ends when each process has closed its end, or is gone
    assert run.returncode == 143 and "Traceback" not in printed, printed
    assert printed.count("the same command goes on (SIGTERM)") == 1
    assert steps_of(tmp_path)[0] >= 5


@survive.linux
def test_orphans_of_a_killed_training_end_and_leave_the_folder_to_the_next_run(tmp_path: Path) -> None:
    """Two processes with one that reads images each, and W&B's; the first one is killed."""
    two = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=1", "data.workers=1"]
    more = [*STEPS, "optim.steps=2000", "save_every=5", "logger.wandb.mode=offline", *two]
    run = start(tmp_path, *more)
    wait_for(tmp_path / "checkpoints" / "last.ckpt", run)
    assert len(survive.left_of(run)) > 3
    os.kill(run.pid, signal.SIGKILL)
    killed = time.monotonic()
    while survive.left_of(run) and time.monotonic() < killed + 10:
        time.sleep(0.1)
    assert not survive.left_of(run)
    run.communicate()
    with lock(tmp_path):
        assert steps_of(tmp_path)[0] >= 5


def test_a_full_disk_is_one_line_and_keeps_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A file that cannot grow ends a write as a full disk does: an OSError amid it."""
    fit(tmp_path, *STEPS, "optim.steps=2")
    before = bytes_of(tmp_path / "checkpoints"), bytes_of(tmp_path / "prior")
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert train.main(arguments(tmp_path, *STEPS, "optim.steps=2")) == 2  # nothing but the export is left to do
        assert train.main(arguments(tmp_path / "new", *STEPS, "optim.steps=2")) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and f"{tmp_path / 'prior'}: cannot be written" in lines[0]
    assert f"{tmp_path / 'new' / 'checkpoints' / 'last.ckpt'}: cannot be written" in lines[1]
    assert (bytes_of(tmp_path / "checkpoints"), bytes_of(tmp_path / "prior")) == before
    assert not list(tmp_path.rglob("*.part*"))


@pytest.mark.parametrize("key", ["", "a" * 40])
def test_wandb_out_of_reach_is_one_line_in_seconds(key: str, tmp_path: Path) -> None:
    """No key, or a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}", "HOME": str(tmp_path)}
        more = ["optim.steps=2", "logger.wandb.mode=online", "logger.every=1"]
        run = start(tmp_path / "out", *STEPS, *more, **place, **({"WANDB_API_KEY": key} if key else {}))
        started = time.monotonic()
        _, printed = run.communicate(timeout=ENOUGH)
    assert run.returncode == 0 and time.monotonic() - started < 60
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if "W&B" in line]
    assert "give logger.wandb.mode=offline, or log in" in line and ("does not answer" if key else "no key") in line
    assert (tmp_path / "out" / "log" / "metrics.csv").is_file() and (tmp_path / "out" / "prior").is_dir()


def exported(out: Path) -> tuple[bytes, list[Path]]:
    """The weights that a training wrote, and files that are no whole ones."""
    return weights_files(out / "prior")[0].read_bytes(), list(out.rglob("*.part*"))


def test_kills_change_no_byte_of_a_training(tmp_path: Path) -> None:
    """DIG2DIG_KILLS=50 python -m pytest -s -m slow tests/attack/test_training.py -k kills_change"""
    more = [*STEPS, "optim.steps=40", "val_every=15", "save_every=3", "logger.wandb.mode=offline", "logger.every=1"]
    pair = [f"fusion.sources.{side}={EXAMPLES / 'infrared_visible' / side}" for side in ("visible", "infrared")]
    more += [*pair, "fusion.crop=32", "logger.tensorboard=true", "logger.pairs=1"]
    train = [sys.executable, "train.py"]
    assert survive.survive(lambda out: [*train, *arguments(out, *more)], exported, tmp_path, survive.kills(1))
