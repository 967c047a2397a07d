"""Names as people have them: layouts of data sets and cameras, and which files pair."""

import json
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.naming import name_scenes
from datamodules.pairing import find_pairs
from datamodules.words import by_words, split
from dig2dig.errors import PairingError
from tests.conftest import ROOT
from tests.corpus import picture
from tests.runs import rows, run, save

CASES = ROOT.parent / "shared" / "cases" / "naming"
APART = "sources are told apart by a word in the name, as in "
TWO = {"visible": "v", "infrared": "i"}
ONE = {"visible": "d", "infrared": "d"}
BANDS = {str(band): "d" for band in range(1, 6)}
Files = dict[str, tuple[str, ...]]
"""By name of the scene its files, in the order of the sources."""


def make(root: Path, files: Iterable[str]) -> None:
    """Tiny files; what is no PNG has only the name of its kind."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(root / file, format="PNG")


def pair(root: Path, sources: Mapping[str, str]) -> tuple[Files, list[str]]:
    """The scenes of sources under a folder, and the lines that a run prints."""
    lines: list[str] = []
    pairs = find_pairs({modality: str(root / source) for modality, source in sources.items()}, lines.append)
    assert not any(pair.problem for pair in pairs)
    files = {one.name: tuple(str(path.relative_to(root)) for path in one.files.values()) for one in pairs}
    return files, [line.replace(f"{root}/", "") for line in lines]


def both(pattern: str, *names: str, **sides: str) -> Files:
    """Files of two sources whose names differ in a word."""
    return {name: tuple(pattern.format(name=name, side=side) for side in sides.values()) for name in names}


LAYOUTS: dict[str, tuple[Mapping[str, str], Files, list[str]]] = {
    "equal": (TWO, both("{side}/{name}.png", "a", "b", v="v", i="i"), []),
    "prefixes": (
        TWO,
        {"001": ("v/VIS_001.png", "i/IR_001.png"), "002": ("v/VIS_002.png", "i/IR_002.png")},
        ["paired by {name} in VIS_{name}, IR_{name}"],
    ),
    "one prefixed pair": (
        TWO, {"001": ("v/VIS_001.png", "i/IR_001.png")}, ["paired by {name} in VIS_{name}, IR_{name}"]
    ),
    "suffixes": (
        TWO,
        {"a_1": ("v/a_1_vis.png", "i/a_1_ir.png"), "a_2": ("v/a_2_vis.png", "i/a_2_ir.png")},
        ["paired by {name} in {name}_vis, {name}_ir"],
    ),
    "longer on one side": (
        TWO,
        {n: (f"v/crop_LR_visible_{n}.png", f"i/crop_infrared_{n}.png") for n in ("1", "2")},
        ["paired by {name} in crop_LR_visible_{name}, crop_infrared_{name}"],
    ),
    "llvip": (
        {"visible": "visible", "infrared": "infrared"},
        {
            f"{part}_{n}": tuple(f"{side}/{part}/{n}.jpg" for side in ("visible", "infrared"))
            for part, n in (("test", "190001"), ("train", "010001"), ("train", "010002"))
        },
        [],
    ),
    "llvip, one root": (
        {"visible": ".", "infrared": "."},
        {f"train_{n}": tuple(f"{side}/train/{n}.jpg" for side in ("visible", "infrared")) for n in ("1", "2")},
        [f"{APART}visible/train/1, infrared/train/1"],
    ),
    "kaist": (
        {"visible": "images", "infrared": "images"},
        {
            f"set00_V{v}_I0000{i}": tuple(f"images/set00/V{v}/{side}/I0000{i}.jpg" for side in ("visible", "lwir"))
            for v in ("000", "001") for i in (0, 1)
        },
        [f"{APART}set00/V000/visible/I00000, set00/V000/lwir/I00000"],
    ),
    "kaist, patterns": (
        {"visible": "images/**/visible/{name}.jpg", "infrared": "images/**/lwir/{name}.jpg"},
        {
            f"set00_V00{v}_I00000": tuple(f"images/set00/V00{v}/{side}/I00000.jpg" for side in ("visible", "lwir"))
            for v in (0, 1)
        },
        [],
    ),
    "flir v1": (
        {"visible": "train/RGB", "infrared": "train/thermal_8_bit"},
        {"FLIR_00001": ("train/RGB/FLIR_00001.jpg", "train/thermal_8_bit/FLIR_00001.jpeg")},
        [],
    ),
    "flir v1, one root": (
        {"visible": "train", "infrared": "train"},
        {"FLIR_00001": ("train/RGB/FLIR_00001.jpg", "train/thermal_8_bit/FLIR_00001.jpeg")},
        [f"{APART}RGB/FLIR_00001, thermal_8_bit/FLIR_00001"],
    ),
    "m3fd": ({"visible": "Vis", "infrared": "Ir"}, both("{side}/{name}.png", "00001", "00002", v="Vis", i="Ir"), []),
    "m3fd, one root": (
        {"visible": ".", "infrared": "."},
        both("{side}/{name}.png", "00001", v="Vis", i="Ir"),
        [f"{APART}Vis/00001, Ir/00001"],
    ),
    "msrs": ({"visible": "vi", "infrared": "ir"}, both("{side}/{name}.png", "00004N", "00005N", v="vi", i="ir"), []),
    "roadscene": (
        {"visible": "crop_LR_visible", "infrared": "cropinfrared"},
        both("{side}/{name}.jpg", "FLIR_00006", v="crop_LR_visible", i="cropinfrared"),
        [],
    ),
    "dji": (
        ONE,
        both("d/{name}_{side}.JPG", "DJI_0001", "DJI_0002", v="V", i="T"),
        [f"{APART}DJI_0001_V, DJI_0001_T"],
    ),
    "dji, one scene": (ONE, both("d/{name}_{side}.JPG", "DJI_0001", v="V", i="T"), [f"{APART}DJI_0001_V, DJI_0001_T"]),
    "dji, times": (
        ONE,
        both("d/{name}_{side}.JPG", "DJI_20230101120000_0001", "DJI_20230101120000_0002", v="V", i="T"),
        [f"{APART}DJI_20230101120000_0001_V, DJI_20230101120000_0001_T"],
    ),
    "micasense": (
        BANDS,
        {f"IMG_000{i}": tuple(f"d/IMG_000{i}_{band}.tif" for band in range(1, 6)) for i in (0, 1)},
        [f"{APART}IMG_0000_1, IMG_0000_2, IMG_0000_3, IMG_0000_4, IMG_0000_5"],
    ),
    "numbered sources": (
        {"source_1": "d", "source_2": "d"},
        both("d/{name}_{side}.tif", "IMG_0000", "IMG_0001", v="1", i="2"),
        [f"{APART}IMG_0000_1, IMG_0000_2"],
    ),
    "own names": (
        {"CT": "d", "MRI": "d"}, both("d/{name}-{side}.png", "1", "2", v="CT", i="MRI"), [f"{APART}1-CT, 1-MRI"]
    ),
    "folders and prefixes": (
        ONE, {"7": ("d/visible/VIS_7.png", "d/infrared/IR_7.png")}, [f"{APART}visible/VIS_7, infrared/IR_7"]
    ),
    "camel case": (
        ONE, {f"img{n}": (f"d/imgRGB{n}.png", f"d/imgIR{n}.png") for n in (1, 2)}, [f"{APART}imgRGB1, imgIR1"]
    ),
    "folder of each scene": (ONE, both("d/{name}/{side}.png", "1", "2", v="vis", i="ir"), [f"{APART}1/vis, 1/ir"]),
    "case": (
        TWO,
        {"A": ("v/A.PNG", "i/a.png"), "b": ("v/b.png", "i/B.png")},
        ["paired by name; upper and lower case count as equal"],
    ),
    "zeros": (
        TWO,
        {"1": ("v/1.png", "i/001.png"), "10": ("v/10.png", "i/010.png"), "100": ("v/100.png", "i/100.png")},
        ["paired by name; leading zeros and upper and lower case do not count"],
    ),
    "prefixes and zeros": (
        TWO,
        {"1": ("v/VIS_1.png", "i/IR_001.png"), "100": ("v/VIS_100.png", "i/IR_100.png")},
        ["paired by {name} in VIS_{name}, IR_{name}; leading zeros and upper and lower case do not count"],
    ),
    "a flat folder and a tree": (
        TWO, {"1": ("v/1.png", "i/a/1.png"), "2": ("v/2.png", "i/b/2.png")}, ["paired by {name} in {name}, **/{name}"]
    ),
    "prefixes in trees": (
        TWO,
        {"a_1": ("v/a/cat_1.png", "i/a/dog_1.png"), "b_1": ("v/b/cat_1.png", "i/b/dog_1.png")},
        ["paired by {name} in **/cat_{name}, **/dog_{name}"],
    ),
    "names that would be equal without folders": (
        TWO, {"a__b_c": ("v/a/b_c.png", "i/a/b_c.png"), "a_b__c": ("v/a_b/c.png", "i/a_b/c.png")}, []
    ),
    "a source inside another": (
        {"visible": "d", "infrared": "d/ir"},
        {"1": ("d/vis/1.png", "d/ir/1.png")},
        ["paired by {name} in **/{name}, {name}"],
    ),
    "masks": (
        {**TWO, "mask": "m"},
        {n: (f"v/{n}.png", f"i/{n}.png", f"m/{n}_mask.png") for n in ("1", "2")},
        ["mask: paired by {name} in {name}_mask"],
    ),
    "three patterns": (
        {**TWO, "mask": "m"},
        {n: (f"v/VIS_{n}.png", f"i/IR_{n}.png", f"m/{n}_mask.png") for n in ("1", "2")},
        ["paired by {name} in VIS_{name}, IR_{name}, {name}_mask"],
    ),
}  # fmt: skip
"""Sources, the scenes with all their files, and the lines that are printed."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    sources, files, told = LAYOUTS[layout]
    make(tmp_path, (file for group in files.values() for file in group))
    assert pair(tmp_path, sources) == (files, told)
    assert pair(tmp_path, dict(reversed([*sources.items()])))[0].keys() <= {*files, "001", "010", "a", "B"}


