"""The wheel alone is the whole product: installed into an environment of its own, it fuses outside of the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import EXAMPLES, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that ``make dist`` built, or one built now."""
    built = sorted((ROOT / "dist").glob("*.whl"))
    if built:
        return built[-1]
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--quiet", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dig2dig`` of an environment that has the wheel, and the libraries of this one; the checkout is out of reach."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    libraries = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # appended after the wheel's own files; the editable install of the checkout is no .pth of this environment
    (site / "libraries.pth").write_text(f"import sys; sys.path.append({str(libraries)!r})\n")
    script = folder / "dig2dig"
    script.write_text(f"#!{folder}/bin/python\nfrom dig2dig.__main__ import main\nraise SystemExit(main())\n")
    script.chmod(0o755)
    return script


def run(command: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([command, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_presets_prior_and_pages(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"dig2dig/configs/{task}.yaml" for task in ("ivf", "mif", "mef", "mff", "universal")} <= names
    assert "dig2dig/priors/bundled/unet/diffusion_pytorch_model.safetensors" in names
    assert {"dig2dig/report/page/page.html.j2", "datamodules/pairs.py"} <= names
    assert {f"dig2dig/examples/infrared_visible/{side}/00036N.png" for side in ("visible", "infrared")} <= names
    assert not any(name.startswith(("tests/", "docs/", "examples/")) for name in names)


def test_it_fuses_files_outside_of_the_checkout(command: Path, tmp_path: Path) -> None:
    exposures = [EXAMPLES / "multi_exposure_stack" / kind / "Tower.png" for kind in ("dark", "middle", "bright")]
    for name, file in zip("abc", exposures, strict=True):
        Image.open(file).crop((0, 0, 96, 80)).save(tmp_path / f"{name}.png")
    done = run(command, tmp_path, "fuse", "mef", "a.png", "b.png", "c.png", "out=fused.jpg")
    assert done.returncode == 0 and "fused.jpg: 96x80" in done.stdout, done.stderr
    with Image.open(tmp_path / "fused.jpg") as picture:
        assert picture.size == (96, 80) and picture.mode == "RGB"
    where = "import dig2dig; print(dig2dig.__file__)"
    python = command.parent / "bin" / "python"
    found = subprocess.run([python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert str(ROOT) not in found


def test_it_infers_with_a_preset_by_name(command: Path, tmp_path: Path) -> None:
    for side in ("visible", "infrared"):
        (tmp_path / side).mkdir()
        with Image.open(EXAMPLES / "infrared_visible" / side / "00537D.png") as picture:
            picture.crop((200, 180, 264, 228)).save(tmp_path / side / "x.png")
    options = ["sources.visible=visible", "sources.infrared=infrared", "out=out"]
    done = run(command, tmp_path, "infer", "ivf", *options, "trainer.accelerator=cpu")
    assert done.returncode == 0 and "1 fused, 0 failed" in done.stdout, done.stderr
    assert (tmp_path / "out" / "report.html").is_file()
    assert run(command, tmp_path, "--version").stdout.startswith("dig2dig ")


def test_a_benchmark_has_its_pair_outside_of_the_checkout(command: Path, tmp_path: Path) -> None:
    done = run(command, tmp_path, "benchmark", "flicker", "frames=2", "crop=96", "sensor=0", "pulls=0.02", "out=out")
    assert done.returncode == 0 and (tmp_path / "out" / "table.md").is_file(), done.stderr
