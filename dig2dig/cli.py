"""The way from YAML files and the command line to one typed configuration, and back."""

import ctypes
import difflib
import gc
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, is_dataclass
from inspect import cleandoc
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dig2dig.atomic import is_file, mode_of
from dig2dig.errors import UserError, first_line
from dig2dig.options import read_yaml

T = TypeVar("T")

SHORT = {"research", "tone"}  # options of the sampler that may stand at the top
HUB_ID = re.compile(r"(?!bundled/|\.)[\w.-]+/[\w.-]+(@[\w.-]+)?")
RECORD = "record"  # top-level key of a run.yaml that holds facts, not options; load ignores it


def load(schema: type[T], argv: list[str]) -> T:
    """What :func:`load_strictly` gives, for a command line.

    Prints the help and exits with 0 on ``--help [TOPIC]``. Prints one line and exits with 2 on a mistake.
    """
    try:
        if asked := {"--help", "-h"} & set(argv):
            at = argv.index(asked.pop())
            print(help_text(schema, *argv[at + 1 : at + 2], given=argv[:at]))
            raise SystemExit(0)
        return load_strictly(schema, argv)
    except (UserError, OmegaConfBaseException) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


@contextmanager
def importing() -> Iterator[None]:
    """Imports without garbage collection: what packages make then stays, and later collections leave it out."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    if not gc.get_freeze_count():  # once
        gc.freeze()


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory for the next tensor: a quarter less time on large images, for more memory."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def release_freed_memory() -> None:
    """Has glibc give back what it keeps: parts that are free between parts in use add up in long work."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def load_strictly(schema: type[T], argv: Sequence[str]) -> T:
    """The configuration from YAML files, preset names and ``key=value`` overrides, later ones over earlier ones.

    UserError, in one line, where a key is unknown, a value has the wrong type or options contradict each other.
    """
    layer: Any = {}
    records: dict[str, dict[str, Any]] = {}
    given = {argument.partition("=")[0] for argument in argv if "=" in argument and not is_file(Path(argument))}
    if wrong := next((argument for argument in argv if argument.startswith(("-", "="))), ""):
        raise UserError(f"'{wrong}': options are typed as out=DIR, without dashes and without spaces")
    try:
        config = OmegaConf.structured(schema)
        for argument in argv:
            layer = _layer(schema, argument, records)
            config = OmegaConf.merge(config, layer)
        result: Any = OmegaConf.to_object(config)
        if hasattr(result, "check_given"):
            result.check_given(given)
    except ConfigKeyError as error:
        raise UserError(_unknown(schema, layer, str(error.full_key))) from error
    except UserError:
        raise
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError) as error:
        groups = [name for name, hint in get_type_hints(schema).items() if is_dataclass(hint) and name in layer]
        if group := next((name for name in groups if not OmegaConf.is_dict(layer[name])), ""):
            raise UserError(f"{group} is a group of options: --help {group} lists them") from error
        key = getattr(error, "full_key", None)
        line = f"no group of options; give {key}=VALUE" if "'DictConfig'" in str(error) else first_line(error)
        raise UserError((f"{key}: " if key else "") + line) from error
    assert isinstance(result, schema)
    for path, values in records.items():
        _check_record(path, values, result, given)
    return result


def _check_record(path: str, values: Mapping[str, Any], config: Any, given: set[str]) -> None:
    """Refuses what a record of a run, which may be somebody else's, must not decide alone: ``given`` options may."""

    def decides(key: str) -> str:
        found, wanted = (flat(one).get(key) for one in (values, asdict(config)))
        said = any(f"{key}.".startswith(f"{name}.") for name in given)
        return found if isinstance(found, str) and found == wanted and not said else ""

    if out := decides("out"):
        raise UserError(f"{path}: the record of a run does not say where to write; give out={out} or another folder")
    if decides("logger.wandb.mode") == "online":
        raise UserError(f"{path}: the record of a run does not log online; give logger.wandb.mode=online or offline")
    for key in ("prior", "prior.path", "adapter", "prior.adapter", "weights", "sampler.weights"):
        if is_hub_id(name := decides(key)):
            raise UserError(f"{path}: names {name} of a hub; to fetch it, give {key}={name}")


