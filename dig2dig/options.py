"""What the schemas are made of: a field with its help, checks, and the ranges of stored values."""

import re
from dataclasses import field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


def option(default: Any, help: str, common: bool = False) -> Any:
    """A dataclass field with its default and its sentence; ``--help`` alone shows the common ones."""
    metadata = {"help": help, "common": common}
    if callable(default) or isinstance(default, (dict, list)):
        factory = default if callable(default) else lambda: type(default)(default)
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def require(holds: bool, message: str) -> None:
    """Refuses values that do not go together."""
    if not holds:
        raise ValueError(message)


def require_choices(config: Any) -> None:
    """Refuses a value that is none of its field's choices, as YAML would be refused.

    Raises:
        ValueError: It names the field, the value and the choices.
    """
    hints = get_type_hints(type(config))
    for item in fields(config):
        if get_origin(hints[item.name]) is Literal:
            value, choices = getattr(config, item.name), get_args(hints[item.name])
            require(value in choices, f"{item.name} must be one of {', '.join(map(str, choices))}, not {value!r}")


def parse_range(text: str) -> tuple[float, float] | str:
    """``auto``, ``full``, ``percentile``, or ``LOW-HIGH`` as two numbers.

    Raises:
        ValueError: Anything else.
    """
    if text in ("auto", "full", "percentile"):
        return text
    match = re.fullmatch(rf"{_NUMBER}-{_NUMBER}", text)
    low, high = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if not low < high:
        raise ValueError(f"must be auto, full, percentile or LOW-HIGH with LOW below HIGH, not {text}")
    return low, high


_NUMBER = r"(-?\d+(?:\.\d*)?)"
