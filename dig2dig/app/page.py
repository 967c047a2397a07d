"""The page's layout, and what its buttons do."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from datamodules.pairs import Align
from datamodules.readers.pixels import IMAGE_SUFFIXES
from dig2dig.api import preset
from dig2dig.app.config import AppConfig
from dig2dig.app.job import TASKS, Done, Order, Progress, fuse_order, guess_task
from dig2dig.errors import JobError
from dig2dig.priors.denoiser import Denoiser

INTRO = """# dig2dig
Fuses images of one scene into one. Drop two or more that lie on each other; nothing leaves this machine."""

ALIGNMENTS = [
    ("take them as they are", "none"),
    ("bring them to one size", "resize"),
    ("find the shift", "phase"),
    ("find the homography", "ecc"),
]

CSS = """
footer {display: none !important}
#status {min-height: 3.2em}
#fused img {object-fit: contain}
.maps {display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr))}
.maps > div {max-width: 420px}
.maps figure {margin: 0 0 8px}
.maps img {width: 100%; border-radius: 4px}
.maps figcaption {font-size: 13px; overflow-wrap: anywhere}
.scale {font-size: 12px; display: flex; gap: 6px; align-items: center}
.scale i {width: 120px; height: 10px; border-radius: 2px;
  background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725)}
"""

SCALE = "<div class='scale'>weight 0 <i></i> 1</div>"

Outputs = dict[Any, Any]


def build(config: AppConfig, denoiser: Denoiser, folder: Path) -> gr.Blocks:
    """The page.

    Args:
        config: Limits.
        denoiser: The prior of all fusions.
        folder: Where fusions have their files as long as they run.
    """
    start = preset("ivf")
    with gr.Blocks(title="dig2dig", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(INTRO)
        names = gr.State([])
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                files = gr.File(
                    label=f"2 to {config.images} images, up to {config.megabytes} MB each",
                    file_count="multiple",
                    file_types=sorted(IMAGE_SUFFIXES),
                    height=190,
                    elem_id="files",
                )
                task = gr.Dropdown(list(TASKS.items()), value="ivf", label="What they are")
                steps = gr.Slider(1, 50, start.steps, step=1, label="Steps")
                temperature = gr.Slider(
                    0.01, 4, start.dig.temperature, step=0.01, label="Temperature: low decides, high averages"
                )
                align = gr.Dropdown(ALIGNMENTS, value="none", label="If they do not lie on each other")
                seed = gr.Number(0, label="Seed of the noise", precision=0)
                button = gr.Button("Fuse", variant="primary", elem_id="fuse")
            with gr.Column(scale=5, min_width=320):
                status = gr.Markdown("", elem_id="status")
                fused = gr.Image(
                    label="Fused",
                    format="png",
                    interactive=False,
                    height=460,
                    visible=False,
                    buttons=["fullscreen"],
                    elem_id="fused",
                )
                download = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="download")
                line = gr.Code(
                    label="The command that makes the same bytes",
                    language="shell",
                    lines=1,
                    wrap_lines=True,
                    visible=False,
                    elem_id="command",
                )
                maps = gr.HTML("", elem_id="maps")
        shown = Shown(status, fused, download, line, maps)
        work = Work(config, denoiser, folder, shown)
        files.change(names_of, files, names, preprocess=False, queue=False, show_progress="hidden")
        files.change(guessed, [files, task], task, queue=False, show_progress="hidden")
        task.change(defaults, task, [steps, temperature], queue=False, show_progress="hidden")
        button.click(
            work.fuse,
            [files, names, task, steps, temperature, align, seed],
            shown.all,
            concurrency_limit=1,
            show_progress="hidden",
            api_name="fuse",
        )
    page.queue(max_size=config.waiting, default_concurrency_limit=1)
    return page


def names_of(files: Any) -> list[str]:
    """The uploaded files' names on their owner's disk, which Gradio changes on the way."""
    return [str(file.get("orig_name") or Path(file["path"]).name) for file in files or []]


def guessed(files: Sequence[str] | None, task: str) -> str:
    """The task that the files suggest, or the one that is chosen."""
    return guess_task([Path(file) for file in files or []]) or task


def defaults(task: str) -> tuple[int, float]:
    """Steps and temperature of a task's config."""
    sampler = preset(task)
    return sampler.steps, sampler.dig.temperature


class Shown:
    """The parts of the page that a fusion writes to."""

    def __init__(
        self, status: gr.Markdown, fused: gr.Image, download: gr.DownloadButton, line: gr.Code, maps: gr.HTML
    ) -> None:
        self.status, self.fused, self.download, self.line, self.maps = status, fused, download, line, maps
        self.all: list[Any] = [status, fused, download, line, maps]

    def waiting(self, text: str) -> Outputs:
        """No result yet, or none at all."""
        hidden = (gr.Image(value=None, visible=False), gr.DownloadButton(visible=False), gr.Code(visible=False))
        return {self.status: text, self.maps: "", **dict(zip(self.all[1:4], hidden, strict=True))}

    def progress(self, progress: Progress) -> Outputs:
        """A step."""
        return {self.status: plain(progress.text), self.maps: panels(progress.panels)}

    def done(self, done: Done) -> Outputs:
        """The result."""
        return {
            self.status: f"**{plain(done.text)}**",
            self.fused: gr.Image(value=done.preview, visible=True),
            self.download: gr.DownloadButton(f"Download {done.file.name}", value=done.file, visible=True),
            self.line: gr.Code(value=done.command, visible=True),
        }


def panels(pictures: Sequence[tuple[str, str]]) -> str:
    """Sources above their weights, as many beside each other as there is room for."""
    figures = [
        f'<figure><img src="{uri}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
        for uri, caption in pictures
    ]
    half = len(figures) // 2
    columns = zip(figures[:half], figures[half:], strict=True)
    return f"<div class='maps'>{''.join(f'<div>{source}{weight}</div>' for source, weight in columns)}</div>" + SCALE


class Work:
    """What the button starts: one fusion at a time, each in a folder that goes when it has ended."""

    def __init__(self, config: AppConfig, denoiser: Denoiser, folder: Path, shown: Shown) -> None:
        self.config, self.denoiser, self.folder, self.shown = config, denoiser, folder, shown

    def fuse(
        self,
        files: Sequence[str] | None,
        names: Sequence[str],
        task: str,
        steps: float,
        temperature: float,
        align: Align,
        seed: float | None,
    ) -> Iterator[Outputs]:
        """Fuses; what is wrong with the files stands where the progress was."""
        paths = [Path(file) for file in files or []]
        named = names if len(names) == len(paths) else [path.name for path in paths]
        order = Order(list(zip(paths, named, strict=True)), task, int(steps), float(temperature), int(seed or 0), align)
        yield self.shown.waiting("Reading …")
        place = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            for told in fuse_order(order, self.denoiser, self.config, place):
                yield self.shown.progress(told) if isinstance(told, Progress) else self.shown.done(told)
        except JobError as error:
            yield self.shown.waiting(f"**Cannot be fused.** {plain(str(error))}")
        finally:
            shutil.rmtree(place, ignore_errors=True)


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"&#{ord(letter)};" if letter in "&<>*_`[]\\$|~#" else letter for letter in text)
