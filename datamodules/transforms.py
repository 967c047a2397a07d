"""Augmentation of single images with albumentations."""

import os
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

with patch.dict(os.environ, NO_ALBUMENTATIONS_UPDATE="1"):  # no look-up on the network at import
    import albumentations as A
import cv2
import numpy as np


def training_crops(side: int, scales: list[float], grey: float) -> A.Compose:
    """Random square crops of ``side`` pixels: mirrored, some gamma-shifted or inverted, a share ``grey`` made grey.

    One of ``scales`` is drawn for each: the crop is cut so many times larger, and reduced by area averaging.
    """
    crops = []
    for scale in scales:
        large = round(side * scale)
        crop: list[Any] = [A.RandomCrop(large, large, pad_if_needed=True, border_mode=cv2.BORDER_REFLECT_101)]
        crop += [A.Resize(side, side, interpolation=cv2.INTER_AREA)] if large != side else []
        crops.append(A.Sequential(crop, p=1))
    colours = [A.ToGray(p=grey), A.RandomGamma(gamma_limit=(50, 200), p=0.2), A.InvertImg(p=0.05)]
    return A.Compose([A.OneOf(crops, p=1), A.HorizontalFlip(p=0.5), A.Transpose(p=0.2), *colours])


class PairTransform:
    """One spatial transform for all sources of a scene, which move as channels of one image."""

    def __init__(self, spatial: A.Compose) -> None:
        self.spatial = spatial

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The sources, each (h, w) or (h, w, 3), of one size and type."""
        layers = [np.atleast_3d(array) for array in arrays]
        edges = np.cumsum([layer.shape[2] for layer in layers])[:-1]
        moved = np.split(self.spatial(image=np.concatenate(layers, 2))["image"], edges, axis=2)
        pairs = zip(moved, arrays, strict=True)
        return [np.ascontiguousarray(layer[..., 0] if array.ndim == 2 else layer) for layer, array in pairs]


def validation_crop(side: int) -> A.Compose:
    """The centre crop, padded by reflection where an image is smaller."""
    return A.Compose([A.CenterCrop(side, side, pad_if_needed=True, border_mode=cv2.BORDER_REFLECT_101)])
