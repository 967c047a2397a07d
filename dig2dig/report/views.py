"""What a page shows of one pair, as plain values that pass through JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dig2dig.metrics import METRICS

Role = Literal["source", "result", "baseline"]


@dataclass(frozen=True)
class Panel:
    """One picture of a pair.

    Attributes:
        label: Modality, method or run.
        role: What it is to the comparison.
        image: Thumbnail as a data URI; empty where there is none.
        file: The whole picture, relative to the page's folder; empty where there is no file.
        scores: Metrics by name.
        note: Why there is no picture.
    """

    label: str
    role: Role
    image: str = ""
    file: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class StepView:
    """One sampling step: grey maps and pictures as data URIs.

    Attributes:
        index: Number of the step, from 0.
        t: Time index.
        sigma: Noise level, for images in [-1, 1].
        weight: Weight map of each source, black = 0, white = 1.
        gain: Gain map of each source, the square root of the way from ``low`` to ``high``: gains have long tails.
        low: Smallest gain of all sources in this step.
        high: Largest gain.
        guided: The guided estimate.
        estimate: The prior's estimate; empty where the loop ran without the prior.
    """

    index: int
    t: int
    sigma: float
    weight: list[str]
    gain: list[str]
    low: float
    high: float
    guided: str
    estimate: str = ""


@dataclass(frozen=True)
class PairView:
    """One pair.

    Attributes:
        name: Its name.
        facts: Size, time and seed, in words.
        width: Of the fused picture, pixels.
        height: Of the fused picture.
        panels: Sources, results, baselines.
        modalities: Names of the sources that the maps belong to.
        times: Time index of every step.
        weights: Mean weight of each source in every step, (steps, k).
        views: Steps that are shown, at most all of them.
    """

    name: str
    facts: list[str]
    width: int
    height: int
    panels: list[Panel]
    modalities: list[str] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)
    views: list[StepView] = field(default_factory=list)

    @property
    def characters(self) -> int:
        """How long its pictures are in a page."""
        steps = (len(uri) for m in self.views for uri in (*m.weight, *m.gain, m.guided, m.estimate))
        return sum(len(panel.image) for panel in self.panels) + sum(steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "PairView":
        """What ``to_json`` gave.

        Raises:
            TypeError: The values are another version's.
        """
        panels = [Panel(**panel) for panel in values["panels"]]
        return PairView(**{**values, "panels": panels, "views": [StepView(**moment) for moment in values["views"]]})


def finite(scores: Mapping[str, Any]) -> dict[str, float]:
    """Scores that are numbers: a constant picture has no correlation."""
    return {name: float(value) for name, value in scores.items() if math.isfinite(float(value))}


def ranks(panels: Sequence[Panel]) -> list[dict[str, int]]:
    """The rank of each panel among those that have the metric, 1 is best; equal scores share the better rank."""
    found: list[dict[str, int]] = []
    for panel in panels:
        own: dict[str, int] = {}
        for name, value in panel.scores.items():
            sign = 1 if METRICS[name].higher_is_better else -1
            others = [sign * round(other.scores[name], 6) for other in panels if name in other.scores]
            own[name] = 1 + sum(other > sign * round(value, 6) for other in others)
        found.append(own)
    return found
