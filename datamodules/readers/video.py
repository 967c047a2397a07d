"""Frames of video files, read and written."""

import os
import sys
import threading
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datamodules.picture import version
from dig2dig.atomic import replacing
from dig2dig.errors import ImageError

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
GREY_16 = 0x10003159  # OpenCV's number for pixels of FFmpeg's gray16le, as thermal recordings have


def is_video(path: Path) -> bool:
    """Whether a name is that of a video file."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def _capture(path: Path) -> cv2.VideoCapture:
    name: Any = os.fsencode(path.absolute())  # as text, a name that is not UTF-8 would end the process
    found = cv2.VideoCapture(name)
    if found.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT) == GREY_16:
        found.set(cv2.CAP_PROP_CONVERT_RGB, 0)  # which would keep the upper 8 bits
    return found


def _complete(path: Path) -> bool:
    """Whether the boxes of an MP4 or MOV file end where the file does, so that none of it is cut off."""
    place, end = 0, path.stat().st_size
    with path.open("rb") as file:
        while place < end:
            file.seek(place)
            start = file.read(16)
            length = int.from_bytes(start[:4])
            place += max(8, int.from_bytes(start[8:]) if length == 1 else length or end - place)
    return place == end


class Video:
    """An open video: ``count`` of frames, at least 1, and ``rate`` a second, 25 where none is told.

    It is read forwards: few formats seek exactly, so an earlier frame means a new start.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.capture, self.next, self.broken = _capture(path), 0, sys.maxsize
        self.count = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT)) if self.capture.isOpened() else 0
        self.rate = float(self.capture.get(cv2.CAP_PROP_FPS)) or 25.0
        kind = path.suffix.lower()
        counted = kind not in {".mkv", ".webm", ".mpg", ".mpeg"}  # their headers do not count frames
        if kind in {".mp4", ".mov", ".m4v"} and self.capture.isOpened():  # trimmed, they count hidden frames too
            self.capture.set(cv2.CAP_PROP_POS_FRAMES, self.count - 1)
            counted = self.capture.grab() or not _complete(path)
            self.capture = _capture(path)
        if not counted:
            times = [self.capture.get(cv2.CAP_PROP_POS_MSEC) for _ in iter(self.capture.grab, False)]
            self.capture, self.count = _capture(path), len(times)
            last = max(times[1:], default=0.0) if kind in {".mkv", ".webm"} else 0.0  # milliseconds
            self.rate = round(1000 * (len(times) - 1) / last, 2) if last else self.rate
        if self.count < 1:
            raise ImageError(f"{path}: not a video that OpenCV reads; convert it to MP4 or to a folder of frames")

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first frame, and so of all."""
        height, width = self.read(0).shape[:2]
        return height, width

    def read(self, index: int) -> np.ndarray:
        """Frame ``index``, RGB of 8 bits, (h, w, 3), or grey of 16, (h, w)."""
        with self.lock:
            if index < self.next:
                self.capture, self.next = _capture(self.path), 0
            while self.next < index and self.capture.grab():
                self.next += 1
            done, frame = self.capture.read() if self.next == index < self.broken else (False, None)
            if not done:
                self.broken = min(self.broken, self.next)  # what follows may show other moments
            self.next += 1
        if not done or frame is None:
            raise ImageError(f"{self.path}: frame {index} of {self.count} cannot be read; the video is cut or damaged")
        return frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


@lru_cache(maxsize=8)  # each frame asks again
def _video(path: Path, version: tuple[int, int, int]) -> Video:
    return Video(path)


def opened(path: Path) -> Video:
    """A video, which stays open for the next call while its file is the same."""
    return _video(path, version(path))


if hasattr(os, "register_at_fork"):  # a process that reads ahead could never close one: its decoder's threads are gone
    os.register_at_fork(before=_video.cache_clear)


def write_video(path: Path, frames: Iterable[np.ndarray], rate: float) -> None:
    """Writes 8-bit frames, grey or RGB, as MP4 with even sides, whole or not at all; OSError if that fails."""
    writer = None
    with replacing(path) as part:
        name: Any = os.fsencode(part)
        try:
            for frame in frames:
                colour = cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR if frame.ndim == 2 else cv2.COLOR_RGB2BGR)
                odd = (colour.shape[0] % 2, colour.shape[1] % 2)
                colour = cv2.copyMakeBorder(colour, 0, odd[0], 0, odd[1], cv2.BORDER_REPLICATE)
                if writer is None:
                    writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*"mp4v"), rate, colour.shape[1::-1])
                writer.write(colour)
            if writer is None or not writer.isOpened():
                raise OSError(f"{path}: the video cannot be written")
        finally:
            if writer:
                writer.release()
