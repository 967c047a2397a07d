"""``dig2dig rig``: how the cameras of a mount look beside the reference, from several of their pictures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.align import Registration
from datamodules.pairing import Pair, scenes
from datamodules.pairs import Reading, prepared, reference_of, scaled
from datamodules.placing import Placing
from datamodules.readers.source import read_source
from datamodules.rig import Mount, Rig, calibrate, read_rig, write_rig
from dig2dig.atomic import is_file, refuse_inputs
from dig2dig.config import InferConfig
from dig2dig.errors import AlignmentError, ImageError, UserError, note

MOST = 24  # frames that are registered, spread over all


def write_calibration(config: InferConfig) -> int:
    """Registers frames, writes the rig to ``config.out``, and prints what it found."""
    path = Path(config.out)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"out={path}: give a file for the rig, as out=rig.yaml")
    if is_file(path):
        read_rig(path)  # nothing but a rig is replaced
    first = config.reference or next(iter(config.sources), "")  # a frame without it would have another reference
    found_pairs = [pair for pair in scenes(config, note) if not pair.problem and len(pair.files) > 1]
    pairs = [pair for pair in found_pairs if not pair.missing or first in pair.files]
    refuse_inputs(config.out, [path], [file for pair in pairs for file in pair.files.values()])
    chosen = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(MOST, len(pairs))).astype(int))]
    found: dict[str, list[Registration]] = {}
    size: tuple[int, int] | None = None
    for pair in chosen:
        try:
            frame = [*registrations(pair, config)]
        except ImageError as error:
            note(f"skipped: {error}")
            continue
        for modality, one, reference in frame:
            if size and reference != size:
                raise UserError(f"{pair.name}: the reference has another size than the frames before")
            size = reference
            found.setdefault(modality, []).extend([one] if one else [])
    if size is None:
        raise UserError("no frame can be read; give sources of one mount, as sources.visible=DIR sources.infrared=DIR")
    mounts = {modality: calibrate(frames, size) for modality, frames in found.items()}
    write_rig(Rig(size, {reference_of(chosen[0], first): Mount(np.eye(3), size)} | mounts), path)
    for modality, mount in mounts.items():
        told = f"{len(found[modality])} of {len(chosen)} frames register, scatter {mount.scatter:.1f} px"
        print(f"{modality}: {replace(found[modality][0], matrix=mount.matrix, motion='rig', parallax='')}; {told}")
    print(f"{path}: rig written; use it with align={path}")
    return 0


def registrations(pair: Pair, config: InferConfig) -> Iterator[tuple[str, Registration | None, tuple[int, int]]]:
    """Each source of a frame with its registration, or None and a line on why not; and the reference's size."""
    reading = Reading(config.task, range=config.range, reference=config.reference, align="auto")
    reference = reference_of(pair, config.reference)
    pictures = {m: read_source(file, pair.frame, None, m) for m, file in pair.files.items()}
    images, valids, _ = scaled(pair, prepared(pair, pictures, reference, reading)[0], reading)
    placing = Placing(images, valids, reference, "auto")
    for modality in (modality for modality in images if modality != reference):
        try:
            one = placing.registration(modality)
        except AlignmentError as error:
            note(f"{pair.files[modality]}: {error}")
            one = None
        height, width = images[reference].shape[:2]
        yield modality, one, (height, width)
