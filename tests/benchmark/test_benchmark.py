"""The benchmarks on small crops of the bundled examples, laid out as data sets are."""

import csv
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.stats import wilcoxon

from datamodules.pairing import Pair
from dig2dig.benchmark.__main__ import main
from dig2dig.benchmark.config import QualityConfig
from dig2dig.benchmark.datasets import Case, find_cases, read_case
from dig2dig.benchmark.gallery import worst
from dig2dig.benchmark.tables import Rows, collect, holm, paired
from dig2dig.errors import PairingError
from dig2dig.fusion import comparators
from dig2dig.metrics import MAIN
from tests.conftest import EXAMPLES


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two infrared-visible pairs with a peer that is the visible image, and two stacks of three exposures."""
    root = tmp_path_factory.mktemp("data")

    def write(source: Path, target: Path, top: int, side: int = 64) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)[top : top + side, 200 : 200 + side]
        cv2.imwrite(str(target), pixels)

    for name, top in (("a", 150), ("b", 250)):
        folder = root / "infrared_visible" / "Tiny"
        for side, kind in (("vi", "visible"), ("ir", "infrared"), ("peers/Visible", "visible")):
            write(EXAMPLES / "infrared_visible" / kind / "00036N.png", folder / side / f"{name}.png", top)
        for i, kind in enumerate(("dark", "middle", "bright")):
            stack = root / "multi_exposure" / "Stacks" / f"e{i + 1}" / f"{name}.png"
            write(EXAMPLES / "multi_exposure_stack" / kind / "Tower.png", stack, top)
    (root / "infrared_visible" / "Tiny" / "published_metrics").mkdir()
    write(EXAMPLES / "multi_focus" / "near" / "mountain.png", root / "multi_focus" / "one_scene" / "1.png", 0)
    return root


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


METHODS = "methods=dig2dig, static, ddfm, ddfm-unstretched, mean, laplacian, mertens, peers"


def quality(data: Path, out: Path, *more: str) -> int:
    short = "variants.short=sampler.weights=gain sampler.steps=2 research.draws=1"
    return main(["quality", f"data={data}", f"out={out}", METHODS, short, "crop=48", *more])


@pytest.mark.slow
def test_quality_end_to_end_and_again(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(comparators.ddfm, "__defaults__", ("code", 3))
    assert quality(data, tmp_path) == 0
    rows = table(tmp_path / "results.csv")
    methods = {(row["dataset"], row["method"]) for row in rows}
    assert ("Tiny", "Visible") in methods and ("Stacks", "mertens") in methods
    assert ("Stacks", "ddfm") not in methods and ("Tiny", "mertens") not in methods  # not made for these
    by_method = {row["method"]: row for row in rows if (row["name"], row["stretch"]) == ("a", "none")}
    assert all(float(row[name]) >= 0 for row in by_method.values() for name in ("EN", "SD", "VIF", "Nabf"))
    assert float(by_method["short"]["evaluations"]) < float(by_method["dig2dig"]["evaluations"])
    assert by_method["ddfm"]["seconds"] == by_method["ddfm-unstretched"]["seconds"]  # shared work
    assert {row["method"] for row in rows if row["stretch"] == "minmax"} == {m for _, m in methods} - {
        "ddfm-unstretched"
    }
    text = (tmp_path / "table.md").read_text()
    assert "K = " not in text  # one K for each task here
    assert "## ivf, all datasets (2 pairs or stacks)" in text and "# Stretch: minmax" in text
    page = (tmp_path / "report.html").read_text()
    assert page.count('<article class="card"') == 4 and page.count('data-label="ddfm-unstretched"') == 2
    assert f"{float(by_method['laplacian']['SD']):.4g}<sup" in page and 'data-label="Visible"' in page
    assert 'data-file="pictures/Tiny/dig2dig/a.png"' in page and "crop=48" in page

    pictures = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("pictures/**/*.png")}
    monkeypatch.setattr("dig2dig.benchmark.quality.merge", None)  # nothing may be fused again, and so nothing written
    assert quality(data, tmp_path, "metrics=all") == 0
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures
    more = table(tmp_path / "results.csv")
    assert len(more) == len(rows) and all(row["Qcb"] for row in more)
    assert [row["EN"] for row in more] == [row["EN"] for row in rows]


def test_a_stretch_moves_the_mean_but_not_what_is_stretched_already(data: Path, tmp_path: Path) -> None:
    assert main(["quality", f"data={data}", f"out={tmp_path}", "methods=mean", "datasets=Tiny", "limit=1"]) == 0
    none, minmax = sorted(table(tmp_path / "results.csv"), key=lambda row: row["stretch"], reverse=True)
    assert float(minmax["SD"]) > 1.1 * float(none["SD"])


def test_no_row_outlives_the_picture_that_it_is_about(data: Path, tmp_path: Path) -> None:
    """Options that were changed and changed back: the picture of the others is not taken for that of these."""
    chosen = ["quality", f"data={data}", f"out={tmp_path}", "methods=mean", "datasets=Tiny", "limit=1", "report=0"]
    assert main(chosen) == 0
    whole = table(tmp_path / "results.csv")
    assert main([*chosen, "crop=48", "stretch=none"]) == 0
    assert [row["stretch"] for row in table(tmp_path / "results.csv")] == ["none"]
    assert main(chosen) == 0
    assert [row["EN"] for row in table(tmp_path / "results.csv")] == [row["EN"] for row in whole]


def test_degraded_end_to_end(data: Path, tmp_path: Path) -> None:
    chosen = "methods=dig2dig-noise, mean, nlm+laplacian, prior+laplacian, prior+dig2dig"
    arguments = ["degraded", f"data={data}", f"out={tmp_path}", chosen, "datasets=ivf", "crop=48", "sigmas=25,50"]
    assert main(arguments) == 0
    rows = {(row["method"], row["name"], row["sigma"]): row for row in table(tmp_path / "results.csv")}
    assert len(rows) == 5 * 2 * 2
    for name in ("a", "b"):
        told, before = (float(rows[method, name, "25"]["PSNR"]) for method in ("dig2dig-noise", "prior+dig2dig"))
        assert before == pytest.approx(told, abs=0.5)
        clean, blind = (float(rows[method, name, "50"]["SSIM"]) for method in ("dig2dig-noise", "mean"))
        assert clean > blind
        noise = 20 * math.log10(255 / (25 / 2**0.5))  # of the mean of two sources; clipping takes some away
        assert noise - 0.3 < float(rows["mean", name, "25"]["PSNR"]) < noise + 3
        assert float(rows["dig2dig-noise", name, "25"]["PSNR"]) > float(rows["mean", name, "25"]["PSNR"])
    assert "best of 8" in (tmp_path / "table.md").read_text()


def test_what_fuses_two_sources_is_left_out_of_degraded_stacks(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(comparators.ddfm, "__defaults__", ("code", 1))
    chosen = ["methods=mean, ddfm, nlm+ddfm, ddfm-noise", "datasets=mef", "crop=16", "limit=1"]
    assert main(["degraded", f"data={data}", f"out={tmp_path}", *chosen]) == 0
    assert [row["method"] for row in table(tmp_path / "results.csv")] == ["mean"]


@pytest.mark.slow
def test_theory_end_to_end(tmp_path: Path) -> None:
    photos = EXAMPLES / "multi_focus" / "truth"
    assert main(["theory", f"data={photos}", f"out={tmp_path}", "crop=48", "variants.two=sampler.steps=2"]) == 0
    rows = {(row["scene"], row["method"]): row for row in table(tmp_path / "results.csv")}
    assert float(rows["defocus", "static"]["covariance"]) == pytest.approx(0, abs=1e-5)
    assert float(rows["defocus", "dig2dig"]["covariance"]) > 0.001
    assert float(rows["defocus", "dig2dig"]["psnr"]) > float(rows["defocus", "static"]["psnr"]) + 1
    assert "Rank correlation" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("methods=nothing", "no 'nothing'"),
        ("methods=", "methods= is empty"),
        ("reference=foo", "reference=foo is none of the methods"),
        ("methods=mean,peers reference=foo", "reference=foo: no picture is of it"),
        ("datasets=Atlantis", "has no Atlantis"),
        ("methods=peers:/nowhere", "no such folder"),
        ("variants.x=sampler.dig.kind=guess", "sampler.dig.kind"),
    ],
)
def test_mistakes_are_told_in_one_line(data: Path, tmp_path: Path, argument: str, line: str, capsys) -> None:
    try:
        code = main(["quality", f"data={data}", f"out={tmp_path}", "methods=mean", "limit=1", *argument.split()])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    told = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error:")]
    assert len(told) == 1 and line in told[0]


def test_a_bad_picture_stops_nothing(data: Path, tmp_path: Path, capsys) -> None:
    """A peer of another size and a pair that cannot be read are told; all else is in the table; the exit code is 1."""
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    tiny = copy / "infrared_visible" / "Tiny"
    shutil.copytree(tiny / "peers" / "Visible", tiny / "peers" / "Whole")
    cv2.imwrite(str(tiny / "peers" / "Visible" / "a.png"), np.zeros((9, 9), np.uint8))
    (tiny / "ir" / "b.png").write_bytes(b"no picture")
    chosen = ["methods=mean, peers", "stretch=none"]
    assert main(["quality", f"data={copy}", f"out={tmp_path / 'out'}", *chosen]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "failed:" in line]
    assert len(told) == 2 and "a.png" in told[0] and "b.png" in told[1]
    done = {(row["dataset"], row["name"], row["method"]) for row in table(tmp_path / "out" / "results.csv")}
    assert done == {("Tiny", "a", "mean"), ("Tiny", "a", "Whole"), ("Stacks", "a", "mean"), ("Stacks", "b", "mean")}


def test_marked_boxes_lie_where_they_lie_in_the_whole_picture(tmp_path: Path, capsys) -> None:
    """With a crop too, and in the pictures of others, which are whole; changed sources and boxes count anew."""
    rng, root = np.random.default_rng(0), tmp_path / "data" / "infrared_visible" / "Marked"
    visible, infrared = (rng.integers(40, 60, (96, 128), np.uint8) for _ in range(2))
    infrared[40:56, 64:84] += 150
    for folder, pixels in (("vi", visible), ("ir", infrared), ("peers/Mean", (visible * 0.5 + infrared * 0.5).round())):
        (root / folder).mkdir(parents=True)
        cv2.imwrite(str(root / folder / "a.png"), pixels)
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text(f"0 {74 / 128} {48 / 96} {20 / 128} {16 / 96}\n")
    chosen = ["methods=mean, peers", "stretch=none", "crop=80", f"data={tmp_path / 'data'}", f"out={tmp_path / 'out'}"]
    assert main(["quality", *chosen]) == 0
    kept = {row["method"]: float(row["targets"]) for row in table(tmp_path / "out" / "results.csv")}
    assert set(kept) == {"mean", "Mean"} and all(value == pytest.approx(0.5, abs=0.01) for value in kept.values())
    cv2.imwrite(str(root / "vi" / "a.png"), rng.integers(40, 60, (96, 128), np.uint8))
    (root / "labels" / "a.txt").write_text(f"0 {70 / 128} {48 / 96} {30 / 128} {16 / 96}\n")
    before = table(tmp_path / "out" / "results.csv")
    assert main(["quality", *chosen]) == 0
    after = table(tmp_path / "out" / "results.csv")
    changed = [old["SD"] != new["SD"] or old["VIF"] != new["VIF"] for old, new in zip(before, after, strict=True)]
    assert all(changed) and all(old["targets"] != new["targets"] for old, new in zip(before, after, strict=True))
    (root / "labels" / "a.txt").write_text("0 0.1 0.1\n")
    assert main(["quality", *chosen]) == 1 and "'0 0.1 0.1' is no box" in capsys.readouterr().err


def test_anybodys_folder_is_compared(data: Path, tmp_path: Path) -> None:
    theirs = data / "infrared_visible" / "Tiny" / "peers" / "Visible"
    chosen = [f"methods=peers:{theirs}, peers", "datasets=Tiny", "stretch=none", f"out={tmp_path}"]
    assert main(["quality", f"data={data}", *chosen]) == 0
    assert [(row["name"], row["method"]) for row in table(tmp_path / "results.csv")] == [
        ("a", "Visible"),
        ("b", "Visible"),
    ]


@pytest.mark.parametrize("mine", ["mean", "peers:other/Visible"])
def test_methods_of_one_name_are_told(data: Path, tmp_path: Path, mine: str, capsys, monkeypatch) -> None:
    """The table would show one of them alone."""
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / ("mean" if mine == "mean" else "Visible")
    for folder in (theirs, tmp_path / "other" / "Visible"):
        shutil.copytree(data / "infrared_visible" / "Tiny" / "peers" / "Visible", folder)
    chosen = [f"data={data}", "datasets=Tiny", f"out={tmp_path / 'out'}"]
    assert main(["quality", *chosen, f"methods={mine}, peers:{theirs}"]) == 2
    assert "are of one name" in capsys.readouterr().err
    monkeypatch.chdir(theirs)
    assert main(["quality", *chosen, "methods=peers:.", "stretch=none"]) == 0
    assert {row["method"] for row in table(tmp_path / "out" / "results.csv")} >= {theirs.name}


@pytest.mark.parametrize(
    "argument", ["degraded sigmas=abc", "degraded sigmas=-5", "flicker sensor=x", "flicker crop=40", "stack counts=1"]
)
def test_numbers_between_commas_are_checked(argument: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argument.split())
    assert " must be " in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["align datasets=Stacks", "ghosts datasets=Tiny"])
def test_datasets_of_no_use_are_told(data: Path, tmp_path: Path, argument: str, capsys) -> None:
    assert main([*argument.split(), f"data={data}", f"out={tmp_path}"]) == 2
    assert "see datasets=" in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["flicker", "stack"])
def test_a_device_that_is_not_here_is_told(command: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([command, "device=cuda", f"out={tmp_path}"]) == 2
    assert "device=cuda: there is none here" in capsys.readouterr().err


def test_usage(capsys) -> None:
    assert main(["--help"]) == 0 and "quality" in capsys.readouterr().out
    assert main(["speedy"]) == 2


def test_halves_share_no_pair(data: Path) -> None:
    halves = [
        [(case.dataset, case.pair.name) for case in find_cases(str(data), half=half)] for half in ("first", "second")
    ]
    assert halves == [[("Tiny", "a"), ("Stacks", "a")], [("Tiny", "b"), ("Stacks", "b")]]
    case = find_cases(str(data), "mef")[0]
    assert read_case(case, 32).sources.shape == (3, 1, 32, 32)
    assert read_case(case, 32, colour=True).sources.shape == (3, 3, 32, 32)
    with pytest.raises(PairingError):
        find_cases(str(data / "infrared_visible"))


def test_two_datasets_of_one_name_are_told(data: Path, tmp_path: Path) -> None:
    """Their pictures and rows would be written over each other."""
    for task, known in (("infrared_visible", "Tiny"), ("multi_exposure", "Stacks")):
        shutil.copytree(data / task / known, tmp_path / task / "mine")
    with pytest.raises(PairingError, match="two tasks have a mine"):
        find_cases(str(tmp_path))
    assert len(find_cases(str(tmp_path), "multi_exposure")) == 2


def test_holm_and_paired_tests() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    generator = np.random.default_rng(0)
    ours = generator.normal(size=(12, 2))
    theirs = ours - [[1.0, -1.0]] * 12 + generator.normal(scale=0.01, size=(12, 2))
    p, effect = paired(ours, theirs)
    assert effect.tolist() == [1.0, -1.0]
    assert p[0] == pytest.approx(2 * wilcoxon(ours[:, 0], theirs[:, 0])[1])
    assert paired(ours, ours)[0].tolist() == [1.0, 1.0]


def test_ranks_know_which_way_is_better(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.csv")
    for method, value in (("good", 2.0), ("bad", 1.0)):
        scores = dict.fromkeys(MAIN, str(value)) | {"Nabf": str(3 - value), "seconds": "", "evaluations": ""}
        rows.put("set", "one", method, "none", row={"task": "ivf"} | scores)
    rows.put("set", "two", "good", "none", row={"task": "ivf"} | dict.fromkeys(MAIN, "1"))
    rows.save()
    read = list(Rows(tmp_path / "rows.csv").rows.values())
    scores = collect([row for row in read if row["name"] == "one"])
    assert dict(zip(scores.methods, scores.ranks.mean(1), strict=True)) == {"good": 1.0, "bad": 2.0}
    assert collect(read).left_out == ["bad"]


@pytest.mark.slow
def test_speed_end_to_end(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every section on small images: figures are there and hang together; how large they are is no test's business."""
    monkeypatch.setattr(comparators.ddfm, "__defaults__", ("code", 3))
    monkeypatch.setattr("dig2dig.benchmark.speed.SIDE", 64)
    monkeypatch.setattr("dig2dig.benchmark.commands.PAIRS", 1)
    monkeypatch.setattr("dig2dig.benchmark.commands.STEPS", 1)
    small = ["repeats=1", "megapixels=0.01", f"out={tmp_path}", f"prior.path={tiny}"]
    assert main(["speed", *small]) == 0
    sections = json.loads((tmp_path / "speed.json").read_text())["sections"]
    assert len(sections) == 8 and all(sections.values())
    cost = {row["setting"]: row for row in sections["What a fusion costs"]}
    assert cost["prior in the loop"]["evaluations"] > cost["prior in the loop, static weights"]["evaluations"] == 8
    assert cost["preset, static weights"]["evaluations"] == 0 < cost["preset"]["evaluations"] < 4
    assert [(row["sources"], row["× the last"]) for row in sections["Sizes"]] == [
        ("grey", "1 (1 to 1)"),
        ("colour", "1 (1 to 1)"),
    ]
    assert all(row["peak GiB"] > 0.1 and row["seconds / MP"] > 0 for row in sections["Sizes"])
    windows = {row["setting"]: row for row in sections["Windows"] if row["pixels"] == "768 × 768"}
    assert windows["preset"]["mean"] < windows["gains at full size"]["largest"]
    assert (tmp_path / "windows_preset_768.png").is_file()
    assert "## Training" in (tmp_path / "table.md").read_text()


