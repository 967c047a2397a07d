"""What the schemas are made of: fields with their help and limits, and the ranges of stored values."""

import re
from collections.abc import Hashable
from dataclasses import field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import yaml

from dig2dig.errors import UserError, first_line


def option(default: Any, help: str, common: bool = False, **limits: int | float) -> Any:
    """A dataclass field with its default and its sentence.

    ``default`` may be what makes it. ``--help`` without a topic shows ``common`` ones. ``limits`` are ``above``,
    ``least`` and ``most``, checked where the value is not None, and ``each``, the least of numbers between commas.
    """
    metadata = {"help": help, "common": common, "limits": limits}
    if callable(default) or isinstance(default, (dict, list)):
        factory = default if callable(default) else lambda: type(default)(default)
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


common = partial(option, common=True)
_hints = cache(get_type_hints)


class Checked:
    """A schema whose values are checked the same whether they come from YAML or from Python.

    Raises:
        ValueError: A value is none of its field's choices or outside of its limits; in one line.
    """

    _heading: ClassVar[str] = ""

    def __init_subclass__(cls, heading: str = "") -> None:
        cls._heading = heading

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for item in fields(self):  # pyright: ignore[reportArgumentType]
            name, value = f"{self._heading}{item.name}", getattr(self, item.name)
            if get_origin(hints[item.name]) is Literal:
                choices = get_args(hints[item.name])
                require(value in choices, f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")
            check_plain(name, value)
            if value is not None:
                limits = item.metadata.get("limits", {})
                above, least, most = (limits.get(kind) for kind in ("above", "least", "most"))
                require(above is None or value > above, f"{name} must be above {above}, not {value}")
                require(least is None or value >= least, f"{name} must be at least {least}, not {value}")
                require(most is None or value <= most, f"{name} must be at most {most}, not {value}")
                each = limits.get("each")
                told = f"{name} must be numbers of at least {each}, separated by commas, not {value!r}"
                require(each is None or _numbers(value, each), told)
        self._check()

    def _check(self) -> None:
        """Refuses values of several options that do not go together; schemas have their own."""


def _numbers(text: str, least: int | float) -> bool:
    try:
        return all(float(part) >= least for part in text.split(",") if part.strip())
    except ValueError:
        return False


LARGEST = 2**63 - 1


class _Loader(yaml.SafeLoader):
    """YAML without dates, numbers like 2024_01, names that stand twice, and aliases, which let a small file grow."""

    yaml_implicit_resolvers: ClassVar = {
        first: [one for one in ways if not one[0].endswith((":timestamp", ":int"))]
        for first, ways in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases, as *name, are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names = [name.value for name, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.YAMLError(f"{twice} stands there twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"-?(0|[1-9]\d*)$"), list("-0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; UserError if it is none."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8") if path.is_file() else "", _Loader)
    except (yaml.YAMLError, OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a readable YAML file ({first_line(error)})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected 'key: value' lines")
    return values


def check_plain(name: str, value: object) -> None:
    """Refuses numbers that no computation survives, and text that no file system takes."""
    if isinstance(value, (list, dict)):
        for key, one in value.items() if isinstance(value, dict) else ():
            require(not isinstance(one, (list, dict)), f"{name}.{key} must be one value, not {one}")
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            check_plain(name, one)
    elif isinstance(value, (int, float)):
        require(abs(value) <= LARGEST, f"{name} must be a finite number, not {value}")
    elif isinstance(value, str):
        require("\0" not in value, f"{name} must be text without NUL")


def require(holds: bool, message: str) -> None:
    """Refuses values that do not go together."""
    if not holds:
        raise UserError(message)


def parse_range(text: str) -> tuple[tuple[float, float] | str, float | None]:
    """``auto``, ``full``, ``percentile``, or ``LOW-HIGH`` as two numbers; and the value of pixels without data, if any.

    ``nodata=VALUE`` stands alone or after a comma, as in ``20-40,nodata=nan``. Anything else is a ValueError.
    """
    kind, _, rest = text.partition(",") if not text.startswith("nodata=") else ("auto", ",", text)
    empty = None
    if rest:
        name, _, value = rest.partition("=")
        try:
            empty = float(value)
        except ValueError:
            name = ""
        require(name == "nodata", f"must end in nodata=VALUE, a number or nan, not {rest}")
    if kind in ("auto", "full", "percentile"):
        return kind, empty
    number = r"(-?\d+(?:\.\d*)?)"
    match = re.fullmatch(f"{number}-{number}", kind)
    low, high = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    require(low < high, f"must be auto, full, percentile or LOW-HIGH with LOW below HIGH, not {text}")
    return (low, high), empty


def check_range(name: str, text: str) -> None:
    """Refuses a range that :func:`parse_range` cannot read, with the option's name."""
    try:
        parse_range(text)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
