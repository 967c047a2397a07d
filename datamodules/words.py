"""Words in names of files that tell sources apart: ``vis`` and ``ir``, the name of a modality, a band's number."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

USUAL = (
    {"visible", "vis", "vi", "v", "rgb", "color", "colour"},
    {"infrared", "ir", "lwir", "thermal", "thermal_8_bit", "tir", "t"},
)
"""Words that mean one modality."""

LONGEST = 5  # parts of a word, as in thermal_8_bit
BORDERS = re.compile(
    r"(?<=\d)(?=\D)|(?<=\D)(?=\d)|(?<=[^\W_])(?=[\W_])|(?<=[\W_])(?=[^\W_])|(?<=[a-z])(?=[A-Z])|(?=/)|(?<=/)"
)


@dataclass(frozen=True)
class Naming:
    """The scenes of files."""

    scenes: dict[str, dict[str, str]]  # of each modality the name of the scene by name of the file
    how: str = ""  # how they were found, in a line; empty if by equal names
    unused: list[str] = field(default_factory=list)  # names of files that belong to no source


def split(name: str) -> list[str]:
    """A name in parts: letters, whole numbers and what stands between them; ``imgIR_01`` has img, IR, _ and 01."""
    return [part for part in BORDERS.split(name) if part]


def vocabulary(modalities: Iterable[str]) -> dict[str, str]:
    """The modality that a word means, of those that are there: its own name, its usual words, its number."""
    own = {modality.casefold(): modality for modality in modalities}
    words = dict(own)
    for usual in USUAL:
        if len(meant := usual & set(own)) == 1:
            words = dict.fromkeys(usual, own[meant.pop()]) | words
    for name, modality in own.items():
        if number := re.fullmatch(r"(?:source|band)[_-]?(\d+)", name):
            words.setdefault(number[1], modality)
    return words


def by_words(keys: Mapping[str, Sequence[str]]) -> Naming | None:
    """Tells sources apart by a word that stands at one place of all names; None if no place does, or two disagree.

    Each source has the files with its word. The name of the scene is the name without the word.
    """
    words = vocabulary(keys)
    places: dict[tuple[object, ...], dict[str, dict[str, str]]] = {}
    sides = {modality: set(names) for modality, names in keys.items()}
    for key in dict.fromkeys(key for names in keys.values() for key in names):
        for place, modality, rest in spots(key, words):
            if key in sides[modality]:
                places.setdefault(place, {}).setdefault(modality, {})[key] = rest
    ways = [(found, groups) for found in places.values() if (groups := joins(found, keys))]
    if not ways:
        return None
    found, groups = max(ways, key=lambda way: len(way[1]))
    if any(not set(others.values()) <= set(groups.values()) for _, others in ways):
        return None
    how = f"sources are told apart by a word in the name, as in {', '.join(groups[min(groups)])}"
    return Naming({modality: found[modality] for modality in keys}, how, left(found, keys))


def spots(key: str, words: Mapping[str, str]) -> Iterator[tuple[tuple[object, ...], str, str]]:
    """Each word in a name: where it stands, counted from both ends, the modality that it means, the name without it.

    A name is also given without all words of that modality, as 001 for visible/VIS_001.
    """
    parts = key.split("/")
    tokens = [split(part) for part in parts]
    found = [(i, j, k, modality) for i, some in enumerate(tokens) for j, k, modality in runs(some, words)]
    for i, j, k, modality in found:
        rests = {"": "/".join(filter(None, [*parts[:i], without(tokens[i], j, k), *parts[i + 1 :]]))}
        if sum(owner == modality for *_, owner in found) > 1:
            rests["bare"] = "/".join(filter(None, (bared(part, modality, words) for part in parts)))
        for folder in (i, i - len(parts)) if i < len(parts) - 1 else (-1,):
            for place in (j, k - len(tokens[i]) - 1):
                for how, rest in rests.items():
                    yield (folder, place, how), modality, rest


def runs(tokens: Sequence[str], words: Mapping[str, str]) -> Iterator[tuple[int, int, str]]:
    """The words among the parts of a name, each the longest that starts there: first part, part behind, modality."""
    for j in range(len(tokens)):
        for k in range(min(len(tokens), j + LONGEST), j, -1):
            if modality := words.get("".join(tokens[j:k]).casefold()):
                yield j, k, modality
                break


def without(tokens: Sequence[str], j: int, k: int) -> str:
    """A name without its parts j to k, and without a mark that joined them to the others."""
    before, after = tokens[:j], tokens[k:]
    if before and not before[-1].isalnum():
        before = before[:-1]
    elif after and not after[0].isalnum():
        after = after[1:]
    return "".join([*before, *after])


def bared(part: str, modality: str, words: Mapping[str, str]) -> str:
    """A part of a path without the words of a modality; a number stays."""
    tokens = split(part)
    for j, k, owner in runs(tokens, words):
        if owner == modality and not tokens[j].isdigit():
            return bared(without(tokens, j, k), modality, words)
    return part


def joins(found: Mapping[str, Mapping[str, str]], keys: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The files of each scene that a place of words pairs; none if it does not tell the sources apart."""
    if set(found) != set(keys) or any(len({*names.values()}) < len(names) for names in found.values()):
        return {}
    files = [{rest: key for key, rest in found[modality].items()} for modality in keys]
    if any(2 * len(files[0].keys() & other) <= min(len(files[0]), len(other)) for other in files[1:]):
        return {}
    groups = {rest: tuple(other[rest] for other in files) for rest in set.intersection(*map(set, files)) - {""}}
    letter = any(len(key) - len(rest) < 3 for rest, group in groups.items() for key in group)
    if letter and len(groups) == 1 and left(found, keys):  # a letter or a number may mean anything
        return {}
    return groups


def left(found: Mapping[str, Mapping[str, str]], keys: Mapping[str, Sequence[str]]) -> list[str]:
    """Names without a word of any source."""
    used = {key for names in found.values() for key in names}
    return sorted({key for names in keys.values() for key in names} - used)