def is_hub_id(name: str) -> bool:
    """Whether a name is a hub's, as OWNER/NAME or OWNER/NAME@REVISION, and that of no file or folder here."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def preset_file(name: str) -> Path | None:
    """The file of a shipped preset by its name, as ``ivf`` or ``configs/ivf.yaml``; None if there is none."""
    file = shipped("configs") / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    return file if is_file(file) else None


def shipped(folder: str) -> Path:
    """A folder of files that comes with the product: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def to_yaml(config: object, record: Mapping[str, Any] | None = None) -> str:
    """The whole configuration as YAML that ``load`` reads back, with facts under ``record``."""
    values = asdict(config) | ({RECORD: dict(record)} if record else {})  # pyright: ignore[reportArgumentType]
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)  # escapes names that are not UTF-8


def from_yaml(schema: type[T], path: Path) -> T | None:
    """The object that ``to_yaml`` wrote; None where the file is missing or does not fit the schema."""
    try:
        values = read_yaml(path)
        values.pop(RECORD, None)
        return from_dict(schema, values)
    except (OmegaConfBaseException, OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def read_record(path: Path) -> dict[str, Any]:
    """The facts in a file that ``to_yaml`` wrote; empty where there are none."""
    try:
        found = read_yaml(path).get(RECORD)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def from_dict(schema: type[T], values: Any) -> T:
    """The configuration that ``asdict`` made plain, checked like one from YAML."""
    result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), _literal(values)))
    assert isinstance(result, schema)
    return result


