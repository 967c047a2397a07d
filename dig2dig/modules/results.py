"""What becomes of a pair, and what is kept of its sampling steps."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from datamodules.pairs import Sample
from dig2dig.errors import first_line
from dig2dig.fusion.plan import Snapshot


@dataclass(frozen=True)
class Result:
    """What became of one pair."""

    name: str  # name of the pair
    sample: Sample | None = None  # what was read; None if it could not be
    image: Tensor | None = None  # the fused picture, (1 or 3, h, w) in [0, 1]; None if it failed
    fused: Tensor | None = None  # the channels that were fused, before they got their colour back
    seconds: float = 0.0  # time it took; a batch's time is shared equally
    seed: int = 0  # seed of its noise
    trace: list[Snapshot] = field(default_factory=list)  # every step of the sampling, if asked for
    reason: str = ""  # why it failed
    note: str = ""  # what a user may want to know

    @property
    def valid(self) -> np.ndarray | None:
        """Pixels (h, w) where a source is valid; None where all are."""
        if self.sample is None or self.sample.valid is None:
            return None
        shown = self.sample.valid.any(0)[0].numpy()
        return None if shown.all() else shown


@dataclass(frozen=True)
class Tracing:
    """What is kept of the sampling steps."""

    names: Collection[str] | None = ()  # of which pairs; None = all
    estimates: Collection[str] | None = ()  # of which also the prior's estimates in each step; None = all
    side: int | None = None  # longest side of what is kept, pixels; None = as large as the pictures
    watch: Callable[[Snapshot], None] | None = None  # called with each step when it is done, of whatever pair


class Results:
    """The results of a batch; not a sequence, so that Lightning leaves them as they are."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = list(results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)


def among(name: str, names: Collection[str] | None) -> bool:
    """Whether a name is one of these; None stands for all."""
    return names is None or name in names


def failed(sample: Sample, reason: BaseException | str) -> Result:
    """The result of a sample that could not be fused."""
    text = reason if isinstance(reason, str) else first_line(reason)
    return Result(sample.name, sample, reason=f"{sample.name}: {text}")
