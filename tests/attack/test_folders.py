"""A run replaces and removes what its own record in OUT names, and never an input."""

import errno
import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

import infer
from datamodules.readers.video import write_video
from dig2dig.atomic import LOCK, PART, lock, sweep, write_atomically
from dig2dig.errors import RunError
from dig2dig.inference.ownership import MAP, RECORD, claim, read_names
from dig2dig.inference.table import COLUMNS, read_summary
from tests.conftest import ROOT
from tests.corpus import picture
from tests.runs import FAST, rows, run, save
from tests.survive import contents

IVF = str(ROOT / "configs" / "ivf.yaml")


def pair(folder: Path, *names: str) -> Path:
    for seed, side in enumerate(("visible", "infrared")):
        for name in names or ("p",):
            save(folder / side / f"{name}.png", picture(10 * seed, height=24))
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_process_that_a_launcher_started_early_keeps_nobody_out(tmp_path: Path, monkeypatch) -> None:
    """torchrun starts all processes at once: any may be there before the first one. Others are of another run."""
    monkeypatch.setattr("dig2dig.atomic.PATIENCE", 0.1)
    with FileLock(tmp_path / f"{LOCK}1"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with lock(tmp_path):
            pass
        monkeypatch.setenv("WORLD_SIZE", "1")
        with pytest.raises(RunError, match="another run is at work"), lock(tmp_path):
            pass


@pytest.mark.parametrize("name", ["summary.csv", "run.yaml", "report.html", "p.png", RECORD])
def test_a_foreign_file_is_refused_unless_overwriting_is_asked_for(name: str, tmp_path: Path, capsys) -> None:
    out = pair(tmp_path) / "out"
    out.mkdir()
    (out / name).write_text("mine")
    for option in ("dry_run=true", "dry_run=false"):
        assert run(tmp_path, option) == 2
        assert f"holds {name}, which no run of dig2dig wrote" in capsys.readouterr().err
    assert everything(out) == {str(out / name): b"mine"}
    assert run(tmp_path, "overwrite=true") == 0
    assert (out / name).read_bytes() != b"mine" and run(tmp_path) == 0


def test_what_a_person_put_beside_results_stays(tmp_path: Path) -> None:
    out = pair(tmp_path) / "out"
    assert run(tmp_path, "save.weights=true", "logger.csv=true") == 0
    foreign = (
        "summary.final.csv", "summary.1.csv", ".movie.mp4.part", ".holiday.particular.txt", "p_maps/notes.txt",
        "p_maps/gain_of_us.png", "report/abc.json", f"report/{'0' * 20}.json", "panels/mine.png", "log/mine.csv",
        ".lock",
    )  # fmt: skip
    for name in foreign:
        (out / name).write_text("mine")
    assert run(tmp_path, "save.weights=true", "logger.csv=true", "sampler.steps=3") == 0
    assert run(tmp_path, "save.weights=true", "logger.csv=true", "overwrite=true") == 0
    assert all((out / name).read_text() == "mine" for name in foreign)
    assert len([map for map in (out / "p_maps").iterdir() if MAP.fullmatch(map.name)]) == 8


def test_foreign_maps_are_refused_and_their_sources_live(tmp_path: Path, capsys) -> None:
    out = pair(tmp_path) / "out"
    for i, side in enumerate(("visible", "infrared")):
        (out / "p_maps").mkdir(parents=True, exist_ok=True)
        save(out / "p_maps" / f"{side}.png", picture(i, height=24))
    before = everything(out)
    sources = [f"sources.{side}={out / 'p_maps' / side}.png" for side in ("visible", "infrared")]
    (out / "visible_maps").mkdir()
    (out / "visible_maps" / "mine.txt").write_text("mine")
    assert infer.main([IVF, *sources, f"out={out}", *FAST, "save.weights=true"]) == 2
    assert "visible_maps/, which no run" in capsys.readouterr().err
    (out / "visible_maps").rename(tmp_path / "aside")
    manifest = tmp_path / "m.csv"
    manifest.write_text("name,visible,infrared\np,out/p_maps/visible.png,out/p_maps/infrared.png\n")
    for overwrite in ("false", "true"):
        arguments = [f"manifest={manifest}", f"out={out}", *FAST, "save.weights=true", f"overwrite={overwrite}"]
        assert infer.main([IVF, *arguments]) == 2
        assert "which this run reads" in capsys.readouterr().err
    assert everything(out) == before


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_no_input_is_replaced(overwrite: str, tmp_path: Path, capsys) -> None:
    out = pair(tmp_path) / "B"
    out.mkdir()
    sources = [f"sources.{side}={tmp_path / side}" for side in ("visible", "infrared")]
    table = "name,visible,infrared\np,../visible/p.png,../infrared/p.png\n"
    (out / "summary.csv").write_text(table)
    again = f"overwrite={overwrite}"
    assert infer.main([IVF, f"manifest={out / 'summary.csv'}", f"out={out}", *FAST, again]) == 2
    assert "summary.csv would be replaced, which this run reads" in capsys.readouterr().err
    (out / "summary.csv").rename(tmp_path / "elsewhere.csv")
    (out / "run.yaml").write_text("seed: 3\n")
    assert infer.main([IVF, str(out / "run.yaml"), *sources, f"out={out}", *FAST, again]) == 2
    assert "run.yaml would be replaced, which this run reads" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(out)
    assert infer.main([IVF, str(tmp_path / "link" / "run.yaml"), *sources, f"out={out}", *FAST, again]) == 2
    assert everything(out) == {str(out / "run.yaml"): b"seed: 3\n"}


def test_results_do_not_go_into_the_folder_of_a_prior(tmp_path: Path, tiny: Path, capsys) -> None:
    pair(tmp_path)
    for out in (tiny, tiny / "unet"):
        before = everything(tiny)
        assert run(tmp_path, f"prior.path={tiny}", f"out={out}") == 2
        assert "which this run reads" in capsys.readouterr().err
        assert {path: content for path, content in everything(tiny).items() if LOCK not in path} == before


def test_a_record_repeats_its_own_run_but_is_not_replaced_by_another(tmp_path: Path, capsys) -> None:
    assert run(pair(tmp_path)) == 0
    record, out = tmp_path / "out" / "run.yaml", f"out={tmp_path / 'out'}"
    before = everything(tmp_path / "out")
    assert infer.main([str(record), out]) == 0
    assert infer.main([str(record), out, "seed=5"]) == 2
    assert "run.yaml would be replaced" in capsys.readouterr().err
    assert record.read_bytes() == before[str(record)]


def test_two_scenes_of_one_result_name_both_fail(tmp_path: Path) -> None:
    for side in ("visible", "infrared"):
        save(tmp_path / side / "x_000001.png", picture(1, height=32, width=32))
        write_video(tmp_path / side / "x.mp4", [picture(i, height=32, width=32) for i in range(2)], 25.0)
    assert run(tmp_path) == 1
    table = rows(tmp_path / "out")
    assert table["x_000000"]["status"] == "done" and table["x_000001"]["status"] == "failed"
    assert "x_000001 and x_000001 would be one file" in table["x_000001"]["reason"]
    assert not (tmp_path / "out" / "x_000001.png").exists()


def test_names_that_differ_in_case_alone_both_fail(tmp_path: Path) -> None:
    pair(tmp_path, "a", "A", "b")
    assert run(tmp_path) == 1
    table = rows(tmp_path / "out")
    assert {name: row["status"] for name, row in table.items()} == {"A": "failed", "a": "failed", "b": "done"}
    assert "rename one of them" in table["a"]["reason"]


@pytest.mark.parametrize("modality", ["x/../../evil", "..", "a b", "a.b", "", "a\0b", "x" * 65])
def test_a_modality_is_a_word(modality: str, tmp_path: Path, capsys) -> None:
    pair(tmp_path)
    table = tmp_path / "m.csv"
    table.write_text(f"name,visible,{modality}\np,visible/p.png,infrared/p.png\n")
    assert infer.main([IVF, f"manifest={table}", f"out={tmp_path / 'out'}", "save.weights=true", *FAST]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_modality_of_a_config_is_a_word(tmp_path: Path, capsys) -> None:
    pair(tmp_path)
    config = tmp_path / "c.yaml"
    config.write_text(f"sources: {{visible: {tmp_path / 'visible'}, x/../../evil: {tmp_path / 'infrared'}}}")
    assert infer.main([IVF, str(config), f"out={tmp_path / 'out'}", *FAST]) == 2
    assert "is no modality: a word of letters" in capsys.readouterr().err


def test_links_are_not_followed(tmp_path: Path, capsys) -> None:
    out, aside = pair(tmp_path) / "out", tmp_path / "aside"
    aside.mkdir()
    out.mkdir()
    for name in ("p_maps", "report", "panels", "log"):
        (out / name).symlink_to(aside)
        assert run(tmp_path, "save.weights=true", "logger.csv=true", "overwrite=true") == 2
        assert f"{name} is a link" in capsys.readouterr().err
        (out / name).unlink()
    (out / LOCK).symlink_to(aside / "victim")
    assert run(tmp_path) == 2 and not list(aside.iterdir())
    (out / LOCK).unlink()
    (out / "p.png").symlink_to(aside / "victim")
    assert run(tmp_path, "overwrite=true") == 0
    assert not (out / "p.png").is_symlink() and not list(aside.iterdir())


LOGGED = {"logger.csv=true": "log", "logger.tensorboard=true": "tensorboard", "logger.wandb.mode=offline": "wandb"}


@pytest.mark.parametrize("option", LOGGED)
def test_what_loggers_write_is_in_the_record(option: str, tmp_path: Path, capsys) -> None:
    folder, out, aside = LOGGED[option], pair(tmp_path) / "out", tmp_path / "aside"
    options = [option, "logger.pairs=1"]
    aside.mkdir()
    out.mkdir()
    (out / folder).symlink_to(aside)
    assert run(tmp_path, *options, "overwrite=true") == 2
    assert f"{folder} is a link" in capsys.readouterr().err and not list(aside.iterdir())
    (out / folder).unlink()
    (out / folder).mkdir()
    (out / folder / "hparams.yaml").write_text("mine")
    assert run(tmp_path, *options) == 2
    assert f"holds {folder}/" in capsys.readouterr().err
    assert everything(out) == {str(out / folder / "hparams.yaml"): b"mine"}
    (out / folder).rename(tmp_path / "mine")
    for more in ([], ["overwrite=true"], ["seed=2"]):
        assert run(tmp_path, *options, *more) == 0
        made = {path.relative_to(out).parts[0] for path in out.rglob("*")}
        owned = read_names(out)
        assert made == {name.split("/")[0] for name in owned} and folder in made
        (out / folder / "mine.txt").write_text("mine")
    assert (out / folder / "mine.txt").read_text() == "mine"


def test_an_empty_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(pair(tmp_path))
    for empty in ("out=", "out= "):
        with pytest.raises(SystemExit):
            run(tmp_path, empty)
        assert "out is empty" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"visible", "infrared"}


def test_a_record_names_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    names = ["a.png", "a_maps/", "report/a.json", "../b", "/etc/passwd", "a/../b", "a/b/c", "..", "", 3, "a\0", "x\\y"]
    (tmp_path / RECORD).write_text(json.dumps({"wrote": names}))
    assert read_names(tmp_path) == {"a.png", "a_maps/", "report/a.json"}
    for damaged in ("", "[]", "[" * 100_000, '{"wrote": 3}', "\xff"):
        (tmp_path / RECORD).write_text(damaged, encoding="latin-1")
        assert not read_names(tmp_path)
        with pytest.raises(RunError, match=RECORD):
            claim(tmp_path, {"a"}, read_names(tmp_path), overwrite=False)


def test_only_our_own_half_written_files_are_swept(tmp_path: Path) -> None:
    kept = (".movie.mp4.part", ".0123456789abcdef.particular", ".0123456789ABCDEF.part", "x.0123456789abcdef.part")
    for name in (*kept, ".0123456789abcdef.part", ".0123456789abcdef.part.mp4"):
        (tmp_path / name).write_text("x")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "real" / f".{'0' * 16}.part", b"")
    sweep(tmp_path / "link")
    assert PART.fullmatch(next((tmp_path / "real").iterdir()).name)


