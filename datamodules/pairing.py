"""Which files belong together: K sources of one scene, by file name, pattern, manifest or folder."""

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from datamodules.folders import Named, example_pattern, is_run, left_out, named_files, safe_names, video_map
from datamodules.naming import by_table, folded, name_scenes
from datamodules.picture import check_regular
from datamodules.readers.medical import is_medical, is_mixed
from datamodules.readers.pixels import located, table_of
from datamodules.readers.source import Probes, frame_count, is_source, medical_grid, real, stem
from datamodules.readers.thermal import both_from_one
from datamodules.words import by_words
from dig2dig.config import InferConfig
from dig2dig.errors import ImageError, PairingError

MASK = "mask"  # column of a manifest, and key of a pair's files: where the targets of a training pair are


def check_modalities(place: str, names: Collection[str]) -> None:
    """Refuses names that could be more than one part of a file's name."""
    for name in names:
        if not re.fullmatch(r"[\w-]{1,64}", name):
            raise PairingError(f"{place}: {name!r} is no modality: a word of letters, digits, _ and -")


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


Tell = Callable[[str], None]  # takes a line about how files were paired and what was left out


def silent(line: str) -> None:
    """Tells nothing."""


def scenes(config: InferConfig, tell: Tell = silent) -> list[Pair]:
    """All that the configuration asks to fuse, a pair for each frame of videos and volumes."""
    if config.manifest:
        pairs = [without_mask(pair) for pair in read_manifest(Path(config.manifest))]
    else:
        pairs = find_stacks(Path(config.stacks)) if config.stacks else find_pairs(config.sources, tell)
    found = expand(pairs, config.sequence, config.reference)
    config.check_names(name for pair in found for name in (*pair.files, *pair.missing))
    return part_of(found, config.shard)


def without_mask(pair: Pair) -> Pair:
    """A pair whose files are its sources alone; a mask is for training."""
    files = {modality: file for modality, file in pair.files.items() if modality != MASK}
    return replace(pair, files=files, missing=tuple(modality for modality in pair.missing if modality != MASK))


def part_of(pairs: list[Pair], shard: str) -> list[Pair]:
    """Part I of N, from ``I/N``: every N-th scene, a video or volume with all its frames."""
    index, count = map(int, shard.split("/"))
    scenes = {pair.name: pair.name if pair.frame is None else pair.series for pair in pairs}
    mine = {*list(dict.fromkeys(scenes.values()))[index - 1 :: count]}
    return [pair for pair in pairs if scenes[pair.name] in mine]


def find_pairs(sources: Mapping[str, str], tell: Tell = silent) -> list[Pair]:
    """Pairs the files of all sources by name, sorted.

    A source is a folder, a tree of folders or a text file that lists images; or a pattern as ``DIR/{name}_vis.png``,
    paired by what ``{name}`` stands for; or one file. Names are compared as in ``name_scenes``. One folder may be
    several sources if a word in the names tells them apart, as in ``by_words``. ``tell`` takes lines about how files
    were paired. It is a PairingError if a source does not exist, is given twice or holds no image, if single files and
    folders are mixed, or if names do not pair.
    """
    paths = {modality: Path(source) for modality, source in sources.items()}
    check_modalities("sources", paths)
    for modality, path in paths.items():
        if not _is_pattern(path) and not path.exists():
            raise PairingError(f"sources.{modality}: no such file or folder: {path}")
        twin = next((m for m, p in paths.items() if m != modality and real(p) == real(path)), None)
        if twin and (is_medical(path) or not path.is_dir()) and not both_from_one(path, modality, twin):
            raise PairingError(f"sources.{modality} and sources.{twin} are the same: {path}")
    many = [_is_pattern(path) or path.is_dir() or path.suffix.lower() == ".txt" for path in paths.values()]
    if all(is_medical(path) or not several for path, several in zip(paths.values(), many, strict=True)):
        return [Pair(stem(next(iter(paths.values()))), paths)]
    if any(map(is_medical, paths.values())) and (mixed := next(filter(is_mixed, paths.values()), None)):
        raise PairingError(f"{mixed}: holds more than one DICOM series, echo or phase; give a folder for each")
    if not all(many):
        told = "sources: give a folder for every modality or a file for every modality, not both"
        raise PairingError(f"{told}; of a video and a folder of frames, make the video a folder too")
    folders = [path for path in paths.values() if path.is_dir()]
    named = {modality: named_files(modality, path, folders) for modality, path in paths.items()}
    pairs = _grouped(_scenes_of(named, paths, tell))
    for line in left_out(sources) if tell is not silent else ():
        tell(line)
    return pairs


def _is_pattern(path: Path) -> bool:
    return "{name}" in str(path) and not path.exists()


