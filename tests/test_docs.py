"""The site: formulas from the docstrings of the code to what a browser shows, and the page of the public names."""

import html
import re
import runpy
from pathlib import Path

import pytest

import dig2dig
from dig2dig.fusion.gain import information_gain
from dig2dig.fusion.weight import fusion_weight
from docs.hooks import on_page_content, to_markdown
from tests.conftest import ROOT


@pytest.mark.parametrize("function", [fusion_weight, information_gain])
def test_directives_become_formulas_of_markdown(function) -> None:
    text = to_markdown(function.__doc__)
    assert text.count("$$") == 2 and "math::" not in text
    assert "Args:" in text.partition("$$")[2]  # what follows is left where it was


def test_formulas_become_mathml() -> None:
    page = '<p><span class="arithmatex">\\(x_0\' &lt; \\sigma\\)</span></p><div class="arithmatex">\\[a\\]</div>'
    made = on_page_content(page)
    assert made.count("<math") == 2 and "arithmatex" not in made
    assert made.count('<div class="formula"><math') == 1  # what the style lets scroll
    assert "σ" in made or "&#x003C3;" in made


def test_formulas_of_several_lines_become_tables() -> None:
    text = to_markdown(information_gain.__doc__ or "")
    page = on_page_content(f'<div class="arithmatex">\\[{html.escape(text.split("$$")[1])}\\]</div>')
    assert page.count("<mtr>") == 3 and "<mi>&</mi>" not in page


def test_the_page_of_the_api_lists_every_public_name_at_home() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"^::: ([\w.]+)", text, re.M))
    stub = (ROOT / "dig2dig" / "__init__.pyi").read_text()
    homes = {f"dig2dig.{home}.{name}" for home, name in re.findall(r"^from \.([\w.]+) import (\w+) as", stub, re.M)}
    assert len(homes) == 15 and homes <= listed
    assert len(dig2dig.__all__) == 15 and "The 15 public names" in text


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", ["worst", "denoising", "degraded"])
@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_scripts_of_the_pages_say_how_they_are_called(name: str, arguments: list[str], monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", [name, *arguments])
    with pytest.raises(SystemExit, match=f"python -m docs.{name}"):
        runpy.run_module(f"docs.{name}", run_name="__main__")


@pytest.mark.parametrize("name", ["oracle", "residual"])
def test_scripts_of_the_pages_tell_that_there_is_no_data(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module(f"docs.{name}", run_name="__main__")
    assert "it has no dataset" in capsys.readouterr().err


def test_every_page_is_in_the_site() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert pages and all(f": {page.as_posix()}\n" in menu for page in pages)
