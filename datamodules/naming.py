"""Names of scenes from names of files that differ by source: one pattern for each source, found by itself."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from datamodules.words import Naming, by_words, split, vocabulary
from dig2dig.errors import PairingError

Keys = Mapping[str, Sequence[str]]
"""Of each modality the names of its files: the path under its source without suffix, parted by slashes."""


def folded(name: str) -> str:
    """A name in lower case; an accent is one letter with its own, as macOS does not have it."""
    return unicodedata.normalize("NFC", name).casefold()


def unpadded(name: str) -> str:
    """A name in lower case, its whole numbers without leading zeros."""
    return re.sub(r"(?<![\d.])0+(?=\d)", "", folded(name))


FOLDS: tuple[tuple[Callable[[str], str], str], ...] = (
    (str, ""),
    (folded, "upper and lower case count as equal"),
    (unpadded, "leading zeros and upper and lower case do not count"),
)
"""Which names count as equal, from strict to loose, and the line about it."""

Scope = Literal["path", "file", "flat"]
"""What is cut: the path under the source, its last part, or that and all folders."""

SOME = 50  # names that are compared first


@dataclass(frozen=True)
class Cut:
    """What is cut off the names of one source; the name of the scene is left."""

    prefix: str = ""
    suffix: str = ""
    scope: Scope = "path"

    def rest(self, key: str) -> str:
        """What is left of a name."""
        folder, slash, name = ("", "", key) if self.scope == "path" else key.rpartition("/")
        name = name[len(self.prefix) : len(name) - len(self.suffix)]
        return f"{folder}{slash}{name}" if self.scope == "file" else name

    @property
    def pattern(self) -> str:
        """What the names look like."""
        return f"{'' if self.scope == 'path' else '**/'}{self.prefix}{{name}}{self.suffix}"

    @property
    def folders(self) -> str:
        """The folders that are cut off."""
        return "/".join(affix.rpartition("/")[0] for affix in (self.prefix, self.suffix))

    @property
    def cost(self) -> int:
        """How much is cut off."""
        return len(self.prefix) + len(self.suffix) + (self.scope == "flat")


@dataclass(frozen=True)
class Link:
    """One way to pair a source with the first one."""

    fold: int  # which names count as equal, a number in FOLDS
    first: Cut
    cut: Cut
    pairs: Mapping[str, str]  # names of the first source by names of this one


def name_scenes(keys: Keys, fixed: Collection[str] = ()) -> Naming:
    """Names the scene of each file.

    Equal names are one scene. Where no name stands in two sources, one pattern for each source is found, or words as
    ``vis`` and ``ir`` tell the sources apart. Nothing is cut off the names of ``fixed`` sources, which a pattern gave.
    PairingError, without the sources' paths: no pattern fits, or two contradict each other.
    """
    same = {modality: {key: key for key in names} for modality, names in keys.items()}
    counts = Counter(key for names in same.values() for key in names)
    if all(count == len(keys) for count in counts.values()):
        return Naming(same)
    joined = {modality: names for modality, names in keys.items() if any(counts[key] > 1 for key in names)}
    if joined:
        return _some_same(keys, fixed, joined, same)
    naming = infer(keys, fixed) or (None if fixed else by_words(keys))
    if naming is None or any(len(naming.scenes[modality]) < len(names) for modality, names in same.items()):
        raise PairingError("no file name stands in two of")
    return naming


def by_table(keys: Keys, table: Mapping[str, str]) -> Naming | None:
    """Names scenes of two sources by a table of names; None where it pairs none of them."""
    back = {value: key for key, value in table.items()}
    scenes: dict[str, dict[str, str]] = {}
    for modality, names in keys.items():
        last = {name: name.rpartition("/")[2] for name in names}
        scenes[modality] = {name: one if one in table else back.get(one, name) for name, one in last.items()}
    known = [{*names.values()} & table.keys() for names in scenes.values()]
    both = set.intersection(*known)
    equal = any(len(set(group)) < len(group) for group in (list(names.values()) for names in scenes.values()))
    return Naming(scenes, "paired by the table beside the sources") if both and not equal else None


def _some_same(keys: Keys, fixed: Collection[str], joined: Keys, same: Mapping[str, dict[str, str]]) -> Naming:
    """Names where those of ``joined`` sources stand in another: a looser comparison and patterns may join the rest."""
    equal = set.intersection(*(set(names) for names in joined.values()))
    if len(keys) == 2 and 2 * len(equal) <= min(map(len, keys.values())):
        naming = infer(keys, fixed)
        if naming and any(len({names[key] for names in naming.scenes.values()}) > 1 for key in equal):
            raise PairingError("a pattern contradicts the few equal names in")
    naming = infer(joined, joined)
    scenes, how = (naming.scenes, naming.how) if naming else ({modality: same[modality] for modality in joined}, "")
    known = sorted({name for names in scenes.values() for name in names.values()})
    for modality in keys.keys() - joined.keys():
        naming = infer({"": known, modality: keys[modality]}, {"", *fixed})
        scenes[modality] = naming.scenes[modality] if naming else same[modality]
        how = "; ".join(filter(None, [how, naming and f"{modality}: {naming.how}"]))
    return Naming({modality: scenes[modality] for modality in keys}, how)


def infer(keys: Keys, fixed: Collection[str] = ()) -> Naming | None:
    """Finds the pattern of each source with which most names pair, the one that cuts least; None if there is none.

    All patterns that fit must agree on the pairs, else it is a PairingError.
    """
    first, *others = keys
    found = {other: links(keys, first, other, fixed) for other in others}
    ways: dict[tuple[int, Cut], dict[str, Link]] = {}
    for other, fitting in found.items():
        for link in sorted(fitting, key=_rank):  # the best one last
            ways.setdefault((link.fold, link.first), {})[other] = link
    complete = [way for way in ways.values() if len(way) == len(others)]
    if not complete:
        return None
    best = max(complete, key=lambda way: [sum(parts) for parts in zip(*map(_rank, way.values()), strict=True)])
    for other, link in best.items():
        if twin := next((twin for twin in found[other] if not twin.pairs.items() <= link.pairs.items()), None):
            patterns = " or ".join(f"{one.first.pattern}, {one.cut.pattern}" for one in (link, twin))
            raise PairingError(f"names pair in two ways, as {patterns}, in")
    one = best[others[0]]
    return _named(keys, {first: one.first} | {other: link.cut for other, link in best.items()}, one.fold)


def _rank(link: Link) -> tuple[int, int, int]:
    """Many pairs, then a strict comparison, then long names of scenes."""
    return len(link.pairs), -link.fold, -link.first.cost - link.cut.cost


def _named(keys: Keys, cuts: Mapping[str, Cut], fold: int) -> Naming:
    """The scenes that patterns give; a scene is called as in its first source."""
    compare, line = FOLDS[fold]
    called: dict[str, str] = {}
    scenes: dict[str, dict[str, str]] = {}
    for modality, names in keys.items():
        rests = {key: cuts[modality].rest(key) for key in names}
        scenes[modality] = {key: called.setdefault(compare(rest), rest) for key, rest in rests.items()}
    patterns = ", ".join(cut.pattern for modality, cut in cuts.items() if modality)
    how = f"paired by {{name}} in {patterns}" if any(cut.cost for cut in cuts.values()) else "paired by name"
    return Naming(scenes, f"{how}; {line}" if line else how * (how != "paired by name"))


def links(keys: Keys, first: str, other: str, fixed: Collection[str]) -> list[Link]:
    """All ways in which names of a source pair with those of the first: more than half of them, and plausibly."""
    words = vocabulary(modality for modality in keys if modality)
    sides = []
    for modality in (first, other):
        own = {word for word, owner in words.items() if owner == modality}
        nested = all("/" not in key for another, names in keys.items() if another != modality for key in names)
        sides.append((own, tables(keys[modality], modality in fixed, nested)))
    (words_a, tables_a), (words_b, tables_b) = sides
    found = []
    for fold, a, left, some in tables_a:
        for other_fold, b, right, others in tables_b:
            few, many = (some, right) if len(left) <= len(right) else (others, left)
            if fold != other_fold or not any(name in many for name in few):
                continue
            pairs = {right[name]: left[name] for name in left.keys() & right.keys()}
            enough = 2 * len(pairs) > min(len(left), len(right))
            if enough and plausible(a, b, words_a, words_b, len(pairs)):
                found.append(Link(fold, a, b, pairs))
    return found


def tables(names: Sequence[str], fixed: bool, nested: bool) -> list[tuple[int, Cut, dict[str, str], list[str]]]:
    """Names by what each comparison and each cut leaves of them, and a few of these; those that stay unlike."""
    found = []
    scopes: list[Scope] = ["file", "flat"] if nested else ["file"]
    inner = [cut for scope in scopes for cut in cuts(names, scope)] if any("/" in name for name in names) else []
    for cut in [Cut()] if fixed else cuts(names) + inner:
        for fold, (compare, _) in enumerate(FOLDS):
            rests = {compare(cut.rest(name)): name for name in names}
            if len(rests) == len(names) and all(map(usable, rests)):
                found.append((fold, cut, rests, list(rests)[:: len(rests) // SOME + 1]))
    return found


def usable(name: str) -> bool:
    """Whether a scene may be called so."""
    return any(map(str.isalnum, name)) and name[0] not in "./" and name[-1] != "/"


def cuts(names: Sequence[str], scope: Scope = "path") -> list[Cut]:
    """What can be cut off names: parts with which all begin and end; at least one part is left."""
    parts = [split(name if scope == "path" else name.rpartition("/")[2]) for name in names]
    start, end = _common(parts), _common([part[::-1] for part in parts])
    least, one = min(map(len, parts)), parts[0]
    found = []
    for a in range(min(start, least - 1) + 1):
        for b in range(min(end, least - 1 - a) + 1):
            joint = (0 < a < start and not one[a].isalnum()) or (0 < b < end and not one[-1 - b].isalnum())
            cut = Cut("".join(one[:a]), "".join(one[len(one) - b :]), scope)
            torn = balanced(names[0]) and not balanced(cut.rest(names[0]))  # as 1) of "visible (1)"
            if not joint and not torn:  # a mark between two parts goes with the part
                found.append(cut)
    return found


def balanced(name: str) -> bool:
    """Whether each bracket of a name has its other half."""
    return name.count("(") == name.count(")")


def _common(parts: Sequence[Sequence[str]]) -> int:
    """How many parts all begin with."""
    columns = enumerate(zip(*parts, strict=False))
    return next((i for i, column in columns if len({*column}) > 1), min(map(len, parts)))


def plausible(a: Cut, b: Cut, words_a: Collection[str], words_b: Collection[str], count: int) -> bool:
    """Whether what is cut off two sources tells the sources apart, not the scenes."""
    affixes = [[part for part in split(f"{cut.prefix}/{cut.suffix}") if part.isalnum()] for cut in (a, b)]
    sides = zip(affixes, (words_a, words_b), strict=True)
    meant = all(part.casefold() in own for parts, own in sides for part in parts)
    long = [[part for part in parts if part.isdigit() and len(part) > 2] for parts in affixes]
    if long[0] != long[1] or (count < 2 and not meant):  # dates, running numbers; a single pair proves nothing
        return False
    folders = [[part for part in split(cut.folders) if part.isalnum() and part.casefold() not in own]
               for cut, own in ((a, words_a), (b, words_b))]  # fmt: skip
    return not all(folders) or folders[0] == folders[1]
