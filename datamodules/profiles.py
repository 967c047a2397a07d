"""Colour profiles: sources are brought into the colours of the reference."""

import io

import numpy as np
from PIL import Image, ImageCms

from datamodules.picture import Picture

# Colours from all of RGB, (5, 25, 3)
LATTICE = np.ascontiguousarray(63 * np.indices((5, 5, 5), np.uint8).reshape(3, 5, 25).transpose(1, 2, 0))


def in_profile_of(picture: Picture, reference: Picture) -> tuple[np.ndarray, str]:
    """The pixels of a colour picture in the profile that a result in colour has, and a note if they were not in it.

    That is the reference's ICC profile for RGB. Without one, pictures and results are taken for sRGB, as the web does.
    Grey pictures are left.
    """
    ours, theirs = (one.metadata.icc if one.metadata.icc[16:20] == b"RGB " else b"" for one in (picture, reference))
    if ours == theirs or picture.pixels.ndim == 2:
        return picture.pixels, ""
    whole = picture.pixels.dtype == np.uint8
    shown = picture.pixels if whole else LATTICE
    try:
        source, target = (
            ImageCms.ImageCmsProfile(io.BytesIO(icc)) if icc else ImageCms.createProfile("sRGB")
            for icc in (ours, theirs)
        )
        image = ImageCms.profileToProfile(Image.fromarray(shown), source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        return picture.pixels, f"its colour profile was not converted ({error})"
    if np.array_equal(np.asarray(image), shown):  # the same profile in other words
        return picture.pixels, ""
    if not whole:
        return picture.pixels, "its colour profile is another, and only 8-bit colours are converted"
    return np.asarray(image), "converted to the reference's colour profile" if theirs else "converted to sRGB"
