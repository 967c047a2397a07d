"""Stored values as intensities: which of them are black and white."""

import numpy as np

from dig2dig.options import parse_range


def to_unit(pixels: np.ndarray, scale: str = "auto") -> tuple[np.ndarray, str]:
    """Stored pixels as float32 in [0, 1], and a note on the range that was taken.

    ``full`` takes all that the type can hold, for floating point 0 to 1; ``percentile`` the 0.1 to the 99.9
    percentile, as thermal frames need it; ``LOW-HIGH`` these stored values. ``auto`` takes percentiles for grey 16-bit
    images that fill less than a quarter of the range, 32-bit integers, and floats beyond 0 to 1, else all.
    """
    wanted = parse_range(scale)
    if wanted == "full" or (wanted == "auto" and fills(pixels)):
        return (pixels / np.float32(full_scale(pixels))).clip(0, 1).astype(np.float32), ""
    low, high = limits(pixels) if isinstance(wanted, str) else wanted
    if not high > low:  # nearly constant: show what little there is
        low, high = float(pixels.min()), max(float(pixels.max()), float(pixels.min()) + 1e-6)
    unit = ((pixels.astype(np.float32) - low) / (high - low)).clip(0, 1)
    return unit.astype(np.float32), f"values {low:g} to {high:g} are black to white"


def limits(pixels: np.ndarray) -> tuple[float, float]:
    """The 0.1 and the 99.9 percentile."""
    low, high = np.percentile(pixels, (0.1, 99.9))
    return float(low), float(high)


def full_scale(pixels: np.ndarray) -> float:
    """The largest value that the type can hold, 1 for floating point."""
    return 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)


def fills(pixels: np.ndarray) -> bool:
    """Whether stored values use their type as pictures do: to more than a quarter, floating point within 0 to 1."""
    if pixels.dtype == np.uint8 or (pixels.dtype == np.uint16 and pixels.ndim == 3):
        return True
    if pixels.dtype == np.uint16:
        low, high = limits(pixels)
        return high - low >= full_scale(pixels) / 4
    return pixels.dtype.kind == "f" and bool(pixels.min() >= 0 and pixels.max() <= 1)
