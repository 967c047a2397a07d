"""What a page shows of one pair, as plain values, and the file that keeps them until the page is made."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from dig2dig.metrics import METRICS

Role = Literal["source", "result", "baseline"]

FOLDER = "report"  # of fragments, inside the run's


@dataclass(frozen=True)
class Panel:
    """One picture of a pair."""

    label: str  # modality, method or run
    role: Role
    image: str = ""  # thumbnail as a data URI; empty where there is none
    file: str = ""  # the whole picture, relative to the page's folder; empty where there is no file
    scores: dict[str, float] = field(default_factory=dict)  # metrics by name
    note: str = ""  # why there is no picture, or why it has no metrics


@dataclass(frozen=True)
class StepView:
    """One sampling step: grey maps and pictures as data URIs."""

    index: int  # number of the step, from 0
    t: int  # time index
    sigma: float  # noise level, for images in [-1, 1]
    weight: list[str]  # map of each source: black = 0, white = 1
    gain: list[str]  # map of each source: the square root of the way from low to high, as gains have long tails
    low: float  # smallest gain of all sources in this step
    high: float  # largest gain
    guided: str  # the guided estimate
    estimate: str = ""  # the prior's estimate; empty where the loop ran without the prior


@dataclass(frozen=True)
class PairView:
    """One pair."""

    name: str
    facts: list[str]  # size, time and seed, in words
    width: int  # of the fused picture, pixels
    height: int
    panels: list[Panel]  # sources, results, baselines
    modalities: list[str] = field(default_factory=list)  # sources of the maps
    times: list[int] = field(default_factory=list)  # time index of every step
    weights: list[list[float]] = field(default_factory=list)  # mean weight of each source in every step, (steps, k)
    views: list[StepView] = field(default_factory=list)  # steps that are shown, at most all of them

    @property
    def characters(self) -> int:
        """How long its pictures are in a page."""
        steps = (len(uri) for m in self.views for uri in (*m.weight, *m.gain, m.guided, m.estimate))
        return sum(len(panel.image) for panel in self.panels) + sum(steps)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "PairView":
        """The pair whose ``asdict`` passed through JSON; TypeError where the values are another version's."""
        panels = [Panel(**panel) for panel in values["panels"]]
        return PairView(**{**values, "panels": panels, "views": [StepView(**step) for step in values["views"]]})


def finite(scores: Mapping[str, Any]) -> dict[str, float]:
    """Scores that are numbers: a constant picture has no correlation."""
    return {name: float(value) for name, value in scores.items() if math.isfinite(float(value))}


def ranks(panels: Sequence[Panel]) -> list[dict[str, int]]:
    """The rank of each panel among those that have the metric, 1 is best; scores shown equal share the better one."""

    def rank(value: float, name: str) -> int:
        sign = 1 if METRICS[name].higher_is_better else -1
        others = (sign * float(f"{other.scores[name]:.4g}") for other in panels if name in other.scores)
        return 1 + sum(other > sign * float(f"{value:.4g}") for other in others)

    return [{name: rank(value, name) for name, value in panel.scores.items()} for panel in panels]


def fragment_file(folder: Path, name: str) -> Path:
    """Where the fragment of a pair lies, short whatever its name."""
    return folder / FOLDER / f"{sha256(name.encode(errors='surrogateescape')).hexdigest()[:20]}.json"


def read_fragment(folder: Path, name: str, key: str, inputs: str) -> PairView | None:
    """The kept card of a pair; None where there is none of this configuration and these files."""
    try:
        content = json.loads(fragment_file(folder, name).read_bytes())
        card = PairView.from_json(content["card"])
        return card if (content["key"], content["inputs"], card.name) == (key, inputs, name) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
