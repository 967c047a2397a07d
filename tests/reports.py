"""What the tests of pages share: pairs with odd names, and a page on which nothing may go wrong."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.readers.pixels import read_image
from dig2dig.report.views import PairView
from tests.conftest import EXAMPLES, ROOT

ODD = ["a", "<img src=x onerror=alert(1)>", "new\nline", "\udcff ünï ☃ 🦊", "q?uo\"te' #1 %20&amp;", "<!--<script>"]
FAST = [str(ROOT / "configs" / "ivf.yaml"), "sampler.weights=gain", "sampler.steps=3", "trainer.accelerator=cpu"]


def write_pairs(folder: Path, names: list[str], modalities: tuple[str, str] = ("visible", "infrared")) -> list[str]:
    """Crops of an example under each name, and the arguments that name them."""
    for i, name in enumerate(names):
        for modality, kind in zip(modalities, ("visible", "infrared"), strict=True):
            pixels = read_image(EXAMPLES / "infrared_visible" / kind / "00537D.png")
            crop = pixels[180 + 8 * i : 228 + 8 * i, 200:264]
            (folder / modality).mkdir(parents=True, exist_ok=True)
            Image.fromarray(crop).save(folder / modality / f"{name}.png")
    return [f"sources.{modality}={folder / modality}" for modality in modalities]


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


def cards(out: Path) -> dict[str, PairView]:
    """The fragments of a run by name."""
    found = [PairView.from_json(json.loads(file.read_bytes())["card"]) for file in (out / "report").glob("*.json")]
    return {card.name: card for card in found}
