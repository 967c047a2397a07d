"""Infrared pictures that a camera stored in false colours: back to the values that the colours stand for."""

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np

from datamodules.picture import Picture
from datamodules.ranges import full_scale
from datamodules.readers.pixels import convert

NAMED = ["jet", "hot", "inferno", "plasma", "magma", "viridis", "turbo", "rainbow", "hsv", "parula"]  # of OpenCV
# of matplotlib
MORE = ["afmhot", "gist_heat", "gnuplot2", "CMRmap", "nipy_spectral", "gist_rainbow", "coolwarm", "jet", "rainbow"]
STORED = {  # the colours of FLIR's cameras, of which every 16th is here
    "iron": "101010 230f6e 530994 7d0ca2 9f189b bc2886 d03e65 e05745 ec7225 f18e0f f5a908 f4c116 f0d73f e9e687 ebebeb",
    "rainbow high contrast": (
        "101010 871088 b40fcd 3c10a5 0f59ae 0ccfd3 0e8f68 2b670f 98af09 bfa709 8c390d 981d1f c63435 da8c8c ebebeb"
    ),
    "iron bow": "000000 20008c cc0077 ff8700 ffd700 ffffff",
}
GREY, TYPICAL, MEAN = 3, 7, 12  # of 255: spread of a grey picture's channels; median and mean distance to a palette


def without_palette(picture: Picture, name: str | None = None) -> Picture:
    """An infrared picture in grey: infrared does not colour the scene.

    Colours that lie on a known palette, sought unless its ``name`` is given, become their place on it, 0 to 255; most
    lie near it, but lettering and the camera's marks may not. Of all other colours the luminance stays. A palette and
    its reverse have the same colours: the usual direction is taken.
    """
    pixels = picture.pixels
    if pixels.ndim == 2:
        return picture
    name = palette_of(pixels) if name is None else name
    if name:
        grey, told = places(eight_bits(pixels), palettes()[name]), f"false colour ({name}) taken back to values"
    else:
        known = pixels if pixels.dtype != np.int32 else pixels.astype(np.float32)
        grey, told = convert(known, "L"), "colour dropped: infrared does not colour the scene"
    return replace(picture, pixels=grey, note=", ".join(filter(None, (picture.note, told))))


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) of any type in 0 to 255."""
    return (pixels.astype(np.float32) * (255 / full_scale(pixels))).clip(0, 255)


@lru_cache(maxsize=1)
def palettes() -> dict[str, np.ndarray]:
    """Known palettes by name, each (256, 3) in 0 to 255 from cold to hot."""
    import matplotlib

    steps = np.linspace(0, 1, 256)
    found = {}
    for name in NAMED:
        table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], getattr(cv2, f"COLORMAP_{name.upper()}"))
        found[name] = table[:, 0, ::-1].astype(np.float32)
    for name in MORE:
        found[f"{name} of matplotlib"] = (matplotlib.colormaps[name](steps)[:, :3] * 255).astype(np.float32)
    for name, stored in STORED.items():
        knots = np.array([list(bytes.fromhex(one)) for one in stored.split()], np.float32)
        at = np.linspace(0, 1, len(knots))
        found[name] = np.stack([np.interp(steps, at, channel) for channel in knots.T], 1).astype(np.float32)
    return found


def palette_of(pixels: np.ndarray) -> str:
    """The palette that pixels lie nearest to; empty if they are grey, or lie near none."""
    from scipy.spatial import KDTree

    if pixels.ndim == 2 or np.ptp(colours := eight_bits(pixels), axis=2).mean() < GREY:
        return ""
    some = colours.reshape(-1, 3)
    some = some[:: max(1, len(some) // 4000)]
    best, nearest = "", float(MEAN)
    for name, table in palettes().items():
        distance = KDTree(table).query(some)[0]
        if np.median(distance) < TYPICAL and distance.mean() < nearest:
            best, nearest = name, float(distance.mean())
    return best


def places(colours: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The place of each colour (h, w, 3) on a palette, 8 bits."""
    from scipy.spatial import KDTree

    stored, where = np.unique(colours.round().astype(np.uint8).reshape(-1, 3), axis=0, return_inverse=True)
    found = np.asarray(KDTree(table).query(stored.astype(np.float32))[1], np.uint8)
    return found[where.reshape(-1)].reshape(colours.shape[:2])
