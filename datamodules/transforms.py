"""Augmentation of single images with albumentations."""

import os
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look-up on the network at import

import albumentations as A
import cv2

cv2.setNumThreads(0)  # OpenCV's threads fight torch's


def training_crops(side: int, scales: list[float], grey: float) -> A.Compose:
    """Random square crops at several scales, mirrored, some of them grey, gamma-shifted or inverted.

    Args:
        side: Side of the result, pixels.
        scales: Crops are this many times larger and reduced by area averaging; one is drawn for each.
        grey: Share of crops that lose their colour.
    """
    crops = []
    for scale in scales:
        large = round(side * scale)
        crop: list[Any] = [A.RandomCrop(large, large, pad_if_needed=True, border_mode=cv2.BORDER_REFLECT_101)]
        if large != side:
            crop.append(A.Resize(side, side, interpolation=cv2.INTER_AREA))
        crops.append(A.Sequential(crop, p=1))
    return A.Compose(
        [
            A.OneOf(crops, p=1),
            A.HorizontalFlip(p=0.5),
            A.Transpose(p=0.2),
            A.ToGray(p=grey),
            A.RandomGamma(gamma_limit=(50, 200), p=0.2),
            A.InvertImg(p=0.05),
        ]
    )


def validation_crop(side: int) -> A.Compose:
    """The centre crop, padded by reflection where an image is smaller."""
    return A.Compose([A.CenterCrop(side, side, pad_if_needed=True, border_mode=cv2.BORDER_REFLECT_101)])
