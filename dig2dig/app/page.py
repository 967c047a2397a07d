"""The page's layout, and what its buttons do."""

import tempfile
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from datamodules.readers.pixels import IMAGE_SUFFIXES
from dig2dig.app.config import AppConfig
from dig2dig.app.job import ALIGNMENTS, TASKS, Done, Order, Progress, fuse_order, guess_task
from dig2dig.app.worker import check, followed
from dig2dig.errors import UserError
from dig2dig.fusion.guidance import TONES
from dig2dig.priors.denoiser import Denoiser

INTRO = """# dig2dig
Fuses images of one scene into one. Drop two or more that lie on each other; nothing leaves this machine."""


def build(config: AppConfig, denoiser: Denoiser, folder: Path) -> gr.Blocks:
    """The page, within limits and with one prior; a fusion has its files in ``folder`` as long as it runs."""
    for layer in denoiser.modules():  # each one asks first whether anybody still waits
        layer.register_forward_pre_hook(check)
    quiet: Any = {"queue": False, "show_progress": "hidden"}
    with gr.Blocks(title="dig2dig", analytics_enabled=False, delete_cache=(60, 60 * config.minutes)) as page:
        gr.Markdown(INTRO)
        names, was, now = gr.State([]), gr.State("ivf"), gr.State("ivf")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                files, task, tone, prefer, align, seed = controls(config)
                with gr.Row():
                    button = gr.Button("Fuse", variant="primary", elem_id="fuse")
                    stop = gr.Button("Stop", elem_id="stop")
            with gr.Column(scale=5, min_width=320):
                results = empty_results()
        files.change(names_of, files, names, preprocess=False, **quiet)
        sent = files.change(partial(guess_task, limits=config), files, now, **quiet)
        # what is chosen by then stays: only the first task and the guess before this one give way
        sent.then(lambda at, old, new: (new if at in ("ivf", old) else at, new), [task, was, now], [task, was], **quiet)
        run = button.click(
            partial(fuse, config, denoiser, folder),
            [files, names, task, tone, prefer, align, seed],
            results,
            concurrency_limit=1,
            show_progress="hidden",
            api_name="fuse",
        )
        stop.click(lambda: "Stopped.", None, results[0], cancels=[run], **quiet)
    page.queue(max_size=config.waiting, default_concurrency_limit=1)
    return page


def controls(config: AppConfig) -> list[Any]:
    """Files, task, tone, preference, alignment and seed."""
    label = f"2 to {config.images} images, up to {config.megabytes} MB each"
    kinds, say = sorted(IMAGE_SUFFIXES), "The last image counts so many times"
    return [
        gr.File(label=label, file_count="multiple", file_types=kinds, height=190, elem_id="files"),
        gr.Dropdown(list(TASKS.items()), value="ivf", label="What they are"),
        gr.Radio(list(TONES), value="balanced", label="Contrast"),
        gr.Slider(0.1, 10, 1, step=0.1, label=say),
        gr.Dropdown(list(ALIGNMENTS.items()), value="none", label="If they do not lie on each other"),
        gr.Number(0, label="Seed of the noise", precision=0),
    ]


def empty_results() -> list[Any]:
    """Status, picture, download, command and maps, before there is a result."""
    line = "The command that makes the same bytes"
    return [
        gr.Markdown("", elem_id="status"),
        gr.Image(label="Fused", format="png", height=460, visible=False, buttons=["fullscreen"], elem_id="fused"),
        gr.DownloadButton("Download", visible=False, variant="primary", elem_id="download"),
        gr.Code(label=line, language="shell", lines=1, wrap_lines=True, visible=False, elem_id="command"),
        gr.HTML("", elem_id="maps"),
    ]


def names_of(files: Any) -> list[str]:
    """The uploaded files' names on their owner's disk, which Gradio changes on the way."""
    return [str(file.get("orig_name") or Path(file["path"]).name) for file in files or []]


def panels(pictures: Sequence[tuple[str, str]]) -> str:
    """Sources above their weights, as many beside each other as there is room for."""
    figures = [
        f'<figure><img src="{uri}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
        for uri, caption in pictures
    ]
    half = len(figures) // 2
    columns = zip(figures[:half], figures[half:], strict=True)
    maps = "".join(f"<div>{source}{weight}</div>" for source, weight in columns)
    return f"<div class='maps'>{maps}</div><div class='scale'>weight 0 <i></i> 1</div>"


def fuse(
    config: AppConfig,
    denoiser: Denoiser,
    folder: Path,
    files: Sequence[str] | None,
    names: Sequence[str],
    task: str,
    tone: str,
    prefer: float,
    align: str,
    seed: float | None,
) -> Iterator[tuple[Any, ...]]:
    """Fuses, and gives the page's results after each step; an error stands where the progress was."""
    hidden = (gr.Image(value=None, visible=False), gr.DownloadButton(visible=False), gr.Code(visible=False))
    yield "Reading …", *hidden, ""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        try:
            order = ordered(files, names, task, tone, prefer, align, seed)
            steps: Iterator[Progress | Done | None] = followed(
                lambda show: fuse_order(order, denoiser, config, Path(place), show)
            )
            for one in steps:
                if one is None:
                    yield (gr.skip(),) * 5  # here Gradio sees that nobody waits any more
                elif isinstance(one, Progress):
                    yield plain(one.text), gr.skip(), gr.skip(), gr.skip(), panels(one.panels)
                else:
                    picture = gr.Image(value=one.preview, visible=True)
                    download = gr.DownloadButton(f"Download {one.file.name}", value=one.file, visible=True)
                    yield f"**{plain(one.text)}**", picture, download, gr.Code(one.command, visible=True), gr.skip()
        except UserError as error:
            yield f"**Cannot be fused.** {plain(str(error))}", *hidden, ""
        except (Exception, SystemExit):  # which would end the server's worker
            traceback.print_exc()
            yield "**Cannot be fused.** A fault of dig2dig, whose traceback the server has printed.", *hidden, ""


def ordered(
    files: Sequence[str] | None, names: Sequence[str], task: str, tone: str, prefer: float, align: str, seed: Any
) -> Order:
    """What is asked for; UserError for values of another type than the page's."""
    try:
        paths = [Path(file) for file in files or []]
        named = [str(name) for name in names] if len(names) == len(paths) else [path.name for path in paths]
        return Order(list(zip(paths, named, strict=True)), task, tone, float(prefer), int(seed or 0), align)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"the factor and the seed must be numbers, not {prefer} and {seed}") from error


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"&#{ord(letter)};" if letter in "&<>*_`[]\\$|~#" else letter for letter in text)
