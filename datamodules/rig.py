"""Two cameras on one mount: one calibration for all their pictures, and registrations that are kept."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from datamodules.align import Registration, drawn, resizing
from dig2dig.atomic import write_atomically
from dig2dig.errors import AlignmentError, first_line

LARGEST_SCATTER = 0.02  # of the reference's longer side


@dataclass(frozen=True)
class Mount:
    """How one camera looks beside the reference."""

    matrix: np.ndarray  # the reference's pixels to the source's, (3, 3)
    size: tuple[int, int]  # height and width of the source
    scatter: float = 0.0  # pixels of the reference that nine in ten frames differ by, at the corners


@dataclass(frozen=True)
class Rig:
    """How the cameras of a mount look beside the reference."""

    size: tuple[int, int]  # height and width of the reference
    mounts: Mapping[str, Mount]  # by modality

    def place(self, fixed: np.ndarray, moving: np.ndarray, modality: str, reference: str = "") -> Registration:
        """A source in the frame of ``reference``, which may be a source of the rig; sizes may be other than there."""
        if modality not in self.mounts:
            raise AlignmentError(f"the rig has no {modality}, only {', '.join(self.mounts)}")
        mount, onto = self.mounts[modality], self.mounts.get(reference, Mount(np.eye(3), self.size))
        back = np.linalg.inv(onto.matrix) @ resizing(fixed.shape, onto.size)  # to pixels of the rig's reference
        matrix = resizing(mount.size, moving.shape) @ mount.matrix @ back
        matrix /= matrix[2, 2]
        return Registration(drawn(moving, matrix, fixed.shape), matrix, 0.0, moving.shape[:2], "rig")


def calibrate(frames: Sequence[Registration], size: tuple[int, int]) -> Mount:
    """One homography from the registrations of several frames: the median of where the source's corners lie.

    ``size`` is the reference's. Frames that scatter by more than 2 % of its longer side are an AlignmentError.
    """
    if not frames:
        raise AlignmentError("no frame registers: give frames with more to see, or write a box by hand")
    height, width = frames[0].size
    corners = np.array([[[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]], np.float32)
    placed = np.stack([cv2.perspectiveTransform(corners, np.linalg.inv(one.matrix))[0] for one in frames])
    middle = np.median(placed, 0)
    away = np.linalg.norm(placed - middle, axis=-1).max(1)
    scatter = float(np.percentile(away, 90 if len(away) > 4 else 100))
    if np.median(away) > LARGEST_SCATTER * max(size):
        raise AlignmentError(f"frames differ by {np.median(away):.0f} px at corners: the cameras moved or see parallax")
    return Mount(cv2.getPerspectiveTransform(middle.astype(np.float32), corners[0]), (height, width), scatter)


def write_rig(rig: Rig, path: Path) -> None:
    """Writes a rig as YAML, whole or not at all."""
    sources = {
        modality: {
            "size": [mount.size[1], mount.size[0]],
            "homography": [[float(f"{number:.10g}") for number in row] for row in mount.matrix],
            "scatter": round(mount.scatter, 2),
        }
        for modality, mount in rig.mounts.items()
    }
    content = {"size": [rig.size[1], rig.size[0]], "sources": sources}
    text = "# Sizes are width, height. A homography leads from pixels of the reference to pixels of the source.\n"
    write_atomically(path, (text + yaml.safe_dump(content, sort_keys=False, default_flow_style=None)).encode())


def is_rig(align: str) -> bool:
    """Whether an option ``align`` is the path of a rig."""
    return align.endswith((".yaml", ".yml"))


def read_rig(path: Path) -> Rig:
    """Reads a rig; an AlignmentError says in one line what is wrong with the file."""
    try:
        content = yaml.safe_load(path.read_text())
        size = _size(content["size"])
        return Rig(size, {str(name): _mount(one) for name, one in content["sources"].items()})
    except OSError as error:
        raise AlignmentError(f"{path}: cannot be read ({error.strerror})") from error
    except KeyError as error:
        raise AlignmentError(f"{path}: no {error.args[0]} in the rig; see docs/inputs.md") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, AttributeError) as error:
        raise AlignmentError(f"{path}: not a rig ({first_line(error)}); see docs/inputs.md") from error


def _mount(given: Mapping[str, Any]) -> Mount:
    """A source of a rig: its size, and a homography or the box of the reference that it covers."""
    height, width = _size(given["size"])
    if "box" in given:
        return Mount(boxed([float(number) for number in given["box"]], (height, width)), (height, width))
    matrix = np.array(given["homography"], float)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise ValueError("homography must be three rows of three numbers that can be inverted")
    return Mount(matrix, (height, width), float(given.get("scatter", 0)))


def boxed(box: Sequence[float] | np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The way from the reference's pixels to those of a source of (height, width) that covers a box of it, (3, 3)."""
    x, y, w, h = map(float, box)
    if not (w > 0 and h > 0):
        raise ValueError("box must be x, y, width, height")
    slope = np.array([[size[1] / w, 0, -x * size[1] / w], [0, size[0] / h, -y * size[0] / h], [0, 0, 1]])
    middle = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # a box counts from corners, a matrix from middles
    return np.linalg.inv(middle) @ slope @ middle


def _size(given: Sequence[Any]) -> tuple[int, int]:
    """Height and width of what a rig writes as width, height."""
    width, height = (int(number) for number in given)
    if min(width, height) < 4:
        raise ValueError("size must be width, height")
    return height, width


@lru_cache(maxsize=8)  # each frame of a film asks again
def kept(path: str) -> dict[str, Any]:
    """Registrations that runs keep in a file, by their keys: a JSON object a line; a line that was cut is left out."""
    found: dict[str, Any] = {}
    with suppress(OSError):
        for line in Path(path).read_bytes().splitlines():
            with suppress(ValueError, TypeError):
                found |= json.loads(line)
    return found


def keep(path: str, key: str, found: Registration) -> None:
    """Keeps a registration: its homography and what was said of it. A file that cannot be written is no error."""
    row = {"matrix": found.matrix.tolist(), "score": found.score, "motion": found.motion, "parallax": found.parallax}
    kept(path)[key] = row
    with suppress(OSError):
        if Path(path).is_symlink():
            Path(path).unlink()
        with Path(path).open("a") as file:  # to write it anew for each frame would take ever longer
            file.write(f"\n{json.dumps({key: row})}")  # the line before may be cut
