"""What README.md and the other pages tell people to type works."""

import re
import shlex
from pathlib import Path

import pytest

from dig2dig.benchmark.config import DegradedConfig, QualityConfig, SpeedConfig, TheoryConfig
from dig2dig.cli import load
from dig2dig.config import InferConfig
from dig2dig.config_train import TrainConfig

from .conftest import EXAMPLES, ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "dig2dig" / "prior" / "README.md"]
SHELL = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)]
LINES = [line.split("  #")[0].strip() for block in SHELL for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [line[line.index("python ") :] for line in LINES if line.startswith(("python ", "srun python "))]


BENCHMARKS = {"quality": QualityConfig, "theory": TheoryConfig, "degraded": DegradedConfig, "speed": SpeedConfig}


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


def test_python_example_runs() -> None:
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    scope: dict = {}
    exec(code, scope)
    assert scope["fused"].shape == (1, 1, 64, 64)


def test_make_targets_and_linked_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in LINES:
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, re.M)
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
