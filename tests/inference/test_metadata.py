"""What belongs to a picture stays with it: profiles, EXIF, places, resolution, alpha; in every format of a result."""

import functools
import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

import infer
from datamodules.metadata import Metadata
from datamodules.pairing import Pair
from datamodules.pairs import Failure, Reading, read_pair
from datamodules.readers.pixels import image_size, read_picture
from dig2dig.api import fuse_files
from dig2dig.errors import UserError
from dig2dig.inference.encode import encode, lost
from tests.conftest import ROOT, SHARED
from tests.corpus import picture
from tests.runs import FAST, rows

CASES = SHARED.parent / "cases"
GEO = ((33550, 12, 3, (0.5, 0.5, 0.0)), (33922, 12, 6, (0.0, 0.0, 0.0, 10.0, 48.0, 0.0)), (34735, 3, 4, (1, 1, 0, 0)))


def exif(orientation: int = 1) -> bytes:
    tags = Image.Exif()
    tags[271], tags[274] = "ACME", orientation
    tags.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    tags.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 0.0)})
    tags[0x8769] = tags[0x8825] = 0
    return tags.tobytes()


@functools.cache  # a profile holds the second in which it was made
def icc(grey: bool) -> bytes:
    if not grey:
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"GRAY"
    return bytes(profile)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("holed", [False, True])
