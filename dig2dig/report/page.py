"""Pages as one HTML file each, that needs nothing from anywhere."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dig2dig.metrics import ALL, METRICS
from dig2dig.report.views import PairView, ranks
from dig2dig.tracking.panels import COLOURS

LISTED = 300  # most pairs without pictures that are listed, and most that failed
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Row:
    """A pair in one line."""

    name: str
    text: str = ""  # why it failed, or what else there is to say
    file: str = ""  # its picture, relative to the page's folder; empty where there is none


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    lead: str  # one sentence beneath
    facts: Sequence[tuple[str, str]] = ()  # what was run, (term, value)
    command: str = ""
    record: str = ""  # every option, as YAML
    table: Sequence[Sequence[str]] = ()  # rows of a table of runs or options, the first one its head
    scores: Sequence[Sequence[str]] = ()  # rows of a table of metrics over all pairs, the first one its head
    failed: Sequence[Row] = ()
    cards: Sequence[PairView] = ()  # pairs with pictures
    others: Sequence[Row] = ()  # pairs without


def shown(text: object) -> str:
    """Text as a page can show it: bytes that are not UTF-8 and control characters are replaced by visible signs."""
    whole = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])) if match[0] < " " else "\ufffd", whole)


def link(path: str) -> str:
    """A relative or absolute path as a URL."""
    url = quote(os.fsencode(path.replace(os.sep, "/")))
    return f"file://{'' if url.startswith('/') else '/'}{url}" if Path(path).is_absolute() else url


def scores_table(card: PairView) -> dict[str, Any]:
    """Metrics of the panels that have any, with ranks where there is more than one."""
    panels = [panel for panel in card.panels if panel.scores]
    names = [name for name in ALL if any(name in panel.scores for panel in panels)]
    rows: list[dict[str, Any]] = []
    for panel, own in zip(panels, ranks(panels), strict=True):
        cells = [(f"{panel.scores[n]:.4g}", own[n]) if n in panel.scores else ("", 0) for n in names]
        mean = sum(own.values()) / len(own)
        rows.append({"label": panel.label, "role": panel.role, "cells": cells, "mean": f"{mean:.2f}"})
    if len(rows) > 4:  # a league; fewer are found by their place
        rows.sort(key=lambda row: float(row["mean"]))
    return {"metrics": [METRICS[name] for name in names], "rows": rows, "ranked": len(rows) > 1}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else shown(value),
    )
    environment.filters |= {"link": link, "shown": shown, "asdict": asdict}
    environment.globals |= {"scores_table": scores_table, "listed": LISTED}
    return environment


def render(page: Page) -> bytes:
    """The HTML file."""
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)
    viridis = ramp[:, 0, ::-1].flatten().tolist()  # 256 RGB triples in a row
    template = _environment().get_template("page.html.j2")
    return template.render(page=page, viridis=viridis, colours=COLOURS).encode("utf-8", "replace")
