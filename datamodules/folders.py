"""The files of one source and their names: a folder, a tree of folders, a list, or a pattern."""

import glob
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from datamodules.naming import cuts
from datamodules.readers.pixels import IMAGE_SUFFIXES, list_images
from datamodules.readers.source import is_source, real, stem
from dig2dig.errors import PairingError

Named = list[tuple[str, Path]]
"""Files with their names: the path under their source without suffix, parted by slashes."""

RESULTS = {"run.yaml", "summary.csv"}  # a folder that holds them is a run's, no source
VIDEO_MAP = "rgb_to_thermal_vid_map.json"  # of FLIR ADAS v2: names of thermal files by names of visible ones


def named_files(modality: str, source: Path, apart: Collection[Path] = ()) -> Named:
    """The files of a source; those of the folders ``apart`` are left to other sources. PairingError: there is none."""
    try:
        if "{name}" in str(source):
            found = _matching(source)
        else:
            found = _listed(source) if source.is_file() else named_under(source, contents(source, apart)[0])
    except FileNotFoundError as error:
        raise PairingError(f"sources.{modality}: {error}") from error
    except OSError as error:
        raise PairingError(f"sources.{modality}: {source} cannot be read ({error.strerror})") from error
    if not found:
        raise PairingError(f"sources.{modality}: {source} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def contents(root: Path, apart: Collection[Path] = ()) -> tuple[list[Path], list[Path]]:
    """Sources and other files in a folder, sorted; those of its sub-folders if no source lies in the folder itself."""
    found, extra, folders = _sorted_out(root)
    seen = {real(root), *map(real, apart)}
    queue = [] if found else folders
    while queue:
        folder = queue.pop(0)
        if real(folder) in seen or is_run(folder):
            continue
        seen.add(real(folder))
        sources, others, inner = _sorted_out(folder)
        found, extra, queue = found + sources, extra + others, inner + queue
    return found, extra


def is_run(folder: Path) -> bool:
    """Whether a folder holds what a run wrote."""
    return all((folder / name).is_file() for name in RESULTS)


def _sorted_out(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Sources, other files and folders; hidden ones are left out."""
    found: tuple[list[Path], list[Path], list[Path]] = ([], [], [])
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            found[0 if is_source(path) else 2 if path.is_dir() else 1].append(path)
    return found


def named_under(root: Path, paths: Iterable[Path]) -> Named:
    """Files with their names in a tree."""
    return [(path.relative_to(root).with_name(stem(path)).as_posix(), path) for path in paths]


def _listed(table: Path) -> Named:
    """The images that a text file lists, by stem, or by path where stems repeat."""
    paths = list_images(str(table))
    if len({stem(path) for path in paths}) < len(paths) and all(path.is_relative_to(table.parent) for path in paths):
        return named_under(table.parent, paths)
    return [(stem(path), path) for path in paths]


def _matching(pattern: Path) -> Named:
    """What ``{name}`` stands for in each file that fits a pattern, in one part of the path or several.

    ``**`` stands for any number of folders; they are part of the name.
    """
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if "{name}" in part or part == "**")
    root, inner = Path(*parts[:first]), parts[first:]
    wild = "/".join("**" if part == "**" else glob.escape(part).replace("{name}", "*") for part in inner)
    exact = "/".join(map(re.escape, inner)).replace(r"\{name\}", "{name}").replace(r"\*\*/", "((?:[^/]+/)*)")
    regex = re.compile(exact.replace("{name}", "(?P<name>[^/]+)", 1).replace("{name}", "(?P=name)"), re.DOTALL)
    found: Named = []
    for path in sorted(set(root.glob(wild))):
        match = regex.fullmatch(path.relative_to(root).as_posix())
        if match and not any(part.startswith(".") for part in "".join(_folders(match)).split("/")):
            found.append(("".join([*_folders(match), match["name"]]), path))
    return found


def _folders(match: re.Match[str]) -> list[str]:
    """What each ``**`` stands for."""
    return [text for i, text in enumerate(match.groups(""), 1) if i != match.re.groupindex["name"]]


def safe_names(names: Collection[str]) -> dict[str, str]:
    """A file name for each name of a scene: folders are joined by as many underscores as keep all names apart."""
    joint = "_"
    while len({name.replace("/", joint) for name in names}) < len(names):
        joint += "_"
    return {name: name.replace("/", joint) for name in names}


def video_map(sources: Iterable[Path]) -> dict[str, str]:
    """The table of FLIR ADAS v2 that lies beside the sources: stems of thermal files by stems of visible ones."""
    folders = dict.fromkeys(folder for source in sources for folder in [source, *source.absolute().parents[:2]])
    for folder in folders:
        try:
            table = json.loads((folder / VIDEO_MAP).read_text())
            return {Path(visible).stem: Path(thermal).stem for visible, thermal in table.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            continue
    return {}


def extra_files(sources: Mapping[str, str]) -> list[Path]:
    """Files in the sources' folders that are not read as images."""
    folders = dict.fromkeys(Path(source) for source in sources.values() if Path(source).is_dir())
    return list(dict.fromkeys(path for folder in folders for path in contents(folder)[1]))


def left_out(sources: Mapping[str, str]) -> list[str]:
    """Lines about what is not read in the sources' folders: files of other kinds, images in sub-folders."""
    lines, extra = [], extra_files(sources)
    if kinds := Counter(sorted(path.suffix.lower() or "no suffix" for path in extra)):
        told = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        what = "file that is" if len(extra) == 1 else "files that are"
        lines.append(f"left out: {len(extra)} {what} no image ({told})")
    return lines + [line for source in dict.fromkeys(map(Path, sources.values())) if (line := _unread(source, sources))]


def _unread(source: Path, sources: Mapping[str, str]) -> str:
    """A line about sub-folders that hold images and are not read, as images lie beside them; or nothing."""
    if not source.is_dir() or is_source(source):
        return ""
    found, _, folders = _sorted_out(source)
    given = set(map(real, map(Path, sources.values())))
    unread = [folder.name for folder in folders if found and real(folder) not in given and _holds_image(folder)]
    return f"left out: sub-folders of {source}, which holds images itself: {', '.join(unread)}" if unread else ""


def _holds_image(folder: Path) -> bool:
    try:
        return any(is_source(path) for path in folder.iterdir())
    except OSError:
        return False


def example_pattern(source: Path, named: Sequence[tuple[str, Path]]) -> str:
    """A pattern as a user may give it: ``{name}`` is what differs between the names, or the number in a single one."""
    names = [name.rpartition("/")[2] for name, _ in named]
    numbers = list(re.finditer(r"\d+", names[0]))
    if len(set(names)) > 1:
        pattern = cuts(names)[-1].pattern
    else:
        start, end = numbers[-1].span() if numbers else (0, len(names[0]))
        pattern = f"{names[0][:start]}{{name}}{names[0][end:]}"
    path = named[0][1]
    folder = source / "**" if source.is_dir() and "/" in named[0][0] else path.parent
    return f"'{folder}/{pattern}{path.name[len(stem(path)) :]}'"
