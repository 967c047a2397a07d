"""DICOM files: one image, one multi-frame file, or the slices of a series."""

import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.readers.volume import Grid, Volume, check_claim, memory, stack
from dig2dig.errors import ImageError

PATIENT_AXES = np.array([-1.0, -1.0, 1.0])  # DICOM counts to the left and to the back, a Grid to the right and front
DEFLATED = "1.2.840.10008.1.2.1.99"  # transfer syntax whose whole file is packed
GDCM = "1.2.840.10008.1.2.4."  # JPEG, JPEG-LS and JPEG 2000, which GDCM decodes; but not what is in NOT_GDCM
NOT_GDCM = tuple(f"{GDCM}{number}" for number in (201, 202, 203))  # high-throughput JPEG 2000
SERIES = (  # what slices of one series share
    *("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Modality"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
)


def series(files: Sequence[Path]) -> tuple[Path, ...]:
    """Slices of one series by their places along the normal; empty where files are anything else."""
    headers = [header(file) for file in files]
    if len({tuple(str(one.get(tag, "")) for tag in SERIES) for one in headers}) != 1:
        return ()
    if len(files) < 2 or any(int(one.get("NumberOfFrames") or 1) > 1 for one in headers):
        return ()
    found = stack([grid for one in headers for grid in grids(one)])
    return tuple(files[i] for i in found[0]) if found and len(found[0]) == len(files) else ()


def header(path: Path) -> Any:
    """All that a file says beside its pixels."""
    return _dataset(path, stop_before_pixels=True)


def _dataset(path: Path, **options: Any) -> Any:
    """A file, whose deflated part is measured before it is unpacked."""
    import pydicom
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with path.open("rb") as file:
        told = file.read(132)[128:] == b"DICM"
    meta: Any = read_file_meta_info(path) if told else {}  # files from before 1998 have none
    if meta.get("TransferSyntaxUID") == DEFLATED:
        check_claim(path, _unpacked_size(path, 144 + meta.FileMetaInformationGroupLength))
    data: Any = pydicom.dcmread(path, force=True, **options)
    if "Rows" not in data:
        raise ImageError(f"{path}: not a DICOM image")
    implicit, little = data.original_encoding
    plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    data.file_meta.setdefault("TransferSyntaxUID", ImplicitVRLittleEndian if implicit else plain)
    return data


def _unpacked_size(path: Path, start: int) -> int:
    """Bytes of what is deflated from ``start`` on; more than half of the memory are not counted to their end."""
    unpacked, most, size = zlib.decompressobj(-zlib.MAX_WBITS), memory() // 2, 0
    with path.open("rb") as file:
        file.seek(start)
        while not unpacked.eof and size <= most and (part := unpacked.unconsumed_tail or file.read(2**20)):
            size += len(unpacked.decompress(part, 2**24))
    return size


def grids(data: Any) -> list[Grid | None]:
    """The grid of each frame by itself; None where it is not told."""
    frames = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
    if frames:
        return [_grid(data, [frame, *shared]) for frame in frames]
    return [_grid(data, [])] if int(data.get("NumberOfFrames") or 1) == 1 else [None]


def _grid(data: Any, groups: Sequence[Any]) -> Grid | None:
    """The grid of one frame from its tags, or those of its functional groups."""
    position = _numbers(data, groups, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _numbers(data, groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _numbers(data, groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    if position is None or orientation is None or spacing is None or spacing.min() <= 0:
        return None
    across, down = orientation[:3] * PATIENT_AXES, orientation[3:] * PATIENT_AXES
    if abs(across @ down) > 1e-2 or min(np.linalg.norm(across), np.linalg.norm(down)) < 0.9:
        return None
    tags = ("SpacingBetweenSlices", "SliceThickness")
    found = (_numbers(data, groups, "PixelMeasuresSequence", tag, 1) for tag in tags)
    thickness = next((abs(float(one[0])) for one in found if one is not None and one[0]), float(spacing.max()))
    size = (int(data.Rows), int(data.Columns))
    frame = str(data.get("FrameOfReferenceUID") or "")
    return Grid(size, across * spacing[1], down * spacing[0], (position * PATIENT_AXES)[None], thickness, frame)


def _numbers(data: Any, groups: Sequence[Any], sequence: str, tag: str, count: int) -> np.ndarray | None:
    """Values of a tag, in the first functional group that has it or in the file itself."""
    places = [group[sequence][0] for group in groups if group.get(sequence)]
    found = next((place.get(tag) for place in (*places, data) if place.get(tag) not in (None, "")), None)
    values = np.atleast_1d(np.array([] if found is None else found, float))
    return values if len(values) == count and np.isfinite(values).all() else None


def read_volume(files: Sequence[Path]) -> Volume:
    """All frames of the files, float32 in the files' units or 8-bit RGB, in their order along the normal."""
    first = header(files[0])  # those of a series are alike
    sizes = [int(first.get(tag) or 1) for tag in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")]
    check_claim(files[0], len(files) * 4 * prod(sizes))
    parts = [_read(file) for file in files]
    values = np.concatenate([part.values for part, _, _ in parts])
    masks = [np.ones(part.values.shape[:3], bool) if part.valid is None else part.valid for part, _, _ in parts]
    valid = None if all(part.valid is None for part, _, _ in parts) else np.concatenate(masks)
    inverted = parts[0][1]
    if valid is not None and valid.any():
        values[~valid] = values[valid].max() if inverted else values[valid].min()
    found = stack([grid for _, _, places in parts for grid in places])
    order, grid = found if found and len(found[0]) == len(values) else (slice(None), None)
    return Volume(values[order], None if valid is None else valid[order], grid, inverted)


def _read(path: Path) -> tuple[Volume, bool, list[Grid | None]]:
    """Frames of a file, whether large values are dark, and the grid of each."""
    from pydicom.pixels.processing import apply_color_lut

    data = _dataset(path)
    if not any(tag in data for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError(f"{path}: a DICOM file without pixels")
    _check_decoder(path, data)
    pixels, places = _stored(data), grids(data)
    if data.get("SamplesPerPixel", 1) == 3:
        return Volume(pixels if pixels.ndim == 4 else pixels[None]), False, places
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    kind = data.get("PhotometricInterpretation")
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(pixels, data)[..., :3]
        colours = colours >> 8 if colours.dtype == np.uint16 and colours.max() > 255 else colours
        return Volume(colours.astype(np.uint8)), False, places
    return Volume(_rescaled(pixels, data), _measured(pixels, data)), kind == "MONOCHROME1", places


def _stored(data: Any) -> np.ndarray:
    """Pixels as they are stored, but RGB for YBR; pydicom has no decoder for JPEG of 12 bits."""
    from pydicom.pixels.utils import pixel_array

    if data.file_meta.TransferSyntaxUID != f"{GDCM}51" or data.BitsStored <= 8:
        return pixel_array(data)
    import imagecodecs
    from pydicom.encaps import generate_frames

    frames = generate_frames(data.PixelData, number_of_frames=int(data.get("NumberOfFrames") or 1))
    return np.stack([imagecodecs.jpeg_decode(frame) for frame in frames])


def _check_decoder(path: Path, data: Any) -> None:
    """Refuses pixels for which no decoder is installed, and names the package that has one."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = data.file_meta.TransferSyntaxUID
    name = syntax.name.split(",")[0]
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError as error:
        raise ImageError(f"{path}: {name} is not read; save it as Explicit VR Little Endian") from error
    if not available:
        packages = "'dig2dig[medical]'"
        packages = packages if syntax.startswith(GDCM) and syntax not in NOT_GDCM else "pylibjpeg pylibjpeg-openjpeg"
        raise ImageError(f"{path}: needs a decoder for {name}: pip install {packages}")


def _measured(pixels: np.ndarray, data: Any) -> np.ndarray | None:
    """Which stored pixels are not padding; None where all are."""
    value = data.get("PixelPaddingValue")
    if value is None or pixels.dtype.kind not in "ui":
        return None
    bounds = np.array([value, data.get("PixelPaddingRangeLimit", value)]).astype(pixels.dtype)  # -2000 may be 63536
    padding = (pixels >= bounds.min()) & (pixels <= bounds.max())
    return ~padding if padding.any() else None


def _rescaled(pixels: np.ndarray, data: Any) -> np.ndarray:
    """Stored pixels in the file's units, of which enhanced files may have others in each frame."""
    from pydicom.pixels.processing import apply_modality_lut

    values = apply_modality_lut(pixels, data).astype(np.float32)
    shared = list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
    frames = list(data.get("PerFrameFunctionalGroupsSequence") or [])
    if "RescaleSlope" in data or len(frames) != len(values):
        return values
    for index, frame in enumerate(frames):
        groups = [frame, *shared]
        slope = _numbers(data, groups, "PixelValueTransformationSequence", "RescaleSlope", 1)
        start = _numbers(data, groups, "PixelValueTransformationSequence", "RescaleIntercept", 1)
        if slope is not None and start is not None:
            values[index] = values[index] * np.float32(slope[0]) + np.float32(start[0])
    return values