def test_every_format_keeps_what_it_holds(tmp_path: Path, suffix: str, channels: int, depth: int, holed: bool) -> None:
    pixels = picture(1, channels).reshape(24, 24, channels)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
    valid = np.ones((24, 24), bool)
    valid[:5] = not holed
    metadata = Metadata(icc(channels == 1), exif(), b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", (300.0, 300.0), GEO)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(image, suffix, depth, metadata, valid if holed else None))
    read = read_picture(path)
    lossless = suffix in (".png", ".tif")
    full = np.iinfo(read.pixels.dtype).max
    assert full == (65535 if depth == 16 and lossless else 255)
    error = abs(read.pixels.reshape(24, 24, -1) / full - pixels / 255)[valid]
    assert error.max() <= 0.5 / 255 if lossless else error.mean() < 0.06
    if suffix == ".jpg" or not holed:
        assert read.valid is None
    else:
        np.testing.assert_array_equal(read.valid, valid)
    expected = icc(channels == 1) if suffix != ".webp" or channels == 3 or not holed else read.metadata.icc
    assert read.metadata.icc == expected and read.metadata.xmp == metadata.xmp
    assert (read.metadata.dpi is None) == (suffix == ".webp")
    assert read.metadata.dpi is None or read.metadata.dpi == pytest.approx((300, 300), rel=1e-4)
    found = Image.Exif()
    found.load(read.metadata.exif)
    assert found[271] == "ACME" and 274 not in found
    assert found.get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05" and found.get_ifd(0x8825)[2] == (48.0, 8.0, 0.0)
    assert read.metadata.geo == (GEO if suffix == ".tif" else ())
    told = lost(suffix, metadata, valid if holed else None)
    assert len(told) == (suffix != ".tif") + (holed and suffix == ".jpg") + (suffix == ".webp")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
def test_names_keep_their_bytes_and_xmp_is_upright(suffix: str, tmp_path: Path) -> None:
    """As cameras write them: UTF-8 in a tag that is called ASCII, which Pillow reads as Latin-1."""
    tags, name = Image.Exif(), "Jürgen Müller"
    tags[315], tags[274] = name.encode(), 6
    said = b'<d tiff:Orientation="6"/><tiff:Orientation>8</tiff:Orientation>'
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + said + b"</x:xmpmeta>"
    Image.fromarray(picture(1).reshape(24, 24)[:12]).save(tmp_path / "a.jpg", exif=tags.tobytes(), xmp=xmp)
    found = read_picture(tmp_path / "a.jpg")
    assert found.pixels.shape == (24, 12)
    path = tmp_path / f"b{suffix}"
    path.write_bytes(encode(torch.from_numpy(found.pixels[None] / 255), suffix, 8, found.metadata))
    assert name.encode() in path.read_bytes()
    again = read_picture(path)
    assert again.pixels.shape[:2] == (24, 12) and again.metadata.xmp.count(b"1") == 2


def test_a_profile_of_other_channels_is_left_out() -> None:
    content = encode(torch.rand(1, 24, 24), ".png", 8, Metadata(icc(grey=False)))
    assert "icc_profile" not in Image.open(io.BytesIO(content)).info


def photograph(path: Path, pixels: np.ndarray, orientation: int = 1, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95, subsampling=0, exif=exif(orientation), **settings)
    return path


def test_a_run_keeps_or_drops_it(tmp_path: Path) -> None:
    for seed, side in enumerate(("near", "far")):
        photograph(tmp_path / side / "a.jpg", picture(seed, 3, 32, 48), 6, dpi=(300, 300), icc_profile=icc(False))
    config = str(ROOT / "configs" / "mff.yaml")
    sources = [f"sources.{side}={tmp_path / side}" for side in ("near", "far")]
    for kept in (True, False):
        out = tmp_path / str(kept)
        assert infer.main([config, *sources, f"out={out}", f"save.metadata={str(kept).lower()}", *FAST]) == 0
        with Image.open(out / "a.jpg") as image:
            assert image.size == (32, 48)  # upright
            assert bool(image.getexif()) == kept and ("icc_profile" in image.info) == kept
            assert (image.info.get("dpi") == (300, 300)) == kept
            assert image.getexif().get(274, 1) == 1


def test_from_python_it_is_kept_or_dropped_too(tmp_path: Path) -> None:
    files = [photograph(tmp_path / f"{side}.jpg", picture(seed, 3, 32, 48)) for seed, side in enumerate("ab")]
    for kept in (True, False):
        fuse_files(files, "mff", tmp_path / "out.jpg", overrides=[f"save.metadata={str(kept).lower()}"])
        with Image.open(tmp_path / "out.jpg") as image:
            assert bool(image.getexif()) == kept


def test_sources_come_into_the_profile_of_the_reference(tmp_path: Path) -> None:
    colours = np.full((16, 16, 3), (200, 90, 40), np.uint8) + picture(1, 1, 16, 16)[..., None] // 8
    lab = ImageCms.createProfile("sRGB")
    wide = bytearray(ImageCms.ImageCmsProfile(lab).tobytes())
    swapped = wide.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")  # red and green change
    swapped = swapped.replace(b"rTRC", b"tmpX").replace(b"gTRC", b"rTRC").replace(b"tmpX", b"gTRC")
    files = {
        "a": photograph(tmp_path / "a.png", colours),
        "b": photograph(tmp_path / "b.png", colours[..., [1, 0, 2]].copy(), icc_profile=bytes(swapped)),
    }
    sample = read_pair(Pair("x", files), Reading("mff"))
    assert not isinstance(sample, Failure) and "b: converted to sRGB" in sample.note
    assert 255 * (sample.sources[0] - sample.sources[1]).abs().max() < 2.5


def test_wide_colours_beside_a_grey_reference_become_srgb(tmp_path: Path) -> None:
    """The result in colour has no profile then, so it is taken for sRGB."""
    colours = np.full((16, 16, 3), (200, 90, 40), np.uint8) + picture(1, 1, 16, 16)[..., None] // 8
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = wide.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")
    swapped = swapped.replace(b"rTRC", b"tmpX").replace(b"gTRC", b"rTRC").replace(b"tmpX", b"gTRC")
    files = {
        "visible": photograph(tmp_path / "a.png", colours[..., [1, 0, 2]].copy(), icc_profile=swapped),
        "infrared": photograph(tmp_path / "b.png", picture(2, 1, 16, 16), icc_profile=icc(True)),
    }
    sample = read_pair(Pair("x", files), Reading("mff", reference="infrared"))
    assert not isinstance(sample, Failure) and "visible: converted to sRGB" in sample.note
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = dict(files, visible=photograph(tmp_path / "c.png", colours, icc_profile=plain))
    told = read_pair(Pair("x", same), Reading("mff", reference="infrared"))
    assert not isinstance(told, Failure) and "sRGB" not in told.note
    shown = sample.sources[list(sample.modalities).index("visible")]
    assert 255 * (shown - torch.from_numpy(colours.copy()).permute(2, 0, 1) / 255).abs().max() < 2.5


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_no_data_is_the_stored_value_where_white_is_zero(tmp_path: Path, kind: type) -> None:
    stored = picture(1, 1, 16, 16).astype(kind).clip(1, 250)
    empty = 0 if kind == np.uint8 else -9999
    stored[:, :3] = empty
    path, tag = tmp_path / "a.tif", (42113, 2, 0, str(empty), False)
    tifffile.imwrite(path, stored, photometric="miniswhite", extratags=[tag])
    valid = read_picture(path).valid
    assert valid is not None and not valid[:, :3].any() and valid[:, 3:].all()


def test_maps_of_other_places_are_refused(tmp_path: Path) -> None:
    moved = (GEO[0], (33922, 12, 6, (0.0, 0.0, 0.0, 11.0, 48.0, 0.0)), GEO[2])
    for name, tags, seed in (("a", GEO, 1), ("b", GEO, 2), ("c", moved, 3)):
        tifffile.imwrite(tmp_path / f"{name}.tif", picture(seed), extratags=[(*tag, True) for tag in tags])
    same = read_pair(Pair("x", {m: tmp_path / f"{m}.tif" for m in "ab"}), Reading())
    assert not isinstance(same, Failure) and same.metadata.geo == GEO
    other = read_pair(Pair("x", {m: tmp_path / f"{m}.tif" for m in "ac"}), Reading())
    assert isinstance(other, Failure) and "maps of different grids" in other.reason and "\n" not in other.reason


@pytest.mark.parametrize(("zone", "fits"), [(32632, True), (32633, False)])
def test_maps_of_one_grid_fuse_whatever_the_names_of_their_system(tmp_path: Path, zone: int, fits: bool) -> None:
    for k, (code, name) in enumerate(((32632, "WGS 84 / UTM zone 32N|"), (zone, "PCS Name = UTM_32N|"))):
        keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1026, 34737, len(name), 0, 3072, 0, 1, code)
        tags = [*((*tag, True) for tag in GEO[:2]), (34735, "H", len(keys), keys, True), (34737, "s", 0, name, True)]
        tifffile.imwrite(tmp_path / f"{k}.tif", picture(k + 1), extratags=tags)
    found = read_pair(Pair("x", {m: tmp_path / f"{m}.tif" for m in "01"}), Reading())
    assert isinstance(found, Failure) != fits


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
def test_the_cases(tmp_path: Path) -> None:
    from skimage.color import deltaE_ciede2000, rgb2lab

    folder = CASES / "geotiff"
    run = [str(ROOT / "configs" / "ivf.yaml"), f"sources.visible={folder / 'rgb'}", f"sources.infrared={folder / 'th'}"]
    assert infer.main([*run, f"out={tmp_path / 'geo'}", *FAST]) == 0
    assert {tag[0] for tag in read_picture(tmp_path / "geo" / "ortho.tif").metadata.geo} == {33550, 33922, 34735}
    assert infer.main([*run, f"out={tmp_path / 'png'}", "save.format=png", *FAST]) == 0
    assert "holds no georeference" in rows(tmp_path / "png")["ortho"]["note"]
    folder = CASES / "icc" / "jpg"
    run = [str(ROOT / "configs" / "mff.yaml"), f"sources.near={folder / 'near'}", f"sources.far={folder / 'far'}"]
    assert infer.main([*run, f"out={tmp_path / 'icc'}", *FAST]) == 0
    with Image.open(tmp_path / "icc" / "x.jpg") as image:
        assert image.info["dpi"] == (300, 300) and image.getexif().get_ifd(0x8825)
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        shown = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
        assert shown is not None
    truth = np.asarray(Image.open(CASES / "icc" / "truth_srgb.png").convert("RGB"))
    colours = [rgb2lab(np.asarray(one)) for one in (shown, image, truth)]
    with_profile, without = (deltaE_ciede2000(one, colours[2]).mean() for one in colours[:2])
    assert with_profile < without / 1.8