def _literal(values: Any) -> Any:
    """Values in which ``${`` is text: nothing is read from the environment or from other options."""
    if isinstance(values, dict):
        return {name: _literal(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_literal(value) for value in values]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", values) if isinstance(values, str) else values


def _layer(schema: type, argument: str, records: dict[str, dict[str, Any]]) -> Any:
    if "=" not in argument or is_file(Path(argument)):
        values, names = _file(argument), {item.name for item in fields(schema)}  # pyright: ignore[reportArgumentType]
        if Path(argument).name == "run.yaml" or RECORD in values or names <= set(values):
            records[argument] = values
        layer = OmegaConf.create(_literal({name: value for name, value in values.items() if name != RECORD}))
    else:
        layer = _override(schema, argument)
    if "sampler" in {item.name for item in fields(schema)}:  # pyright: ignore[reportArgumentType]
        for name in SHORT & set(layer):
            layer = OmegaConf.merge(layer, {"sampler": {name: layer.pop(name)}})  # pyright: ignore
    return layer


def _override(schema: type, argument: str) -> Any:
    key, _, value = argument.partition("=")
    texts = {name for name, kind, *_ in _options(schema) if kind in (str, str | None, dict[str, str])}
    if {key, key.rpartition(".")[0]} & texts and value not in ("null", "{}"):  # a path like 2024_01 is no number
        layer = OmegaConf.create()
        OmegaConf.update(layer, key, _literal(_home(value)))
        return layer
    try:
        return OmegaConf.from_dotlist([_literal(argument)])
    except yaml.YAMLError as error:
        hint = "quote values that hold brackets, colons or commas"
        raise UserError(f"cannot read '{argument}': {hint}") from error


def _file(path: str) -> Any:
    if Path(path).suffix not in ("", ".yaml", ".yml") or (mode_of(Path(path)) and not is_file(Path(path))):
        raise UserError(f"'{path}' is no config: name what it is, as sources.visible={path} or data.root={path}")
    if found := Path(path) if is_file(Path(path)) else preset_file(path):
        return _home(read_yaml(found))
    near = difflib.get_close_matches(path, [file.stem for file in shipped("configs").glob("*.yaml")])
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "arguments are YAML files or key=value"
    raise UserError(f"no config file '{path}': {hint}")


def _home(values: Any) -> Any:
    """Values in which ``~/``, that no shell expands in a file or behind ``sources.NAME=``, is the home folder."""
    if isinstance(values, dict):
        return {name: _home(value) for name, value in values.items()}
    return str(Path(values).expanduser()) if isinstance(values, str) and values.startswith("~/") else values


def _unknown(schema: type, layer: Any, key: str) -> str:
    """One line on an option that does not exist, with the nearest name that does."""
    given = [name for name in flat(OmegaConf.to_container(layer)) if f"{name}.".startswith(f"{key}.")]
    wanted = max(given, key=len, default=key)
    names = [name for name, *_ in _options(schema)]
    same = [name for name in names if name.endswith((f".{wanted}", f".{key}"))]
    close = same or difflib.get_close_matches(wanted, names, n=1) or difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "'--help all' lists all options"
    return f"unknown option '{wanted}'; {hint}"


def flat(values: object, prefix: str = "") -> dict[str, str]:
    """Nested options as ``a.b: value``."""
    if not isinstance(values, dict) or not values:
        return {prefix: "" if values in ({}, None) else str(values)}
    parts = (flat(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in values.items())
    return {name: value for part in parts for name, value in part.items()}


def _options(schema: type, prefix: str = "", defaults: object = None) -> list[tuple[str, Any, Any, Any]]:
    """Name, type, default and metadata of every option, those of a base class after its own."""
    hints = get_type_hints(schema)
    rows: list[tuple[str, Any, Any, Any]] = []
    for item in sorted(fields(schema), key=lambda item: item.name not in schema.__annotations__):  # pyright: ignore
        kind = hints[item.name]
        made = item.default if item.default_factory is MISSING else item.default_factory()
        default = made if defaults is None else getattr(defaults, item.name)
        if is_dataclass(kind):
            rows += _options(kind, f"{prefix}{item.name}.", default)  # pyright: ignore[reportArgumentType]
        else:
            rows.append((prefix + item.name, kind, default, item.metadata))
    return rows


def help_text(schema: type, topic: str = "", given: Sequence[str] = ()) -> str:
    """Options with their values where presets and options are ``given``, choices and one sentence each.

    ``topic`` is empty for the common ones in a line each, ``all``, or a heading as ``sampler`` or ``research``.
    """
    values = OmegaConf.merge(OmegaConf.structured(schema), *(_layer(schema, argument, {}) for argument in given))
    options, about = _options(schema, defaults=values), cleandoc(schema.__doc__ or "")
    rows = [(name.replace("sampler.research.", "research."), k, v, data) for name, k, v, data in options]
    headings = sorted({name.partition(".")[0] for name, *_ in rows if "." in name})
    if not topic:
        lines = [(*_assigned(*row[:3]).partition(" ["), row[3]["help"]) for row in rows if row[3]["common"]]
        shown = [f"  {left:<29} {shorten(help, 200)}{bracket}{choices}" for left, bracket, choices, help in lines]
        more = "--help all lists every option" + ", --help TOPIC those of " * bool(headings) + ", ".join(headings) + "."
        more += " PRESET --help shows the values of a preset." * ("PRESET" in about)
        return "\n".join([about, "", *shown, "", more])
    chosen = [row for row in rows if topic == "all" or f"{row[0]}.".startswith(f"{topic}.")]
    if not chosen:
        raise UserError(f"no options under '{topic}': there are all, {', '.join(headings)}")
    shown = [f"  {_assigned(name, kind, value)}\n      {data['help']}" for name, kind, value, data in chosen]
    return "\n".join([about, "", "Options (any may stand in a YAML file or as key=value):", "", *shown])


def _assigned(name: str, kind: Any, value: Any) -> str:
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    among = f" [{' | '.join(str(one) or 'empty' for one in choices)}]" if choices else ""
    plain = value if isinstance(value, str) and value else json.dumps(value, default=OmegaConf.to_container)
    return f"{name}={plain}{among}"
