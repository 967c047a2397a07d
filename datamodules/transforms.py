"""Augmentation of single images with albumentations."""

import os
from typing import Any
from unittest.mock import patch

with patch.dict(os.environ, NO_ALBUMENTATIONS_UPDATE="1"):  # no look-up on the network at import
    import albumentations as A
import cv2


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


def validation_crop(side: int) -> A.Compose:
    """The centre crop, padded by reflection where an image is smaller."""
    return A.Compose([A.CenterCrop(side, side, pad_if_needed=True, border_mode=cv2.BORDER_REFLECT_101)])
