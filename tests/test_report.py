"""The pages, as people see them: in a browser, with odd names, after an interruption, of several runs."""

import base64
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import torch
from PIL import Image

import infer
from datamodules.files import read_image
from dig2dig.backbone import build_prior, save_prior
from dig2dig.modules import FusionModule
from dig2dig.report.__main__ import main as compare
from dig2dig.report.callback import SIDE
from dig2dig.report.cards import Card, Panel, ranks
from dig2dig.report.fragments import fragment_file
from dig2dig.report.page import Page, Row, link, render, shown
from dig2dig.report.pictures import picture_card
from dig2dig.report.thumbs import BUDGET, DETAILS, data_uri, evenly, within_budget

from . import corpus
from .conftest import EXAMPLES, ROOT

ODD = ["a", "<img src=x onerror=alert(1)>", "new\nline", "\udcff ünï ☃ 🦊", "q?uo\"te' #1 %20&amp;", "<!--<script>"]
FAST = [str(ROOT / "configs" / "ivf.yaml"), "sampler.steps=3", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    save_prior(build_prior([32], 1, 2), folder)
    return folder


def write_pairs(folder: Path, names: list[str], modalities: tuple[str, str] = ("visible", "infrared")) -> list[str]:
    """Crops of an example under each name, and the arguments that name them."""
    for i, name in enumerate(names):
        for modality, kind in zip(modalities, ("visible", "infrared"), strict=True):
            pixels = read_image(EXAMPLES / "infrared_visible" / kind / "00537D.png")
            crop = pixels[180 + 8 * i : 228 + 8 * i, 200:264]
            (folder / modality).mkdir(parents=True, exist_ok=True)
            Image.fromarray(crop).save(folder / modality / f"{name}.png")
    return [f"sources.{modality}={folder / modality}" for modality in modalities]


def fused_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[list[str], Path]:
    """A run over odd names, one of which is no picture, with baselines and one pair's estimates."""
    folder = tmp_path_factory.mktemp("run")
    pairs = write_pairs(folder, [*ODD, "broken"], ("visi<b>le", "infrared"))
    (folder / "infrared" / "broken.png").write_bytes(b"no picture")
    arguments = [*FAST, *pairs, f"prior.path={tiny}", f"out={folder / 'o?ut #1'}"]
    assert infer.main([*arguments, "report.baselines=mean, laplacian"]) == 1
    return arguments, folder / "o?ut #1"


@contextmanager
def opened(browser: Any, path: Path, width: int = 1280, **options: Any) -> Iterator[Any]:
    """A page, on which nothing may go wrong and which may ask for nothing but itself."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: None if request.url.startswith("data:") else asked.append(request.url))
    asked: list[str] = []
    url = path.resolve().as_uri()
    page.goto(url)
    yield page
    assert wrong == [] and asked == [url]
    context.close()


def steps_of(page: Any, card: str = "#pair-1") -> Any:
    """The steps of a card, once they are drawn."""
    page.locator(f"{card} .steps").scroll_into_view_if_needed()
    return page.wait_for_selector(f"{card} .steps[data-shown]")


def picture(page: Any, selector: str) -> np.ndarray:
    """What is on the screen there."""
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")).astype(int)


def cards(out: Path) -> dict[str, Card]:
    """The fragments of a run by name."""
    found = [Card.from_json(json.loads(file.read_bytes())["card"]) for file in (out / "report").glob("*.json")]
    return {card.name: card for card in found}


def test_everything_is_on_the_page_and_odd_names_break_nothing(run: tuple[list[str], Path], browser: Any) -> None:
    _, out = run
    with opened(browser, out / "report.html") as page:
        names = page.locator(".card h2").all_inner_texts()
        expected = [shown(name) for name in sorted(ODD)]
        assert names == expected and "new␊line" in names and "� ünï ☃ 🦊" in names
        assert (
            "broken" in page.locator(".failed").inner_text() and "not an image" in page.locator(".failed").inner_text()
        )
        order = page.evaluate(
            "[document.querySelector('.failed'), document.querySelector('.card')].map((e) => e.offsetTop)"
        )
        assert order[0] < order[1]
        links = page.locator("article > header a").evaluate_all("all => all.map((a) => a.getAttribute('href'))")
        files = {Path(os.fsdecode(os.fsencode(out) + b"/" + unquote_to_bytes(one))) for one in links}
        assert files == {out / f"{name}.png" for name in ODD} and all(file.is_file() for file in files)
        sources = page.locator("#pair-1 .panel.source").evaluate_all("all => all.map((one) => one.dataset.file)")
        assert all((out / os.fsdecode(unquote_to_bytes(one))).is_file() for one in sources) and len(sources) == 2
        head = page.locator(".head").inner_text()
        assert "python infer.py" in head and "6 fused, 1 failed" in head
        assert "sha256" in page.locator(".record pre").text_content()
        panels = page.locator("#pair-1 .panel").evaluate_all("all => all.map((one) => one.dataset.label)")
        assert panels == ["visi<b>le", "infrared", "fused", "mean", "laplacian"]
        rows = page.locator("#pair-1 .scores tbody tr").count()
        assert rows == 3 and page.locator("#pair-1 .scores td.best").count() >= 8


def test_numbers_are_those_of_the_metrics(run: tuple[list[str], Path]) -> None:
    panels = {panel.label: panel for panel in cards(run[1])["a"].panels}
    assert panels["fused"].scores["SD"] > panels["mean"].scores["SD"] and not panels["infrared"].scores
    from_file = read_image(run[1] / "a.png").astype(float) @ [0.299, 0.587, 0.114]
    assert panels["fused"].scores["SD"] == pytest.approx(from_file.std(), abs=0.5)


def test_the_divider_moves_by_mouse_and_keys_and_shows_the_other_picture(
    run: tuple[list[str], Path], browser: Any
) -> None:
    with opened(browser, run[1] / "report.html") as page:
        stage, divider = page.locator("#pair-1 .stage"), page.locator("#pair-1 .divider")
        page.locator("#pair-1 .choose.right").select_option(label="infrared")
        assert stage.locator(".tag").all_inner_texts() == ["fused", "infrared"]
        box = stage.bounding_box()
        before = picture(page, "#pair-1 .stage")
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.4 * box["height"], steps=4)
        page.mouse.up()
        assert divider.get_attribute("aria-valuenow") == "90"
        middle = slice(int(0.6 * box["width"]), int(0.8 * box["width"]))
        after = picture(page, "#pair-1 .stage")
        assert abs(after - before)[100:-100, middle].mean() > 3  # the fused picture where infrared was
        assert abs(after - before)[100:-100, : int(0.4 * box["width"])].mean() < 1
        divider.focus()
        for key in ("ArrowLeft", "ArrowLeft", "Shift+ArrowLeft"):
            page.keyboard.press(key)
        assert divider.get_attribute("aria-valuenow") == "76"
        assert divider.get_attribute("aria-valuetext") == "76 % fused, 24 % infrared"
        page.keyboard.press("Home")
        assert divider.get_attribute("aria-valuenow") == "0"
        page.keyboard.press("x")
        assert divider.get_attribute("aria-valuenow") == "100"
        page.locator("#pair-1 .panel", has_text="laplacian").locator(".view").click()
        assert stage.locator(".tag.right").inner_text() == "laplacian"


def transforms(page: Any, card: str = "#pair-1") -> list[list[float]]:
    """Scale and shift of every layer, the shift in shares of its panel."""
    script = """all => all.map((one) => {
        const m = new DOMMatrix(getComputedStyle(one).transform);
        return [m.a, m.e / one.offsetWidth, m.f / one.offsetHeight];
    })"""
    return page.locator(f"{card} .layer").evaluate_all(script)


def test_zoom_and_pan_are_in_step_over_all_panels(run: tuple[list[str], Path], browser: Any) -> None:
    with opened(browser, run[1] / "report.html") as page:
        steps_of(page)
        page.locator("#pair-1 .stage").scroll_into_view_if_needed()
        page.wait_for_timeout(400)  # what scrolls goes on scrolling
        box = page.locator("#pair-1 .stage").bounding_box()
        page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
        for _ in range(4):
            page.mouse.wheel(0, -120)
        wheeled = transforms(page)
        assert len(wheeled) == 2 + 5 + 4 + 2 and all(one == pytest.approx(wheeled[0], abs=0.01) for one in wheeled)
        scale = wheeled[0][0]
        assert scale == pytest.approx(np.exp(1.6), rel=0.01)
        assert wheeled[0][1] == pytest.approx(0.25 * (1 - scale), abs=0.01)  # the point under the mouse stays
        page.mouse.down()
        page.mouse.move(box["x"] + 0.35 * box["width"], box["y"] + 0.5 * box["height"], steps=3)
        page.mouse.up()
        assert transforms(page)[5][1] == pytest.approx(wheeled[0][1] + 0.1, abs=0.01)
        page.keyboard.press("0")
        assert transforms(page)[0] == pytest.approx([1, 0, 0])
        for key, expected in (("+", 1.5), ("+", 2.25), ("-", 1.5)):
            page.keyboard.press(key)
            assert transforms(page)[3][0] == pytest.approx(expected)
        page.locator("#pair-1 .stage").focus()
        shift = transforms(page)[0][1]
        page.keyboard.press("ArrowRight")
        assert transforms(page)[0][1] == pytest.approx(shift - 0.1, abs=1e-3)
        assert transforms(page, "#pair-2")[0][0] == 1  # other pairs stay


def test_the_time_slider_shows_the_maps_of_each_step(run: tuple[list[str], Path], browser: Any) -> None:
    card = cards(run[1])["a"]
    number = sorted(ODD).index("a") + 1
    with opened(browser, run[1] / "report.html") as page:
        at = f"#pair-{number}"
        steps_of(page, at)
        slider, output = page.locator(f"{at} .time input"), page.locator(f"{at} .time output")
        assert "Step 2 of 3" in output.inner_text()
        slider.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f"{at} .steps[data-shown='2']")
        assert "Step 3 of 3" in output.inner_text() and f"t {card.times[2]}" in output.inner_text()
        last = picture(page, f"{at} .map[data-kind=weight] .view >> nth=0")
        guided = page.locator(f"{at} .map[data-kind=guided] img").get_attribute("src")
        assert guided == card.moments[2].guided
        page.keyboard.press("Home")
        page.wait_for_selector(f"{at} .steps[data-shown='0']")
        assert abs(picture(page, f"{at} .map[data-kind=weight] .view >> nth=0") - last).mean() > 1
        assert page.locator(f"{at} .map[data-kind=guided] img").get_attribute("src") == card.moments[0].guided
        views = page.locator(f"{at} .map[data-kind=weight] .view").all()
        views[0].hover(position={"x": 20, "y": 20})
        told = [float(one) for one in page.locator(f"{at} .map[data-kind=weight] output").all_inner_texts()]
        assert sum(told) == pytest.approx(1, abs=0.03) and 0 < told[0] < 1
        page.keyboard.press(".")
        assert "Step 2 of 3" in output.inner_text()
        page.locator(f"{at} .play").click()
        page.wait_for_selector(f"{at} .steps[data-shown='2']")
        assert page.locator(f"{at} .curves polyline").count() == 2


def test_maps_are_the_weights_and_estimates_are_shown_for_as_many_pairs_as_asked(run: tuple[list[str], Path]) -> None:
    found = cards(run[1])
    assert sum(all(moment.estimate for moment in card.moments) for card in found.values()) == 1
    for card in found.values():
        np.testing.assert_allclose(np.sum(card.weights, 1), 1, atol=1e-3)
        for moment in card.moments:
            maps = [decoded(uri) for uri in moment.weight]
            assert maps[0].shape == (48, 64)
            np.testing.assert_allclose(sum(maps), 255, atol=12)
            assert maps[0].mean() / 255 == pytest.approx(card.weights[moment.index][0], abs=0.02)
            assert max(decoded(uri).max() for uri in moment.gain) >= 250 and moment.low <= moment.high


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L")).astype(float)


@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_window_in_dark_and_light(run: tuple[list[str], Path], browser: Any, width: int) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, run[1] / "report.html", width, color_scheme="dark") as page:
        steps_of(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        dark = page.evaluate(ground)
        page.locator(".theme").click()
        assert page.evaluate(ground) != dark
        page.keyboard.press("t")
        assert page.evaluate(ground) == dark
        sizes = page.locator("#pair-1 .view").evaluate_all("all => all.map((one) => one.offsetWidth)")
        assert min(sizes) > 100 and max(sizes) >= 0.5 * width


def test_full_size_is_loaded_on_request_only(run: tuple[list[str], Path], browser: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((run[1] / "report.html").resolve().as_uri())
    page.locator("#pair-1 .whole input").check()
    page.wait_for_selector("#pair-1 .stage .layer.left[src^='file:']", state="attached")
    assert sum(url.endswith(".png") for url in asked) >= 3
    page.locator("#pair-1 .whole input").uncheck()
    page.wait_for_selector("#pair-1 .stage .layer.left[src^='data:']", state="attached")
    context.close()


def test_the_result_is_the_same_and_nothing_more_is_asked_of_the_network(
    run: tuple[list[str], Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, out = run
    calls: list[int] = []
    forward = FusionModule.fuse_samples

    def counted(module: FusionModule, samples: Any) -> Any:
        handle = module.denoiser.network.register_forward_pre_hook(lambda *_: calls.append(1))
        try:
            return forward(module, samples)
        finally:
            handle.remove()

    monkeypatch.setattr(FusionModule, "fuse_samples", counted)
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
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "b", "c", "d"]
    arguments = [*FAST, *write_pairs(tmp_path, names), f"prior.path={tiny}", f"out={tmp_path / 'out'}", "batch_size=1"]
    undo = interrupted(monkeypatch, 2)
    with pytest.raises(RuntimeError):
        infer.main([*arguments, "report.pairs=3"])
    undo()
    assert set(cards(tmp_path / "out")) == {"a", "b"}
    kept = fragment_file(tmp_path / "out", "a").stat().st_mtime_ns
    assert infer.main([*arguments, "report.pairs=3"]) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert fragment_file(tmp_path / "out", "a").stat().st_mtime_ns == kept
    assert re.findall(r"<h2 id=\"name-\d+\">(.*?)</h2>", html) == ["a", "b", "c"] and html.count('class="steps"') == 3
    assert '<a href="d.png">d</a>' in html.partition('id="others"')[2]
    assert sum(card.moments[0].estimate != "" for card in cards(tmp_path / "out").values()) == 1  # over both

    infer.main([*arguments, "report.pairs=4"])  # nothing to fuse: shown from its picture
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count('<article class="card"') == 4 and html.count('class="steps"') == 3
    old = cards(tmp_path / "out")["a"]
    undo = interrupted(monkeypatch, 1)
    with pytest.raises(RuntimeError):
        infer.main([*arguments, "seed=5"])
    undo()
    assert not (tmp_path / "out" / "report.html").exists() and set(cards(tmp_path / "out")) == {"a"}
    assert cards(tmp_path / "out")["a"].facts != old.facts


@pytest.mark.parametrize("broken", ["dig2dig.report.callback.fusion_card", "dig2dig.report.callback.write_run_page"])
def test_a_report_that_fails_leaves_the_run_as_it_is(
    broken: str, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def failing(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(broken, failing)
    arguments = [*FAST, *write_pairs(tmp_path, ["a"]), f"prior.path={tiny}", f"out={tmp_path / 'out'}"]
    assert infer.main(arguments) == 0
    assert (tmp_path / "out" / "a.png").is_file() and "MemoryError: no room" in capsys.readouterr().err
    if "fusion_card" in broken:
        assert (tmp_path / "out" / "report.html").read_text().count('<figure class="panel') == 3


def test_kept_steps_are_small(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "dig2dig.report.callback.fusion_card",
        lambda result, *_: sizes.extend(tuple(s.guided.shape[-2:]) for s in result.trace) or 1 / 0,
    )
    for modality in ("visible", "infrared"):
        (tmp_path / modality).mkdir()
        Image.fromarray(corpus.picture(len(modality), height=300, width=1200)).save(tmp_path / modality / "wide.png")
    sources = [f"sources.{modality}={tmp_path / modality}" for modality in ("visible", "infrared")]
    assert infer.main([*FAST, *sources, f"prior.path={tiny}", f"out={tmp_path / 'out'}", "report.estimates=0"]) == 0
    assert sizes == [(128, SIDE)] * 3


def test_runs_side_by_side(run: tuple[list[str], Path], tmp_path: Path, tiny: Path, browser: Any, capsys) -> None:
    arguments, out = run
    infer.main([*arguments, f"out={tmp_path / 'static'}", "sampler.dig.kind=static", "report.pairs=0"])
    (tmp_path / "static" / "a.png").write_bytes(b"lost")
    assert compare([str(out), str(tmp_path / "static"), f"out={tmp_path / 'both.html'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"comparison: {tmp_path / 'both.html'}"
    with opened(browser, tmp_path / "both.html") as page:
        assert page.locator(".card").count() == len(ODD)
        labels = page.locator("#pair-1 .panel").evaluate_all("all => all.map((one) => one.dataset.label)")
        assert labels == ["o?ut #1", "static", "visi<b>le", "infrared"]
        assert page.locator("#pair-1 .tag").all_inner_texts() == ["o?ut #1", "static"]
        table = page.locator(".plain").inner_text()
        assert "sampler.dig.kind" in table and "residual" in table and "static" in table and "steps" not in table
        assert page.locator("#pair-1 .scores tbody tr").count() == 2
        assert page.locator(".panel.missing").all_inner_texts()[0].startswith("cannot be read")
        page.locator("#pair-1 .divider").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#pair-1 .divider").get_attribute("aria-valuenow") == "52"
        assert len(page.locator(".failed li").all()) == 2
        file = page.locator("#pair-1 .panel >> nth=0").get_attribute("data-file")
        assert (tmp_path / os.fsdecode(unquote_to_bytes(file))).is_file()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["RUN"], "at least two folders"),
        (["RUN", "RUN"], "stands there twice"),
        (["RUN", "EMPTY"], "no finished run of infer.py lies there"),
        (["RUN", "EMPTY", "pairs=many"], "pairs must be a number"),
    ],
)
def test_mistakes_in_a_comparison_are_told_in_one_line(
    run: tuple[list[str], Path], tmp_path: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture
) -> None:
    places = {"RUN": str(run[1]), "EMPTY": str(tmp_path)}
    assert compare([places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and line in error and error.count("\n") == 1


def test_any_pair_fits_its_budget_and_twenty_fit_fifteen_megabytes(tmp_path: Path) -> None:
    """Noise is what packs worst: twelve pictures of it."""
    noise = [(Panel(str(i), "result"), torch.rand(3, 480, 640)) for i in range(12)]

    def make(detail: Any) -> Card:
        panels = [Panel(p.label, p.role, data_uri(image, detail.picture, detail.quality)) for p, image in noise]
        return Card("noise", [], 640, 480, panels)

    assert make(DETAILS[0]).characters > BUDGET
    card = within_budget(make)
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


def test_text_and_links_of_users_are_escaped() -> None:
    html = render(
        Page("<t>", "", failed=[Row("\udcff<b>", 'x"y')], others=[Row("o", "", "javascript:alert(1)")])
    ).decode()
    assert "<title>&lt;t&gt;" in html and "�&lt;b&gt;" in html and 'href="javascript%3Aalert%281%29"' in html
    assert link("a b/ü?#.png") == "a%20b/%C3%BC%3F%23.png" and link("\udcff.png") == "%FF.png"
    assert link("/a b.png") == "file:///a%20b.png" and shown("a\nb\x7f\u202e") == "a␊b��"


def test_sources_of_other_sizes_are_shown_without_metrics(tmp_path: Path) -> None:
    for name, size in (("a", (40, 50)), ("b", (40, 50)), ("fused", (20, 30))):
        Image.fromarray(np.full(size, 99, np.uint8)).save(tmp_path / f"{name}.png")
    sources = {name: tmp_path / f"{name}.png" for name in ("a", "b")}
    card = picture_card("p", sources, {"one": tmp_path / "fused.png", "gone": tmp_path / "x.png"}, tmp_path)
    told = {panel.label: (panel.note, bool(panel.image), panel.scores) for panel in card.panels}
    assert told["one"] == ("of another size: 30×20", True, {}) and told["gone"] == ("cannot be read", False, {})
    assert (card.width, card.height, card.panels[0].file) == (50, 40, "a.png")


def test_large_pictures_are_shown_without_metrics_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "fused"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 1200), np.uint8)).save(tmp_path / f"{name}.png")
    sources = {name: tmp_path / f"{name}.png" for name in ("a", "b")}
    results = {"one": tmp_path / "fused.png"}
    card = picture_card("p", sources, results, tmp_path)
    assert card.facts == ["1200×60"] and card.panels[2].scores["SD"] == pytest.approx(73.3, abs=2)
    assert decoded(card.panels[2].image).shape == (51, 1024)
    monkeypatch.setattr("dig2dig.report.pictures.MEASURED", 70_000)
    card = picture_card("p", sources, results, tmp_path)
    assert card.facts == ["1200×60", "too large for metrics"] and card.panels[2].scores == {}
