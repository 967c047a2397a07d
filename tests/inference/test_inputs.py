"""What users bring: every kind of file, good and bad, through ``infer.py``."""

import io
import os
import re
import tempfile
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import infer
from datamodules.pairing import expand, find_pairs, find_stacks, read_manifest, scenes
from datamodules.ranges import to_unit
from datamodules.readers.pixels import image_size, is_image, list_images, read_picture
from datamodules.readers.source import read_source
from dig2dig.cli import load_strictly
from dig2dig.config import InferConfig
from dig2dig.errors import ImageError, PairingError
from dig2dig.inference.listing import needed
from dig2dig.options import parse_range
from tests.conftest import EXAMPLES, ROOT
from tests.corpus import BAD, ODD, make, picture, png
from tests.datamodules.test_formats import dng, heic
from tests.runs import FAST, rows, run, save
from tests.scans import dicom


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, dict[str, dict[str, str]]]:
    """The whole corpus in one run: exit code, folder, summary."""
    folder = tmp_path_factory.mktemp("corpus")
    make(folder)
    code = run(folder)
    return code, folder, rows(folder / "out")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_fails_its_pair_with_one_line(fused, name: str) -> None:
    code, folder, table = fused
    row = table[Path(name).stem]
    assert code == 1 and row["status"] == "failed" and not row["file"]
    assert BAD[name][1] in row["reason"] and "\n" not in row["reason"]
    assert str(folder / "visible" / name) in row["reason"]
    assert not list((folder / "out").glob(f"{Path(name).stem}.*"))


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_fused_beside_them(fused, name: str) -> None:
    _, folder, table = fused
    assert table[name]["status"] == "done" and table[name]["file"] == f"{name}.png"
    assert cv2.imdecode(np.fromfile(folder / "out" / f"{name}.png", np.uint8), -1).shape == (24, 24)


def test_duplicates_and_missing_partners_are_listed(fused) -> None:
    _, _, table = fused
    assert "which of" in table["twice"]["reason"] and "twice.jpg" in table["twice"]["reason"]
    assert table["alone"]["reason"] == "alone: no file of this name for infrared"
    assert len(table) == len(BAD) + len(ODD) + 2


