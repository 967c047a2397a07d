"""The pages' parts: what is kept and what it costs, after interruptions and mistakes."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import infer
from datamodules.pairing import scenes
from datamodules.readers.pixels import read_image
from datamodules.readers.video import write_video
from dig2dig.modules.fuser import Fuser
from dig2dig.modules.fusion import FusionModule
from dig2dig.report.__main__ import main as compare
from dig2dig.report.page import LISTED, Page, Row, link, render, shown
from dig2dig.report.pictures import BUDGET, DETAILS, data_uri, evenly, illustrated, scores, view_of_files
from dig2dig.report.runs import compared_view, open_runs
from dig2dig.report.views import PairView, Panel, fragment_file, ranks
from dig2dig.report.writer import ReportWriter
from tests import corpus
from tests.reports import FAST, cards, write_pairs


def fused_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def test_numbers_are_those_of_the_metrics(reported: tuple[list[str], Path]) -> None:
    panels = {panel.label: panel for panel in cards(reported[1])["a"].panels}
    assert panels["fused"].scores["SD"] > panels["mean"].scores["SD"] and not panels["infrared"].scores
    from_file = read_image(reported[1] / "a.png").astype(float) @ [0.299, 0.587, 0.114]
    assert panels["fused"].scores["SD"] == pytest.approx(from_file.std(), abs=0.5)


def test_maps_are_the_weights_and_estimates_are_of_as_many_pairs_as_asked(
    reported: tuple[list[str], Path],
) -> None:
    found = cards(reported[1])
    assert sum(all(step.estimate for step in card.views) for card in found.values()) == 1
    for card in found.values():
        np.testing.assert_allclose(np.sum(card.weights, 1), 1, atol=1e-3)
        for step in card.views:
            maps = [decoded(uri) for uri in step.weight]
            assert maps[0].shape == (48, 64)
            np.testing.assert_allclose(sum(maps), 255, atol=12)
            assert maps[0].mean() / 255 == pytest.approx(card.weights[step.index][0], abs=0.02)
            assert max(decoded(uri).max() for uri in step.gain) >= 250 and step.low <= step.high


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L")).astype(float)


def test_the_result_is_the_same_and_nothing_more_is_asked_of_the_network(
    reported: tuple[list[str], Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, out = reported
    calls: list[int] = []
    forward = Fuser.fuse

    def counted(fuser: Fuser, *arguments: Any) -> Any:
        handle = fuser.denoiser.network.register_forward_pre_hook(lambda *_: calls.append(1))
        try:
            return forward(fuser, *arguments)
        finally:
            handle.remove()

    monkeypatch.setattr(Fuser, "fuse", counted)
    infer.main([*arguments, f"out={tmp_path / 'none'}", "report.pairs=0"])
    plain = len(calls)
    infer.main([*arguments, f"out={tmp_path / 'maps'}", "report.estimates=0"])
    assert len(calls) == 2 * plain
    assert fused_bytes(tmp_path / "none") == fused_bytes(tmp_path / "maps") == fused_bytes(out)
    assert not (tmp_path / "none" / "report.html").exists() and not (tmp_path / "none" / "report").exists()


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> Callable[[], None]:
    """Has a run break off after so many batches; gives the way back."""
    step, count = FusionModule.predict_step, iter(range(99))

    def breaking(module: FusionModule, batch: Any, index: int = 0) -> Any:
        if next(count) == after:
            raise RuntimeError("killed")
        return step(module, batch, index)

    patch = pytest.MonkeyPatch()
    patch.setattr(FusionModule, "predict_step", breaking)
    return patch.undo


def test_a_resumed_run_shows_all_pairs_up_to_the_cap_and_nothing_stale(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    names = ["a", "b", "c", "d"]
    arguments = [*FAST, *write_pairs(tmp_path, names), f"prior.path={tiny}", f"out={tmp_path / 'out'}", "batch_size=1"]
    undo = interrupted(monkeypatch, 2)
    with pytest.raises(RuntimeError):
        infer.main([*arguments, "report.pairs=3", "report.estimates=1"])
    undo()
    assert set(cards(tmp_path / "out")) == {"a", "b"}
    kept = fragment_file(tmp_path / "out", "a").stat().st_mtime_ns
    assert infer.main([*arguments, "report.pairs=3", "report.estimates=1"]) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert fragment_file(tmp_path / "out", "a").stat().st_mtime_ns == kept
    assert re.findall(r"<h2 id=\"name-\d+\">(.*?)</h2>", html) == ["a", "b", "c"] and html.count('class="steps"') == 3
    assert '<a href="d.png">d</a>' in html.partition('id="others"')[2]
    assert sum(card.views[0].estimate != "" for card in cards(tmp_path / "out").values()) == 1  # over both

    capsys.readouterr()
    infer.main([*arguments, "report.pairs=4", "report.baselines=mean", "logger.csv=true"])  # nothing to fuse
    told = capsys.readouterr().err
    assert "3 pairs of an earlier run lack mean; overwrite=true" in told and "so nothing is logged" in told
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count('<article class="card"') == 4 and html.count('class="steps"') == 3
    old = cards(tmp_path / "out")["a"]
    undo = interrupted(monkeypatch, 1)
    with pytest.raises(RuntimeError):
        infer.main([*arguments, "seed=5"])
    undo()
    assert not (tmp_path / "out" / "report.html").exists() and set(cards(tmp_path / "out")) == {"a"}
    assert cards(tmp_path / "out")["a"].facts != old.facts


@pytest.mark.parametrize("broken", ["dig2dig.report.writer.pair_view", "dig2dig.report.writer.run_page"])
def test_a_report_that_fails_leaves_the_run_as_it_is(
    broken: str, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def failing(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(broken, failing)
    arguments = [*FAST, *write_pairs(tmp_path, ["a"]), f"prior.path={tiny}", f"out={tmp_path / 'out'}"]
    assert infer.main(arguments) == 0
    assert (tmp_path / "out" / "a.png").is_file() and "MemoryError: no room" in capsys.readouterr().err
    if "pair_view" in broken:
        assert (tmp_path / "out" / "report.html").read_text().count('<figure class="panel') == 3


def test_kept_steps_are_small(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "dig2dig.report.writer.pair_view",
        lambda result, *_: sizes.extend(tuple(s.guided.shape[-2:]) for s in result.trace) or 1 / 0,
    )
    for modality in ("visible", "infrared"):
        (tmp_path / modality).mkdir()
        Image.fromarray(corpus.picture(len(modality), height=300, width=1200)).save(tmp_path / modality / "wide.png")
    sources = [f"sources.{modality}={tmp_path / modality}" for modality in ("visible", "infrared")]
    assert infer.main([*FAST, *sources, f"prior.path={tiny}", f"out={tmp_path / 'out'}", "report.estimates=0"]) == 0
    assert sizes == [(ReportWriter.side // 4, ReportWriter.side)] * 3


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["RUN"], "at least two folders"),
        (["RUN", "RUN"], "stands there twice"),
        (["RUN", "EMPTY"], "no finished run of infer.py lies there"),
        (["RUN", "EMPTY", "pairs=many"], "pairs must be a number"),
        (["RUN", "EMPTY", "out=page.png"], "out=page.png: give a page of its own"),
        (["RUN", "EMPTY", "out="], "give a page of its own"),
    ],
)
def test_mistakes_in_a_comparison_are_told_in_one_line(
    reported: tuple[list[str], Path], tmp_path: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture
) -> None:
    places = {"RUN": str(reported[1]), "EMPTY": str(tmp_path)}
    assert compare([places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and line in error and error.count("\n") == 1


def test_compared_runs_keep_the_metrics_of_their_own_sources(tiny: Path, tmp_path: Path) -> None:
    """A range or a registration changes the sources: the files on disk are not what was fused."""
    sources = write_pairs(tmp_path, ["a"])
    for name, more in (("plain", []), ("ranged", ["range.infrared=60-140", "report.baselines=mean"])):
        assert infer.main([*FAST, *sources, f"prior.path={tiny}", f"out={tmp_path / name}", *more]) == 0
    runs = open_runs([str(tmp_path / "plain"), str(tmp_path / "ranged")])
    pairs = {run.label: next(iter(scenes(run.config))) for run in runs}

    def found() -> dict[str, dict[str, float]]:
        panels = compared_view("a", runs, pairs, tmp_path).panels
        return {panel.label: panel.scores for panel in panels if panel.role == "result"}

    plain, ranged = found().values()
    kept = {panel.label: panel.scores for panel in cards(runs[1].folder)["a"].panels}
    assert ranged == pytest.approx(kept["fused"], rel=1e-6) and ranged["SCD"] != plain["SCD"] and len(plain) == 8
    assert not any(panel.scores for panel in cards(runs[0].folder)["a"].panels)  # nothing is compared there
    (tmp_path / "infrared" / "a.png").write_bytes(corpus.png(corpus.picture(9, height=48, width=64)))
    assert [*found().values()] == [{}, {}]  # the sources are other ones now


def test_any_pair_fits_its_budget_and_twenty_fit_fifteen_megabytes(tmp_path: Path) -> None:
    """Noise is what packs worst: twelve pictures of it."""
    noise = [(Panel(str(i), "result"), torch.rand(3, 480, 640)) for i in range(12)]

    most = [data_uri(image, DETAILS[0].picture, DETAILS[0].quality) for _, image in noise]
    assert sum(map(len, most)) > BUDGET
    card = illustrated(PairView("noise", [], 640, 480, []), noise)
    assert BUDGET / 8 < card.characters <= BUDGET
    assert len(render(Page("twenty", "", cards=[card] * 20))) < 15e6
    assert evenly(5, 16) == [0, 1, 2, 3, 4] and evenly(50, 3) == [0, 24, 49] and evenly(0, 3) == []


def test_ranks_follow_the_direction_of_each_metric() -> None:
    panels = [
        Panel("a", "result", scores={"SD": 3.0, "Nabf": 0.5}),
        Panel("b", "result", scores={"SD": 3.0}),
        Panel("c", "result", scores={"SD": 1.0, "Nabf": 0.1}),
    ]
    assert ranks(panels) == [{"SD": 1, "Nabf": 2}, {"SD": 1}, {"SD": 3, "Nabf": 1}]
    close = [Panel("a", "result", scores={"SD": 30.26001}), Panel("b", "result", scores={"SD": 30.26002})]
    assert ranks(close) == [{"SD": 1}, {"SD": 1}]  # both are shown as 30.26


def test_text_and_links_of_users_are_escaped() -> None:
    html = render(
        Page("<t>", "", failed=[Row("\udcff<b>", 'x"y')], others=[Row("o", "", "javascript:alert(1)")])
    ).decode()
    assert "<title>&lt;t&gt;" in html and "�&lt;b&gt;" in html and 'href="javascript%3Aalert%281%29"' in html
    assert link("a b/ü?#.png") == "a%20b/%C3%BC%3F%23.png" and link("\udcff.png") == "%FF.png"
    assert link("/a b.png") == "file:///a%20b.png" and shown("a\nb\x7f\u202e") == "a␊b��"


def test_long_lists_are_cut_and_their_rest_is_counted() -> None:
    rows = [Row(f"p{i}", "why") for i in range(LISTED + 7)]
    html = render(Page("t", "", failed=rows, others=rows[:LISTED])).decode()
    assert f"{LISTED + 7} failed" in html and html.count("And 7 more.") == 1
    assert html.count("<li><strong>") == LISTED and "<li>p299 <span>why</span></li>" in html


def test_notes_of_the_table_stand_with_each_pair(tmp_path: Path, tiny: Path) -> None:
    pairs = write_pairs(tmp_path, ["a", "b"])
    for name in ("a", "b"):
        with Image.open(tmp_path / "infrared" / f"{name}.png") as picture:
            picture.resize((32, 24)).save(tmp_path / "infrared" / f"{name}.png")
    arguments = [*FAST, *pairs, f"prior.path={tiny}", f"out={tmp_path / 'out'}", "align=resize", "report.pairs=1"]
    assert infer.main(arguments) == 0
    card, _, others = (tmp_path / "out" / "report.html").read_text().partition('id="others"')
    assert "<span>infrared: resized from 32x24</span>" in card
    assert "<span>64x48 infrared: resized from 32x24</span>" in others


def test_sources_of_other_sizes_are_shown_without_metrics(tmp_path: Path) -> None:
    for name, size in (("a", (40, 50)), ("b", (40, 50)), ("fused", (20, 30))):
        Image.fromarray(np.full(size, 99, np.uint8)).save(tmp_path / f"{name}.png")
    sources = {name: tmp_path / f"{name}.png" for name in ("a", "b")}
    card = view_of_files("p", sources, {"one": tmp_path / "fused.png", "gone": tmp_path / "x.png"}, tmp_path)
    told = {panel.label: (panel.note, bool(panel.image), panel.scores) for panel in card.panels}
    assert told["one"] == ("of another size: 30×20", True, {}) and told["gone"] == ("cannot be read", False, {})
    assert (card.width, card.height, card.panels[0].file) == (50, 40, "a.png")


def test_large_pictures_are_shown_without_metrics_and_small(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "fused"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 1200), np.uint8)).save(tmp_path / f"{name}.png")
    sources = {name: tmp_path / f"{name}.png" for name in ("a", "b")}
    results = {"one": tmp_path / "fused.png"}
    card = view_of_files("p", sources, results, tmp_path)
    assert card.facts == ["1200×60"] and decoded(card.panels[2].image).shape == (51, 1024)
    images = torch.rand(1, 60, 1200), torch.rand(2, 1, 60, 1200)
    assert scores(*images)["SD"] == pytest.approx(73.6, abs=2)
    monkeypatch.setattr("dig2dig.report.pictures.MEASURED", 70_000)
    assert scores(*images) == {}
    arguments = [*FAST, *write_pairs(tmp_path, ["c"]), f"prior.path={tiny}", f"out={tmp_path / 'out'}"]
    monkeypatch.setattr("dig2dig.report.pictures.MEASURED", 3000)
    assert infer.main([*arguments, "report.baselines=mean"]) == 0
    card = cards(tmp_path / "out")["c"]
    assert "too large for metrics and baselines" in card.facts
    assert [panel.scores for panel in card.panels] == [{}, {}, {}]


def test_frames_of_a_film_are_not_compared_with_its_first_frame(tmp_path: Path, tiny: Path) -> None:
    for side in ("visible", "infrared"):
        shown = np.random.default_rng(len(side)).integers(0, 255, (3, 48, 64), np.uint8)
        write_video(tmp_path / f"{side}.mp4", list(shown), 25.0)
    sources = [f"sources.{side}={tmp_path / side}.mp4" for side in ("visible", "infrared")]
    for pairs in ("report.pairs=1", "report.pairs=3"):  # the others have no fragment
        assert infer.main([*FAST, *sources, f"prior.path={tiny}", f"out={tmp_path / 'out'}", pairs]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="card"') == 3 and page.count('class="panel source"') == 2
