"""What README.md and the other pages say that people can type or import works."""

import importlib
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import cv2
import pytest

from datamodules.readers.pixels import read_image
from dig2dig.__main__ import main
from dig2dig.app.config import AppConfig
from dig2dig.benchmark.config import (
    AlignConfig,
    DegradedConfig,
    FlickerConfig,
    GhostsConfig,
    QualityConfig,
    SpeedConfig,
    StackConfig,
    TheoryConfig,
)
from dig2dig.cli import help_text, load, to_yaml
from dig2dig.config import InferConfig
from dig2dig.config_train import TrainConfig
from tests.conftest import EXAMPLES, ROOT

README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "dig2dig/priors/bundled/README.md")
}
"""What people read, by its path."""


def blocks(page: str, kind: str) -> list[str]:
    """Fenced blocks of a page."""
    return re.findall(rf"```{kind}\n(.*?)```", page, re.S)


def commands(page: str) -> list[str]:
    """What a page has people type: lines of its shell blocks, and commands within its text."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    within = re.findall(r"`((?:dig2dig \w+|make) [^`…|]+)`", re.sub(r"```.*?```", "", page, flags=re.S))
    typed = [re.split(r"\s+# ", line)[0].removeprefix("srun ").removesuffix(" &").strip() for line in [*lines, *within]]
    return [line for line in typed if line.startswith(("python ", "dig2dig ", "make "))]


TYPED = sorted({line for page in PAGES.values() for line in commands(page)})
SCHEMAS = {
    "infer": InferConfig,
    "train": TrainConfig,
    "app": AppConfig,
    "benchmark quality": QualityConfig,
    "benchmark theory": TheoryConfig,
    "benchmark degraded": DegradedConfig,
    "benchmark flicker": FlickerConfig,
    "benchmark ghosts": GhostsConfig,
    "benchmark align": AlignConfig,
    "benchmark speed": SpeedConfig,
    "benchmark stack": StackConfig,
}
REFUSED = {
    "rig ivf sources.visible=DIR sources.infrared=DIR out=rig.yaml": "sources.visible: no such file or folder: DIR",
    "report RUN RUN": "a run stands there twice",
    "prior convert CHECKPOINT.pt FOLDER": "CHECKPOINT.pt: no such checkpoint",
    "prior convert runs/mine/prior FOLDER half": "runs/mine/prior/config.json: no such file",
    "prior convert runs/first/prior runs/first16 half": "runs/first/prior/config.json: no such file",
    "prior convert runs/second/prior dig2dig/priors/bundled half": "runs/second/prior/config.json: no such file",
    "prior merge bundled runs/lora/adapter FOLDER": "adapter_config.json: no such file",
}
"""Commands whose files no test has, and the one thing that is wrong with them."""


def as_dig2dig(command: str) -> str:
    """``python infer.py …`` and ``python -m dig2dig.infer …`` as arguments of the command dig2dig."""
    command = re.sub(r"^python -m docs\.degraded \S+", "benchmark degraded", command)
    return re.sub(r"^(dig2dig |python -m dig2dig\.|python (?=\w+\.py))", "", command).replace(".py ", " ", 1)


@pytest.mark.parametrize("command", [line for line in TYPED if not line.startswith("make ")])
def test_command_is_understood(command: str, capsys: pytest.CaptureFixture, home: Path) -> None:
    """Every option exists and fits its type."""
    if command.startswith("python -m tests."):
        _, _, module, *arguments = command.split()
        assert f"python -m {module} {' '.join(arguments)}" in (importlib.import_module(module).__doc__ or "")
        return
    line = as_dig2dig(command).replace("$SLURM_ARRAY_TASK_ID", "1")
    name = next((name for name in SCHEMAS if f"{line} ".startswith(f"{name} ")), "")
    if line in REFUSED:
        assert main(shlex.split(line)) == 2
        assert REFUSED[line] in capsys.readouterr().err
    elif name:
        arguments = shlex.split(line.removeprefix(name).replace(" ... ", " "))
        if "--help" in arguments:
            with pytest.raises(SystemExit, match="0"):
                load(SCHEMAS[name], arguments)
        elif "..." not in command or name != "infer":  # the sources are left out
            arguments = [argument for argument in arguments if not argument.endswith("...")]
            needed = ["data.root=DIR"] if name == "train" and "..." in command else []
            assert isinstance(load(SCHEMAS[name], [*arguments, *needed]), SCHEMAS[name])
    else:
        assert main(shlex.split(line)) == 0, command


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small pictures under the names that the pages use, as the current one."""
    places = {
        "infrared_visible/visible/00537D.png": "visible.png visible/one.png visible/two.png ct.png near.jpg fused.png",
        "infrared_visible/infrared/00537D.png": "infrared.png infrared/one.png infrared/two.png mri.png far.jpg",
        "multi_exposure_stack/dark/Tower.png": "dark.jpg one.png",
        "multi_exposure_stack/middle/Tower.png": "middle.jpg two.png",
        "multi_exposure_stack/bright/Tower.png": "bright.jpg three.png",
    }
    for source, targets in places.items():
        pixels = read_image(EXAMPLES / source, "RGB")[200:264, 250:314, ::-1]
        for target in targets.split():
            (tmp_path / target).parent.mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / target), pixels)
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / "run.yaml").write_text(to_yaml(InferConfig(sources={"a": "a", "b": "b"}), {"versions": {}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


PLACES = {
    "data.root=DIR": "data.root=visible",
    "out=DIR": "out=out",
    "out=fused.png": "out=result.png",
    "align=auto": "align=resize",
}
PLACES |= {
    f"{place}.{side}=DIR": f"{place}.{side}={side}"
    for side in ("visible", "infrared")
    for place in ("sources", "data.sources")
}
SHORT = {
    "infer": "sampler.weights=gain sampler.steps=2",
    "train": "optim.steps=2 data.crop=64 data.val_crop=32 data.batch_size=2 data.workers=0 logger.wandb.mode=disabled",
}
"""What keeps each command short."""
RUN = [line for line in commands(README) if re.match(r"dig2dig (fuse|infer|train) ", line)]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("command", [line for line in RUN if "--help" not in line])
def test_command_of_the_readme_runs(home: Path, command: str) -> None:
    arguments = [PLACES.get(word, word) for word in shlex.split(command)[1:]]
    assert main([*arguments, *SHORT.get(arguments[0], "").split()]) == 0
    out = next((word.removeprefix("out=") for word in arguments if word.startswith("out=")), "out")
    written = any(path.is_file() for path in (home / out).rglob("*")) or (home / out).is_file()
    assert written != bool({"dry_run=true", "validate=true"} & set(arguments))


EXAMPLES_IN_PYTHON = [
    pytest.param(page, number, id=f"{page}-{number}")
    for page in ("README.md", "docs/python.md")
    for number in range(len(blocks(PAGES[page], "python")))
]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*batch sampler `SizeBatches`")
@pytest.mark.parametrize(("page", "number"), EXAMPLES_IN_PYTHON)
def test_python_example_runs(page: str, number: int, home: Path) -> None:
    """Each is complete, and keeps its promise."""
    scope: dict = {}
    code = blocks(PAGES[page], "python")[number]
    exec(code, scope)
    if "fused" in scope:
        assert scope["fused"].shape[-2:] == scope.get("sources", scope["fused"]).shape[-2:]
        assert 0 <= scope["fused"].min() < scope["fused"].max() <= 1
    if "picture" in scope:
        assert scope["picture"].shape == (64, 64, 3) and (home / "fused.png").is_file()
    if "trace" in scope:
        assert len(scope["trace"]) == 8 and scope["trace"][0].x0_hat is None
    if "trainer" in scope:
        assert {"fusion/VIF", "dig/entropy"} <= set(scope["means"]) and (home / "out" / "one.png").is_file()


def example(word: str) -> dict:
    """What the example that uses a word defines."""
    (code,) = [code for code in blocks(PAGES["docs/python.md"], "python") if word in code]
    scope: dict = {}
    exec(code, scope)
    return scope


def test_guidance_of_ones_own_takes_pixels_from_the_source_of_more_weight() -> None:
    scope = example("def winner")
    fused, sources = scope["fused"], scope["sources"]
    low, high = sources.amin(1), sources.amax(1)
    assert ((fused >= low - 1e-6) & (fused <= high + 1e-6)).all()
    steps = 8  # a pixel is the mean of one source or the other in each step
    share = (fused - sources[:, 0]) / (sources[:, 1] - sources[:, 0])
    clear = (sources[:, 1] - sources[:, 0]).abs() > 0.1
    assert ((share * steps - (share * steps).round()).abs()[clear] < 1e-3).all()


def test_denoiser_of_ones_own_denoises_and_fuses() -> None:
    import torch

    from dig2dig import fuse
    from dig2dig.priors.schedule import add_noise

    denoiser = example("class Wiener")["denoiser"]
    rows = torch.linspace(-0.8, 0.8, 64)
    clean = (rows[:, None] + 0.2 * rows).view(1, 1, 64, 64)
    t = torch.tensor([100])
    noisy = add_noise(clean, torch.randn_like(clean), t, denoiser.alpha_bar)
    estimate = denoiser(noisy, t)
    assert (estimate - clean).square().mean() < 0.1 * (noisy - clean).square().mean()
    sources = torch.rand(1, 1, 1, 64, 64).expand(-1, 2, -1, -1, -1)
    assert torch.allclose(fuse(sources, denoiser), sources[:, 0], atol=1e-5)


@pytest.mark.parametrize("command", sorted({"make test-all", *(line for line in TYPED if line.startswith("make "))}))
def test_make_knows_what_to_do(command: str) -> None:
    """Dry: .ci/run has the targets run, other tests the page."""
    subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


HEADINGS = "sampler|research|prior|report|save|logger|data|optim|adapt|network|fusion"
"""What options in the pages begin with; those by modality, and those of Lightning's trainer, apart."""


@pytest.mark.parametrize("page", PAGES)
def test_options_and_modules_in_the_text_exist(page: str) -> None:
    known = "\n".join(help_text(schema, "all") for schema in (InferConfig, TrainConfig))
    text = re.sub(r"`[\w/.]*\.(md|py|csv|yaml|html|txt|png|jpg|cff|pt)`", "", PAGES[page])
    for option in re.findall(rf"`((?:{HEADINGS})\.[a-z_.]+[a-z])[`=]", text):
        name = option.replace("sampler.research.", "research.").replace("fusion.sampler.", "sampler.")
        assert f"  {name}=" in known or f"  {name}." in known, f"{page}: no option {option}"
    for name in re.findall(r"`((?:dig2dig|datamodules)(?:\.\w+)+)`", text):
        module, _, last = name.rpartition(".")
        assert importlib.util.find_spec(name) or hasattr(importlib.import_module(module), last), f"{page}: no {name}"


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 120
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_examples_are_small_and_their_folders_are_in_the_table() -> None:
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()) < 4e6
    table = (EXAMPLES / "README.md").read_text()
    assert all(f"`{path.name}`" in table for path in EXAMPLES.iterdir() if path.is_dir())


def test_demo_uses_every_example() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for folder in (path for path in EXAMPLES.iterdir() if path.is_dir()):
        assert f"examples/{folder.name}/" in makefile
