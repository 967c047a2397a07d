"""How each source of a scene comes into the reference's frame: resized, by a rig, registered, or along a stack."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from datamodules.align import Registration, drawn, laid, misregistration, rescale
from datamodules.aside import aside
from datamodules.parallax import settled
from datamodules.ranges import Valid
from datamodules.register import LEAST_GAIN, register
from datamodules.rig import is_rig, keep, kept, read_rig
from dig2dig.errors import AlignmentError


def checksum(pixels: np.ndarray | None) -> str:
    """Changes with the numbers in an array."""
    return "-" if pixels is None else f"{zlib.crc32(np.ascontiguousarray(pixels).data):08x}"


@dataclass(frozen=True)
class Placing:
    """The sources of a scene, and how they come into the frame of one of them."""

    images: Mapping[str, np.ndarray]  # by modality, in [0, 1]
    valids: Mapping[str, Valid]
    reference: str
    align: str  # none, resize, auto, ecc, phase, or the path of a rig
    chained: bool = False  # each registers to its neighbour in the order of the sources: focal planes, exposures
    bends: bool = False  # and is bent onto it: exposures; edges of focal planes move as they blur
    stated: Mapping[str, np.ndarray] = field(default_factory=dict)  # homographies that cameras state, by modality
    memory: str = ""  # file that keeps registrations from run to run
    links: dict[tuple[str, str], Registration] = field(default_factory=dict)  # found so far
    placed: dict[str, tuple[np.ndarray, Valid, list[str]]] = field(default_factory=dict)  # placed so far

    def place(self, modality: str) -> tuple[np.ndarray, Valid, list[str]]:
        """An image in the reference's frame, its valid pixels there, and what was done or seems to be needed."""
        fixed, image, valid = self.images[self.reference], self.images[modality], self.valids[modality]
        if modality in self.placed:
            return self.placed[modality]
        if self.align not in ("none", "resize") or (self.align == "none" and modality in self.stated):
            found = self.registration(modality)
            if self.bends and self.align in ("auto", "ecc"):
                found = self._settled(modality, found)
            covered = found.cover(valid)
            if covered is not None and not covered.any():
                raise AlignmentError(f"{self.align} puts it beside {self.reference}: it covers no pixel")
            self.placed[modality] = aside(found.image, len(self.images)), covered, [str(found)]
            return self.placed[modality]
        notes = []
        if image.shape[:2] != fixed.shape[:2]:
            notes = [f"resized from {image.shape[1]}x{image.shape[0]}"]
            image = rescale(image, fixed.shape[:2])
            valid = None if valid is None else rescale(valid.astype(np.float32), fixed.shape[:2]) > 0.99
        if shift := misregistration(fixed, image):
            notes.append(f"seems shifted by {round(shift[0])}, {round(shift[1])} px; align=auto registers")
        return image, valid, notes

    def registration(self, modality: str) -> Registration:
        """How a source lies on the reference; an AlignmentError if that cannot be found."""
        fixed, moving = self.images[self.reference], self.images[modality]
        if self.align == "none":
            return self._as_stated(modality)
        if is_rig(self.align):
            return read_rig(Path(self.align)).place(fixed, moving, modality, self.reference)
        names = list(self.images)
        start, end = names.index(self.reference), names.index(modality)
        if not self.chained or abs(start - end) == 1:
            try:
                return self._between(self.reference, modality)
            except AlignmentError:
                if modality not in self.stated:
                    raise
                return self._as_stated(modality)
        step = 1 if end > start else -1
        links = [self._between(names[i], names[i + step]) for i in range(start, end, step)]
        matrix = np.eye(3)
        for link in links:
            matrix = link.matrix @ matrix
        matrix /= matrix[2, 2]
        motion = max((link.motion for link in links), key=("nothing", "shift", "similarity", "homography").index)
        image = laid(moving, matrix, motion, fixed.shape)
        return replace(links[-1], image=image, matrix=matrix, motion=motion, score=min(link.score for link in links))

    def _settled(self, modality: str, found: Registration) -> Registration:
        """A registered source of a stack, bent onto its neighbour in the reference's frame."""
        names = list(self.images)
        start, end = names.index(self.reference), names.index(modality)
        near = names[end - 1 if end > start else end + 1]
        fixed, seen, *_ = (self.images[near], self.valids[near]) if near == self.reference else self.place(near)
        return settled(fixed, self.images[modality], found, self.valids[modality], seen)

    def _as_stated(self, modality: str) -> Registration:
        """A source where its camera says that it lies."""
        matrix, moving = self.stated[modality], self.images[modality]
        image = drawn(moving, matrix, self.images[self.reference].shape)
        return Registration(image, matrix, 0.0, moving.shape[:2], "camera")

    def _between(self, onto: str, modality: str) -> Registration:
        """One source on another, found once."""
        if (onto, modality) not in self.links:
            found = self._recalled(onto, modality)
            self.links[onto, modality] = replace(found, image=aside(found.image, len(self.images)))
        return self.links[onto, modality]

    def _recalled(self, onto: str, modality: str) -> Registration:
        """One source on another, from memory if an earlier run has found it."""
        fixed, moving = self.images[onto], self.images[modality]
        gain = 0.15 * LEAST_GAIN if self.chained else LEAST_GAIN
        start = self.stated.get(modality) if onto == self.reference else None
        shaping = (checksum(one) for one in (fixed, moving, self.valids[modality], start)) if self.memory else ()
        key = " ".join(("3", self.align, f"{gain:g}", *shaping))
        if self.memory and (row := kept(self.memory).get(key)):
            matrix, motion = np.array(row["matrix"], float), str(row["motion"])
            image = laid(moving, matrix, motion, fixed.shape)
            return Registration(image, matrix, float(row["score"]), moving.shape[:2], motion, str(row["parallax"]))
        found = register(fixed, moving, self.align, valid=self.valids[modality], gain=gain, start=start)
        if self.memory:
            keep(self.memory, key, found)
        return found
