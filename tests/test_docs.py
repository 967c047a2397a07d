"""Formulas on the site: from the docstrings of the code to what a browser shows."""

import pytest

from dig2dig.fusion.gain import information_gain
from dig2dig.fusion.weight import fusion_weight
from docs.hooks import on_page_content, to_markdown


@pytest.mark.parametrize("function", [fusion_weight, information_gain])
def test_directives_become_formulas_of_markdown(function) -> None:
    text = to_markdown(function.__doc__)
    assert text.count("$$") == 2 and "math::" not in text
    assert "Args:" in text.partition("$$")[2]  # what follows is left where it was


def test_formulas_become_mathml() -> None:
    page = '<p><span class="arithmatex">\\(x_0\' &lt; \\sigma\\)</span></p><div class="arithmatex">\\[a\\]</div>'
    made = on_page_content(page)
    assert made.count("<math") == 2 and "arithmatex" not in made
    assert "σ" in made or "&#x003C3;" in made
