"""Formats of cameras and renderers: what is read, in pixels, and what is said where that cannot be."""

import io
import struct
import sys
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import OpenEXR
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageCms

from datamodules.readers.pixels import IMAGE_SUFFIXES, image_size, read_picture
from datamodules.readers.raw import RAW_SUFFIXES, SUFFIXES, jxl_size
from dig2dig.errors import ImageError
from tests.conftest import SHARED
from tests.corpus import picture

CASES = SHARED.parent / "cases"
COLOUR = picture(0, 3, 40, 56)


def heic(pixels: np.ndarray, mode: str, **options: object) -> bytes:
    made = pillow_heif.from_bytes(mode, pixels.shape[1::-1], np.ascontiguousarray(pixels).tobytes())
    made.save(buffer := io.BytesIO(), quality=-1, chroma=444, matrix_coefficients=0, **options)
    return buffer.getvalue()


def dng(colours: np.ndarray, orientation: int = 1, white: int = 16383) -> bytes:
    """A raw file of one colour, (3,): its mosaic, behind a thumbnail."""
    mosaic = np.zeros((64, 96), np.uint16)
    mosaic[0::2, 0::2], mosaic[1::2, 1::2] = colours[0], colours[2]
    mosaic[0::2, 1::2] = mosaic[1::2, 0::2] = colours[1]
    head = [(50706, 1, 4, bytes([1, 4, 0, 0]), False), (274, 3, 1, orientation, False)]
    neutral = [(50728, 5, 3, (1, 1, 1, 1, 1, 1), False), (271, 2, 5, "Test", False)]
    srgb = [round(one * 10000) for one in (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.204, 1.057)]
    head += [*neutral, (50721, 10, 9, tuple(n for one in srgb for n in (one, 10000)), False)]
    cfa = [(33421, 3, 2, (2, 2), False), (33422, 1, 4, bytes([0, 1, 1, 2]), False), (50717, 4, 1, white, False)]
    with tifffile.TiffWriter(buffer := io.BytesIO()) as file:
        file.write(np.zeros((12, 16, 3), np.uint8), photometric="rgb", subifds=1, extratags=head, subfiletype=1)
        file.write(mosaic, photometric=32803, extratags=cfa)
    return buffer.getvalue()


