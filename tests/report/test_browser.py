"""The pages, as people see them: in a browser, with odd names, of one run and of several."""

import io
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

import infer
from dig2dig.report.__main__ import main as compare
from dig2dig.report.page import shown
from tests.reports import ODD, cards, opened


def steps_of(page: Any, card: str = "#pair-1") -> Any:
    """The steps of a card, once they are drawn."""
    page.locator(f"{card} .steps").scroll_into_view_if_needed()
    return page.wait_for_selector(f"{card} .steps[data-shown]")


def picture(page: Any, selector: str) -> np.ndarray:
    """What is on the screen there."""
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")).astype(int)


def test_everything_is_on_the_page_and_odd_names_break_nothing(reported: tuple[list[str], Path], browser: Any) -> None:
    _, out = reported
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
        record = page.locator(".record pre").text_content()
        assert "\nsampler:\n  steps: 3\n" in record and "prior_sha256" in record and "␊" not in record
        for summary in page.locator(".record summary").all():
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth") == 1280
        lines = page.locator(".numbers tr").evaluate_all(
            "all => all.map((one) => [...one.cells].map((c) => c.innerText))"
        )
        assert lines[0][:3] == ["pair", "method", "EN ↑"] and len(lines) == 1 + 3 + len(ODD)
        assert [line[:2] for line in lines[1:4]] == [["mean of 6 pairs", m] for m in ("fused", "mean", "laplacian")]
        column = [float(line[3]) for line in lines[1:]]
        assert column[0] == pytest.approx(np.mean(column[3:]), rel=1e-3)
        panels = page.locator("#pair-1 .panel").evaluate_all("all => all.map((one) => one.dataset.label)")
        assert panels == ["visible", "infrared", "fused", "mean", "laplacian"]
        rows = page.locator("#pair-1 .scores tbody tr").count()
        assert rows == 3 and page.locator("#pair-1 .scores td.best").count() >= 8


def test_the_divider_moves_by_mouse_and_keys_and_shows_the_other_picture(
    reported: tuple[list[str], Path], browser: Any
) -> None:
    with opened(browser, reported[1] / "report.html") as page:
        stage, divider = page.locator("#pair-1 .stage"), page.locator("#pair-1 .divider")
        page.locator("#pair-1 .choose.right").select_option(label="infrared")
        assert stage.locator(".tag").all_inner_texts() == ["fused", "infrared"]
        stage.scroll_into_view_if_needed()
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


def test_zoom_and_pan_are_in_step_over_all_panels(reported: tuple[list[str], Path], browser: Any) -> None:
    with opened(browser, reported[1] / "report.html") as page:
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


def test_the_time_slider_shows_the_maps_of_each_step(reported: tuple[list[str], Path], browser: Any) -> None:
    card = cards(reported[1])["a"]
    number = sorted(ODD).index("a") + 1
    with opened(browser, reported[1] / "report.html") as page:
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
        assert guided == card.views[2].guided
        page.keyboard.press("Home")
        page.wait_for_selector(f"{at} .steps[data-shown='0']")
        assert abs(picture(page, f"{at} .map[data-kind=weight] .view >> nth=0") - last).mean() > 1
        assert page.locator(f"{at} .map[data-kind=guided] img").get_attribute("src") == card.views[0].guided
        views = page.locator(f"{at} .map[data-kind=weight] .view").all()
        views[0].hover(position={"x": 20, "y": 20})
        told = [float(one) for one in page.locator(f"{at} .map[data-kind=weight] output").all_inner_texts()]
        assert sum(told) == pytest.approx(1, abs=0.03) and 0 < told[0] < 1
        page.keyboard.press(".")
        assert "Step 2 of 3" in output.inner_text()
        page.locator(f"{at} .play").click()
        page.wait_for_selector(f"{at} .steps[data-shown='2']")
        assert page.locator(f"{at} .curves polyline").count() == 2


@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_window_in_dark_and_light(reported: tuple[list[str], Path], browser: Any, width: int) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, reported[1] / "report.html", width, color_scheme="dark") as page:
        steps_of(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        dark = page.evaluate(ground)
        page.locator(".theme").click()
        assert page.evaluate(ground) != dark
        page.keyboard.press("t")
        assert page.evaluate(ground) == dark
        sizes = page.locator("#pair-1 .view").evaluate_all("all => all.map((one) => one.offsetWidth)")
        assert min(sizes) > 100 and max(sizes) >= 0.5 * width
        page.add_style_tag(content=".card { --ratio: 0.05 !important }")  # a tall picture
        heights = page.locator("#pair-1 .view").evaluate_all("all => all.map((one) => one.offsetHeight)")
        assert max(heights) <= 0.77 * 900


def test_full_size_is_loaded_on_request_only(reported: tuple[list[str], Path], browser: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((reported[1] / "report.html").resolve().as_uri())
    page.locator("#pair-1 .whole input").check()
    page.wait_for_selector("#pair-1 .stage .layer.left[src^='file:']", state="attached")
    assert sum(url.endswith(".png") for url in asked) >= 3
    page.locator("#pair-1 .whole input").uncheck()
    page.wait_for_selector("#pair-1 .stage .layer.left[src^='data:']", state="attached")
    context.close()


def test_runs_side_by_side(reported: tuple[list[str], Path], tmp_path: Path, tiny: Path, browser: Any, capsys) -> None:
    arguments, out = reported
    more = ["sampler.dig.kind=static", "sampler.dig.smoothing_noise=9", "report.pairs=0"]
    infer.main([*arguments, f"out={tmp_path / 'static'}", *more])
    (tmp_path / "static" / "a.png").write_bytes(b"lost")
    assert compare([str(out), str(tmp_path / "static"), f"out={tmp_path / 'both.html'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"comparison: {tmp_path / 'both.html'}"
    with opened(browser, tmp_path / "both.html") as page:
        assert page.locator(".card").count() == len(ODD)
        labels = page.locator("#pair-1 .panel").evaluate_all("all => all.map((one) => one.dataset.label)")
        assert labels == ["o?ut #1", "static", "visible", "infrared"]
        assert page.locator("#pair-1 .tag").all_inner_texts() == ["o?ut #1", "static"]
        assert page.locator(".command code").inner_text().startswith("dig2dig report ")
        table = page.locator(".plain").inner_text()
        assert "sampler.dig.kind" in table and "residual" in table and "static" in table and "steps" not in table
        cut = page.locator(".plain th").evaluate_all("all => all.map((one) => one.scrollWidth > one.clientWidth)")
        assert len(cut) > 4 and not any(cut)
        assert page.locator("#pair-1 .scores tbody tr").count() == 2
        assert page.locator(".panel.missing").all_inner_texts()[0].startswith("cannot be read")
        page.locator("#pair-1 .divider").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#pair-1 .divider").get_attribute("aria-valuenow") == "52"
        assert len(page.locator(".failed li").all()) == 2
        file = page.locator("#pair-1 .panel >> nth=0").get_attribute("data-file")
        assert (tmp_path / os.fsdecode(unquote_to_bytes(file))).is_file()
