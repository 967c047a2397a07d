"""The way from YAML files and the command line to one typed configuration, and back."""

import difflib
import json
import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

T = TypeVar("T")


def load(schema: type[T], argv: list[str]) -> T:
    """The configuration that YAML files and ``key=value`` overrides give, later ones over earlier ones.

    Prints the help and exits 0 on ``--help``; prints one line and exits 2 where a key is unknown, a value
    has the wrong type or options contradict each other.
    """
    if {"--help", "-h"} & set(argv):
        print(help_text(schema))
        raise SystemExit(0)
    texts = {name for name, kind, *_ in _options(schema) if kind in (str, str | None, dict[str, str])}
    try:
        config = OmegaConf.structured(schema)
        for argument in argv:
            is_file = "=" not in argument or _names_a_file(argument)
            layer = _file(argument) if is_file else _override(argument, texts)
            config = OmegaConf.merge(config, layer)
        result = OmegaConf.to_object(config)
    except ConfigKeyError as error:
        _fail(f"unknown option '{error.full_key}'{_hint(schema, str(error.full_key))}")
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        _fail((f"{key}: " if key else "") + str(error).splitlines()[0])
    assert isinstance(result, schema)
    return result


def to_yaml(config: object) -> str:
    """The whole configuration as YAML that ``load`` reads back."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)  # escapes names that are not UTF-8


def from_yaml(schema: type[T], path: Path) -> T | None:
    """The object that ``to_yaml`` wrote; None where the file is missing or does not fit the schema."""
    try:
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(path)))
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError):
        return None
    assert isinstance(result, schema)
    return result


def _names_a_file(argument: str) -> bool:
    try:
        return Path(argument).is_file()
    except OSError:  # too long for a path
        return False


def _override(argument: str, texts: set[str]) -> Any:
    key, _, value = argument.partition("=")
    if {key, key.rpartition(".")[0]} & texts and value != "null":  # a path like 2024_01 is no number
        layer = OmegaConf.create()
        OmegaConf.update(layer, key, value)
        return layer
    try:
        return OmegaConf.from_dotlist([argument])
    except yaml.YAMLError:
        _fail(f"cannot read '{argument}': quote values that hold brackets, colons or commas")


def _file(path: str) -> Any:
    if not Path(path).is_file():
        _fail(f"no config file '{path}': arguments are YAML files or key=value")
    try:
        layer = OmegaConf.load(path)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        _fail(f"{path}: not a readable YAML file ({str(error).splitlines()[0]})")
    return layer if OmegaConf.is_dict(layer) else _fail(f"{path}: expected 'key: value' lines at the top level")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _hint(schema: type, key: str) -> str:
    close = difflib.get_close_matches(key, [name for name, *_ in _options(schema)], n=1)
    return f"; did you mean '{close[0]}'?" if close else "; --help lists all options"


def _options(schema: type, prefix: str = "", defaults: object = None) -> list[tuple[str, Any, Any, str]]:
    hints = get_type_hints(schema)
    rows: list[tuple[str, Any, Any, str]] = []
    for item in fields(schema):
        kind = hints[item.name]
        default = _default(item) if defaults is None else getattr(defaults, item.name)
        if is_dataclass(kind):
            rows += _options(kind, f"{prefix}{item.name}.", default)  # pyright: ignore[reportArgumentType]
        else:
            rows.append((prefix + item.name, kind, default, item.metadata["help"]))
    return rows


def _default(item: "Field[Any]") -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def help_text(schema: type) -> str:
    """Every option with its default, its choices and one sentence."""
    lines = [f"{schema.__doc__}", "", "Options (any may stand in a YAML file or as key=value):", ""]
    for name, kind, default, sentence in _options(schema):
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        among = f" [{' | '.join(map(str, choices))}]" if choices else ""
        shown = default if isinstance(default, str) and default else json.dumps(default)
        lines.append(f"  {name}={shown}{among}\n      {sentence}")
    return "\n".join(lines)