REFUSED: dict[str, tuple[Mapping[str, str], list[str], str]] = {
    "nothing in common": (TWO, ["v/a.png", "i/b.png"], "no file name stands in two of"),
    "other numbers": (TWO, [f"v/V_{n}.png" for n in "135"] + [f"i/T_{n}.png" for n in "246"], "no file name"),
    "a minority": (TWO, [f"v/x_{n}.png" for n in "12345"] + [f"i/y_{n}.png" for n in "56789"], "no file name"),
    "one pair with other words": (TWO, ["v/cat_001.png", "i/dog_001.png"], r"'v/cat_\{name\}.png'"),
    "the pattern to give": (
        TWO, ["v/cat_001.png", "i/dog_001.png"],
        r"^sources: no file name stands in two of v, i \(cat_001.png, dog_001.png\); give patterns, as "
        r"sources.visible='v/cat_\{name\}.png' sources.infrared='i/dog_\{name\}.png', or manifest=TABLE.csv$",
    ),
    "other days": (TWO, [f"v/20230101_{n}.png" for n in "12"] + [f"i/20240202_{n}.png" for n in "12"], "no file name"),
    "other sequences": (TWO, [f"{v}{n}.png" for v in ("v/seqA/", "i/seqB/") for n in "123"], r"v/\*\*/\{name\}"),
    "flir v2 without its table": (
        TWO,
        [f"{video}-frame-001{n}-{x}{n}t.jpg" for video, x in (("v/video-Bz", "C"), ("i/video-5R", "Q")) for n in "123"],
        "manifest=TABLE.csv",
    ),
    "two ways": (
        TWO, [f"v/{'_'.join('5' * n)}.png" for n in (1, 2, 3)] + [f"i/{'_'.join('5' * n)}_b.png" for n in (2, 3, 4)],
        r"names pair in two ways, as .* in v, i \(5.png, 5_5_5_5_b.png\)",
    ),
    "few equal names": (
        TWO, ["v/1_2.png", "v/2_2.png", "v/3_2.png", "i/1_1.png", "i/1_2.png", "i/1_3.png"], "contradicts the few equal"
    ),
    "one folder, no word": (ONE, ["d/a.png", "d/b.png"], "are the same: d; no word .*'d/{name}_visible.png'"),
    "running numbers": (
        {"source_1": "d", "source_2": "d"}, [f"d/IMG_{n}.png" for n in "12345"], "are the same: d; no word"
    ),
    "number or band": (
        {"1": "d", "2": "d"}, [f"d/{n}_{band}.png" for n in "12" for band in "12"], "are the same: d; no word"
    ),
    "only one word": (ONE, ["d/1.png", "d/1_ir.png"], "are the same: d; no word"),
    "one letter": (ONE, ["d/plan_t.png", "d/plan_v.png", "d/plan_w.png"], "are the same: d; no word"),
}  # fmt: skip