def test_dry_run_tells_all_of_it_beforehand(fused, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    _, folder, _ = fused
    monkeypatch.setattr("dig2dig.inference.listing.memory", lambda: 2**31)
    assert run(folder, "dry_run=true", "overwrite=true") == 0
    printed = capsys.readouterr().out
    assert f"ignored, not images: {folder / 'visible' / 'notes.txt'} (1)" in printed
    assert "missing: infrared" in printed and "which of" in printed and "claims 3600 megapixels" in printed
    assert "larger than this machine's 2.0 GiB, make them smaller: " in printed
    assert "GiB of memory" in printed
    todo, refused = map(int, re.findall(r"(\d+) to fuse, 0 done before, (\d+) that cannot be fused", printed)[0])
    assert todo + refused == len(BAD) + len(ODD) + 2 and todo >= len(ODD) and refused >= 2
    assert todo == printed.count(" 24x24 /")


def test_a_dry_run_expects_as_much_memory_as_was_measured() -> None:
    """4.6 GiB for a grey pair of 12 megapixels in a run, 4.8 for a colour pair without the reading."""
    for task in ("ivf", "universal"):
        config = load_strictly(InferConfig, [task, "sources.a=a", "sources.b=b"])
        assert 4.8 < needed(config, 2, 12_000_000) < 6


def test_validation_exits_with_one_where_a_pair_failed(tmp_path: Path, tiny: Path) -> None:
    for side, seed in (("visible", 1), ("infrared", 2)):
        save(tmp_path / side / "a.png", picture(seed, height=48, width=64))
    assert run(tmp_path, "validate=true", f"prior.path={tiny}") == 0
    save(tmp_path / "visible" / "b.png", picture(1))
    (tmp_path / "infrared" / "b.png").write_bytes(b"no picture")
    assert run(tmp_path, "validate=true", f"prior.path={tiny}") == 1 and not (tmp_path / "out").exists()


def test_a_file_without_permission_fails_its_pair(mortal: Path) -> None:
    make(mortal)
    (mortal / "visible" / "-dash.png").chmod(0)
    assert run(mortal) == 1
    assert "Permission denied" in rows(mortal / "out")["-dash"]["reason"]


def deep(seed: int, channels: int = 1) -> np.ndarray:
    return picture(seed, channels).astype(np.uint16) * 257


@pytest.mark.parametrize(
    ("suffix", "pixels", "dtype", "grey"),
    [
        (".png", picture(0, 3), np.uint8, False),
        (".png", deep(0, 3), np.uint16, False),
        (".tif", deep(0), np.uint16, True),
        (".tiff", deep(0, 3), np.uint16, False),
        (".jpg", picture(0, 3), np.uint8, False),
        (".webp", picture(0, 3), np.uint8, False),
        (".bmp", picture(0), np.uint8, True),
        (".png", np.repeat(picture(0)[..., None], 3, 2), np.uint8, True),
        (".tif", picture(0).astype(np.float32) / 255, np.uint16, True),
    ],
)
def test_results_keep_depth_and_format_of_the_reference(tmp_path, suffix, pixels, dtype, grey) -> None:
    save(tmp_path / "visible" / f"a{suffix}", pixels)
    save(tmp_path / "infrared" / "a.png", picture(3))
    assert run(tmp_path) == 0
    made = cv2.imread(str(tmp_path / "out" / f"a{suffix}"), cv2.IMREAD_UNCHANGED)
    assert made is not None and made.dtype == dtype and (made.ndim == 2) == grey
    assert rows(tmp_path / "out")["a"]["file"] == f"a{suffix}"
    if dtype == np.uint16:
        assert len(np.unique(made)) > 256  # not 8 bits in 16
    assert run(tmp_path, "reference=infrared", f"out={tmp_path / 'other'}", "save.format=jpg") == 0
    assert [path.name for path in (tmp_path / "other").glob("a.*")] == ["a.jpg"]


def test_netpbm_is_read_in_its_depth(tmp_path: Path) -> None:
    """As thermal cameras and stereo data have it: 14 bits with their own white, and floating point."""
    counts, heat = deep(0) >> 2, picture(1).astype("<f4") / 7
    height, width = counts.shape
    (tmp_path / "a.pgm").write_bytes(b"P5 %d %d 16383\n" % (width, height) + counts.astype(">u2").tobytes())
    (tmp_path / "a.pfm").write_bytes(b"Pf\n%d %d\n-1\n" % (width, height) + heat[::-1].tobytes())
    found = read_picture(tmp_path / "a.pgm").pixels
    assert found.dtype == np.uint16 and np.abs(found / 65535 - counts / 16383).max() < 1e-4
    np.testing.assert_array_equal(read_picture(tmp_path / "a.pfm").pixels, heat)
    colours = np.dstack([counts, counts // 2, counts // 3])
    (tmp_path / "a.ppm").write_bytes(b"P6 %d %d 16383\n" % (width, height) + colours.astype(">u2").tobytes())
    (tmp_path / "b.ppm").write_text(f"P3 {width} {height} 16383\n# counts\n{' '.join(map(str, colours.ravel()))}\n")
    for name in ("a.ppm", "b.ppm"):
        found = read_picture(tmp_path / name).pixels
        assert found.dtype == np.uint16 and np.abs(found / 65535 - colours / 16383).max() < 1e-4
    assert [is_image(tmp_path / name) for name in ("a.pgm", "a.pfm", "a.PPM")] == [True] * 3


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("grey", [True, False])
def test_jpeg_2000_is_read_in_its_depth(tmp_path: Path, bits: int, grey: bool) -> None:
    """As satellites' bands come."""
    counts = deep(0) >> (16 - bits)
    counts = (counts if grey else np.dstack([counts, counts // 2, counts // 3])).astype("u1" if bits == 8 else "u2")
    path = tmp_path / "a.jp2"
    path.write_bytes(imagecodecs.jpeg2k_encode(counts, level=0, bitspersample=bits, codecformat="jp2"))
    found = read_picture(path).pixels
    assert (
        is_image(path)
        and found.dtype == (np.uint8 if bits == 8 else np.uint16)
        and image_size(path) == counts.shape[:2]
    )
    assert np.abs(found / np.iinfo(found.dtype).max - counts / (2**bits - 1)).max() < 1e-4
    if bits == 12 and grey:
        signed = imagecodecs.jpeg2k_encode(counts.astype(np.int16) - 2048, level=0, bitspersample=bits)
        (tmp_path / "b.jp2").write_bytes(signed)
        with pytest.raises(ImageError, match=r"b\.jp2: holds signed values"):
            read_picture(tmp_path / "b.jp2")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"a.jp2: damaged .*copy it again"):
        read_picture(path)


def test_sixteen_bits_and_eight_bits_of_one_scene_agree(tmp_path: Path) -> None:
    """257 × 8-bit values are the same intensities, so the pictures agree to rounding."""
    for folder, factor in (("eight", 1), ("sixteen", 257)):
        for seed, side in enumerate(("visible", "infrared")):
            save(
                tmp_path / folder / side / "a.png", picture(seed).astype(np.uint16 if factor > 1 else np.uint8) * factor
            ) if (tmp_path / folder).mkdir(exist_ok=True) is None else None
        assert run(tmp_path / folder) == 0
    eight, sixteen = (cv2.imread(str(tmp_path / f / "out" / "a.png"), -1).astype(float) for f in ("eight", "sixteen"))
    assert abs(eight - sixteen / 257).max() <= 0.51


def test_ranges_of_thermal_frames() -> None:
    frame = (7000 + 2000 * picture(1).astype(np.float32) / 255).astype(np.uint16)
    stretched, note = to_unit(frame)
    assert stretched.min() == 0 and stretched.max() == 1 and "are black to white" in note
    linear, note = to_unit(frame, "6000-10000")
    np.testing.assert_allclose(linear, (frame.astype(float) - 6000) / 4000, atol=1e-6)
    assert note == "values 6000 to 10000 are black to white"
    np.testing.assert_allclose(to_unit(frame, "full")[0], frame / 65535, atol=1e-6)
    assert to_unit(picture(1))[1] == "" and to_unit(deep(1))[1] == ""
    assert parse_range("-1000-400.5") == ((-1000, 400.5), None)
    assert parse_range("20-40,nodata=-1") == ((20, 40), -1) and parse_range("nodata=7") == ("auto", 7)
    with pytest.raises(ValueError, match="nodata=VALUE"):
        parse_range("auto,nodata=none")
    with pytest.raises(ValueError, match="LOW below HIGH"):
        parse_range("10-5")


def test_alpha_and_orientation(tmp_path: Path) -> None:
    rgba = np.dstack([picture(0, 3), np.full((24, 24), 255, np.uint8)])
    rgba[:5, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    assert read.note == "20.8 % of the pixels are transparent or no data"
    assert read.valid is not None and not read.valid[:5].any() and read.valid[5:].all()
    np.testing.assert_array_equal(read.pixels, rgba[..., :3])
    with tifffile.TiffWriter(tmp_path / "mask.tif") as file:  # as GDAL writes an internal mask, with its overview
        file.write(rgba[..., :3], photometric="rgb", subfiletype=0)
        file.write(rgba[::2, ::2, :3], photometric="rgb", subfiletype=1)
        file.write(rgba[..., 3] > 0, photometric="mask", subfiletype=4)
        file.write(rgba[::2, ::2, 3] > 0, photometric="mask", subfiletype=5)
    masked = read_picture(tmp_path / "mask.tif")
    assert masked.note == read.note and masked.valid is not None
    np.testing.assert_array_equal(masked.valid, read.valid)
    turned = Image.Exif()
    turned[274] = 8
    tall = picture(2, height=30)
    for name, pixels in (("eight.tif", tall), ("sixteen.tif", tall.astype(np.uint16) * 200)):
        Image.fromarray(pixels).save(tmp_path / name, exif=turned)
        np.testing.assert_array_equal(read_picture(tmp_path / name).pixels, np.rot90(pixels))


def test_patterns_manifests_and_stacks(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        save(tmp_path / "flat" / f"{name}_vis.png", picture(1))
        save(tmp_path / "flat" / f"{name}_ir.png", picture(2))
        for k in range(2 if name == "p1" else 3):
            (tmp_path / "stacks" / name).mkdir(parents=True, exist_ok=True)
            save(tmp_path / "stacks" / name / f"e{k}.png", picture(k))
    sources = {side: str(tmp_path / "flat" / f"{{name}}_{short}.png") for side, short in (("vis", "vis"), ("ir", "ir"))}
    assert [(pair.name, sorted(pair.files)) for pair in find_pairs(sources)] == [
        ("p1", ["ir", "vis"]), ("p2", ["ir", "vis"])
    ]  # fmt: skip
    assert [len(pair.files) for pair in find_stacks(tmp_path / "stacks")] == [2, 3]
    (tmp_path / "macro").mkdir()
    for name in ("P10.png", "P2.png"):  # planes that follow each other are registered to each other
        save(tmp_path / "macro" / "bug" / name, picture(1))
    assert [path.name for path in find_stacks(tmp_path / "macro")[0].files.values()] == ["P2.png", "P10.png"]
    save(tmp_path / "macro" / "bug" / "P2.jpg", picture(1))  # as cameras keep a raw file and a JPEG of each exposure
    assert find_stacks(tmp_path / "macro")[0].problem.endswith("P2.png? keep one of them")
    table = tmp_path / "table.csv"
    one, two = "flat/p1_vis.png,flat/p1_ir.png", "flat/p2_vis.png"
    table.write_text(f"name,a,b,c\nx,{one},\ny,{one},{two}\nx,{one},\n../z,{one},\nw,{two},,\n")
    pairs = {pair.name: pair for pair in read_manifest(table)}
    assert len(pairs["y"].files) == 3 and not pairs["y"].problem and "stands there twice" in pairs["x"].problem
    table.write_text(f"name,a,b,mask\nx,flat/p1_vis.png, flat/p1_ir.png,m.png\ny,{one},,more\n")
    spaced, long = read_manifest(table)
    assert spaced.files["b"] == tmp_path / "flat" / "p1_ir.png" and not spaced.problem
    assert "line 3: more fields than columns" in long.problem
    config = load_strictly(InferConfig, ["ivf", f"manifest={table}"])
    assert [sorted(pair.files) for pair in scenes(config)] == [["a", "b"], ["a", "b"]]  # masks are for training
    table.write_text("name,a,b,mask\nx,flat/p1_vis.png,,m.png\n")
    assert "line 2: x has 1 of at least 2 sources" in read_manifest(table)[0].problem
    for mark, coding in ((";", "utf-8"), ("\t", "utf-16")):
        table.write_bytes(
            "name,a,b\r\nx,ö 1.png,2.png\r\n".replace(",", mark).encode(coding)
        )  # as Excel saves CSV where commas are decimal, and "Unicode text"
        assert read_manifest(table)[0].files == {"a": tmp_path / "ö 1.png", "b": tmp_path / "2.png"}
    for there in ("ö 1.png", os.fsdecode("ü.png".encode("cp1252"))):
        (tmp_path / there).touch()
    table.write_bytes("sep=,\r\n,,\r\nname,a,b\r\ny,ö 1.png,ü.png\r\n".encode("cp1252"))  # Excel's plain CSV
    assert read_manifest(table)[0].files == {"a": tmp_path / "ö 1.png", "b": tmp_path / os.fsdecode(b"\xfc.png")}
    (tmp_path / "ö 1.png").unlink()
    table.write_text("Name, a ,b \nx ,flat/p1_vis.png ,flat/p1_ir.png\n")  # typed by hand
    (typed,) = read_manifest(table)
    assert typed.name == "x" and [file.name for file in typed.files.values()] == ["p1_vis.png", "p1_ir.png"]
    table.write_text("\n\nsep=;\nname;a;b\nx;flat\\p1_vis.png;flat\\p1_ir.png\ny;flat/p2_vis.png;\n")  # made on Windows
    listed, short = read_manifest(table)
    assert [file.parent.name for file in listed.files.values()] == ["flat", "flat"] and not listed.problem
    assert "line 6: y has 1 of" in short.problem
    table.write_bytes(b"\xff\xfea")
    with pytest.raises(PairingError, match=r"table\.csv cannot be read"):
        read_manifest(table)
    table.with_suffix(".txt").write_bytes("ö 1.png".encode("latin-1"))
    with pytest.raises(FileNotFoundError, match=r"nor a list of them in UTF-8"):
        list_images(str(table.with_suffix(".txt")))
    (tmp_path / "b.JFIF").touch()  # as browsers save JPEG
    assert is_image(tmp_path / "b.JFIF")
    (tmp_path / "V.TXT").write_text("flat/p1_vis.png")
    (tmp_path / "i.txt").write_text("flat/p1_ir.png")
    (listed,) = find_pairs({"visible": str(tmp_path / "V.TXT"), "infrared": str(tmp_path / "i.txt")})
    assert listed.files["visible"] == tmp_path / "flat" / "p1_vis.png"
    (tmp_path / "ö 1.png").touch()
    table.with_suffix(".txt").write_text("# list\r\nö 1.png\r\nflat\\p1_ir.png", encoding="utf-16", newline="")
    assert list_images(str(table.with_suffix(".txt"))) == [tmp_path / "ö 1.png", tmp_path / "flat" / "p1_ir.png"]
    with pytest.raises(PairingError, match=r"^manifest: .*nope\.csv: cannot be read"):
        read_manifest(tmp_path / "nope.csv")
    table.write_text(f"name,a,b\n\nx,flat/p1_vis.png,\n,,\ny,{one}\n,,\n")  # as Excel ends a table
    assert ["line 3: x has 1 of" in pair.problem for pair in read_manifest(table)] == [True, False]
    table.write_text(f"name,a,b,c\nx,{one},\ny,{one},{two}\nx,{one},\n../z,{one},\nw,{two},,\n")
    assert "no file name" in pairs["z"].problem and "1 of at least 2 sources" in pairs["w"].problem
    config = str(ROOT / "configs" / "ivf.yaml")
    assert infer.main([config, f"manifest={table}", f"out={tmp_path / 'm'}", *FAST]) == 1
    assert {name: row["status"] for name, row in rows(tmp_path / "m").items()} == {
        "x": "failed", "y": "done", "z": "failed", "w": "failed"
    }  # fmt: skip
    for _ in range(2):  # what a run wrote among the stacks is none of them
        assert infer.main([config, f"stacks={tmp_path / 'stacks'}", f"out={tmp_path / 'stacks' / 'out'}", *FAST]) == 0
        assert set(rows(tmp_path / "stacks" / "out")) == {"p1", "p2"}


def test_what_contradicts_itself_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save(tmp_path / "visible" / "a.png", picture(1))
    save(tmp_path / "infrared" / "a.png", picture(2))
    (tmp_path / "tagged.yaml").write_text("seed: !!python/object/apply:os.system ['touch /tmp/owned']\n")
    a, b = (f"sources.{side}={tmp_path / side}" for side in ("visible", "infrared"))
    for arguments, line in (
        ([a, b, "task=magic"], "task"),
        ([a, f"sources.infrared={tmp_path / 'visible'}"], "are the same"),
        ([a, b, f"manifest={tmp_path / 'x.csv'}"], "sources and manifest contradict each other"),
        ([f"manifest={tmp_path / 'x.csv'}"], "x.csv: cannot be read"),
        ([f"stacks={tmp_path / 'visible'}"], "holds no folder of images"),
        ([a, b, "reference=radar"], "reference: no source is called radar; there are"),
        ([a, b, "range.visible=9-1"], "LOW below HIGH"),
        ([a, b, "sampler.grid=gain", "sampler.dig.kind=static"], "needs gains"),
        ([a, b, str(tmp_path / "tagged.yaml")], "not a readable YAML file"),
        ([a, b, "out=/proc/nowhere"], "/proc/nowhere"),
        ([a, b, "save.format=nii", "save.metadata=false"], "which save.metadata=false drops"),
        ([a, b, "dry_run=true", "validate=true"], "contradict each other"),
        ([a, "sources.infrared=~/nowhere"], f"{Path.home()}/nowhere"),
    ):
        try:
            code: object = infer.main([str(ROOT / "configs" / "ivf.yaml"), f"out={tmp_path / 'out'}", *arguments])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr().err.strip()
        assert code == 2 and printed.startswith("error: ") and line in printed and "\n" not in printed, printed


def layered() -> bytes:
    """A TIFF of planes with alpha, a profile, a place and a no-data value."""
    tags = [(42113, "s", 0, "7", True), (33550, 12, 3, (0.5, 0.5, 0.0), True)]
    both = np.concatenate([deep(4, 3), deep(5)[..., None]], 2).transpose(2, 0, 1)
    settings = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"], "extratags": tags}
    tifffile.imwrite(buffer := io.BytesIO(), both, compression="lzw", **settings)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def volume() -> bytes:
    """A small NIfTI."""
    import nibabel

    return nibabel.Nifti1Image(picture(4)[..., None].repeat(3, 2), np.eye(4)).to_bytes()  # pyright: ignore


def slice_of_ct() -> bytes:
    """A small DICOM file."""
    with tempfile.TemporaryDirectory() as folder:
        return dicom(Path(folder) / "a.dcm", picture(4).astype(np.int16)).read_bytes()


def test_ten_thousand_files_pair_fast(tmp_path: Path) -> None:
    for side in ("visible", "infrared"):
        (tmp_path / side).mkdir()
        for i in range(10_000):
            (tmp_path / side / f"{i:05d}.png").touch()
    pairs = expand(find_pairs({side: str(tmp_path / side) for side in ("visible", "infrared")}))
    assert len(pairs) == 10_000 and not any(pair.missing for pair in pairs)


def test_a_folder_without_a_pair_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "visible" / "a.png", picture(1))
    save(tmp_path / "infrared" / "b.png", picture(1))
    with pytest.raises(PairingError, match="no file name stands in two"):
        find_pairs({side: str(tmp_path / side) for side in ("visible", "infrared")})


REAL = [
    (".png", (EXAMPLES / "multi_focus" / "near" / "mountain.png").read_bytes()),
    *((suffix, cv2.imencode(suffix, picture(4, 3))[1].tobytes()) for suffix in (".jpg", ".webp", ".bmp")),
    (".tif", cv2.imencode(".tif", deep(4, 3))[1].tobytes()),
    (".tif", layered()),
    (".png", png(deep(4))),
    (".hdr", cv2.imencode(".hdr", picture(4, 3).astype(np.float32) / 50)[1].tobytes()),
    (".heic", heic(picture(4, 3), "RGB")),
    (".jxl", imagecodecs.jpegxl_encode(picture(4, 3))),
    (".dng", dng(np.array([5000, 9000, 3000]))),
    (".nii", volume()),
    (".dcm", slice_of_ct()),
]


@settings(deadline=None, max_examples=int(os.environ.get("DIG2DIG_FUZZ", "60")),
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    which=st.integers(0, len(REAL) - 1),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
def test_mutated_files_are_read_or_refused(tmp_path: Path, which: int, places, cut: float | None) -> None:
    """Whatever the bytes: pixels, or an ImageError of one line. More examples: DIG2DIG_FUZZ=20000."""
    suffix, whole = REAL[which]
    content = bytearray(whole)
    for place, value in places:  # headers break more than pixels do
        content[min(int(place**3 * len(content)), len(content) - 1)] = value
    path = tmp_path / f"x{suffix}"
    path.write_bytes(bytes(content[: int(cut * len(content))] if cut is not None else content))
    try:
        pixels = read_source(path).pixels
    except ImageError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert pixels.ndim in (2, 3) and min(pixels.shape[:2]) >= 4


def test_options_for_sources_that_no_scene_has_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "stacks").mkdir()
    for seed, name in enumerate(("p.png", "q.png")):
        save(tmp_path / "stacks" / "scene" / name, picture(seed))
    config = str(ROOT / "configs" / "mff.yaml")
    for argument in ("prefer.3=2", "reference=3", "range.3=full", "noise.3=5"):
        assert infer.main([config, f"stacks={tmp_path / 'stacks'}", argument, f"out={tmp_path / 'out'}"]) == 2
        printed = capsys.readouterr().err.strip()
        assert printed == f"error: {argument.partition('=')[0]}: no source is called 3; there are 1, 2"
    for seed, name in enumerate("abc"):
        save(tmp_path / "stacks" / "three" / f"{name}.png", picture(seed))
    given = [config, f"stacks={tmp_path / 'stacks'}", "prefer.3=2", f"out={tmp_path / 'out'}", "dry_run=true"]
    assert [infer.main([*given, f"shard={part}/2"]) for part in (1, 2)] == [0, 0]  # another part has the third
    (tmp_path / "deep" / "scene" / "near").mkdir(parents=True)
    save(tmp_path / "deep" / "scene" / "near" / "a.png", picture(1))
    (pair,) = find_stacks(tmp_path / "deep")
    assert "has 0 of at least 2 sources; folders that hold a source each are given as sources.NAME=DIR" in pair.problem
