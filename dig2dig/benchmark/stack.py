"""``benchmark stack``: focal planes of K depths, from files to the picture: its error, seconds and memory as K grows.

The sharp photograph is the bundled one. Depth falls into K layers, and plane k shows layer k sharp and every other one
blurred by its distance: the ideal is known for each K.
"""

import multiprocessing
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from skimage.metrics import peak_signal_noise_ratio
from tqdm import tqdm

from datamodules.readers.pixels import read_image
from dig2dig.api import fuse_files
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import StackConfig
from dig2dig.benchmark.datasets import example_pair, names
from dig2dig.benchmark.sections import of_process, peak_memory
from dig2dig.benchmark.tables import markdown
from dig2dig.cli import keep_freed_memory
from dig2dig.priors.denoiser import pick_device
from dig2dig.priors.load import open_prior

BLUR = 6.0  # standard deviation between the first and the last layer, pixels
HEADER = ["megapixels", "K", "PSNR, dB", "mean's", "seconds", "s / source / MP", "own GiB", "with files, GiB"]


def run(config: StackConfig) -> int:
    """Makes, fuses and measures each stack in a process of its own, and writes table.md and the pictures."""
    out, lines = Path(config.out), []
    each = [(float(area), int(float(count))) for area in names(config.megapixels) for count in names(config.counts)]
    for area, count in tqdm(each, desc="stacks"):
        with TemporaryDirectory(prefix="dig2dig_") as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            ideal, mean = pool.apply(make_stack, (Path(folder), area, count))
            file = out / f"{area:g}MP_{count}.png"
            seconds, own, peak = pool.apply(measure, (Path(folder), file, config))
            pictures = (read_image(file, "L") / 255, mean)
            quality = [peak_signal_noise_ratio(ideal, picture, data_range=1) for picture in pictures]
            found = (*quality, seconds, seconds / area / count)
            lines.append([f"{area:g}", str(count), *(f"{value:.3g}" for value in (*found, own, peak))])
    text = (
        "Focal planes in colour as PNG files, fused by `dig2dig.fuse_files` with the preset. *Own*: the peak of memory "
        "that the process has for itself alone; *with files*: its peak with the pages of files, which the system takes "
        "back when memory is short. Both hold torch and the prior.\n\n"
    )
    write_atomically(out / "table.md", (text + markdown(HEADER, lines)).encode())
    print(f"{out / 'table.md'}, and the fused pictures beside it")
    return 0


def make_stack(folder: Path, megapixels: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Writes the planes of a 4:3 scene; gives the sharp photograph and the mean of the planes, (h, w) in [0, 1]."""
    height = 8 * round((megapixels * 1e6 * 3 / 4) ** 0.5 / 8)
    photo = example_pair(height, height * 4 // 3)[0, 0, 0].numpy()
    ramp = np.linspace(0, 1, photo.shape[1], dtype=np.float32) + 0.3 * np.sin(np.arange(height)[:, None] / height * 9)
    layer = np.rint((ramp - ramp.min()) / np.ptp(ramp) * (count - 1))
    planes = np.zeros((count, *photo.shape), np.uint8)
    for distance in range(count):  # from the layer that is sharp
        sigma = BLUR * distance / (count - 1)
        blurred = np.rint(255 * (cv2.GaussianBlur(photo, (0, 0), sigma) if sigma else photo)).astype(np.uint8)
        for k in range(count):
            np.copyto(planes[k], blurred, where=abs(layer - k) == distance)
    for k, plane in enumerate(planes):
        cv2.imwrite(str(folder / f"{k:03}.png"), np.dstack([plane, plane, np.minimum(plane, 254)]))
    return photo, (planes.mean(0) / 255).astype(np.float32)


def measure(folder: Path, file: Path, config: StackConfig) -> tuple[float, float, float]:
    """Seconds from files to file, and GiB at the peak: of the process's own memory, and with pages of files."""
    keep_freed_memory()  # as the commands do
    prior, ended, own = open_prior(config.prior, pick_device(config.device)), threading.Event(), [0.0]

    def watch() -> None:
        while not ended.wait(0.05):
            own[0] = max(own[0], of_process("RssAnon"))  # without pages of files

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        fuse_files(sorted(folder.glob("*.png")), config.task, file, prior, [f"seed={config.seed}"])
    finally:
        seconds = time.perf_counter() - started
        ended.set()
        watcher.join()
    return seconds, own[0], peak_memory(next(iter(prior.parameters())).device)
