"""From Python and from the command line: files fused in one call are what ``infer.py`` writes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dig2dig
import infer
from datamodules.readers.pixels import read_image
from dig2dig import api
from dig2dig.__main__ import main
from dig2dig.api import named_sources
from dig2dig.errors import UserError
from dig2dig.modules.results import Result
from dig2dig.priors.denoiser import Denoiser, pick_device
from dig2dig.priors.load import load_prior
from tests.conftest import EXAMPLES, ROOT


@pytest.fixture
def exposures(tmp_path: Path) -> list[Path]:
    files = []
    for name, kind in zip("abc", ("dark", "middle", "bright"), strict=True):
        files.append(tmp_path / f"{name}.png")
        with Image.open(EXAMPLES / "multi_exposure_stack" / kind / "Tower.png") as picture:
            picture.crop((100, 200, 164, 248)).save(files[-1])
    return files


def test_files_become_the_picture_that_infer_writes(exposures: list[Path], tmp_path: Path) -> None:
    pixels = dig2dig.fuse_files(exposures, "mef", out=tmp_path / "out.png", overrides=["sampler.steps=3"])
    assert pixels.shape == (48, 64, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(read_image(tmp_path / "out.png"), pixels)
    sources = [f"sources.source_{k}={file}" for k, file in enumerate(exposures, 1)]
    options = ["sampler.steps=3", "trainer.accelerator=cpu", "report.pairs=0", f"out={tmp_path / 'run'}"]
    assert infer.main([str(ROOT / "configs" / "mef.yaml"), *sources, *options]) == 0
    np.testing.assert_array_equal(read_image(tmp_path / "run" / "a.png"), pixels)


def test_a_prior_is_opened_once_for_many_scenes(exposures: list[Path]) -> None:
    prior = load_prior()
    first, second = (dig2dig.fuse_files(exposures[:2], "mff", prior=prior, overrides=["sampler.steps=2"]) for _ in "12")
    np.testing.assert_array_equal(first, second)


def test_grey_sources_give_a_grey_picture_and_keep_sixteen_bits(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        pixels = np.random.default_rng(seed).integers(0, 65536, (24, 20)).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    fused = dig2dig.fuse_files([tmp_path / "a.png", tmp_path / "b.png"], "ivf")
    assert fused.shape == (24, 20) and fused.dtype == np.uint16


def test_a_prior_is_opened_where_networks_run_and_fuses_where_it_is(
    exposures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []
    meta = torch.device("meta")
    monkeypatch.setattr(api, "pick_device", lambda asked: meta if asked == "auto" else torch.device(asked))

    class Fuser:
        def __init__(self, denoiser: Denoiser, _: object) -> None:
            self.denoiser = denoiser

        def fuse(self, _: list[object], device: torch.device) -> list[Result]:
            assert {weight.device for weight in self.denoiser.parameters()} == {device}
            seen.append(device)
            return [Result("a", reason="seen")]

    monkeypatch.setattr(api, "Fuser", Fuser)
    for options, prior in (([], None), (["trainer.accelerator=cpu"], None), ([], load_prior(device="meta"))):
        with pytest.raises(UserError, match="seen"):
            dig2dig.fuse_files(exposures[:2], "mff", prior=prior, overrides=options)
    assert seen == [meta, torch.device("cpu"), meta]


def test_presets_are_the_shipped_ones() -> None:
    assert dig2dig.preset("mff").guidance.scale == 64.0 and dig2dig.preset("ivf").dig.normalise == "mean"
    assert dig2dig.preset("ivf", "research.eta=0.5").research.eta == 0.5
    fused = dig2dig.fuse(torch.rand(1, 2, 1, 16, 16), load_prior(), dig2dig.preset("ivf"))
    assert fused.shape == (1, 1, 16, 16)
    with pytest.raises(UserError, match="no preset 'video'"):
        dig2dig.preset("video")
    with pytest.raises(ValueError, match=r"did you mean 'sampler\.steps'"):
        dig2dig.preset("ivf", "sampler.step=3")
    with pytest.raises(UserError, match="align=auto: a preset's options are those of sampler"):
        dig2dig.preset("ivf", "align=auto")


def test_mistakes_say_which_file(exposures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no picture")
    for files, line in (
        ([exposures[0], tmp_path / "no.png"], "no.png: not an image file"),
        ([exposures[0]], "at least two files"),
        ([exposures[0], tmp_path / "gone.png"], "gone.png"),
    ):
        with pytest.raises(UserError, match=line):
            dig2dig.fuse_files(files, "mef")
    before = exposures[0].read_bytes()
    with pytest.raises(UserError, match="would be replaced"):
        dig2dig.fuse_files(exposures, "mef", out=exposures[0])
    assert exposures[0].read_bytes() == before
    if not torch.cuda.is_available():
        for wanted in ("cuda", "gpu")[: 1 + (pick_device().type == "cpu")]:
            with pytest.raises(UserError, match=f"accelerator={wanted}: there is none here"):
                dig2dig.fuse_files(exposures, "mef", overrides=[f"trainer.accelerator={wanted}"])
    with pytest.raises(UserError, match="give a picture file"):
        dig2dig.fuse_files(exposures, "mef", out=tmp_path / "fused.txt", overrides=["sampler.steps=1"])
    with pytest.raises(UserError, match="dig2dig infer writes volumes"):
        dig2dig.fuse_files(exposures, "mef", out=tmp_path / "fused.nii.gz")
    with pytest.raises(UserError, match="report is a group of options: --help report"):
        dig2dig.fuse_files(exposures, "mef", overrides="report=0")


def test_a_name_in_the_place_of_what_it_stands_for_is_told() -> None:
    """In a process of its own: the types of this one are checked before the function is."""
    code = (
        "import torch; from dig2dig import fuse, load_prior\nprior, s = load_prior(), torch.rand(1, 2, 1, 24, 24)\n"
        "for given in ((prior, 'ivf'), ('bundled',), (None,), (prior, {'steps': 3})):\n"
        "    try: fuse(s, *given)\n    except TypeError as error: print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.splitlines() == [
        "'ivf': give what preset('ivf') returns, not str",
        "'bundled': give what load_prior(NAME) returns, not str",
        "None: give what load_prior(NAME) returns, not NoneType",
        "{'steps': 3}: give what preset('ivf') returns, not dict",
    ]


def test_tensors_that_go_with_the_sources_are_checked(tmp_path: Path) -> None:
    prior, sources = load_prior(precision="fp32"), torch.rand(1, 2, 1, 24, 24)
    config = dig2dig.preset("ivf", "sampler.weights=gain", "sampler.steps=1")
    for noise in (torch.tensor([[25.0, 0.0]]), torch.tensor([[float("nan"), 0.0]])):
        with pytest.raises(ValueError, match="noise must be a tensor of shape"):
            dig2dig.fuse(sources, prior, config, noise=noise)
    with pytest.raises(ValueError, match="valid must be bool"):
        dig2dig.fuse(sources, prior, config, valid=torch.full_like(sources, 255).byte())
    dig2dig.save_prior(prior, str(tmp_path / "prior"))
    assert (tmp_path / "prior" / "model_index.json").is_file()
    assert named_sources("ivf", ["v", "i"]) == {"visible": "v", "infrared": "i"}
    assert named_sources("ivf", ["v", "i", "x"]) == {"source_1": "v", "source_2": "i", "source_3": "x"}


def test_the_command_fuses_files_and_replaces_nothing(
    exposures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    fuse = ["fuse", "mef", "a.png", "b.png", "c.png", "sampler.steps=2"]
    assert main([*fuse, "out=fused.jpg"]) == 0 and "fused.jpg: 64x48" in capsys.readouterr().out
    with Image.open("fused.jpg") as picture:
        assert picture.size == (64, 48) and picture.format == "JPEG"
    assert main(fuse) == 0 and Path("fused.png").is_file()  # the suffix of the first file
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments, line in (
        (fuse, "fused.png exists"),
        ([*fuse, "out=a.png"], "a.png exists"),
        (["fuse", "a.png", "b.png"], "no task 'a.png'"),
        (["fuse", "smoke", "a.png", "b.png"], "no task 'smoke'"),
        ([*fuse, "trainer.devices=2", "out=x.png"], "dig2dig infer takes it"),
        (["fuse", "mef", "a.png"], "at least two files"),
        (["fuse", "mef", "a.png", "z.png"], "z.png: no such file"),
        ([*fuse, "sampler.stepz=2", "out=x.png"], "did you mean 'sampler.steps'"),
        ([*fuse, "dry_run=true", "out=x.png"], "dry_run=true: means nothing for the files of one scene"),
        ([*fuse, "save.format=tif", "out=x.png"], "dig2dig infer takes it"),
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and line in printed and printed.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_form_of_the_paper_is_a_task(exposures: list[Path], tmp_path: Path) -> None:
    files = list(map(str, exposures[:2]))
    assert main(["fuse", "paper", *files, "sampler.steps=2", f"out={tmp_path / 'paper.png'}"]) == 0


def test_what_a_format_loses_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[:, :8, :8, 3] = 0
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, one in zip(files, pixels, strict=True):
        Image.fromarray(one).save(file)
    assert main(["fuse", "ivf", *map(str, files), f"out={tmp_path / 'out.jpg'}"]) == 0
    assert "a .jpg holds no alpha" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=r"a \.jpg holds no alpha"):
        dig2dig.fuse_files(files, out=tmp_path / "again.jpg")


def test_options_that_one_scene_has_no_use_for_are_refused(exposures: list[Path]) -> None:
    with pytest.raises(UserError, match="validate=true: means nothing for the files of one scene"):
        dig2dig.fuse_files(exposures, "mef", overrides=["validate=true"])
    with pytest.raises(UserError, match=r"prior\.window=64: means nothing for a prior that is given"):
        dig2dig.fuse_files(exposures, "mef", prior=load_prior(), overrides=["prior.window=64"])


def test_a_prior_never_replaces_another(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["prior", "convert", "bundled", str(tmp_path / "new")]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder, line in ((str(tmp_path / "new"), "is not empty: give a new folder"), ("", "folder's name is empty")):
        assert main(["prior", "convert", "bundled", folder]) == 2 and line in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_command_fuses_folders_into_a_folder(exposures: list[Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in exposures[:2]:
        (tmp_path / file.stem).mkdir()
        file.rename(tmp_path / file.stem / "scene.png")
    options = ["sampler.steps=2", "trainer.accelerator=cpu", "report.pairs=0"]
    assert main(["fuse", "mef", "a", "b", "out=results", *options]) == 0
    assert Path("results/scene.png").is_file()


def test_the_front_door_knows_its_rooms(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"dig2dig {dig2dig.__version__}\n"
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    for command in ("fuse", "infer", "train", "report", "benchmark", "metrics", "prior", "app"):
        assert f"\n  {command} " in usage
    assert main([]) == 2 and main(["fusee"]) == 2
    assert "no command 'fusee'" in capsys.readouterr().err
    for command in ("fuse", "report", "benchmark", "prior"):
        assert main([command, "--help"]) == 0 and len(capsys.readouterr().out) > 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", [[], ["prior.offload=true"], ["sampler.guidance.sigma_n=0.05"]])
def test_files_fused_on_cuda_are_those_fused_on_the_cpu(exposures: list[Path], options: list[str]) -> None:
    fp32 = ["prior.precision=fp32", "sampler.steps=3", *options]
    there, here = (dig2dig.fuse_files(exposures, "mef", overrides=[*fp32, f"trainer.accelerator={name}"])
                   for name in ("gpu", "cpu"))  # fmt: skip
    assert np.abs(there.astype(int) - here).max() <= 1
