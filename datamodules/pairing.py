"""Which files belong together: K sources of one scene, by file stem, pattern, manifest or folder."""

import csv
import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamodules.readers.pixels import IMAGE_SUFFIXES, list_images
from datamodules.readers.source import Probes, frame_count, is_source, real, stem
from dig2dig.config import InferConfig
from dig2dig.errors import ImageError, PairingError


@dataclass(frozen=True)
class Pair:
    """The files of one scene."""

    name: str  # stem that the files share; the result is called after it
    files: dict[str, Path]  # file of each modality, in the order in which the sources were given
    missing: tuple[str, ...] = ()  # modalities that have no file of this name
    problem: str = ""  # why these files cannot be fused; empty if nothing is known against it
    frame: int | None = None  # which frame of videos, or slice of volumes; None for images
    series: str = ""  # name of the sequence that this is a frame of; its frames share their noise and their range
    probes: dict[str, Probes] = field(default_factory=dict)  # some frames of the series, by which its range is found

    def incomplete(self, allow_missing: bool) -> bool:
        """Whether sources are missing without which it cannot be fused."""
        return bool(self.missing) and not (allow_missing and len(self.files) > 1)


def scenes(config: InferConfig) -> list[Pair]:
    """All that the configuration asks to fuse, a pair for each frame of videos and volumes."""
    if config.manifest:
        pairs = read_manifest(Path(config.manifest))
    else:
        pairs = find_stacks(Path(config.stacks)) if config.stacks else find_pairs(config.sources)
    return expand(pairs, config.sequence)


def find_pairs(sources: Mapping[str, str]) -> list[Pair]:
    """Pairs the files of all sources by name, sorted.

    A source is a folder or a text file that lists images, paired by stem; or a pattern as ``DIR/{name}_vis.png``,
    paired by what ``{name}`` stands for; or one file. It is a PairingError if a source does not exist, is given twice
    or holds no image, if single files and folders are mixed, or if no name stands in two sources.
    """
    paths = {modality: Path(source) for modality, source in sources.items()}
    for modality, path in paths.items():
        if "{name}" not in str(path) and not path.exists():
            raise PairingError(f"sources.{modality}: no such file or folder: {path}")
        if twin := next((m for m, p in paths.items() if m != modality and real(p) == real(path)), None):
            raise PairingError(f"sources.{modality} and sources.{twin} are the same: {path}")
    many = ["{name}" in str(path) or path.is_dir() or path.suffix == ".txt" for path in paths.values()]
    if not any(many):
        return [Pair(stem(next(iter(paths.values()))), paths)]
    if not all(many):
        raise PairingError("sources: give a folder for every modality or a file for every modality, not both")
    named = {modality: _by_name(modality, path) for modality, path in paths.items()}
    pairs = []
    for name in sorted(set().union(*named.values())):
        found = {modality: files[name] for modality, files in named.items() if name in files}
        repeated = next((", ".join(map(str, files)) for files in found.values() if len(files) > 1), "")
        problem = f"{name}: which of {repeated}? leave one of them" if repeated else ""
        missing = tuple(modality for modality in paths if modality not in found)
        pairs.append(Pair(name, {modality: files[0] for modality, files in found.items()}, missing, problem))
    if len(paths) > 1 and all(len(pair.files) == 1 for pair in pairs):
        raise PairingError(f"sources: no file name stands in two of {', '.join(map(str, paths.values()))}")
    return pairs