def _scenes_of(named: dict[str, Named], paths: Mapping[str, Path], tell: Tell) -> dict[str, Named]:
    """The files of each source with the names of their scenes. PairingError: names do not pair."""
    told_apart = _told_apart(named, paths, tell)
    fixed = {modality for modality, path in paths.items() if _is_pattern(path)} | told_apart.keys()
    named = named | told_apart
    keys = _keys(named)
    try:
        naming = by_table(keys, video_map(paths.values())) or name_scenes(keys, fixed)
    except PairingError as error:
        raise PairingError(_advice(str(error), named, paths, fixed)) from error
    if naming.how:
        tell(naming.how)
    return {m: [(naming.scenes[m][name], path) for name, path in files] for m, files in named.items()}


def _keys(named: Mapping[str, Named]) -> dict[str, list[str]]:
    """The names of each source's files, each once."""
    return {modality: list(dict.fromkeys(name for name, _ in files)) for modality, files in named.items()}


def _told_apart(named: Mapping[str, Named], paths: Mapping[str, Path], tell: Tell) -> dict[str, Named]:
    """Of sources that are one folder, each one's own files with the names of their scenes."""
    groups: dict[str, dict[str, Named]] = {}
    for modality, path in paths.items():
        groups.setdefault(real(path), {})[modality] = named[modality]
    found: dict[str, Named] = {}
    for group in (group for group in groups.values() if len(group) > 1):
        one, two, *_ = group
        naming = by_words(_keys(group))
        if naming is None and both_from_one(paths[one], one, two):
            continue
        if naming is None:
            suffix, files = named[one][0][1].suffix, ", ".join(path.name for _, path in named[one][:2])
            raise PairingError(
                f"sources.{one} and sources.{two} are the same: {paths[one]}; no word in the names tells their files "
                f"apart ({files}); give a pattern for each, as sources.{one}='{paths[one]}/{{name}}_{one}{suffix}'"
            )
        for modality, scene in naming.scenes.items():
            found[modality] = [(scene[name], path) for name, path in group[modality] if name in scene]
        tell(naming.how)
        if naming.unused:
            count = len(naming.unused)
            tell(f"left out: {count} image{'s' * (count > 1)} without such a word, as {naming.unused[0]}")
    return found


def _advice(problem: str, named: Mapping[str, Named], paths: Mapping[str, Path], fixed: Collection[str]) -> str:
    """A line about names that do not pair, with an example of each side and the pattern to give."""
    given = f"sources: {problem} {', '.join(map(str, paths.values()))}"
    examples = ", ".join(f"{files[0][0]}{files[0][1].suffix}" for files in named.values())
    patterns = " ".join(f"sources.{m}={example_pattern(paths[m], named[m])}" for m in paths if m not in fixed)
    return f"{given} ({examples})" + f"; give patterns, as {patterns}, or manifest=TABLE.csv" * bool(patterns)


def _grouped(named: Mapping[str, Named]) -> list[Pair]:
    """The pairs; several files of a name are a mistake, which is reported later."""
    files: dict[str, dict[str, list[Path]]] = {}
    for modality, found in named.items():
        for name, path in found:
            files.setdefault(name, {}).setdefault(modality, []).append(path)
    names, pairs = safe_names(files), []
    for name in sorted(files, key=names.__getitem__):
        repeated = next((", ".join(map(str, paths)) for paths in files[name].values() if len(paths) > 1), "")
        problem = f"{names[name]}: which of {repeated}? keep one of them" if repeated else ""
        missing = tuple(modality for modality in named if modality not in files[name])
        first = {modality: paths[0] for modality, paths in files[name].items()}
        pairs.append(Pair(names[name], first, missing, problem))
    return pairs


