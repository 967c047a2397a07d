"""Colour profiles: sources are brought into the colours of the reference."""

import io

import numpy as np
from PIL import Image, ImageCms

from datamodules.picture import Picture


def in_profile_of(picture: Picture, reference: Picture) -> tuple[np.ndarray, str]:
    """The pixels of a colour picture in the reference's ICC profile, and a note if they cannot be brought there.

    A picture without a profile is taken for sRGB, as the web does. Grey pictures are left.
    """
    ours, theirs = picture.metadata.icc, reference.metadata.icc
    if ours == theirs or picture.pixels.ndim == 2 or reference.pixels.ndim == 2:
        return picture.pixels, ""
    if picture.pixels.dtype != np.uint8:
        return picture.pixels, "its colour profile is another, and only 8-bit colours are converted"
    try:
        source, target = (
            ImageCms.ImageCmsProfile(io.BytesIO(icc)) if icc else ImageCms.createProfile("sRGB")
            for icc in (ours, theirs)
        )
        image = ImageCms.profileToProfile(Image.fromarray(picture.pixels), source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        return picture.pixels, f"its colour profile was not converted ({error})"
    return np.asarray(image), "converted to the reference's colour profile"
