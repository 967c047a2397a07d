"""The shape of the project: which way imports point, how long a file may be, and what each package may use."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"shapes", "errors", "options", "config", "config_train", "cli", "atomic", "color"},
    {"priors", "metrics", "datamodules"},
    {"fusion"},
    {"modules"},
    {"training", "inference", "tracking"},
    {"report", "benchmark", "app", "api", "scripts"},
]
"""Packages and files, each of which imports from its own layer and those above in this list."""

PACKAGES = [*sorted((ROOT / "dig2dig").rglob("*.py")), *sorted((ROOT / "datamodules").rglob("*.py"))]
FILES = [*sorted(ROOT.glob("*.py")), *PACKAGES]


def name_of(path: Path) -> str:
    """The module of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path) for path in PACKAGES}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """The modules that a file imports; of ``from package import module`` the module alone."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            inner = f"{node.module}.{alias.name}"
            names.add(inner if inner in MODULES else node.module or "")
    return names


def layer_of(module: str) -> int | None:
    """The layer of a module of ours; None for any other."""
    parts = module.split(".")
    if parts[-1] == "__main__" or module in ("infer", "train", "dig2dig"):
        return len(LAYERS) - 1
    room = parts[0] if parts[0] == "datamodules" else parts[1] if parts[0] == "dig2dig" and len(parts) > 1 else ""
    return next((i for i, layer in enumerate(LAYERS) if room in layer), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_import_downwards(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    module, used = name_of(path), imports(path)
    level = layer_of(module)
    assert level is not None, f"{module} belongs to no layer"
    if module != "dig2dig":  # its names are imported when they are first used
        assert not {other for other in used if (layer_of(other) or 0) > level}
    room = module.split(".")[1] if module.startswith("dig2dig.") else module
    if (room in ("priors", "fusion", "metrics") and not module.endswith("__main__")) or level == 0:
        assert not any(other.startswith(("lightning", "wandb", "datamodules")) for other in used)
    if level == 0 and room not in ("shapes", "color"):
        assert not any(other.split(".")[0] in ("torch", "numpy") for other in used)
    owners = {"omegaconf": "cli", "diffusers": "priors.build", "peft": "priors.lora", "pandas": "benchmark"}
    for package, owner in owners.items():
        if any(other.split(".")[0] == package for other in used):
            assert module.startswith(f"dig2dig.{owner}") or (package, module) == ("diffusers", "dig2dig.priors.load")


def room_of(module: str) -> str:
    """The package or file, directly in the project or in ``dig2dig``, that a module belongs to."""
    return ".".join(module.split(".")[: 2 if module.startswith("dig2dig.") else 1])


@pytest.mark.parametrize("place", [lambda module: module, room_of], ids=["files", "packages"])
def test_no_two_import_each_other(place: Callable[[str], str]) -> None:
    arrows: dict[str, set[str]] = {}
    for path in PACKAGES:
        here = place(name_of(path))
        arrows.setdefault(here, set()).update({place(other) for other in imports(path) & MODULES} - {here, "dig2dig"})
    seen: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a cycle: {' -> '.join((*way, name))}"
        if name not in seen:
            for other in arrows.get(name, set()):
                visit(other, (*way, name))
            seen.add(name)

    for name in arrows:
        visit(name, ())


def test_the_house_is_seen_in_one_look() -> None:
    assert len(list((ROOT / "dig2dig").glob("*.py"))) <= 12
    for folder in {path.parent for path in PACKAGES}:
        said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert said, f"{folder}: its __init__ says in a sentence what lives there"
    lines = sum(len(path.read_text().splitlines()) for path in PACKAGES)
    assert lines < 17_650  # 11,600 before files were read as people have them, runs guarded, tall stacks streamed


def test_heavy_imports_wait_for_the_config() -> None:
    heavy = ("torch", "lightning", "diffusers", "dig2dig.priors", "dig2dig.modules", "datamodules")
    light = [
        ROOT / "infer.py",
        ROOT / "train.py",
        *(ROOT / "dig2dig").rglob("__main__.py"),
        ROOT / "dig2dig" / "cli.py",
    ]
    for path in light:
        if path.parent.name != "metrics":
            assert not any(name.startswith(heavy) for name in imports(path, top_level_only=True)), path
    for path in (ROOT / "dig2dig" / "priors").glob("*.py"):
        top = imports(path, top_level_only=True)
        assert not any(name.startswith(("diffusers", "peft", "huggingface_hub")) for name in top)


def test_public_names_are_there() -> None:
    import dig2dig

    assert len(dig2dig.__all__) <= 15
    assert all(getattr(dig2dig, name) for name in dig2dig.__all__)
    assert set(dir(dig2dig)) == set(dig2dig.__all__) and dig2dig.__version__
    with pytest.raises(AttributeError, match="nothing"):
        _ = dig2dig.nothing
