"""What README.md and the other pages tell people to type works."""

import re
import shlex
import subprocess
from pathlib import Path

import cv2
import pytest

import infer
import train
from dig2dig.benchmark.__main__ import main as benchmark
from dig2dig.benchmark.config import DegradedConfig, FlickerConfig, QualityConfig, SpeedConfig, TheoryConfig
from dig2dig.cli import load
from dig2dig.config import InferConfig
from dig2dig.config_train import TrainConfig
from tests.conftest import EXAMPLES, ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "dig2dig" / "priors" / "bundled" / "README.md"]
SHELL = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)]
LINES = [line.split("  #")[0].strip() for block in SHELL for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [line[line.index("python ") :] for line in LINES if line.startswith(("python ", "srun python "))]


BENCHMARKS = {
    "quality": QualityConfig,
    "theory": TheoryConfig,
    "degraded": DegradedConfig,
    "flicker": FlickerConfig,
    "speed": SpeedConfig,
}
TYPED = [
    line.split("  #")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line
]
"""What README.md has people type."""

SMALL = {
    "infer.py": "sampler.steps=2",
    "train.py": "optim.steps=2 data.crop=16 data.val_crop=32 data.batch_size=2 data.workers=0 "
    "logger.wandb.mode=disabled",
    "quality": "methods=dig2dig,static,mean,laplacian",
    "speed": "sections=profile repeats=1",
}
"""What keeps each command short."""


@pytest.mark.parametrize("command", [command for command in COMMANDS if " -m dig2dig.benchmark " in command])
def test_benchmark_command_is_understood(command: str) -> None:
    _, _, _, name, *arguments = shlex.split(command)
    assert isinstance(load(BENCHMARKS[name], arguments), BENCHMARKS[name])


@pytest.mark.parametrize("command", [command for command in COMMANDS if "..." not in command and " -m " not in command])
def test_command_is_understood(command: str, capsys: pytest.CaptureFixture) -> None:
    """Every option exists and fits its type; the scripts' own tests run them on images."""
    _, script, *arguments = shlex.split(command.rstrip(" &"))
    schema = {"infer.py": InferConfig, "train.py": TrainConfig}[script]
    if arguments == ["--help"]:
        with pytest.raises(SystemExit) as stop:
            load(schema, arguments)
        assert stop.value.code == 0
    else:
        assert isinstance(load(schema, arguments), schema)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small pictures under the names that README.md uses, as the current one."""
    for side, task in (("visible", "vi"), ("infrared", "ir")):
        pixels = cv2.imread(str(EXAMPLES / "infrared_visible" / side / "00537D.png"))[200:264, 250:314]
        for place in (f"{side}/one.png", f"{side}/two.png", f"tasks/infrared_visible/Tiny/{task}/one.png"):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / place), pixels)
    for name, kind in (("a", "dark"), ("b", "middle"), ("c", "bright")):
        pixels = cv2.imread(str(EXAMPLES / "multi_exposure_stack" / kind / "Tower.png"))[200:264, 100:164]
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), pixels)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("command", [line for line in TYPED if line.startswith("python ")])
def test_command_runs(home: Path, command: str) -> None:
    places = {"data.root=DIR": "data.root=visible", "data=DIR": "data=tasks", "out=DIR": "out=out"}
    places |= {f"sources.{side}=DIR": f"sources.{side}={side}" for side in ("visible", "infrared")}
    _, script, *arguments = [places.get(word, word) for word in shlex.split(command)]
    if arguments == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            infer.main(arguments)
        return
    mains = {"infer.py": infer.main, "train.py": train.main, "-m": benchmark}
    arguments = arguments[1:] if script == "-m" else arguments
    short = SMALL[arguments[0] if script == "-m" else script]
    assert mains[script]([*arguments, *short.split()]) == 0
    out = next(word for word in arguments if word.startswith("out=")).removeprefix("out=")
    assert any(path.is_file() for path in (home / out).rglob("*"))


def test_python_example_runs() -> None:
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    scope: dict = {}
    exec(code, scope)
    assert scope["fused"].shape == (1, 1, 64, 64)


@pytest.mark.parametrize("command", sorted({line for line in LINES if re.fullmatch(r"make \w+", line)}))
def test_make_knows_what_to_do(command: str) -> None:
    """Dry: .ci/run has make demo and make test run, other tests the page."""
    subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 150
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_examples_are_small_and_their_folders_are_in_the_table() -> None:
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()) < 4e6
    table = (EXAMPLES / "README.md").read_text()
    assert all(f"`{path.name}`" in table for path in Path(EXAMPLES).iterdir() if path.is_dir())


def test_demo_uses_every_example() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for folder in (path for path in EXAMPLES.iterdir() if path.is_dir()):
        assert f"examples/{folder.name}/" in makefile
