"""The page to try fusion: what it makes, what it refuses, and what people see in a browser."""

import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import infer
from datamodules.readers.palettes import palettes
from dig2dig.api import preset
from dig2dig.app.__main__ import main
from dig2dig.app.config import AppConfig
from dig2dig.app.job import TASKS, Done, Order, Progress, fuse_order, guess_task, in_page_terms
from dig2dig.config import PriorConfig
from dig2dig.errors import UserError
from dig2dig.priors.load import open_prior
from tests import corpus
from tests.conftest import EXAMPLES, ROOT

PAIR = [EXAMPLES / "infrared_visible" / kind / "00537D.png" for kind in ("visible", "infrared")]
STACK = [EXAMPLES / "multi_exposure_stack" / kind / "Tower.png" for kind in ("dark", "middle", "bright")]


def fused(order: Order, prior: Path, folder: Path, **limits: Any) -> list[Progress | Done]:
    config = AppConfig(prior=PriorConfig(path=str(prior)), **limits)
    folder.mkdir()
    steps: list[Progress | Done] = []
    done = fuse_order(order, open_prior(config.prior), config, folder, steps.append)
    return [*steps, done]


def crops(folder: Path, files: list[Path], names: list[str]) -> list[tuple[Path, str]]:
    """Small parts of pictures, uploaded under other names than their owner's."""
    folder.mkdir()
    for k, file in enumerate(files):
        Image.open(file).crop((200, 180, 264, 228)).save(folder / f"upload{k}.png")
    return [(folder / f"upload{k}.png", name) for k, name in enumerate(names)]


@pytest.mark.parametrize(
    ("task", "files", "names"),
    [
        ("ivf", PAIR, ["my scene (1).png", "warm $HOME.png"]),
        ("mef", STACK, ["Tower.png"] * 3),
        ("universal", PAIR, ["visible.png", "warm.png"]),
    ],
)
def test_the_command_makes_the_same_bytes(
    task: str, files: list[Path], names: list[str], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = crops(tmp_path / "uploads", files, names)
    *steps, done = fused(Order(uploads, task, "vivid", 1.5, 5), tiny, tmp_path / "work")
    assert isinstance(done, Done) and len(steps) >= 3 and done.file.name == "fused.png"
    for step in steps:
        assert isinstance(step, Progress) and len(step.panels) == 2 * len(files)
        means = [float(caption.removeprefix("weight ")) for _, caption in step.panels[len(files) :]]
        assert sum(means) == pytest.approx(1, abs=0.02)
    for k, (upload, name) in enumerate(uploads, 1):
        place = tmp_path / "own" / (f"FOLDER_{k}" if len(set(names)) == 1 else "") / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(upload, place)
    monkeypatch.chdir(tmp_path / "own")
    program, verb, *arguments = shlex.split(done.command)
    assert (program, verb) == ("dig2dig", "infer") and f"prior.path={tiny}" in arguments
    assert infer.main([*arguments, "trainer.accelerator=cpu", "report.pairs=0"]) == 0
    assert (tmp_path / "own" / "out" / names[0]).read_bytes() == done.file.read_bytes()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("one", "drop 2 to 8 images of one scene, not 1"),
        ("twice", "a.png: dropped twice"),
        ("text", "notes.txt: not an image; this page takes"),
        ("truncated", "b.png: damaged image"),
        ("black", "b.png: every pixel is 0"),
        ("nan", "b.png: 1 pixels are NaN or infinite; mend the file, or give range.source_2=nodata=nan to infer.py"),
        ("gone", "b.png: no longer on the page: drop it again"),
        ("large", "a.png: 64x48 pixels; this page takes 0.001 million"),
        ("size", "sources differ in size: a.png 64x48, b.png 64x40; choose under 'If they do not lie on each other'"),
        ("unrelated", "b.png: does not register: "),
        ("tone", "sampler.tone: Invalid value 'loud'"),
        ("task", "no preset 'x'"),
    ],
)
def test_a_refusal_is_one_line_with_the_names_of_files_and_controls(
    change: str, line: str, tmp_path: Path, tiny: Path
) -> None:
    first, second = crops(tmp_path / "uploads", PAIR, ["a.png", "b.png"])
    limits = {"megapixels": 0.001} if change == "large" else {}
    if change == "truncated":
        second[0].write_bytes(second[0].read_bytes()[:400])
    if change == "nan":
        second[0].write_bytes(corpus.holed())
    if change == "gone":
        second[0].unlink()
    if change in ("black", "size"):
        pixels = np.zeros((48, 64), np.uint8) if change == "black" else corpus.picture(3, height=40, width=64)
        Image.fromarray(pixels).save(second[0])
    if change == "unrelated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64), np.uint8)).save(second[0])
    files = {"one": [first], "twice": [first, first], "text": [first, (second[0], "notes.txt")]}
    align = "ecc" if change == "unrelated" else "none"
    tone = "loud" if change == "tone" else "balanced"
    order = Order(files.get(change, [first, second]), "x" if change == "task" else "ivf", tone, align=align)
    with pytest.raises(UserError) as refusal:
        fused(order, tiny, tmp_path / "work", **limits)
    text = str(refusal.value)
    assert text.startswith(line) and not re.search(r"(?<!range\.)\bsource_\d", text)
    assert not any(word in text for word in ("\n", str(tmp_path), "align=", "reference"))