def put(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_their_suffixes_count_as_images() -> None:
    assert SUFFIXES < IMAGE_SUFFIXES and {".dng", ".cr3", ".heic", ".jxl", ".exr", ".hdr", ".avif"} < SUFFIXES


def test_raw_is_developed_without_a_change_of_brightness(tmp_path: Path) -> None:
    """Linear light in sRGB: a frame of half the exposure has half the light, and white is the white level's."""
    light = []
    for name, level in (("dark", 2000), ("bright", 4000), ("white", 16383)):
        found = read_picture(put(tmp_path, f"{name}.dng", dng(np.full(3, level))))
        assert found.pixels.dtype == np.uint16 and found.pixels.shape[:2] == (64, 96)
        assert "developed" in found.note
        middle = np.median(found.pixels) / 65535
        light.append(((middle + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(light, np.array([2000, 4000, 16383]) / 16383, rtol=0.01)


def test_raw_keeps_its_colours_and_stands_upright(tmp_path: Path) -> None:
    path = put(tmp_path, "tall.dng", dng(np.array([8000, 4000, 2000]), orientation=6))
    found = read_picture(path)
    assert found.pixels.shape == (96, 64, 3) and image_size(path) == (96, 64)
    red, green, blue = np.median(found.pixels.reshape(-1, 3), axis=0)
    assert red > 1.2 * green > 1.4 * blue
    assert b"Test" in found.metadata.exif


def test_the_shared_raw_files_are_developed() -> None:
    if not (CASES / "dng").is_dir():
        pytest.skip("the shared cases are not here")
    under, over = (read_picture(CASES / "dng" / f"{name}.dng").pixels for name in ("under", "over"))
    assert under.shape == over.shape == (240, 320, 3) and under.dtype == np.uint16
    assert 1.3 < over.mean() / under.mean() < 3 and under.max() < over.max() < 65535


def test_heic_of_eight_and_ten_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    eight = read_picture(put(tmp_path, "a.heic", heic(COLOUR, "RGB", exif=exif.tobytes())))
    assert eight.pixels.dtype == np.uint8 and abs(eight.pixels.astype(int) - np.rot90(COLOUR, -1)).max() <= 2
    assert b"Maker" in eight.metadata.exif and image_size(tmp_path / "a.heic") == (56, 40)
    deep = COLOUR.astype(np.uint16) * 257
    ten = read_picture(put(tmp_path, "b.heif", heic(deep, "RGB;16")))
    assert ten.pixels.dtype == np.uint16 and abs(ten.pixels.astype(int) - deep).max() <= 400
    assert ten.pixels.max() > 65400  # white stays white


def test_alpha_of_heic_says_what_is_valid(tmp_path: Path) -> None:
    alpha = np.full((40, 56, 1), 255, np.uint8)
    alpha[:9] = 0
    found = read_picture(put(tmp_path, "a.heic", heic(np.dstack([COLOUR, alpha]), "RGBA")))
    assert found.valid is not None
    assert not found.valid[:8].any() and found.valid[10:].all()


def test_a_heic_that_is_called_a_jpeg_is_read(tmp_path: Path) -> None:
    found = read_picture(put(tmp_path, "phone.jpg", heic(COLOUR, "RGB")))
    assert abs(found.pixels.astype(int) - COLOUR).max() <= 2
    jpeg = cv2.imencode(".jpg", COLOUR)[1].tobytes()
    assert read_picture(put(tmp_path, "phone.heic", jpeg)).pixels.shape == (40, 56, 3)


@pytest.mark.parametrize("bits", [10, 12])
def test_avif_of_more_than_8_bits_has_16(tmp_path: Path, bits: int) -> None:
    stored = np.linspace(0, 2**bits - 1, 64 * 48).astype(np.uint16).reshape(48, 64)
    colours = np.dstack([stored, stored[::-1], stored])
    content = imagecodecs.avif_encode(colours, level=100, bitspersample=bits, pixelformat="444")
    found = read_picture(put(tmp_path, "a.avif", content)).pixels
    assert found.dtype == np.uint16 and np.abs(found / 65535 - colours / (2**bits - 1)).max() < 4 / 2**bits


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("box", [False, True])
def test_jpeg_xl_is_read_exactly(tmp_path: Path, dtype: type, box: bool) -> None:
    pixels = (COLOUR * {np.uint8: 1.0, np.uint16: 257.0, np.float32: 1 / 255}[dtype]).astype(dtype)
    path = put(tmp_path, "a.jxl", imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=box))
    found = read_picture(path).pixels
    assert found.dtype == dtype and image_size(path) == (40, 56)
    np.testing.assert_allclose(found, pixels, atol=1e-6)


def test_a_jpeg_that_was_packed_as_jpeg_xl_keeps_its_profile_and_exif(tmp_path: Path) -> None:
    exif, profile = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif[271], exif[274] = "ACME", 6
    Image.fromarray(COLOUR).save(jpeg := io.BytesIO(), "JPEG", exif=exif.tobytes(), icc_profile=profile)
    found = read_picture(put(tmp_path, "a.jxl", imagecodecs.jpegxl_encode_jpeg(jpeg.getvalue())))
    kept = Image.Exif()
    kept.load(found.metadata.exif)
    assert found.metadata.icc == profile and dict(kept) == {271: "ACME"} and not found.note
    assert "taken for sRGB" in read_picture(put(tmp_path, "b.jxl", imagecodecs.jpegxl_encode(COLOUR))).note


@pytest.mark.parametrize("size", [(8, 8), (7, 300), (480, 640), (96, 54), (33, 40), (2000, 9)])
def test_sizes_of_jpeg_xl_are_in_its_header(size: tuple[int, int]) -> None:
    assert jxl_size(imagecodecs.jpegxl_encode(np.zeros((*size, 3), np.uint8))) == size


def exr(path: Path, channels: dict[str, np.ndarray]) -> Path:
    with OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, channels) as file:
        file.write(str(path))
    return path


def test_linear_light_stays_in_floating_point(tmp_path: Path) -> None:
    light = COLOUR.astype(np.float32) / 50
    path = exr(tmp_path / "a.exr", {"RGB": light.astype(np.float16)})
    found = read_picture(path)
    assert found.pixels.dtype == np.float32 and image_size(path) == (40, 56)
    np.testing.assert_allclose(found.pixels, light, rtol=2e-3)
    grey = read_picture(exr(tmp_path / "y.exr", {"Y": light[..., 0].copy()}))
    np.testing.assert_array_equal(grey.pixels, light[..., 0])
    half = np.full((40, 56, 1), 0.5, np.float32)
    half[:5] = 0
    some = read_picture(exr(tmp_path / "rgba.exr", {"RGBA": np.dstack([light * half, half])}))
    np.testing.assert_allclose(some.pixels[5:], light[5:], rtol=1e-5)
    assert some.valid is not None and not some.valid[:5].any() and some.valid[5:].all()
    content = cv2.imencode(".hdr", light[..., ::-1])[1].tobytes()
    shared = read_picture(put(tmp_path, "a.hdr", content))
    assert shared.pixels.dtype == np.float32 and image_size(tmp_path / "a.hdr") == (40, 56)
    assert abs(shared.pixels - light).max() <= light.max() / 100
    for scale, kind in ((b"-1.0", "<f4"), (b"1.0", ">f4")):
        content = b"PF\n56 40\n" + scale + b"\n" + light[::-1].astype(kind).tobytes()
        np.testing.assert_array_equal(read_picture(put(tmp_path, "a.pfm", content)).pixels, light)
    assert image_size(tmp_path / "a.pfm") == (40, 56)
    for cut in (1, 4, 2000):
        with pytest.raises(ImageError, match=r"a\.pfm: damaged"):
            read_picture(put(tmp_path, "a.pfm", content[:-cut]))
    np.testing.assert_array_equal(read_picture(put(tmp_path, "a.pfm", content + b"\n")).pixels, light)


def test_channels_that_are_no_picture_are_named(tmp_path: Path) -> None:
    one = np.ones((40, 56), np.float32)
    path = exr(tmp_path / "a.exr", {"depth": one, "normal": one})
    with pytest.raises(ImageError, match=r"a.exr: channels depth, normal; RGB, RGBA and one channel are read"):
        read_picture(path)


def test_avif_is_read(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.avif", quality=100, subsampling="4:4:4")
    assert abs(read_picture(tmp_path / "a.avif").pixels.astype(int) - COLOUR).max() <= 6


KINDS = {
    "a.dng": ("rawpy", dng(np.full(3, 4000))),
    "a.heic": ("pillow-heif", heic(COLOUR, "RGB")),
    "a.jxl": ("imagecodecs", imagecodecs.jpegxl_encode(COLOUR)),
    "a.exr": ("OpenEXR", b""),
    "a.hdr": ("", cv2.imencode(".hdr", COLOUR.astype(np.float32) / 50)[1].tobytes()),
}


def content_of(folder: Path, name: str) -> bytes:
    return KINDS[name][1] or exr(folder / "whole.exr", {"RGB": COLOUR.astype(np.float32)}).read_bytes()


@pytest.mark.parametrize("name", [name for name, (package, _) in KINDS.items() if package])
def test_a_missing_package_is_named_with_its_command(tmp_path: Path, name: str, monkeypatch) -> None:
    path = put(tmp_path, name, content_of(tmp_path, name))
    package = KINDS[name][0]
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(ImageError) as caught:
        read_picture(path)
    assert str(caught.value) == f"{path}: needs {package}; pip install 'dig2dig[formats]'"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_file_is_one_line_and_nothing_is_printed(tmp_path: Path, name: str, share: float, capfd) -> None:
    whole = content_of(tmp_path, name)
    path = put(tmp_path, name, whole[: int(share * len(whole))])
    try:
        read_picture(path)
    except ImageError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert name == "a.hdr" or share > 0.5
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", sorted(RAW_SUFFIXES))
def test_text_is_no_raw_file(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ImageError, match="damaged image"):
        read_picture(put(tmp_path, f"a{suffix}", b"no pixels here\n" * 40))


def test_claims_of_a_header_are_checked_before_the_pixels(tmp_path: Path) -> None:
    size = b"-Y 70000 +X 70000\n"
    path = put(tmp_path, "bomb.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n" + size + b"\2\2" * 99)
    with pytest.raises(ImageError, match="claims 4900 megapixels; at most 268 are read"):
        read_picture(path)
    bits = 0 | 3 << 1 | (2**20) << 3 | 1 << 33  # sides of 2^20 + 1, of one ratio
    path = put(tmp_path, "bomb.jxl", b"\xff\x0a" + struct.pack("<Q", bits) + bytes(40))
    with pytest.raises(ImageError, match="megapixels; at most 268 are read"):
        read_picture(path)
