"""Makes the multi-focus pair from a sharp photograph: python examples/make_multi_focus.py PHOTOGRAPH.

A soft line from the near slope to the far mountains stands for depth. Each source is the photograph with the other
side of the line out of focus (a disk of confusion, its radius growing with the distance from the line). Made, not
photographed: the photograph itself is the ground truth.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

SIDE, NAME, RADII = 384, "mountain.png", (2, 3, 4, 5)


def out_of_focus(image: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Blurs where ``distance`` from the focal plane is positive, in four depths, up to 5 pixels at 1."""
    result = image.astype(np.float32)
    for i, radius in enumerate(RADII):
        grid = np.arange(-radius, radius + 1)
        disk = (np.hypot(grid[:, None], grid) <= radius + 0.3).astype(np.float32)
        blurred = cv2.filter2D(image, cv2.CV_32F, disk / disk.sum(), borderType=cv2.BORDER_REFLECT)
        share = np.clip((distance * len(RADII) - i) / 0.5, 0, 1)[..., None]
        result = result * (1 - share) + blurred * share
    return np.rint(np.clip(result, 0, 255)).astype(np.uint8)


def main(photograph: str) -> None:
    """Writes near/, far/ and truth/ beside this file."""
    image = cv2.resize(cv2.imread(photograph), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    depth = (0.66 - 0.12 * np.sin(2.6 * x + 0.3)) - y  # positive: behind the line
    pictures = {
        "truth": image,
        "near": out_of_focus(image, depth * 3),
        "far": out_of_focus(image, -depth * 3),
    }
    for side, picture in pictures.items():
        folder = Path(__file__).parent / "multi_focus" / side
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / NAME), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main(sys.argv[1])