@pytest.mark.parametrize("layout", REFUSED)
def test_doubt_is_one_line(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, files, line = REFUSED[layout]
    make(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PairingError, match=line) as caught:
        find_pairs(sources)
    assert "\n" not in str(caught.value)


def test_the_pattern_to_give_pairs(tmp_path: Path) -> None:
    make(tmp_path, ["v/cat_001.png", "i/dog_001.png"])
    files, _ = pair(tmp_path, {"visible": "v/cat_{name}.png", "infrared": "i/dog_{name}.png"})
    assert files == {"001": ("v/cat_001.png", "i/dog_001.png")}


def test_numbers_in_brackets_are_whole(tmp_path: Path) -> None:
    """As Windows' Explorer numbers files."""
    make(tmp_path, [f"{side[0]}/{side} ({n}).png" for side in ("visible", "thermal") for n in (1, 2)])
    files, _ = pair(tmp_path, {"visible": "v", "infrared": "t"})
    assert set(files) <= {"1", "2", "(1)", "(2)"} and len(files) == 2
    for one, other in (("cam(1)_{n}", "flir_{n}"), ("{n}_rgb(cal)", "{n}_tir"), ("a(b_{n}", "c_{n}")):
        folder = tmp_path / one[:2].strip("{")
        make(
            folder,
            [f"{side}/{name.format(n=f'00{i}')}.png" for side, name in (("v", one), ("i", other)) for i in (1, 2)],
        )
        files, _ = pair(folder, {"visible": "v", "infrared": "i"})
        assert set(files) == {"001", "002"}


def test_flir_v2_pairs_by_its_table(tmp_path: Path) -> None:
    table = {f"video-Bz-frame-{n}-S{n}R.jpg": f"video-5R-frame-{n}-h{n}x.jpg" for n in (10, 11)}
    rows = {Path(a).stem: (f"video_rgb_test/data/{a}", f"video_thermal_test/data/{b}") for a, b in table.items()}
    make(tmp_path, [file for row in rows.values() for file in row])
    make(tmp_path, ["video_rgb_test/data/video-Bz-frame-12-zz.jpg"])
    (tmp_path / "rgb_to_thermal_vid_map.json").write_text(json.dumps(table))
    for inner in ("", "/data"):
        files, told = pair(tmp_path, {"visible": f"video_rgb_test{inner}", "infrared": f"video_thermal_test{inner}"})
        assert {name: files[name] for name in rows} == rows and len(files) == 3
        assert told == ["paired by the table beside the sources"]


def test_files_left_out_are_told(tmp_path: Path) -> None:
    make(tmp_path, ["v/a.png", "i/a.png", "v/small/a.png", "v/.hidden/a.png"])
    for name in ("v/a.xyz", "v/b.xyz", "i/notes.txt", "i/LICENSE", "i/.DS_Store"):
        (tmp_path / name).write_text("x")
    _, told = pair(tmp_path, TWO)
    assert told == [
        "left out: 4 files that are no image (.xyz 2, .txt 1, no suffix 1)",
        "left out: sub-folders of v, which holds images itself: small",
    ]
    make(tmp_path, [f"d/DJI_000{n}_{lens}.JPG" for n in (1, 2) for lens in "VTW"])
    assert pair(tmp_path, ONE)[1][1] == "left out: 2 images without such a word, as DJI_0001_W"


def test_results_of_an_earlier_run_are_no_sources(tmp_path: Path) -> None:
    make(tmp_path, ["d/vis/1.png", "d/ir/1.png", "d/out/1_maps/vis/x.png", "d/out/1_maps/ir/x.png"])
    for name in ("run.yaml", "summary.csv"):
        (tmp_path / "d" / "out" / name).touch()
    assert list(pair(tmp_path, ONE)[0]) == ["1"]


def test_files_of_one_name_in_a_tree_are_reported(tmp_path: Path) -> None:
    make(tmp_path, ["v/s/VIS_1.png", "v/s/VIS_1.jpg", "v/s/VIS_2.png", "i/s/IR_1.png", "i/s/IR_2.png"])
    one, two = find_pairs({modality: str(tmp_path / source) for modality, source in TWO.items()})
    assert "which of" in one.problem and "VIS_1.jpg" in one.problem and not two.problem


def test_lists_of_nested_files_pair_by_path(tmp_path: Path) -> None:
    numbered = [(part, n) for part in ("test", "train") for n in (1, 2)]
    for side in ("vi", "ir"):
        make(tmp_path, [f"{part}/{side}/{n}.png" for part, n in numbered])
        (tmp_path / f"{side}.txt").write_text("\n".join(f"{part}/{side}/{n}.png" for part, n in numbered))
    files, _ = pair(tmp_path, {"visible": "vi.txt", "infrared": "ir.txt"})
    assert files == {f"{part}_{n}": (f"{part}/vi/{n}.png", f"{part}/ir/{n}.png") for part, n in numbered}


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (("prefix/VIS", "prefix/IR"), ["001"]),
        (("kaist/images", "kaist/images"), [f"set0{s}_V00{v}_I00000" for s in (0, 1) for v in (0, 1)]),
        (("llvip/visible", "llvip/infrared"), ["test_190001", "train_010001"]),
        (("llvip", "llvip"), ["test_190001", "train_010001"]),
    ],
)
def test_shared_cases(sources: tuple[str, str], names: list[str]) -> None:
    files, _ = pair(CASES, dict(zip(TWO, sources, strict=True)))
    assert list(files) == names and all(len(group) == 2 for group in files.values())


