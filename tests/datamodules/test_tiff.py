"""TIFF files of every layout, against the pixels that were written."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from datamodules.readers.pixels import image_size, read_picture
from dig2dig.errors import ImageError
from tests.corpus import picture

GREY, RGB = picture(1), picture(2, 3)
DEEP = RGB.astype(np.uint16) * 257


def stored(tmp_path: Path, pixels: np.ndarray, **settings) -> Path:
    tifffile.imwrite(tmp_path / "a.tif", pixels, **settings)
    return tmp_path / "a.tif"


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd"])
@pytest.mark.parametrize("pixels", [GREY, RGB, DEEP, GREY.astype(np.float32) / 255], ids=["8", "rgb", "rgb16", "float"])
def test_compressions(tmp_path: Path, pixels: np.ndarray, compression: str | None) -> None:
    kind = "rgb" if pixels.ndim == 3 else "minisblack"
    path = stored(tmp_path, pixels, compression=compression, photometric=kind, predictor=compression in ("lzw", "zlib"))
    np.testing.assert_array_equal(read_picture(path).pixels, pixels)
    assert image_size(path) == pixels.shape[:2] and read_picture(path).valid is None


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_planes_tiles_and_byte_orders(tmp_path: Path, byteorder: str) -> None:
    big = np.tile(DEEP, (3, 3, 1))
    for settings in ({"planarconfig": "separate"}, {"tile": (32, 32)}, {"bigtiff": True}):
        shown = np.moveaxis(big, -1, 0) if "planarconfig" in settings else big
        path = stored(tmp_path, shown, photometric="rgb", byteorder=byteorder, **settings)
        np.testing.assert_array_equal(read_picture(path).pixels, big)


def test_white_is_zero(tmp_path: Path) -> None:
    path = stored(tmp_path, 255 - GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(path).pixels, GREY)
    signed = np.arange(-288, 288, dtype=np.int16).reshape(24, 24)
    path = stored(tmp_path, signed, photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(path).pixels, -1 - signed)
    path = stored(tmp_path, GREY > 99, photometric="minisblack")
    np.testing.assert_array_equal(read_picture(path).pixels, (GREY > 99) * np.uint8(255))


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("factor", [1, 257])
def test_alpha_marks_what_is_valid(tmp_path: Path, kind: str, factor: int) -> None:
    colours = RGB.astype(np.uint16) * factor
    alpha = np.full((24, 24, 1), 255 * factor, np.uint16)
    alpha[:6], alpha[6:9] = 0, 255 * factor * 4 // 5
    shown = colours * (alpha / (255 * factor)) if kind == "assocalpha" else colours
    both = np.concatenate([shown.round().astype(np.uint16), alpha], 2).astype(np.uint8 if factor == 1 else np.uint16)
    read = read_picture(stored(tmp_path, both, photometric="rgb", extrasamples=[kind]))
    assert read.valid is not None and not read.valid[:6].any() and read.valid[6:].all()
    assert abs(read.pixels[6:].astype(int) - colours[6:]).max() <= 1


def test_a_value_for_no_data_that_no_pixel_has_is_not_told(tmp_path: Path) -> None:
    read = read_picture(stored(tmp_path, GREY.clip(1), extratags=[(42113, "s", 0, "0", True)]))
    assert read.valid is None and not read.note


def test_luminance_and_chroma_without_jpeg_are_refused(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("YCbCr").save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif"):
        read_picture(tmp_path / "a.tif")


def test_near_infrared_is_no_alpha(tmp_path: Path) -> None:
    four = np.concatenate([DEEP, DEEP[..., :1] // 9], 2)
    read = read_picture(stored(tmp_path, four, photometric="rgb", extrasamples=["unspecified"]))
    np.testing.assert_array_equal(read.pixels, DEEP)
    assert read.valid is None and read.note == "1 of 4 bands left out: not said to be alpha"


def test_inks_and_palettes(tmp_path: Path) -> None:
    inks = np.zeros((24, 24, 4), np.uint8)
    inks[..., :3] = 255 - RGB
    read = read_picture(stored(tmp_path, inks, photometric="separated"))
    np.testing.assert_array_equal(read.pixels, RGB)
    table = (np.random.default_rng(0).integers(0, 256, (3, 256)) * 257).astype(np.uint16)
    read = read_picture(stored(tmp_path, GREY, photometric="palette", colormap=table))
    np.testing.assert_array_equal(read.pixels, (table // 257).astype(np.uint8).T[GREY])


def test_palettes_of_four_bits(tmp_path: Path) -> None:
    places = picture(1) // 16
    colours = np.random.default_rng(0).integers(0, 256, (3, 16)).astype(np.uint16)
    tags = [(320, "H", 48, tuple(257 * colours.ravel()), True)]
    path = stored(tmp_path, places[:, ::2] * 16 + places[:, 1::2], photometric="minisblack", extratags=tags)
    with tifffile.TiffFile(path, mode="r+") as file:
        for name, value in {"ImageWidth": 24, "BitsPerSample": 4, "PhotometricInterpretation": 3}.items():
            file.pages[0].tags[name].overwrite(value)  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(read_picture(path).pixels, np.moveaxis(colours[:, places], 0, -1))


def test_thumbnails_and_pages(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY[::4, ::4], subfiletype=1)
        file.write(GREY)
        file.write(255 - GREY)
    read = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(read.pixels, GREY)
    assert read.note == "first of 2 pages" and image_size(tmp_path / "a.tif") == GREY.shape


@pytest.mark.parametrize(
    ("values", "dtype"), [(GREY.astype(np.int16) - 99, np.int32), (GREY.astype(np.float64), np.float32)]
)
def test_signed_and_wide_values(tmp_path: Path, values: np.ndarray, dtype: type) -> None:
    pixels = read_picture(stored(tmp_path, values)).pixels
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, values)


def test_what_is_no_picture_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    mosaic = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, b"\0\1\1\2", True)]
    cases = {
        "raw mosaic": dict(data=GREY, photometric=32803, extratags=mosaic),
        "5 channels": dict(data=picture(3, 5), photometric="minisblack", planarconfig="contig"),
    }
    for told, settings in cases.items():
        tifffile.imwrite(tmp_path / "a.tif", **settings)
        with pytest.raises(ImageError, match=told) as caught:
            read_picture(tmp_path / "a.tif")
        assert str(tmp_path / "a.tif") in str(caught.value) and "\n" not in str(caught.value)
    whole = io.BytesIO()
    tifffile.imwrite(whole, np.tile(GREY, (4, 4)), compression="lzw")
    for length in (9, 60, len(whole.getvalue()) // 2):
        (tmp_path / "cut.tif").write_bytes(whole.getvalue()[:length])
        with pytest.raises(ImageError, match=r"cut\.tif"):
            read_picture(tmp_path / "cut.tif")
    assert capfd.readouterr().err == ""


def test_a_jpeg_that_was_cut_is_found(tmp_path: Path) -> None:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.tile(RGB, (8, 8, 1))).save(content, "JPEG", quality=95)
    path = tmp_path / "a.jpg"
    path.write_bytes(content.getvalue())
    assert read_picture(path).pixels.shape == (192, 192, 3)
    path.write_bytes(content.getvalue()[: len(content.getvalue()) // 2] + b"\xff\xd9")
    with pytest.raises(ImageError, match="rows are lost"):
        read_picture(path)


def test_complex_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds complex64 values"):
        read_picture(stored(tmp_path, GREY.astype(np.complex64)))
