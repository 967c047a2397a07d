"""Fused frames of a video as a video again."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from datamodules.pairing import Pair
from datamodules.pairs import reference_of
from datamodules.readers.pixels import read_image
from datamodules.readers.video import frames_per_second, is_video, write_video


def join_videos(out: Path, pairs: Sequence[Pair], rows: Mapping[str, Mapping[str, str]], reference: str) -> None:
    """Writes ``OUT/SERIES.mp4`` for each video whose frames are all fused, as fast as the reference source.

    Frames of one series follow each other in ``pairs``.

    Raises:
        OSError: It cannot be written.
    """
    for series, group in groupby(pairs, key=lambda pair: pair.series):
        frames = list(group)
        done = [rows[frame.name] for frame in frames if rows[frame.name]["status"] == "done"]
        if not series or len(done) < len(frames):
            continue
        source = frames[0].files[reference_of(frames[0], reference)]
        if not is_video(source):
            continue
        pictures = (read_image(out / row["file"]) for row in done)
        write_video(out / f"{series}.mp4", pictures, frames_per_second(source))