def _by_name(modality: str, source: Path) -> dict[str, list[Path]]:
    """Files of one modality by name; several files of a name are a mistake, which is reported later."""
    try:
        if "{name}" in str(source):
            found = _matching(source)
        else:
            paths = list_images(str(source)) if source.is_file() else filter(is_source, sorted(source.iterdir()))
            found = [(stem(path), path) for path in paths]
    except FileNotFoundError as error:
        raise PairingError(f"sources.{modality}: {error}") from error
    except OSError as error:
        raise PairingError(f"sources.{modality}: {source} cannot be read ({error.strerror})") from error
    if not found:
        raise PairingError(f"sources.{modality}: {source} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    named: dict[str, list[Path]] = {}
    for name, path in found:
        named.setdefault(name, []).append(path)
    return named


def _matching(pattern: Path) -> list[tuple[str, Path]]:
    """What ``{name}`` stands for in each file that fits a pattern, in one part of the path or several."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if "{name}" in part)
    root, inner = Path(*parts[:first]), "/".join(parts[first:])
    before, *others = map(re.escape, inner.split("{name}"))
    regex = re.compile(f"{before}(?P<name>[^/]+){'(?P=name)'.join(others)}", re.DOTALL)
    paths = sorted(root.glob(glob.escape(inner).replace("{name}", "*")))
    matches = ((regex.fullmatch(path.relative_to(root).as_posix()), path) for path in paths)
    return [(match["name"], path) for match, path in matches if match]


def read_manifest(path: Path) -> list[Pair]:
    """Pairs that a CSV table lists: a column ``name`` and one for each modality, empty where a scene has none.

    Relative paths start at the table's folder. Without a column ``name`` a row is called after its first file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            table = csv.DictReader(file)
            modalities = [column for column in table.fieldnames or [] if column and column != "name"]
            rows = list(table)
    except (OSError, csv.Error) as error:
        raise PairingError(f"manifest: {path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(modalities) < 2 or not rows:
        raise PairingError(f"manifest: {path} needs a line of modalities, as name,visible,infrared, and rows under it")
    pairs: dict[str, Pair] = {}
    for number, row in enumerate(rows, 2):
        place = f"{path}, line {number}"
        files = {modality: path.parent / row[modality] for modality in modalities if row[modality]}
        first = stem(next(iter(files.values()))) if files else f"line {number}"
        pair = _checked(Pair(row.get("name") or first, files), place)
        if pair.name in pairs:
            pair = replace(pairs[pair.name], problem=f"{place}: {pair.name} stands there twice")
        pairs[pair.name] = pair
    return [pairs[name] for name in sorted(pairs)]


def find_stacks(root: Path) -> list[Pair]:
    """One stack for each folder under ``root``: its images in order of name are the sources 1, 2, …"""
    if not root.is_dir():
        raise PairingError(f"stacks: no such folder: {root}")
    pairs = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        images = enumerate(filter(is_source, sorted(folder.iterdir())), 1)
        pairs.append(_checked(Pair(folder.name, {str(k): path for k, path in images}), str(folder)))
    if not pairs:
        raise PairingError(f"stacks: {root} holds no folder of images")
    return pairs


def _checked(pair: Pair, place: str) -> Pair:
    """Notes what is wrong with a row of a manifest or with a stack."""
    if Path(pair.name).name != pair.name or pair.name in (".", ".."):
        return replace(pair, name=Path(pair.name).name or place, problem=f"{place}: name '{pair.name}' is no file name")
    problem = f"{place}: {pair.name} has {len(pair.files)} of at least 2 sources" if len(pair.files) < 2 else ""
    return replace(pair, problem=problem)


def expand(pairs: Sequence[Pair], sequence: bool = False) -> list[Pair]:
    """Videos and volumes become a series of pairs, ``NAME_000000`` and so on; with ``sequence`` all pairs are one."""
    frames: list[Pair] = []
    for pair in pairs:
        try:
            counts = {modality: frame_count(file) for modality, file in pair.files.items()}
        except ImageError as error:
            frames.append(replace(pair, problem=pair.problem or str(error)))
            continue
        lengths = set(counts.values())
        if pair.problem or lengths <= {None}:
            frames.append(pair)
        elif len(lengths) > 1:
            told = ", ".join(f"{pair.files[m]} {'an image' if n is None else f'{n} frames'}" for m, n in counts.items())
            frames.append(replace(pair, problem=f"{pair.name}: sources differ in length: {told}"))
        else:
            count = lengths.pop() or 0
            frames += as_series([replace(pair, name=f"{pair.name}_{i:06d}", frame=i) for i in range(count)], pair.name)
    return as_series(frames, "sequence") if sequence else frames


def as_series(pairs: Sequence[Pair], name: str) -> list[Pair]:
    """Pairs as frames of one series, with nine of them, evenly spread, by which its range is found."""
    some = [pairs[i * (len(pairs) - 1) // 8] for i in range(9)]
    found = {
        modality: tuple(dict.fromkeys((one.files[modality], one.frame) for one in some if modality in one.files))
        for modality in set().union(*(pair.files for pair in pairs))
    }
    return [replace(pair, series=name, probes=found) for pair in pairs]


def extra_files(sources: Mapping[str, str]) -> list[Path]:
    """Files in the sources' folders that are not read as images."""
    folders = [Path(source) for source in sources.values() if Path(source).is_dir()]
    return [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file() and not is_source(path)]
