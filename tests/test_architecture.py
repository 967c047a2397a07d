"""The shape of the project: which way imports point, and how long a file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"shapes", "config", "config_train", "atomic", "allocator", "filters"},
    {"cli", "encode", "interrupts"},
    {"schedule", "color", "tiling", "adm", "weights", "metrics"},
    {"denoiser", "guidance"},
    {"dig"},
    {"backbone", "information", "losses", "noise"},
    {"sampler", "adapters", "card", "baselines"},
    {"statistics"},
    {"panels", "checkpoints", "logs"},
    {"modules"},
    {"callbacks", "monitor", "report", "videos"},
    {"run"},
    {"forecast"},
    {"training", "benchmark", "app"},
]
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("dig2dig/**/*.py"), *ROOT.glob("datamodules/*.py")])


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def module(path: Path) -> str:
    """The module of dig2dig that a file belongs to, itself or its package; nothing for any other file."""
    inside = path.relative_to(ROOT).parts[1:] if path.is_relative_to(ROOT / "dig2dig") else ("__init__.py",)
    return inside[0].removesuffix(".py").replace("__init__", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_import_downwards(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    used = imports(path)
    if name := module(path):
        level = next(i for i, layer in enumerate(LAYERS) if name in layer)
        above = {f"dig2dig.{other}" for layer in LAYERS[level + 1 :] for other in layer}
        assert not {".".join(other.split(".")[:2]) for other in used} & above
        if name not in (
            "modules", "callbacks", "run", "training", "logs", "monitor", "checkpoints", "report", "benchmark",
            "forecast", "videos", "app",
        ):  # fmt: skip
            assert not any(other.startswith(("lightning", "wandb", "datamodules")) for other in used)
    if path.stem != "cli":
        assert not any(name.startswith("omegaconf") for name in used)
    if path.stem != "backbone":
        assert not any(name.startswith("diffusers") for name in used)
    if path.stem != "adapters":
        assert not any(name.startswith("peft") for name in used)


def test_heavy_imports_wait_for_the_config() -> None:
    heavy = ("torch", "lightning", "diffusers", "dig2dig.priors.load", "dig2dig.modules", "datamodules")
    for path in (ROOT / "infer.py", ROOT / "train.py", ROOT / "dig2dig" / "cli.py"):
        assert not any(name.startswith(heavy) for name in imports(path, top_level_only=True))
    top = imports(ROOT / "dig2dig" / "backbone.py", top_level_only=True)
    assert not any(name.startswith(("diffusers", "peft", "huggingface_hub")) for name in top)


def test_public_names_are_there() -> None:
    import dig2dig

    assert len(dig2dig.__all__) <= 15
    assert all(getattr(dig2dig, name) for name in dig2dig.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = dig2dig.nothing