def test_numbers_are_never_cut() -> None:
    assert split("DJI_0010-imgIR/é7__x") == ["DJI", "_", "0010", "-", "img", "IR", "/", "é", "7", "__", "x"]
    found = name_scenes({"visible": ["V_10", "V_11"], "infrared": ["T_10", "T_11"]})
    assert found.scenes["visible"] == {"V_10": "10", "V_11": "11"}
    exposures = name_scenes({"a": ["0.5", "0.05"], "b": ["0.5", "0.05"]})
    assert exposures.scenes["a"] == {"0.5": "0.5", "0.05": "0.05"}
    with pytest.raises(PairingError):
        name_scenes({"a": ["x0.5"], "b": ["x0.05"]})
    assert by_words({"visible": ["p1", "p2"], "infrared": ["p1", "p2"]}) is None


AFFIX = st.from_regex(r"([A-Za-z]{1,5}[_ .-]){0,2}([A-Za-z]{0,4}|[A-Za-z]{1,3}\d{1,2}[_-])", fullmatch=True)
NUMBERS = st.sets(st.integers(0, 9999), min_size=1, max_size=12)


@settings(deadline=None, max_examples=300)
@given(st.tuples(AFFIX, AFFIX), st.tuples(AFFIX, AFFIX), NUMBERS, NUMBERS, NUMBERS, st.booleans())
def test_pairs_have_equal_numbers(
    left, right, shared: set[int], some: set[int], others: set[int], padded: bool
) -> None:
    """Whatever the prefixes and suffixes: names that pair have equal numbers; if most numbers are equal, all do."""
    some, others = some - shared, others - shared - some
    width = 4 if padded else 1

    def names(affixes: tuple[str, str], numbers: set[int]) -> dict[str, int]:
        prefix, suffix = affixes[0], affixes[1][::-1]
        return {f"{prefix}{number:0{width}d}{suffix}": number for number in sorted(numbers)}

    sides = {"a": names(left, shared | some), "b": names(right, shared | others)}
    enough = len(shared) > 1 and len(shared) > min(len(some), len(others))
    try:
        scenes = name_scenes({side: list(numbers) for side, numbers in sides.items()}).scenes
    except PairingError:
        assert not enough
        return
    first = {scene: sides["a"][name] for name, scene in scenes["a"].items()}
    pairs = {first[scene]: sides["b"][name] for name, scene in scenes["b"].items() if scene in first}
    assert all(one == other for one, other in pairs.items())
    assert not enough or pairs.keys() == shared


def test_a_run_prints_how_it_pairs_and_goes_on_by_the_same_names(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed, (side, prefix) in enumerate((("visible", "VIS"), ("infrared", "IR"))):
        for n in (1, 2):
            save(tmp_path / side / f"{prefix}_{n}.png", picture(10 * seed + n))
    (tmp_path / "visible" / "notes.txt").write_text("x")
    told = "paired by {name} in VIS_{name}, IR_{name}\nleft out: 1 file that is no image (.txt 1)\n"
    for before in ("", " (2 by an earlier run)"):
        assert run(tmp_path) == 0
        printed = capsys.readouterr()
        assert told in printed.err and f"2 fused{before}, 0 failed" in printed.out
    assert set(rows(tmp_path / "out")) == {"1", "2"}


def test_an_accent_is_one_letter_or_two(tmp_path: Path) -> None:
    for side, form in (("visible", "NFC"), ("infrared", "NFD")):
        make(tmp_path / side, [f"{unicodedata.normalize(form, name)}.png" for name in ("b", "é")])
    pairs = find_pairs({side: str(tmp_path / side) for side in ("visible", "infrared")})
    assert [(pair.name, pair.missing) for pair in pairs] == [("b", ()), ("é", ())]