def test_exif_that_a_jpeg_cannot_hold_is_told_and_left_out() -> None:
    long = Metadata(exif=b"Exif\0\0" + bytes(70_000), xmp=b"x" * 70_000)
    content = encode(torch.full((1, 8, 8), 0.5), ".jpg", 8, long)
    assert content.startswith(b"\xff\xd8") and len(content) < 5_000
    assert lost(".jpg", long) == ["a .jpg holds no EXIF or XMP of 64 kB and more, .png does"]


def test_a_picture_too_large_for_its_format_is_told() -> None:
    with pytest.raises(UserError, match=r"a picture of 17000x2 cannot be stored as \.webp"):
        encode(torch.zeros(1, 2, 17000), ".webp", 8)


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("exif", [b"no TIFF", b"II*\0", b"II+\0\x08\0\0\0"])
def test_a_picture_with_broken_exif_is_read(tmp_path: Path, kind: str, exif: bytes) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (32, 24), (9, 99, 199)).save(path, exif=b"Exif\0\0" + exif)
    assert read_picture(path).pixels.shape == (24, 32, 3) and not read_picture(path).metadata.exif
    assert image_size(path) == (24, 32)


def test_a_result_has_no_value_of_no_data_of_its_source(tmp_path: Path) -> None:
    """Its values are others: black, which is data, may be the same number."""
    tags = [(*GEO[0], True), (42113, "s", 0, "0", True)]
    tifffile.imwrite(tmp_path / "a.tif", picture(1).astype(np.uint16) * 100 + 900, extratags=tags)
    read = read_picture(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(encode(torch.zeros(1, 32, 32), ".tif", 16, read.metadata))
    assert read.metadata.geo == GEO[:1] and read_picture(tmp_path / "b.tif").valid is None
