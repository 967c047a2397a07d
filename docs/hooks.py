"""Mathematics for the site: formulas become MathML while it is built, so that its pages load nothing from anywhere."""

import re
from html import unescape
from textwrap import dedent
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

_DIRECTIVE = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +\S.*|[ ]*))*)", re.M)
_ROLE = re.compile(r":math:`([^`]+)`")
_REFERENCE = re.compile(r":(?:func|class|mod|data):`([^`]+)`")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def to_markdown(text: str) -> str:
    """A docstring's directives and roles as Markdown."""
    text = _DIRECTIVE.sub(lambda m: f"{m[1]}$$\n{m[1]}{_one_line(m[2])}\n{m[1]}$$\n\n", text)
    return _REFERENCE.sub(r"`\1`", _ROLE.sub(r"$\1$", text))


def _one_line(formula: str) -> str:
    joined = " ".join(dedent(formula).split())
    return rf"\begin{{align*}} {joined} \end{{align*}}" if "&" in joined else joined  # aligned is not converted


class Formulas(Extension):
    """Rewrites docstrings before they are rendered."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Each object once it is loaded."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def on_page_content(html: str, **_: Any) -> str:
    """Formulas of a rendered page as MathML."""
    kinds = {"(": "inline", "[": "block"}

    def formula(match: re.Match[str]) -> str:
        written = convert(unescape(match[3]).strip().replace("'", r"^{\prime}"), display=kinds[match[2]])
        return f'<div class="formula">{written}</div>' if match[2] == "[" else written

    return _FORMULA.sub(formula, html)