def test_advice_names_no_control_that_the_page_lacks() -> None:
    text = "source_1: 1 % moves and is taken from source_2; ghosts=keep keeps it; source_2: 1 %; align=ecc registers"
    told = "a.png: 1 % moves and is taken from b.png; ghosts=keep in the command keeps it; b.png: 1 %; "
    assert in_page_terms(text, Path("w"), ["a.png", "b.png"]) == f"{told}'find the homography' registers it"


def test_notes_have_the_names_of_files_and_controls(tmp_path: Path, tiny: Path) -> None:
    """A thermal frame that uses a part of its 16 bits, 9 pixels to the right, under names that look like options."""
    visible, infrared = (np.asarray(Image.open(file).convert("L"))[100:356, 200:456] for file in PAIR)
    (tmp_path / "uploads").mkdir()
    Image.fromarray(visible).save(tmp_path / "uploads" / "0.png")
    Image.fromarray(7000 + 4 * np.roll(visible, 9, 1).astype(np.uint16)).save(tmp_path / "uploads" / "1.png")
    files = [(tmp_path / "uploads" / "0.png", "source_2.png"), (tmp_path / "uploads" / "1.png", "source_1 (1).png")]
    *_, done = fused(Order(files, "ivf"), tiny, tmp_path / "work")
    assert isinstance(done, Done) and done.text.startswith("Fused: 256×256 pixels in ")
    _, span, shift, control = done.text.split("; ")
    assert span.startswith("source_1 (1).png: values 7") and span.endswith(" are black to white")
    assert shift == "source_1 (1).png: seems shifted by 9, 0 px" and control == "'find scale and place' registers them"
    with pytest.raises(
        UserError, match=r"^sources differ in size: source_2\.png 256x256, source_1 \(1\)\.png 64x48; choose"
    ):
        Image.fromarray(infrared[:48, :64]).save(files[1][0])
        fused(Order(files, "ivf"), tiny, tmp_path / "again")


@pytest.mark.parametrize("warm", [0, 1])
def test_a_file_that_shows_heat_is_infrared_wherever_it_is_dropped(warm: int, tmp_path: Path, tiny: Path) -> None:
    files = crops(tmp_path / "uploads", PAIR, ["a.png", "b.png"])
    values = np.asarray(Image.open(files[1][0]).convert("L"))
    Image.fromarray(palettes()["iron bow"][values].round().astype(np.uint8)).save(files[1][0])
    *_, done = fused(Order(files if warm else files[::-1], "ivf"), tiny, tmp_path / "work")
    assert isinstance(done, Done) and "b.png: false colour (iron bow) taken back to values" in done.text
    assert f"sources.infrared_{warm + 1}=b.png" in done.command and f"sources.source_{2 - warm}=a.png" in done.command


