"""From the command line to files on disk, through ``Trainer.predict``."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import infer
from datamodules.pair_data import ReadAhead
from datamodules.pairing import Pair, find_pairs, part_of
from datamodules.pairs import Reading, Sample, read_pair
from datamodules.readers.pixels import image_size, read_image
from dig2dig.atomic import write_atomically
from dig2dig.cli import from_yaml, read_record
from dig2dig.config import InferConfig
from dig2dig.inference.writer import FusionWriter
from dig2dig.modules.fuser import pair_seed
from dig2dig.modules.fusion import FusionModule
from dig2dig.priors.files import BUNDLED, prior_sha256, weights_files
from dig2dig.priors.load import load_prior
from tests.conftest import EXAMPLES, ROOT, SHARED

FAST = ["sampler.weights=gain", "sampler.steps=3", "trainer.accelerator=cpu"]


@pytest.fixture
def pairs(tmp_path: Path) -> list[str]:
    """Crops of the examples: two pairs of one size, one of another."""
    for name, side, source in (("a", 40, "00036N"), ("b", 40, "00537D"), ("c", 33, "00537D")):
        for modality in ("visible", "infrared"):
            pixels = read_image(EXAMPLES / "infrared_visible" / modality / f"{source}.png")[200 : 200 + side, 250:290]
            (tmp_path / modality).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / modality / f"{name}.png")
    return [f"sources.{modality}={tmp_path / modality}" for modality in ("visible", "infrared")]


def run(*arguments: str) -> int:
    return infer.main([str(ROOT / "configs" / "ivf.yaml"), *FAST, *arguments])


def summary(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_pairs_become_pictures_a_summary_and_a_record(pairs: list[str], tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "out"
    assert run(*pairs, f"out={out}", f"prior.path={tiny}", "seed=4") == 0
    rows = summary(out)
    assert [(row["name"], row["status"], row["size"]) for row in rows.values()] == [
        ("a", "done", "40x40"), ("b", "done", "40x40"), ("c", "done", "40x33"),
    ]  # fmt: skip
    assert rows["a"]["seed"] == str(pair_seed(4, "a")) and float(rows["a"]["seconds"]) > 0
    assert read_image(out / "c.png").shape == (33, 40, 3)  # the visible image's colour is kept
    record = from_yaml(InferConfig, out / "run.yaml")
    facts = read_record(out / "run.yaml")
    assert record is not None and facts["prior_sha256"] == prior_sha256(tiny)
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] and record.sampler.steps == 3
    assert {path.name for path in out.iterdir()} == {
        "a.png", "b.png", "c.png", "dig2dig.json", "report", "report.html", "run.yaml", "summary.csv",
    }  # fmt: skip


def test_files_hold_what_the_python_api_gives(pairs: list[str], tmp_path: Path) -> None:
    """The bundled prior, one pair, batches of two against one alone: the same picture to one grey level."""
    out = tmp_path / "out"
    assert run(*pairs, f"out={out}", "batch_size=2", "prior.precision=fp32") == 0
    record = from_yaml(InferConfig, out / "run.yaml")
    assert record is not None
    sample = read_pair(find_pairs(record.sources)[1], Reading())
    assert isinstance(sample, Sample)
    module = FusionModule(record, load_prior(precision="fp32"))
    (result,) = module.predict_step([sample])
    assert result.image is not None
    expected = (result.image * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(read_image(out / "b.png") - expected).max() <= 1


def test_one_bad_pair_stops_nothing(
    pairs: list[str], tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "infrared" / "b.png").write_bytes(b"not a picture")
    out = tmp_path / "out"
    assert run(*pairs, f"out={out}", f"prior.path={tiny}") == 1
    rows = summary(out)
    assert [row["status"] for row in rows.values()] == ["done", "failed", "done"]
    assert "b.png: not an image file" in rows["b"]["reason"]
    assert f"failed: {tmp_path / 'infrared' / 'b.png'}: not an image file" in capsys.readouterr().err
    assert not (out / "b.png").exists()


def test_an_interrupted_run_goes_on(pairs: list[str], tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "out"
    arguments = [*pairs, f"out={out}", f"prior.path={tiny}"]
    run(*arguments)
    (out / "b.png").unlink()
    kept = (out / "a.png").stat().st_mtime_ns
    again = (out / "b.png", out / "a.png")
    assert run(*arguments) == 0
    assert again[0].is_file() and again[1].stat().st_mtime_ns == kept
    assert [row["status"] for row in summary(out).values()] == ["done"] * 3
    (tmp_path / "visible" / "b.png").touch()  # newer, but the same bytes
    Image.fromarray(255 - read_image(tmp_path / "visible" / "c.png")).save(tmp_path / "visible" / "c.png")
    again_before = again[0].stat().st_mtime_ns
    old = (out / "c.png").stat().st_mtime_ns
    run(*arguments)
    assert (out / "c.png").stat().st_mtime_ns != old and again[1].stat().st_mtime_ns == kept
    assert again[0].stat().st_mtime_ns == again_before
    run(*arguments, "seed=1")  # another configuration makes all of it new
    assert (out / "a.png").stat().st_mtime_ns != kept


def test_shards_make_every_pair_once_as_one_run_does(pairs: list[str], tmp_path: Path, tiny: Path) -> None:
    outs = [tmp_path / "whole", tmp_path / "one", tmp_path / "two"]
    for out, part in zip(outs, ("1/1", "1/2", "2/2"), strict=True):
        assert run(*pairs, f"out={out}", f"prior.path={tiny}", f"shard={part}") == 0
    whole, one, two = ({file.name: file.read_bytes() for file in out.glob("*.png")} for out in outs)
    assert (set(one), set(two)) == ({"a.png", "c.png"}, {"b.png"}) and one | two == whole


def test_a_shard_holds_a_video_with_all_its_frames() -> None:
    frames = [Pair(f"film_{i}", {}, frame=i, series="film") for i in range(3)]
    pairs = [*frames, *(Pair(name, {}, series="walk") for name in "abc")]  # images of one sequence are scenes
    parts = [[pair.name for pair in part_of(pairs, f"{i}/2")] for i in (1, 2)]
    assert parts == [["film_0", "film_1", "film_2", "b"], ["a", "c"]]


def test_pictures_of_another_configuration_are_never_taken_for_done(
    pairs: list[str], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped before its first picture leaves nothing that the next one could mistake."""
    out = tmp_path / "out"
    arguments = [*pairs, f"out={out}", f"prior.path={tiny}"]
    run(*arguments)
    first = (out / "a.png").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(FusionModule, "predict_step", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
        with pytest.raises(RuntimeError):
            run(*arguments, "seed=1")
    assert run(*arguments, "seed=1") == 0
    assert (out / "a.png").read_bytes() != first


@pytest.mark.parametrize("kind", ["sources", "stacks"])
def test_results_do_not_become_sources_of_the_next_run(kind: str, pairs: list[str], tmp_path: Path, capsys) -> None:
    """In a folder of sources, a repeated command would pair results, or fuse a folder of the report."""
    out = tmp_path / "visible"
    for file in out.glob("*.png"):
        file.rename(file.with_name(f"VIS_{file.name}"))  # no result has the name of a source
    given = pairs if kind == "sources" else [f"stacks={out.parent}"]
    assert run(*given, f"out={out if kind == 'sources' else out.parent}") == 2
    assert "would be replaced, which this run reads" in capsys.readouterr().err
    assert not list(tmp_path.rglob("summary.csv"))


def test_results_never_replace_sources(pairs: list[str], tmp_path: Path, tiny: Path, capsys) -> None:
    kept = (tmp_path / "visible" / "a.png").read_bytes()
    assert run(*pairs, f"out={tmp_path / 'visible'}", f"prior.path={tiny}") == 2
    assert "a.png would be replaced" in capsys.readouterr().err
    assert (tmp_path / "visible" / "a.png").read_bytes() == kept
    (tmp_path / "a.csv").touch()
    for dry in ("true", "false"):
        assert run(*pairs, f"out={tmp_path / 'a.csv'}", f"dry_run={dry}") == 2
        assert "a.csv is a file; give a folder" in capsys.readouterr().err


def test_one_file_after_another_into_one_folder(pairs: list[str], tmp_path: Path, tiny: Path) -> None:
    """Rows of earlier calls stay, names may be anything the file system holds."""
    out, odd = tmp_path / "out", "\udcff ünï ☃"
    for modality in ("visible", "infrared"):
        (tmp_path / modality / "b.png").rename(tmp_path / modality / f"{odd}.png")
    for name in ("a", odd):
        files = [f"sources.{modality}={tmp_path / modality / name}.png" for modality in ("visible", "infrared")]
        assert run(*files, f"out={out}", f"prior.path={tiny}") == 0
    assert (out / f"{odd}.png").is_file()
    assert len((out / "summary.csv").read_bytes().splitlines()) == 3


def test_maps_of_every_step(pairs: list[str], tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "out"
    run(*pairs, f"out={out}", f"prior.path={tiny}", "save.weights=true")
    names = sorted(path.name.rsplit("_t", 1)[0] for path in (out / "c_maps").iterdir())
    expected = [
        f"{kind}_{m}_step{i:03d}" for kind in ("gain", "weight") for m in ("infrared", "visible") for i in range(3)
    ]
    assert names == expected
    maps = [cv2.imread(str(path)).astype(float) for path in sorted((out / "c_maps").glob("weight_*step000*"))]
    assert abs(maps[0] - maps[1]).max() > 0  # two weights that sum to one are not the same picture
    assert all(image_size(path) == (33, 40) for path in (out / "c_maps").iterdir())


def test_gradient_guidance_runs_under_lightning(pairs: list[str], tmp_path: Path, tiny: Path) -> None:
    posterior = "sampler.guidance.kind=posterior"
    assert run(*pairs, f"out={tmp_path / 'out'}", f"prior.path={tiny}", posterior) == 0


def test_options_that_do_not_fit_fail_the_pair(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture) -> None:
    """DDFM's published form is defined for two sources: a stack of three is told so, without a traceback."""
    sources = [f"sources.{e}={EXAMPLES / 'multi_exposure_stack' / e}" for e in ("dark", "middle", "bright")]
    form = ["sampler.guidance.kind=em", "research.em_form=code"]
    assert run(*sources, f"out={tmp_path / 'out'}", f"prior.path={tiny}", *form) == 1
    assert "failed: Tower: em_form=code is defined for two sources, not 3" in capsys.readouterr().err
    assert summary(tmp_path / "out")["Tower"]["status"] == "failed"


def test_a_full_disk_is_one_line_and_what_was_written_is_told(
    pairs: list[str], tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes fails on the second batch: the run says so, and the first stays in the table."""

    def full(path: Path, content: bytes) -> None:
        if path.name == "c.png":
            raise OSError(28, "No space left on device", str(path))
        write_atomically(path, content)

    monkeypatch.setattr("dig2dig.inference.writer.write_atomically", full)
    out = tmp_path / "out"
    assert run(*pairs, f"out={out}", f"prior.path={tiny}", "batch_size=1") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "No space left" in error and "c.png" in error
    assert {row["status"] for row in summary(out).values()} == {"done"} and (out / "a.png").is_file()


@pytest.mark.parametrize("batches", [0, 1, 5])
def test_reading_ahead_gives_every_batch_once_and_raises_what_reading_raises(batches: int) -> None:
    data = [[i] for i in range(batches)]
    assert [batch for (batch,) in ReadAhead(data, batch_size=1, collate_fn=list)] == data  # pyright: ignore
    broken = ReadAhead(["a", None], batch_size=1, collate_fn=lambda items: [item.upper() for item in items])
    read = iter(broken)
    assert next(read) == ["A"]
    with pytest.raises(AttributeError):
        next(read)


def test_threads_beside_the_fusion_take_one_core(tmp_path: Path) -> None:
    """Threads of torch in them would wait for those of the fusion, and the fusion for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        reads = ReadAhead([0, 1], batch_size=1, collate_fn=lambda _: torch.get_num_threads())  # pyright: ignore
        assert list(reads) == [1, 1]
        assert FusionWriter(tmp_path).thread.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_ways_to_run_a_prior_give_the_same_picture(pairs: list[str], tmp_path: Path) -> None:
    """Weights in bf16, weights in main memory and windows change a picture hardly or not at all."""
    fp32 = "prior.precision=fp32"
    prior = {"plain": [fp32], "half": ["prior.precision=bf16"],
             "away": [fp32, "prior.offload=true"], "windows": [fp32, "prior.window=24"]}  # fmt: skip
    for name, options in prior.items():
        assert run(*pairs, *options, f"out={tmp_path / name}", "sampler.guidance.sigma_n=0.01") == 0
    made = {name: read_image(tmp_path / name / "a.png").astype(float) for name in prior}
    assert (made["away"] == made["plain"]).all()
    assert 0 < abs(made["windows"] - made["plain"]).mean() < 2
    assert 0 < abs(made["half"] - made["plain"]).mean() < 1
    # a picture of other windows is not taken for one of these
    assert run(*pairs, *prior["windows"], f"out={tmp_path / 'plain'}", "sampler.guidance.sigma_n=0.01") == 0
    assert (tmp_path / "plain" / "a.png").read_bytes() == (tmp_path / "windows" / "a.png").read_bytes()


@pytest.mark.huge
def test_a_compiled_prior_gives_the_same_picture(pairs: list[str], tmp_path: Path) -> None:
    for name, option in (("plain", "prior.compile=false"), ("compiled", "prior.compile=true")):
        assert run(*pairs, option, f"out={tmp_path / name}", "prior.precision=fp32") == 0
    plain, compiled = (read_image(tmp_path / name / "a.png").astype(float) for name in ("plain", "compiled"))
    assert abs(plain - compiled).max() <= 1


def test_dry_run_writes_nothing(pairs: list[str], tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(*pairs, f"out={tmp_path / 'out'}", f"prior.path={tiny}", "dry_run=true") == 0
    printed = capsys.readouterr().out
    assert "c 40x33" in printed and "3 to fuse, 0 done before, into" in printed
    file = Path(pairs[1].partition("=")[2]) / "c.png"
    with Image.open(file) as picture:
        picture.resize((20, 16)).save(file)
    assert run(*pairs, f"out={tmp_path / 'out'}", f"prior.path={tiny}", "dry_run=true") == 0
    printed = capsys.readouterr().out
    assert "c cannot be fused: sources differ in size" in printed and "2 to fuse, 0 done before, 1 that" in printed
    assert run(*pairs, f"out={tmp_path / 'out'}", f"prior.path={tiny}", "dry_run=true", "align=resize") == 0
    assert "3 to fuse, 0 done before, into" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_errors_are_one_line(pairs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    broken = tmp_path / "prior"
    shutil.copytree(BUNDLED, broken)
    weights_files(broken)[0].write_bytes(b"short")
    for arguments, line in (
        (
            [pairs[0], "sources.infrared=/no/such/folder"],
            "sources.infrared: no such file or folder: /no/such/folder",
        ),
        ([*pairs, f"prior.path={tmp_path / 'none'}"], "no such file; a prior is a diffusers folder"),
        ([*pairs, f"prior.path={broken}"], "the file was altered or cut"),
    ):
        assert run(*arguments, f"out={tmp_path / 'out'}") == 2
        printed = capsys.readouterr().err.strip()
        assert printed.startswith("error: ") and line in printed and "\n" not in printed


@pytest.mark.parametrize(
    ("task", "folder", "modalities", "channels"),
    [
        ("ivf", "infrared_visible", ("visible", "infrared"), 3),
        ("mef", "multi_exposure_stack", ("dark", "middle", "bright"), 3),
        ("mff", "multi_focus", ("near", "far"), 3),
    ],
)
def test_examples_of_every_kind(task, folder, modalities, channels, tmp_path: Path, tiny: Path) -> None:
    sources = [f"sources.{modality}={EXAMPLES / folder / modality}" for modality in modalities]
    config = str(ROOT / "configs" / f"{task}.yaml")
    assert infer.main([config, *FAST, *sources, f"out={tmp_path}", f"prior.path={tiny}", "sampler.steps=1"]) == 0
    for path in (EXAMPLES / folder / modalities[0]).glob("*.png"):
        assert read_image(tmp_path / f"{path.stem}.png").shape == (*read_image(path).shape[:2], channels)


SETS = {
    "ivf": [("infrared_visible/TNO", "vi", "ir")],
    "mif": [("medical/Harvard_CT-MRI", "CT", "MRI"), ("medical/Harvard_PET-MRI", "PET", "MRI")],
    "mef": [
        ("multi_exposure/MEFB", "under", "over"),
        ("multi_exposure/Waterloo_stacks", *(f"e{i}" for i in range(1, 7))),
    ],
    "mff": [("multi_focus/Lytro_triple", "source_1", "source_2", "source_3")],
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
@pytest.mark.parametrize(("task", "row"), [(task, row) for task, rows in SETS.items() for row in rows])
def test_real_sets_pair_and_read(task: str, row: tuple[str, ...]) -> None:
    found = find_pairs({side: str(SHARED / row[0] / side) for side in row[1:]})
    samples = [read_pair(pair, Reading(task, allow_missing=task == "mef")) for pair in found]
    assert len(found) >= 2
    for sample in samples:
        assert isinstance(sample, Sample), sample
        assert sample.sources.shape[0] == len(sample.modalities) >= 2
        assert sample.sources.shape[1] == (1 if task in ("ivf", "mif", "mef") else 3)
    coloured = [isinstance(sample, Sample) and sample.chroma is not None for sample in samples]
    assert all(coloured) if "PET" in row or task == "mef" else not any(coloured)


@pytest.mark.slow
def test_two_processes_write_every_pair_once(tmp_path: Path) -> None:
    """The same pictures as one process makes, and one row for each."""
    for name, size in (("a", 24), ("b", 24), ("c", 32), ("d", 32), ("e", 40)):
        for side in ("visible", "infrared"):
            pixels = np.random.default_rng(len(name) + size).integers(0, 256, (size, size), dtype=np.uint8)
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(pixels if side == "visible" else 255 - pixels).save(tmp_path / side / f"{name}.png")
    sources = [f"sources.{side}={tmp_path / side}" for side in ("visible", "infrared")]
    options = [*sources, "batch_size=1", "trainer.accelerator=cpu"]
    assert infer.main([str(ROOT / "configs" / "ivf.yaml"), *options, f"out={tmp_path / 'one'}"]) == 0
    two_processes = ["trainer.devices=2", "trainer.strategy=ddp", f"out={tmp_path / 'two'}"]
    command = [sys.executable, "infer.py", "configs/ivf.yaml", *options, *two_processes]
    ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    assert "5 fused, 0 failed" in ran.stdout
    one, two = tmp_path / "one", tmp_path / "two"
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    for name in "abcde":
        assert (two / f"{name}.png").read_bytes() == (one / f"{name}.png").read_bytes()
    rows = (two / "summary.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [[name, "done"] for name in "abcde"]
