"""A second device where there is none: tensors that say they are elsewhere, compute here, and refuse to meet others."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

from dig2dig.fusion import weight
from dig2dig.priors import schedule
from dig2dig.priors.denoiser import Denoiser

AWAY = torch.device("meta")
"""What the device is called: torch allows that name without any driver."""

COPIES = torch.ops.aten._to_copy.default
INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class Away(torch.Tensor):
    """A tensor on the other device; its values lie in ``here``."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "Away":
        return torch.Tensor._make_wrapper_subclass(  # pyright: ignore
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=AWAY
        )

    def __init__(self, here: torch.Tensor) -> None:
        self.here = here

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["here"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> "Away":
        return Away(inner["here"])

    def __repr__(self, **_: Any) -> str:  # pyright: ignore
        return f"Away({self.here})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(function, args, kwargs or {})


def call(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator; RuntimeError where tensors of two devices meet, but for numbers, indices and copies."""
    flat = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    others = [one for one in flat if not isinstance(one, Away)]
    device = kwargs.pop("device", None)
    away = len(others) < len(flat) if device is None else torch.device(device) == AWAY
    if len(others) < len(flat) and function not in (COPIES, torch.ops.aten.copy_.default):
        indices = function in INDEXED and isinstance(args[0], Away)
        if any(one.ndim for one in others) and not indices:
            raise RuntimeError(f"{function}: tensors of two devices meet: {[tuple(one.shape) for one in others]}")
    if device is not None:
        kwargs["device"] = torch.device("cpu") if away else device
    inner = tree_map_only(Away, lambda one: one.here, (args, kwargs))
    found = function(*inner[0], **inner[1])
    if function is COPIES:
        Moves.seen.append((flat[0].numel(), not away and isinstance(flat[0], Away)))
        if found is inner[0][0]:
            found = found.clone()
    if away:
        found = tree_map_only(torch.Tensor, Away, found)
        return return_and_correct_aliasing(function, args, kwargs, found)
    return found


class Moves(TorchDispatchMode):
    """Makes tensors of the other device where one is asked for, and notes what is copied between the two."""

    seen: ClassVar[list[tuple[int, bool]]] = []  # values, and whether they came back

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is not None and torch.device(device) == AWAY:
            return call(function, args, kwargs)
        return function(*args, **kwargs)

    @classmethod
    def back(cls) -> int:
        """The most values that came back at once."""
        return max((count for count, back in cls.seen if back), default=0)


@contextmanager
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Moves]]:
    """The other device is there; what the code keeps of it between calls is forgotten."""
    monkeypatch.setattr(Denoiser, "autocast", lambda *_: nullcontext())  # torch has none for this name
    kept = schedule._placed, weight._load
    for one in kept:
        one.cache_clear()
    Moves.seen = []
    with Moves():
        yield Moves
    for one in kept:
        one.cache_clear()