def test_three_colour_pictures_of_one_size_are_guessed_to_be_exposures(tmp_path: Path) -> None:
    stack, pair = list(map(str, STACK)), list(map(str, PAIR))
    assert guess_task(stack) == "mef" and guess_task(None) == "ivf"
    assert guess_task(stack[:2]) == "ivf" and guess_task([*pair, pair[0]]) == "ivf"  # infrared is grey
    with Image.open(STACK[0]) as picture:
        picture.resize((64, 48)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for other in ("small", "broken"):
        assert guess_task([*stack[:2], str(tmp_path / f"{other}.png")]) == "ivf"


@pytest.mark.parametrize("suffix", [".tif", ".jpg", ".webp"])
def test_the_download_is_called_fused_in_the_format_of_the_first_image(suffix: str, tmp_path: Path, tiny: Path) -> None:
    first, second = crops(tmp_path / "uploads", PAIR, ["a.png", "b.png"])
    with Image.open(first[0]) as picture:
        picture.save(tmp_path / f"c{suffix}")
    *_, done = fused(Order([(tmp_path / f"c{suffix}", f"mine{suffix}"), second], "ivf"), tiny, tmp_path / "work")
    assert isinstance(done, Done) and done.file.name == f"fused{suffix}"
    with Image.open(done.file) as picture:
        assert picture.size == (64, 48) and picture.format == {".tif": "TIFF", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]


def test_sizes_are_brought_together_where_that_is_asked_for(tmp_path: Path, tiny: Path) -> None:
    files = crops(tmp_path / "uploads", PAIR, ["a.png", "b.png"])
    with Image.open(files[1][0]) as picture:
        picture.resize((32, 24)).save(files[1][0])
    *_, done = fused(Order(files, "ivf", align="resize"), tiny, tmp_path / "work")
    assert isinstance(done, Done) and done.preview.shape == (48, 64, 3) and "align=resize" in done.command


def test_tasks_are_configs() -> None:
    for task in TASKS.values():
        assert preset(task).steps > 0


def test_mistakes_at_the_start_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    assert main([f"prior.path={tmp_path / 'none'}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    monkeypatch.setattr("dig2dig.app.__main__.find_spec", lambda _: None)
    assert main([]) == 2
    assert "pip install 'dig2dig[app]'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told(tiny: Path) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "dig2dig.app", f"port={port}", f"prior.path={tiny}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: port {port} cannot be had: give another, or port=0 for any\n"


@pytest.fixture(scope="module")
def page_url(tiny: Path) -> Iterator[str]:
    """The page in a process of its own, as ``make app`` starts it."""
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "dig2dig.app", "port=0", f"prior.path={tiny}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout
        url = next((found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line))), "")
        yield url
        server.terminate()
        assert server.wait(60) == 0


def test_two_files_give_a_picture_and_a_broken_one_gives_a_line(
    page_url: str, browser: Any, tmp_path: Path, tiny: Path
) -> None:
    (good, _), (other, _) = crops(tmp_path / "uploads", PAIR, ["a", "b"])
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:300])
    page = browser.new_page()
    wrong: list[str] = []
    asked: set[str] = set()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.add(request.url) if request.url.startswith("http") else None)
    page.goto(page_url)
    status = page.locator("#status")

    def fuse(*files: Path) -> None:
        if page.locator("#files [aria-label='Clear']").count():
            page.locator("#files [aria-label='Clear']").click()
        page.set_input_files("#files input[type=file]", [str(file) for file in files])
        page.locator("#files").get_by_text(files[-1].stem).first.wait_for()
        page.locator("#fuse").click()

    fuse(good, broken)
    status.get_by_text("broken.png: damaged image").wait_for()
    assert not page.locator("#fused img").is_visible()
    fuse(good, other)
    page.locator("#fused img").wait_for()
    assert "64×48 pixels" in status.inner_text() and page.locator("#maps img").count() == 4
    tall = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='10' height='400'/>"
    grown = "async (one, tall) => { one.src = tall; await one.decode(); return one.offsetHeight / innerHeight; }"
    assert page.locator("#maps img").first.evaluate(grown, tall) < 1  # no map is taller than the window
    assert "dig2dig infer ivf sources.source_1=upload0.png" in page.locator("#command").inner_text()
    with page.expect_download() as found:
        page.locator("#download").click()
    assert found.value.suggested_filename == "fused.png"
    with Image.open(found.value.path()) as picture:
        assert picture.size == (64, 48)
    page.locator("#files [aria-label='Clear']").click()
    page.set_input_files("#files input[type=file]", [str(file) for file in STACK])
    page.wait_for_function("document.querySelector('input[aria-label=\"What they are\"]').value == 'multi-exposure'")
    page.locator("#files [aria-label='Clear']").click()  # the page takes its guess back
    page.wait_for_function("document.querySelector('input[aria-label=\"What they are\"]').value == 'infrared-visible'")
    held: list[Any] = []
    page.route("**/run/predict", lambda route: held.append(route), times=2)
    page.set_input_files("#files input[type=file]", [str(file) for file in STACK])
    page.locator("#files").get_by_text(STACK[-1].stem).first.wait_for()
    kind = page.locator("input[aria-label='What they are']")
    kind.click()
    page.get_by_role("option", name="multi-focus").click()  # while the guess is on its way
    for one in held:
        one.continue_()
    page.wait_for_timeout(3000)
    assert len(held) == 2 and kind.input_value() == "multi-focus"
    assert wrong == [] and all(url.startswith(page_url) for url in asked)
    page.close()
