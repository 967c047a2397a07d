"""Makes docs/figures/app.jpg, the page after a fusion, with the system's Chromium: python -m docs.page."""

import io
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from docs.figures import FIGURES, ROOT, write_jpeg

FILES = [str(ROOT / "examples" / "infrared_visible" / side / "00537D.png") for side in ("visible", "infrared")]


def shown(url: str) -> bytes:
    """What the page at an address shows after a fusion of the bundled pair, as a PNG file."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.goto(url)
        page.set_input_files("#files input[type=file]", FILES)
        page.locator("#files").get_by_text("00537D").first.wait_for()
        page.locator("#fuse").click()
        page.locator("#status").get_by_text("Fused:").wait_for(timeout=120_000)
        page.wait_for_timeout(1000)  # until its pictures are drawn
        picture = page.screenshot(full_page=True)
        browser.close()
    return picture


def main() -> None:
    """Starts the page on a free port, fuses, and writes the figure."""
    command = [sys.executable, "-m", "dig2dig.app", "port=0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        try:
            picture = shown(url)
        finally:
            server.terminate()
    write_jpeg(FIGURES / "app.jpg", np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")))


if __name__ == "__main__":
    main()