def test_rows_of_another_run_do_not_count(tmp_path: Path) -> None:
    assert run(pair(tmp_path, "p", "q")) == 0
    out = tmp_path / "out"
    table = (out / "summary.csv").read_text()
    key = rows(out)["p"]["run"]
    assert len(key) == 8 and read_summary(out / "summary.csv", key) and not read_summary(out / "summary.csv", "0" * 8)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    (out / "summary.csv").write_text(table.replace(key, "0" * 8))
    assert run(tmp_path) == 0
    assert all(path.stat().st_mtime_ns > times[path.name] for path in out.glob("*.png"))


@pytest.mark.parametrize(
    "row",
    ["p", "p,done,p.png", ",".join(["p"] * 30), "p,done,p.png,abc,1x1,1,,,,", "p,done,../../p.png,1,1x1,1,,,,",
     "p,done,/etc/passwd,1,1x1,1,,,,", "p,done,,1,1x1,1,,,,", "p,perhaps,p.png,1,1x1,1,,,,", "p," + "x" * 200_000,
     "p,done,p.png,inf,1x1,1,,,,", "p,done,p\0.png,1,1x1,1,,,,"],
)  # fmt: skip
def test_rows_that_no_run_writes_are_left_out(row: str, tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text(f"{','.join(COLUMNS)}\n{row}\n")
    assert read_summary(tmp_path / "summary.csv") == {}


def test_panels_after_a_break_are_those_of_a_whole_run(tmp_path: Path) -> None:
    names = [f"{i}" for i in range(6)]
    for seed, side in enumerate(("visible", "infrared")):
        for i, name in enumerate(names):
            save(tmp_path / side / f"{name}.png", picture(10 * seed + i, height=24 + 8 * (i % 2)))
    options = ["logger.csv=true", "logger.pairs=3", "save.weights=true", "batch_size=1"]
    assert run(tmp_path, *options, f"out={tmp_path / 'whole'}") == 0
    assert run(tmp_path, *options) == 0
    out = tmp_path / "out"
    for lost in (["1", "3"], ["0", "2", "4"], names):  # as if killed before their rows were written
        table = (out / "summary.csv").read_text().splitlines(True)
        (out / "summary.csv").write_text("".join(line for line in table if line.partition(",")[0] not in lost))
        assert run(tmp_path, *options) == 0
        assert contents(out) == contents(tmp_path / "whole")


def test_locks_of_other_processes_keep_a_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dig2dig.atomic.PATIENCE", 0.1)
    (tmp_path / f"{LOCK}7").write_text("")  # of a process that is gone
    with lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("LOCAL_RANK", "1")
    with lock(tmp_path):
        assert os.listdir(tmp_path) == [f"{LOCK}1"]  # noqa: PTH208
        monkeypatch.setenv("LOCAL_RANK", "0")
        with pytest.raises(RunError, match="another run is at work"), lock(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_read_only_file_system_is_told_with_the_name_of_the_result(tmp_path: Path) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match=r"x\.png"):
        patch.setattr(Path, "write_bytes", refuse)
        patch.setattr(Path, "unlink", refuse)  # so does Linux, even where nothing is
        write_atomically(tmp_path / "x.png", b"")
