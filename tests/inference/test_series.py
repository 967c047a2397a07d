"""Videos, volumes and folders of frames: read in order, one range, one noise, and a video again."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from datamodules.pairing import expand, find_pairs
from datamodules.pairs import Failure, Reading, pair_digest, read_pair
from datamodules.readers import medical
from datamodules.readers import video as frames
from datamodules.readers.source import series_range
from dig2dig.api import fuse_files
from dig2dig.errors import ImageError, UserError
from tests.conftest import ROOT
from tests.corpus import picture
from tests.runs import rows, run, save

SIDE = 48


def film(path: Path, seed: int, count: int = 5, fade: bool = False) -> list[np.ndarray]:
    """A video of a bright bar that wanders; its first frame is black if it fades in."""
    made = [np.roll(picture(seed, height=SIDE, width=64) // 2 + 60, 4 * i, axis=1) for i in range(count)]
    made[0] = made[0] * (not fade)
    path.parent.mkdir(exist_ok=True)
    frames.write_video(path, made, 12.5)
    return made


def test_one_call_for_one_scene_refuses_a_film(tmp_path: Path) -> None:
    for name in "ab":
        film(tmp_path / f"{name}.mp4", ord(name))
    with pytest.raises(UserError, match=r"a\.mp4: 5 frames or slices; dig2dig infer fuses videos"):
        fuse_files([tmp_path / "a.mp4", tmp_path / "b.mp4"], "ivf")


def matroska(path: Path, times: Sequence[int]) -> None:
    """A video of one frame at each of these milliseconds, as recorders of screens and browsers write it."""

    def box(kind: str, content: bytes) -> bytes:
        return bytes.fromhex(kind) + (2**56 + len(content)).to_bytes(8, "big") + content

    still = cv2.imencode(".jpg", picture(1, height=SIDE, width=64))[1].tobytes()
    size = box("e0", box("b0", bytes([64])) + box("ba", bytes([SIDE])))
    track = box("ae", box("d7", b"\1") + box("73c5", b"\1") + box("83", b"\1") + box("86", b"V_MJPEG") + size)
    clusters = [box("1f43b675", box("e7", t.to_bytes(4, "big")) + box("a3", b"\x81\0\0\x80" + still)) for t in times]
    segment = box("1549a966", box("2ad7b1", b"\x0f\x42\x40")) + box("1654ae6b", track) + b"".join(clusters)
    path.write_bytes(box("1a45dfa3", box("4282", b"matroska")) + box("18538067", segment))


def test_frames_are_counted_where_the_header_does_not_tell(tmp_path: Path) -> None:
    times = [*range(0, 400, 40), *range(400, 1601, 100)]  # 25 frames a second, then 10
    matroska(tmp_path / "a.mkv", times)
    video = frames.opened(tmp_path / "a.mkv")
    assert video.count == len(times) == 23 and video.rate == pytest.approx(22 / 1.6, abs=0.01)
    assert video.read(22).shape == (SIDE, 64, 3)


def test_a_trimmed_film_has_the_frames_that_it_shows(tmp_path: Path) -> None:
    """As phones trim films, without encoding them anew. One that is cut off counts all, and tells what is lost."""
    frames.write_video(tmp_path / "a.mp4", [np.full((SIDE, 64), 10 * i, np.uint8) for i in range(20)], 10.0)
    whole = (tmp_path / "a.mp4").read_bytes()
    edit = whole.index(b"elst") + 12  # how long what is shown lasts, and where it starts, in their units
    lasts, starts = (1500).to_bytes(4), (5 * 1024).to_bytes(4)
    (tmp_path / "b.mp4").write_bytes(whole[:edit] + lasts + starts + whole[edit + 8 :])
    trimmed = frames.opened(tmp_path / "b.mp4")
    assert trimmed.count == 15 and [round(trimmed.read(i).mean() / 10) for i in (0, 14)] == [5, 19]
    table = whole.index(b"moov") - 4
    moved, place = whole[table:], whole.index(b"mdat") - 4  # a film whose end is lost needs its table in front
    offsets = whole.index(b"stco") + 12 - table
    first = int.from_bytes(moved[offsets : offsets + 4]) + len(moved)
    moved = moved[:offsets] + first.to_bytes(4) + moved[offsets + 4 :]
    (tmp_path / "c.mp4").write_bytes(whole[:place] + moved + whole[place : table - 200])
    assert frames.opened(tmp_path / "c.mp4").count == 20
    with pytest.raises(ImageError, match="cut or damaged"):
        frames.opened(tmp_path / "c.mp4").read(19)


def test_grey_films_of_16_bits_keep_them(tmp_path: Path) -> None:
    """As thermal cameras record."""
    counts = [(20000 + picture(i, height=SIDE, width=64).astype(np.uint16)) for i in range(3)]
    form = [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U, cv2.VIDEOWRITER_PROP_IS_COLOR, 0]
    writer = cv2.VideoWriter(
        str(tmp_path / "b.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"FFV1"), 12.5, (64, SIDE), form
    )
    for frame in counts:
        writer.write(frame)
    writer.release()
    np.testing.assert_array_equal(frames.opened(tmp_path / "b.avi").read(1), counts[1])
    film(tmp_path / "a.mp4", 1, count=3)
    fused = [f"sources.{side}={tmp_path / name}" for side, name in (("visible", "a.mp4"), ("infrared", "b.avi"))]
    assert run(tmp_path, *fused) == 0
    assert all(row["note"].startswith("infrared: values 200") for row in rows(tmp_path / "out").values())


def test_videos_are_read_in_any_order_and_written(tmp_path: Path) -> None:
    made = film(tmp_path / "a.mp4", 1)
    assert frames.opened(tmp_path / "a.mp4").count == 5
    assert frames.opened(tmp_path / "a.mp4").rate == pytest.approx(12.5)
    for index in (0, 1, 4, 2, 3):
        frame = frames.opened(tmp_path / "a.mp4").read(index)
        assert frame.shape == (SIDE, 64, 3) and np.abs(frame[..., 0].astype(int) - made[index]).mean() < 6
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:500])
    (tmp_path / "no.avi").write_text("not a video")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("cut.mp4", "no.avi", "absent.mkv", "folder.mp4"):
        with pytest.raises(ImageError, match=name):
            frames.opened(tmp_path / name)
    with pytest.raises(ImageError, match="frame 9 of 5"):
        frames.opened(tmp_path / "a.mp4").read(9)


def test_a_pair_of_videos_becomes_frames_and_a_video(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    film(tmp_path / "visible" / "walk.mp4", 1)
    film(tmp_path / "infrared" / "walk.mp4", 2)
    film(tmp_path / "visible" / "short.mp4", 3, 3)
    film(tmp_path / "infrared" / "short.mp4", 4, 4)
    assert run(tmp_path) == 1
    table = rows(tmp_path / "out")
    assert [name for name, row in table.items() if row["status"] == "done"] == [f"walk_00000{i}" for i in range(5)]
    assert len({row["seed"] for name, row in table.items() if name.startswith("walk")}) == 1
    assert "differ in length" in table["short"]["reason"] and "3 frames" in table["short"]["reason"]
    assert frames.opened(tmp_path / "out" / "walk.mp4").count == 5
    still = cv2.imread(str(tmp_path / "out" / "walk_000003.png"), cv2.IMREAD_GRAYSCALE).astype(int)
    moving = frames.opened(tmp_path / "out" / "walk.mp4").read(3)[..., 0].astype(int)
    assert np.abs(still - moving).mean() < 8
    workers = tmp_path / "workers"
    assert run(tmp_path, "workers=2", f"out={workers}") == 1
    assert all((workers / f"{name}.png").read_bytes() == (tmp_path / "out" / f"{name}.png").read_bytes()
               for name in (f"walk_00000{i}" for i in range(5)))  # fmt: skip


def test_a_black_frame_is_fused_and_a_frame_that_fails_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for side, seed in (("visible", 1), ("infrared", 2)):
        film(tmp_path / side / "walk.mp4", seed, 3, fade=True)
    assert run(tmp_path) == 0 and frames.opened(tmp_path / "out" / "walk.mp4").count == 3
    with pytest.MonkeyPatch.context() as patch:
        real = frames.Video.read
        patch.setattr(frames.Video, "read", lambda film, i: real(film, i if i != 2 else 99))
        capsys.readouterr()
        assert run(tmp_path, f"out={tmp_path / 'lost'}") == 1
        assert capsys.readouterr().err.count("walk: 1 of 3 failed, so they are not joined to one file\n") == 1
        assert not (tmp_path / "lost" / "walk.mp4").exists()
        capsys.readouterr()
        assert run(tmp_path, "seed=3") == 1
    told = capsys.readouterr().err
    assert "cut or damaged (walk_000002.png is an earlier run's)" in told
    assert f"not joined to one file; {tmp_path / 'out' / 'walk.mp4'} is an earlier run's" in told
    assert run(tmp_path, "align=auto", f"out={tmp_path / 'moved'}") == 1
    table = rows(tmp_path / "moved")
    assert table["walk_000000"]["status"] == "done"  # black: there is nothing to register
    assert table["walk_000002"]["reason"].startswith(f"walk_000002: {tmp_path / 'infrared' / 'walk.mp4'}: does not")


def test_sides_of_a_video_are_even(tmp_path: Path) -> None:
    made = [picture(i, height=33, width=51) for i in range(3)]
    frames.write_video(tmp_path / "odd.mp4", made, 10.0)
    frame = frames.opened(tmp_path / "odd.mp4").read(1)
    assert frame.shape == (34, 52, 3) and np.abs(frame[:33, :51, 0].astype(int) - made[1]).mean() < 12


def test_a_source_video_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    film(tmp_path / "visible" / "walk.mp4", 1)
    film(tmp_path / "infrared" / "walk.mp4", 2)
    before = (tmp_path / "visible" / "walk.mp4").read_bytes()
    assert run(tmp_path, f"out={tmp_path / 'visible'}") == 2
    assert "would be replaced" in capsys.readouterr().err
    assert (tmp_path / "visible" / "walk.mp4").read_bytes() == before


def test_frames_of_a_series_share_their_range(tmp_path: Path) -> None:
    """Thermal frames that warm up: stretched one by one they would all look alike."""
    for i in range(4):
        for side in ("visible", "infrared"):
            warmer = 5000 + 400 * i + 4 * picture(i % 2, height=32, width=32).astype(np.uint16)
            save(tmp_path / side / f"{i}.png", warmer)
    pairs = expand(find_pairs({side: str(tmp_path / side) for side in ("visible", "infrared")}), sequence=True)
    means = []
    for pair in pairs:
        sample = read_pair(pair, Reading())
        assert not isinstance(sample, Failure) and sample.series == "sequence"
        means.append(float(sample.sources.mean()))
    assert means == sorted(means) and means[-1] - means[0] > 0.4
    before = [pair_digest(pair, Reading()) for pair in pairs]
    save(tmp_path / "visible" / "3.png", picture(3, height=32, width=32).astype(np.uint16) + 9000)
    series_range.cache_clear()
    assert all(was != pair_digest(pair, Reading()) for was, pair in zip(before, pairs, strict=True))
    alone = read_pair(expand(find_pairs({s: str(tmp_path / s) for s in ("visible", "infrared")}))[3], Reading())
    assert not isinstance(alone, Failure) and abs(float(alone.sources.mean()) - 0.5) < 0.2


def volume(seed: int, slices: int = 3) -> np.ndarray:
    """Values of a scan, (right, front, up)."""
    planes = [picture(seed + i, height=40, width=32).T.astype(np.float32) * 4 - 200 for i in range(slices)]
    return np.stack(planes, 2)


def test_volumes_are_cut_into_slices(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    for seed, side in enumerate(("ct", "mri")):
        (tmp_path / side).mkdir()
        nibabel.save(nibabel.Nifti1Image(volume(10 * seed), np.eye(4)), tmp_path / side / "head.nii.gz")
    path = tmp_path / "ct" / "head.nii.gz"
    assert medical.slice_count(path) == 3
    np.testing.assert_allclose(
        medical.read_slice(path, 1).pixels, volume(0)[::-1, ::-1, 1].T
    )  # the front is up, the right on the left
    flipped = nibabel.Nifti1Image(volume(0)[::-1], np.diag([-1.0, 1, 1, 1]))
    nibabel.save(flipped, tmp_path / "flipped.nii")
    np.testing.assert_allclose(
        medical.read_slice(tmp_path / "flipped.nii", 1).pixels, medical.read_slice(path, 1).pixels
    )
    assert run(tmp_path, sides=("ct", "mri")) == 0
    table = rows(tmp_path / "out")
    assert [row["file"] for row in table.values()] == [f"head_00000{i}.png" for i in range(3)]
    assert len({row["note"] for row in table.values()}) == 1 and "are black to white" in table["head_000000"]["note"]
    made = cv2.imread(str(tmp_path / "out" / "head_000001.png"), cv2.IMREAD_UNCHANGED)
    assert made.dtype == np.uint16 and made.shape == (40, 32)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ImageError, match="damaged NIfTI file"):
        medical.slice_count(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), tmp_path / "four.nii")
    with pytest.raises(ImageError, match="three axes"):
        medical.slice_count(tmp_path / "four.nii")


def dicom(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2") -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape, 1
    data.PhotometricInterpretation, data.PixelRepresentation = photometric, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = pixels.astype(np.uint16).tobytes()
    path.parent.mkdir(exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def test_dicom_has_hounsfield_units(tmp_path: Path) -> None:
    stored = picture(1, height=32, width=40).astype(np.uint16) * 10
    dicom(tmp_path / "ct" / "a.dcm", stored)
    np.testing.assert_allclose(
        medical.read_slice(tmp_path / "ct" / "a.dcm", 0).pixels, stored.astype(np.float32) - 1024
    )
    dicom(tmp_path / "mri" / "a.dcm", stored, "MONOCHROME1")
    assert medical.read_slice(tmp_path / "mri" / "a.dcm", 0).inverted
    assert run(tmp_path, "range.ct=-1000-1000", sides=("ct", "mri")) == 0
    assert "ct: values -1000 to 1000 are black to white" in rows(tmp_path / "out")["a"]["note"]
    (tmp_path / "ct" / "a.dcm").write_bytes(b"no dicom")
    with pytest.raises(ImageError, match="not a DICOM image"):
        medical.slice_count(tmp_path / "ct" / "a.dcm")


def test_a_reader_that_is_not_installed_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['nibabel'] = None\n"
        "from datamodules.readers.medical import slice_count\nfrom pathlib import Path\n"
        f"slice_count(Path({str(tmp_path / 'a.nii')!r}))"
    )
    (tmp_path / "a.nii").write_bytes(b"x")
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stderr
    assert "a.nii: needs nibabel; pip install 'dig2dig[medical]'" in shown


def test_flicker_is_measured(tmp_path: Path) -> None:
    from dig2dig.benchmark.__main__ import main

    out = tmp_path / "flicker"
    assert main(["flicker", "frames=3", "crop=256", "sensor=0", "pulls=0", f"out={out}", "device=cpu"]) == 0
    for row in (out / "table.md").read_text().splitlines()[-2:]:  # a still camera, and one that pans
        sources, one, each = (float(value) for value in row.split("|")[4:-1])
        assert sources == 0 and one < each < 1  # what is left comes from the width of the smoothing
    assert (out / "still_one_0_0.png").is_file() and (out / "pans_one_0_0.png").is_file()
    shutil.rmtree(out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that are copies")
def test_open_videos_do_not_block_a_process_that_reads_ahead(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.mp4" for i in range(10)]  # more than are kept open
    for seed, path in enumerate(paths):
        film(path, seed)
        frames.opened(path).read(0)
    reader = multiprocessing.get_context("fork").Process(target=lambda: [frames.opened(path).read(1) for path in paths])
    reader.start()
    reader.join(20)
    try:
        assert reader.exitcode == 0
    finally:
        reader.kill()


def test_each_frame_is_registered_by_itself(tmp_path: Path) -> None:
    still = cv2.resize(cv2.imread(str(ROOT / "examples/infrared_visible/visible/00537D.png"), 0), (320, 240))
    frames.write_video(tmp_path / "a.mp4", [still] * 3, 25.0)
    frames.write_video(tmp_path / "b.mp4", [np.roll(still, 6 * i, 1) for i in range(3)], 25.0)
    found = []
    for pair in expand(find_pairs({side: str(tmp_path / f"{side}.mp4") for side in "ab"})):
        sample = read_pair(pair, Reading(align="phase", memory=str(tmp_path / "align.json")))
        assert not isinstance(sample, Failure)
        found.append(sample.note.partition(" px")[0])
    assert found == ["b: moved by 0, 0", "b: moved by -6, 0", "b: moved by -12, 0"]


def test_a_frame_that_is_not_finite_leaves_the_range_of_the_others(tmp_path: Path) -> None:
    for side, seed in (("a", 0), ("b", 1)):
        for i in range(3):
            (tmp_path / side).mkdir(exist_ok=True)
            degrees = 20 + picture(seed + i, height=32, width=32).astype(np.float32) / 25
            degrees[5, 5] = np.nan if (side, i) == ("b", 0) else 20
            tifffile.imwrite(tmp_path / side / f"{i}.tif", degrees)
    pairs = expand(find_pairs({side: str(tmp_path / side) for side in "ab"}), sequence=True)
    broken, *samples = [read_pair(pair, Reading()) for pair in pairs]
    assert isinstance(broken, Failure) and "1 pixels are NaN" in broken.reason
    assert all(not isinstance(one, Failure) and one.sources[1].std() > 0.1 for one in samples)


def test_films_of_a_sequence_stay_films(tmp_path: Path) -> None:
    for side, seed in (("visible", 1), ("infrared", 2)):
        film(tmp_path / side / "one.mp4", seed, 2)
        film(tmp_path / side / "two.mp4", seed + 2, 3)
        for i in range(2):
            cv2.imwrite(str(tmp_path / side / f"still{i}.png"), picture(seed + i))
    pairs = expand(find_pairs({side: str(tmp_path / side) for side in ("visible", "infrared")}), sequence=True)
    found = {pair.name: pair.series for pair in pairs}
    assert sorted(found.values()) == ["one"] * 2 + ["sequence"] * 2 + ["two"] * 3
    assert found["still0"] == found["still1"] == "sequence"


def test_a_film_may_have_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 1)
    odd = tmp_path / os.fsdecode(b"\xff.mp4")
    try:
        odd.write_bytes((tmp_path / "a.mp4").read_bytes())
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    assert frames.opened(odd).count == 5
    film(tmp_path / os.fsdecode(b"\xfe") / "b.mp4", 1)
    assert frames.opened(tmp_path / os.fsdecode(b"\xfe") / "b.mp4").count == 5