def read_manifest(path: Path) -> list[Pair]:
    """Pairs of a table: a column ``name`` and one for each modality, parted by commas, semicolons or tabs.

    Relative paths start at the table's folder. Without a column ``name`` a row is called after its first file.
    """
    try:
        check_regular(path)
        table = table_of(path)
        table.fieldnames = [re.sub("(?i)^name$", "name", column.strip()) for column in table.fieldnames or []]
        modalities = [column for column in table.fieldnames if column and column != "name"]
        rows = [(table.line_num, row) for row in table if any(row.values())]  # Excel adds rows of commas
    except ImageError as error:
        raise PairingError(f"manifest: {error}") from error
    except (OSError, csv.Error, UnicodeError) as error:
        raise PairingError(f"manifest: {path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    check_modalities(f"manifest: {path}", modalities)
    if len(modalities) < 2 or not rows:
        raise PairingError(f"manifest: {path} needs a line of modalities, as name,visible,infrared, and rows under it")
    pairs: dict[str, Pair] = {}
    for number, row in rows:
        place = f"{path}, line {number}"
        files = {modality: located(path, text) for modality in modalities if (text := (row[modality] or "").strip())}
        first = stem(next(iter(files.values()))) if files else f"line {number}"
        pair = _checked(Pair((row.get("name") or "").strip() or first, files), place)
        if None in row:
            pair = replace(pair, problem=f"{place}: more fields than columns")
        if pair.name in pairs:
            pair = replace(pairs[pair.name], problem=f"{place}: {pair.name} stands there twice")
        pairs[pair.name] = pair
    return [pairs[name] for name in sorted(pairs)]


def find_stacks(root: Path) -> list[Pair]:
    """One stack for each folder under ``root``: its images in order of name are the sources 1, 2, …"""
    if not root.is_dir():
        raise PairingError(f"stacks: no such folder: {root}")
    pairs = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != "." and not is_run(path)):
        order = sorted(folder.iterdir(), key=lambda path: (re.sub(r"\d+", lambda n: n[0].zfill(40), path.name), path))
        images = [*filter(is_source, order)]
        pair = _checked(Pair(folder.name, {str(k): path for k, path in enumerate(images, 1)}), str(folder))
        twins = next((f"{a}, {b}" for a, b in pairwise(images) if stem(a) == stem(b)), "")  # as raw and JPEG
        pairs.append(replace(pair, problem=f"{folder}: which of {twins}? keep one of them") if twins else pair)
    if not pairs:
        raise PairingError(f"stacks: {root} holds no folder of images")
    return pairs


def _checked(pair: Pair, place: str) -> Pair:
    """Notes what is wrong with a row of a manifest or with a stack."""
    if Path(pair.name).name != pair.name or pair.name in (".", "..") or "\0" in pair.name:
        return replace(pair, name=Path(pair.name).name or place, problem=f"{place}: name '{pair.name}' is no file name")
    few = f"{place}: {pair.name} has {(count := len(pair.files.keys() - {MASK}))} of at least 2 sources"
    few += "" if pair.files else "; folders that hold a source each are given as sources.NAME=DIR"
    return replace(pair, problem=few if count < 2 else "")


def expand(pairs: Sequence[Pair], sequence: bool = False, reference: str = "") -> list[Pair]:
    """Videos and volumes become a series of pairs, ``NAME_000000`` and so on; with ``sequence`` the others are one.

    Volumes that tell where they lie have the slices of the reference.
    """
    frames: list[Pair] = []
    for pair in pairs:
        try:
            onto = medical_grid(pair.files, reference)
            counts = {modality: frame_count(file, onto) for modality, file in pair.files.items()}
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
            some = [replace(pair, name=f"{pair.name}_{i:06d}", frame=i) for i in range(count)]
            frames += as_series(some, pair.name, own_slices(pair, count))
    if sequence and (stills := [one for one in frames if one.frame is None]):
        series = iter(as_series(stills, "sequence"))
        frames = [next(series) if one.frame is None else one for one in frames]
    return _apart(frames)


def _apart(pairs: list[Pair]) -> list[Pair]:
    """Pairs whose results would have one name cannot be fused; names that differ in case are one on many disks."""
    scenes: dict[str, list[str]] = {}
    for name in [*(pair.name for pair in pairs), *({pair.series for pair in pairs} - {""})]:
        scenes.setdefault(folded(name), []).append(name)
    found = []
    for pair in pairs:
        names = scenes[folded(pair.name)]
        twins = f"{pair.name}: {' and '.join(names)} would be one file: rename one of them" if len(names) > 1 else ""
        found.append(replace(pair, problem=pair.problem or twins))
    return found


def own_slices(pair: Pair, count: int) -> dict[str, Probes]:
    """Slices, evenly spread, of the volumes of a pair that have another number of them than the reference."""
    counts = {modality: frame_count(file) or 1 for modality, file in pair.files.items()}
    spread = {modality: dict.fromkeys(i * (own - 1) // 8 for i in range(9)) for modality, own in counts.items()}
    return {m: tuple((pair.files[m], i) for i in frames) for m, frames in spread.items() if counts[m] != count}


def as_series(pairs: Sequence[Pair], name: str, own: Mapping[str, Probes] | None = None) -> list[Pair]:
    """Pairs as frames of one series, with nine of them, evenly spread, or ``own``, by which its range is found."""
    some = [pairs[i * (len(pairs) - 1) // 8] for i in range(9)]
    found = {
        modality: tuple(dict.fromkeys((one.files[modality], one.frame) for one in some if modality in one.files))
        for modality in set().union(*(pair.files for pair in pairs))
    }
    return [replace(pair, series=name, probes={**found, **(own or {})}) for pair in pairs]