def test_speed_refuses_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["speed", "sections=cost, nothing", f"out={tmp_path}"]) == 2
    assert "no 'nothing'; there are cost" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["seed=3", "sampler.weights=gain sampler.steps=999"])
def test_variants_that_are_none_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, variant: str
) -> None:
    assert main(["quality", f"data={data}", f"out={tmp_path}", "methods=mean", "crop=48", f"variants.a={variant}"])
    told = capsys.readouterr().err
    assert "Traceback" not in told and "fault of dig2dig" not in told and ("seed=3" in told or "steps" in told)


@pytest.mark.parametrize("command", ["quality", "degraded"])
def test_a_variant_that_one_task_refuses_is_told_before_any_work(data: Path, tmp_path: Path, command: str) -> None:
    chosen = [f"data={data}", f"out={tmp_path}", "methods=mean", "variants.x=sampler.weights=bundled"]
    assert main([command, *chosen]) == 2  # no weights are bundled for exposures
    assert not any(tmp_path.iterdir())


def test_the_page_shows_the_worst_pairs_of_each_task() -> None:
    cases = [Case(task, "Any", Pair(name, {}), Path()) for task, name in (("ivf", "a"), ("ivf", "b"), ("mff", "c"))]
    rows = []
    for case, ours in zip(cases, (0.5, 0.1, 0.9), strict=True):
        for method, value in (("dig2dig", ours), ("mean", 0.2), ("guided", 0.3)):
            identity = {"dataset": "Any", "name": case.pair.name, "method": method, "stretch": "none"}
            rows.append(identity | dict.fromkeys(MAIN, str(value)))
            rows.append(identity | {"stretch": "minmax"} | dict.fromkeys(MAIN, str(1 - value)))  # not what is shown
    assert [case.pair.name for case in worst(cases, rows, QualityConfig(report=2))] == ["b", "c"]
    assert [case.pair.name for case in worst(cases, rows, QualityConfig(report=4))] == ["b", "a", "c"]


def test_many_focal_planes_are_fused_as_well_as_few(tmp_path: Path) -> None:
    assert main(["stack", "counts=3,12", "megapixels=0.03", f"out={tmp_path}", "device=cpu"]) == 0
    few, many = (
        [float(cell) for cell in line.split("|")[1:-1]]
        for line in (tmp_path / "table.md").read_text().splitlines()[-2:]
    )
    assert few[1] == 3 and many[1] == 12 and many[2] > few[2] - 1 and few[2] > few[3] + 10
    assert 0 < many[6] < many[7] and (tmp_path / "0.03MP_12.png").is_file()
