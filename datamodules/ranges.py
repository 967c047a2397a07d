"""Stored values as intensities: which of them are black and white."""

from collections.abc import Sequence

import numpy as np

from dig2dig.options import parse_range

Valid = np.ndarray | None  # (h, w), bool; None = all pixels


def to_unit(
    pixels: np.ndarray, scale: str = "auto", valid: Valid = None, inverted: bool = False
) -> tuple[np.ndarray, str]:
    """Stored pixels as float32 in [0, 1], and a note on the range that was taken; ``inverted`` ones are dark if large.

    ``full`` takes all that the type can hold, for floating point 0 to 1; ``percentile`` the 0.1 to the 99.9
    percentile of the valid pixels, as thermal frames need it; ``LOW-HIGH`` these stored values. ``auto`` takes
    percentiles for 16-bit images that fill less than a quarter of the range, 32-bit integers, and floats beyond 0 to
    1, else all.
    """
    wanted, _ = parse_range(scale)
    if wanted == "full" or (wanted == "auto" and fills(pixels, valid)):
        low, high, note = 0.0, full_scale(pixels), ""
    else:
        low, high = limits(pixels, valid) if isinstance(wanted, str) else wanted
        if not high > low:  # nearly constant: show what little there is
            found = shown(pixels, valid)
            low, high = float(found.min()), max(float(found.max()), float(found.min()) + 1e-6)
        note = f"values {low:g} to {high:g} are {'white to black' if inverted else 'black to white'}"
    low, high = (high, low) if inverted else (low, high)
    unit = (pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.nan_to_num(unit, nan=0.0).clip(0, 1).astype(np.float32), note


def shown(pixels: np.ndarray, valid: Valid) -> np.ndarray:
    """The values of the valid pixels."""
    return pixels if valid is None else pixels[valid]


def limits(pixels: np.ndarray, valid: Valid = None) -> tuple[float, float]:
    """The 0.1 and the 99.9 percentile of the valid pixels, without lines at the edges that hold other things."""
    telemetry = valid is None and pixels.ndim == 2 and pixels.dtype != np.uint8
    low, high = np.percentile(pixels[_lines(pixels)] if telemetry else shown(pixels, valid), (0.1, 99.9))
    return float(low), float(high)


def _lines(pixels: np.ndarray, most: int = 4) -> slice:
    """Rows without those at the top and bottom whose median lies far from the picture: a camera's telemetry."""
    inner = pixels[most:-most] if len(pixels) > 4 * most else pixels
    low, high = np.percentile(inner, (0.1, 99.9))
    medians = np.median(pixels, 1)
    apart = (medians < low - (high - low)) | (medians > high + (high - low))
    top = next(i for i in range(most + 1) if i == most or not apart[i])
    bottom = next(i for i in range(most + 1) if i == most or not apart[-1 - i])
    return slice(top, len(pixels) - bottom)


def one_range(pictures: Sequence[np.ndarray], valids: Sequence[Valid], scale: str) -> str:
    """One range for all pictures of a stack or series: ``full``, or LOW-HIGH around all their percentiles."""
    wanted, _ = parse_range(scale)
    filled = [fills(pixels, valid) for pixels, valid in zip(pictures, valids, strict=True)]
    floats = any(pixels.dtype.kind == "f" for pixels in pictures)
    if not pictures or (wanted == "auto" and (all(filled) if floats else any(filled))):
        return "full"
    low, high = zip(*map(limits, pictures, valids), strict=True)
    ends = (np.format_float_positional(end, 9, unique=False, fractional=False) for end in (min(low), max(high)))
    return "-".join(ends) if max(high) > min(low) else "full"


def full_scale(pixels: np.ndarray) -> float:
    """The largest value that the type can hold, 1 for floating point."""
    return 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)


def fills(pixels: np.ndarray, valid: Valid = None) -> bool:
    """Whether stored values use their type as pictures do: to more than a quarter, floating point within 0 to 1."""
    if pixels.dtype == np.uint8:
        return True
    if pixels.dtype == np.uint16:
        low, high = limits(pixels, valid)
        return high - low >= full_scale(pixels) / 4
    found = shown(pixels, valid)
    return pixels.dtype.kind == "f" and bool(found.min() >= 0 and found.max() <= 1)
