"""Configs and records of somebody else: one line each, and nothing read or sent that nobody asked for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import infer
from dig2dig.cli import from_yaml, load_strictly, read_record, to_yaml
from dig2dig.config import InferConfig
from dig2dig.config_train import TrainConfig
from dig2dig.errors import UserError, last_resort
from dig2dig.report.views import fragment_file, read_fragment
from tests.conftest import ROOT
from tests.corpus import picture
from tests.runs import rows, run, save

SOURCES = ["sources.a=x", "sources.b=y"]


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "a${b", "${", "$${x}", "\\${x}", "\\\\${oc.env:HOME}", "${seed}"])
def test_nothing_is_interpolated_and_a_literal_stays(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"sources:\n  a: '{text}'\nprior:\n  adapter: '{text}'\nlogger:\n  wandb:\n    project: '{text}'\n")
    config = load_strictly(InferConfig, [*SOURCES, str(file), f"out={text}"])
    assert config.out == config.sources["a"] == config.prior.adapter == config.logger.wandb.project == text
    (tmp_path / "run.yaml").write_text(to_yaml(config, {"x": text}))
    assert from_yaml(InferConfig, tmp_path / "run.yaml") == config
    assert read_record(tmp_path / "run.yaml") == {"x": text}
    assert load_strictly(InferConfig, [str(tmp_path / "run.yaml"), f"out={text}"]) == config


@pytest.mark.parametrize(
    "text",
    ["seed: ${oc.env:HOME}", "sampler: [1, 2]", "sources: [a, b]", "sources: 3", "sampler: null", "noise: [1]",
     "out: [a]", "out: {a: b}", "seed: {a: 1}", "prefer: {a: [1]}", "prefer: {a: {b: 1}}", 'out: "a\\0b"',
     'sources: {a: "x\\0"}', 'sources: {"a\\0": x}', "workers: -3", "workers: 999999", "trainer: {devices: abc}",
     "trainer: {strategy: ddp_spawn}", "trainer: {strategy: ddp_fork}", "trainer: {num_nodes: 0}", "trainer: [cpu]",
     "sampler: {guidance: {sigma_n: 1e300}}", "sampler: {guidance: {sigma_n: .nan}}", "prefer: {a: .inf}",
     f"seed: {10**30}", "sampler: {steps: .inf}", "sampler: {sigma_start: .inf}", "x: &a [1]\nseed: *a",
     "a: &a {b: *a}",
     "seed: 1\nseed: 2", "- a", "3", "", "\t", "seed: [" * 5000, "{" * 20000, "? [a]\n: b", "seed: 2024-01-01",
     "seed: !!python/name:os.system", "? !!binary aGk=\n: 1", "out: ''", "sampler: {tone: {a: b}}", "null: 3", "1: 2",
     "\ud800"],
)  # fmt: skip
@pytest.mark.parametrize("schema", [InferConfig, TrainConfig])
def test_a_bad_file_is_one_line(text: str, schema: type, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text, errors="surrogatepass")
    given = SOURCES if schema is InferConfig else ["data.root=x"]
    with pytest.raises(UserError) as caught:
        load_strictly(schema, [*given, str(file)])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
    assert from_yaml(InferConfig, file) is None


@pytest.mark.parametrize(
    "argument",
    ["${oc.env:HOME}=1", "sampler=[1]", "sampler=3", "sources.a.b=c", "=", "=x", ".=x", "a..b=1", "out=a\0b",
     "seed=1e999", "seed=${oc.env:HOME}", "sampler.steps={}", "noise.a=9e999", "prefer.a=nan", "trainer.devices=-3",
     "trainer.accelerator=quantum",
     "trainer.devices=abc", "workers=-3", "sampler.guidance.sigma_n=1e300", "sampler.prefer=[nan]", 
     "x" * 5000, "\0", "task=[ivf]", "seed=null", "research=3", "tone=[1]", "batch_size=0x", "record=3"],
)  # fmt: skip
def test_a_bad_argument_is_one_line(argument: str) -> None:
    with pytest.raises(UserError) as caught:
        load_strictly(InferConfig, [*SOURCES, argument])
    assert "\n" not in str(caught.value)


def foreign(folder: Path, text: str, name: str = "run.yaml") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_record_decides_neither_where_to_write_nor_what_to_send(tmp_path: Path) -> None:
    whole = to_yaml(load_strictly(InferConfig, [*SOURCES, "out=/elsewhere"]))
    for text, name in (("out: /elsewhere", "run.yaml"), ("out: /elsewhere\nrecord: {}", "any.yaml"), (whole, "w.yaml")):
        record = foreign(tmp_path / "theirs", text, name)
        with pytest.raises(UserError, match="does not say where to write"):
            load_strictly(InferConfig, [record, *SOURCES])
        assert load_strictly(InferConfig, [record, *SOURCES, "out=mine"]).out == "mine"
        assert load_strictly(InferConfig, [record, *SOURCES, "out=/elsewhere"]).out == "/elsewhere"
    given = [*SOURCES, "out=mine"]
    record = foreign(tmp_path / "theirs", "logger: {wandb: {mode: online}}")
    with pytest.raises(UserError, match="does not log online"):
        load_strictly(InferConfig, [record, *given])
    assert load_strictly(InferConfig, [record, *given, "logger.wandb.mode=offline"]).logger.wandb.mode == "offline"
    assert load_strictly(InferConfig, [record, *given, "logger.wandb.mode=online"]).logger.wandb.mode == "online"
    record = foreign(tmp_path / "theirs", "prior: {path: somebody/model}")
    with pytest.raises(UserError, match=r"to fetch it, give prior\.path=somebody/model"):
        load_strictly(InferConfig, [record, *given])
    assert load_strictly(InferConfig, [record, *given, "prior.path=somebody/model"]).prior.path == "somebody/model"
    record = foreign(tmp_path / "theirs", "prior: somebody/model")
    with pytest.raises(UserError, match="to fetch it, give prior=somebody/model"):
        load_strictly(TrainConfig, [record, "data.root=x"])
    assert load_strictly(InferConfig, [foreign(tmp_path, "out: own", "own.yaml"), *SOURCES]).out == "own"


def test_a_damaged_folder_is_told_in_a_line_or_fused_anew(tmp_path: Path, capsys) -> None:
    for seed, side in enumerate(("visible", "infrared")):
        save(tmp_path / side / "p.png", picture(10 * seed, height=24))
    assert run(tmp_path) == 0
    out = tmp_path / "out"
    sound = (out / "summary.csv").read_text()
    for bad in (sound.replace(rows(out)["p"]["seconds"], "abc"), sound + "x", sound + "y" * 200_000, sound[:100], "\0"):
        (out / "summary.csv").write_text(bad)
        assert run(tmp_path) == 0 and list(rows(out)) == ["p"]
    fragment = fragment_file(out, "p")
    for bad in ("[" * 100_000, '{"card": 3}', '{"card": {"panels": 3}}', "null", ""):
        fragment.write_text(bad)
        assert read_fragment(out, "p", "", "") is None and run(tmp_path) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_wrong_list_of_checksums_is_one_line(tmp_path: Path, tiny: Path, capsys) -> None:
    for side in ("visible", "infrared"):
        save(tmp_path / side / "p.png", picture(1, height=24))
    prior = Path(shutil.copytree(tiny, tmp_path / "prior"))
    for text in (
        "0" * 64 + "  unet/config.json",
        "x",
        "\0",
        f"{'0' * 64}  {'x' * 5000}",
        f"{'0' * 64}  ../../../etc/passwd",
    ):
        (prior / "SHA256SUMS").write_text(text)
        assert run(tmp_path, f"prior.path={prior}") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


def test_a_fault_is_one_line_with_the_place_of_its_traceback(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        raise KeyError("a\nfault")
    except KeyError as error:
        last_resort(KeyError, error, error.__traceback__)
    line = capsys.readouterr().err
    (log,) = tmp_path.iterdir()
    assert line.count("\n") == 1 and str(log) in line and "Traceback" in log.read_text()


def test_scripts_have_the_last_resort() -> None:
    for script in ("infer.py", "train.py"):
        probe = (
            "import runpy, sys, dig2dig.__main__ as commands\n"
            f"commands.infer = commands.train = lambda argv: 1 / 0\nrunpy.run_path('{script}', run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith("error: ZeroDivisionError: division by zero; ")
        assert done.stderr.count("\n") == 1 and infer.main


def test_a_reader_that_has_enough_is_no_fault() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "dig2dig", "infer", "--help", "all"]
    done = subprocess.run(command, cwd=ROOT, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert done.returncode == 1 and not done.stderr
    probe = "import sys; from dig2dig.errors import last_resort as tell; sys.excepthook = tell; raise BrokenPipeError"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: BrokenPipeError")  # of another pipe: it is told
