"""What becomes of a pair, and what is kept of its sampling steps."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import Tensor

from datamodules.pairs import Sample
from dig2dig.errors import first_line
from dig2dig.fusion.plan import Snapshot


@dataclass(frozen=True)
class Result:
    """What became of one pair.

    Attributes:
        name: Name of the pair.
        sample: What was read; None if it could not be.
        image: The fused picture, (1 or 3, h, w) in [0, 1]; None if it failed.
        fused: The channels that were fused, before they got their colour back.
        seconds: Time it took; a batch's time is shared equally.
        seed: Seed of its noise.
        trace: Every step of the sampling, if asked for.
        reason: Why it failed.
        note: What a user may want to know.
    """

    name: str
    sample: Sample | None = None
    image: Tensor | None = None
    fused: Tensor | None = None
    seconds: float = 0.0
    seed: int = 0
    trace: list[Snapshot] = field(default_factory=list)
    reason: str = ""
    note: str = ""


@dataclass(frozen=True)
class Tracing:
    """What is kept of the sampling steps.

    Attributes:
        names: Of which pairs; None = of all.
        estimates: Of which pairs also the prior's estimates, for which the network runs in each step; None = of all.
        side: Longest side of what is kept, pixels; None = as large as the pictures.
        watch: Called with each step when it is done, of whatever pair, for progress.
    """

    names: Collection[str] | None = ()
    estimates: Collection[str] | None = ()
    side: int | None = None
    watch: Callable[[Snapshot], None] | None = None


def among(name: str, names: Collection[str] | None) -> bool:
    """Whether a name is one of these; None stands for all."""
    return names is None or name in names


def failed(sample: Sample, reason: BaseException | str) -> Result:
    """The result of a sample that could not be fused."""
    text = reason if isinstance(reason, str) else first_line(reason)
    return Result(sample.name, sample, reason=f"{sample.name}: {text}")
