import functools
import operator
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from datamodules import image_data
from datamodules.aside import aside
from datamodules.image_data import (
    ImageCrops,
    ImageDataModule,
    StepSampler,
    collate,
    hold_out,
    read_deep,
    training_batches,
)
from datamodules.pair_data import FusionDataModule, PairDataset, SizeBatches
from datamodules.pairing import Pair, find_pairs
from datamodules.pairs import Failure, Reading, Sample, read_pair
from datamodules.readers import video
from datamodules.readers.pixels import image_size, list_images, read_image
from datamodules.transforms import training_crops, validation_crop
from dig2dig.config_train import ImageDataConfig
from dig2dig.errors import ImageError, PairingError
from dig2dig.inference.ownership import record
from dig2dig.training.prior import cropped
from tests.conftest import EXAMPLES


def write(path: Path, *shape: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_grey_that_is_stored_as_colour_reads_as_grey(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 7), dtype=np.uint8)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), grey)
    assert read_image(tmp_path / "a.png", "RGB").shape == (6, 7, 3)
    assert image_size(tmp_path / "a.png") == (6, 7)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "empty file"),
        (b"some text", "not an image"),
        ((EXAMPLES / "multi_focus" / "near" / "mountain.png").read_bytes()[:5000], "damaged"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    for read in [read_image] if line == "damaged" else [read_image, image_size]:
        with pytest.raises(ImageError, match=line) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_refused_not_cut(name: str, channels: int, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / name), np.full((4, 4, channels), 4000, dtype=np.uint16))
    with pytest.raises(ImageError, match="8-bit"):
        read_image(tmp_path / name)


def test_photographs_are_read_upright(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    turned = Image.Exif()
    turned[274] = 6  # the camera was held upright: rotate by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=turned)
    np.testing.assert_array_equal(read_image(tmp_path / "phone.png"), np.rot90(pixels, -1))
    assert image_size(tmp_path / "phone.png") == (6, 4)


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    shown, hidden = (write(tmp_path / folder / "x.png", 4, 4) for folder in ("shown", ".Trash"))
    assert hidden.is_file() and list_images(str(tmp_path)) == [shown]
    for side in ("a", "b"):
        write(tmp_path / side / "x.png", 4, 4)
        (tmp_path / side / "._x.png").write_bytes(b"what macOS leaves")
    assert [pair.name for pair in find_pairs({side: str(tmp_path / side) for side in "ab"})] == ["x"]


def test_pictures_of_runs_are_no_photographs(tmp_path: Path) -> None:
    """A training writes its panels under ``out=``, which may lie in the folder that it learns from."""
    own = [write(tmp_path / name, 4, 4) for name in ("a.png", "runs/scene/b.png")]
    made = [write(tmp_path / "runs" / name, 4, 4) for name in ("c.png", "fusion/step000000/a_panel.png")]
    record(tmp_path / "runs", ["c.png", "fusion/"])
    assert list_images(str(tmp_path)) == own and set(list_images(str(tmp_path / "runs"))) == {own[1], *made}


def test_a_training_image_that_cannot_be_read_is_skipped_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = [write(tmp_path / f"{name}.png", 40, 40, 3, seed=i) for i, name in enumerate("ac")]
    bad = tmp_path / "b.png"
    bad.write_bytes(b"no")
    images = ImageCrops([good[0], bad, good[1]], training_crops(16, [1.0], 0.0), 0)
    assert all(images[i]["image"].shape == (3, 16, 16) for i in range(20))
    assert capsys.readouterr().err.count(f"skipped: {bad}") == 1
    with pytest.raises(ImageError):
        _ = ImageCrops([bad], training_crops(16, [1.0], 0.0), 0)[0]
    validated = ImageCrops([good[0], bad, good[1]], validation_crop(16), None)
    for _ in range(2):
        batch = collate([validated[i] for i in range(3)])
        assert batch["index"].tolist() == [0, 2]  # no other image counts twice
    assert capsys.readouterr().err.count(f"skipped: {bad}") == 1 and collate([validated[1]]) == []


def test_folders_pair_by_stem_whatever_the_suffix(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "notes.txt"):
        write(tmp_path / "vi" / name.replace("txt", "bmp"), 4, 4)
    write(tmp_path / "ir" / "a.jpg", 4, 4)
    write(tmp_path / "ir" / "b.PNG", 4, 4)
    pairs = find_pairs({"visible": str(tmp_path / "vi"), "infrared": str(tmp_path / "ir")})
    assert [(pair.name, pair.missing) for pair in pairs] == [("a", ()), ("b", ()), ("notes", ("infrared",))]
    assert list(pairs[0].files) == ["visible", "infrared"]
    failure = read_pair(pairs[2], Reading())
    assert isinstance(failure, Failure) and "infrared" in failure.reason


def test_one_file_each(tmp_path: Path) -> None:
    a, b = write(tmp_path / "one.png", 4, 5), write(tmp_path / "two.png", 4, 5, seed=1)
    (pair,) = find_pairs({"visible": str(a), "infrared": str(b)})
    sample = read_pair(pair, Reading())
    assert isinstance(sample, Sample) and pair.name == "one"
    assert sample.sources.shape == (2, 1, 4, 5)
    np.testing.assert_allclose(sample.sources[1, 0] * 255, read_image(b), atol=1e-4)


def test_stacks_may_stop_early_only_where_allowed(tmp_path: Path) -> None:
    for e, names in (("e1", "ab"), ("e2", "ab"), ("e3", "a")):
        for name in names:
            write(tmp_path / e / f"{name}.png", 4, 4, 3)
    pairs = find_pairs({e: str(tmp_path / e) for e in ("e1", "e2", "e3")})
    shapes = [
        sample.sources.shape for pair in pairs if isinstance(sample := read_pair(pair, Reading("mef", True)), Sample)
    ]
    assert shapes == [(3, 1, 4, 4), (2, 1, 4, 4)]
    assert isinstance(read_pair(pairs[1], Reading("mef")), Failure)


def test_sizes_that_differ_are_told(tmp_path: Path) -> None:
    pair = Pair("x", {"a": write(tmp_path / "a.png", 4, 5), "b": write(tmp_path / "b.png", 6, 5)})
    failure = read_pair(pair, Reading())
    assert isinstance(failure, Failure)
    assert "5x4" in failure.reason and "5x6" in failure.reason


def test_sources_that_cannot_be_paired(tmp_path: Path) -> None:
    file = write(tmp_path / "vi" / "a.png", 4, 4)
    write(tmp_path / "ir" / "b.png", 4, 4)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "twice" / "a.png", 4, 4)
    write(tmp_path / "twice" / "a.jpg", 4, 4)
    folder = str(tmp_path / "vi")
    for other, line in (
        (tmp_path / "nowhere", "no such file or folder"),
        (file, "not both"),
        (tmp_path / "empty", "holds no image"),
        (tmp_path / "ir", "no file name stands in two"),
    ):
        with pytest.raises(PairingError, match=line):
            find_pairs({"visible": folder, "infrared": str(other)})


def test_batches_share_size_and_are_split_over_processes(tmp_path: Path) -> None:
    for name, height in (("a", 4), ("b", 6), ("c", 4), ("d", 4), ("e", 6)):
        for side in ("x", "y"):
            write(tmp_path / side / f"{name}.png", height, 5)
    (tmp_path / "x" / "broken.png").write_bytes(b"no")
    (tmp_path / "y" / "broken.png").write_bytes(b"no")
    pairs = find_pairs({"x": str(tmp_path / "x"), "y": str(tmp_path / "y")})
    batches = list(SizeBatches(pairs, 2))
    assert [[pairs[i].name for i in batch] for batch in batches] == [
        ["a", "c"],
        ["d"],
        ["b", "e"],
        ["broken"],
    ]
    shares = [list(SizeBatches(pairs, 2, rank, 2)) for rank in (0, 1)]
    assert sorted(functools.reduce(operator.iadd, shares[0] + shares[1], [])) == list(range(6))
    assert list(SizeBatches(pairs, 9, 7, 8)) == [[]]  # more processes than batches
    data = FusionDataModule(pairs, Reading(), 2)
    loader = data.predict_dataloader()
    kinds = [type(item) for batch in loader for item in batch]
    assert kinds.count(Failure) == 1 and kinds.count(Sample) == 5


def test_training_crops_depend_on_their_index_alone() -> None:
    paths = list_images(str(EXAMPLES), exclude=["infrared_visible"])
    assert not any("infrared_visible" in path.parts for path in paths)
    first, second = (ImageCrops(paths, training_crops(32, [1.0, 2.0], 0.3), 5, room) for room in (0, 2**30))
    second[3]  # what was read before does not matter
    for index in (0, 7, 1000):
        a, b = first[index]["image"], second[index]["image"]
        assert a.shape == (3, 32, 32) and a.min() >= 0 and a.max() <= 1
        assert torch.equal(a, b)
    assert not torch.equal(first[1]["image"], first[2]["image"])
    grey = [float((image[0] - image[1]).abs().max()) == 0 for image in (first[i]["image"] for i in range(60))]
    assert 5 < sum(grey) < 35  # 30 % by chance


def test_folders_are_left_out_below_the_root_alone(tmp_path: Path) -> None:
    for name in ("keep", "out"):
        shutil.copytree(EXAMPLES / "infrared_visible" / "visible", tmp_path / "out" / "photos" / name)
    listed = tmp_path / "out" / "list.txt"
    listed.write_text("\n".join(str(path) for path in (tmp_path / "out" / "photos").rglob("*.png")))
    for root in (tmp_path / "out" / "photos", listed):
        assert {path.parent.name for path in list_images(str(root), exclude=["out"])} == {"keep"}


def test_decoded_images_are_kept_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the memory, for all processes together; what has no place is read again."""
    paths = list_images(str(EXAMPLES), exclude=["infrared_visible"])
    sizes = {path: read_deep(path).nbytes for path in paths}
    plain = ImageCrops(paths, training_crops(16, [1.0], 0.0), 5)
    for room in (0, min(sizes.values()), 2 * max(sizes.values()), sum(sizes.values())):
        crops = ImageCrops(paths, training_crops(16, [1.0], 0.0), 5, room)
        for index in range(40):
            assert torch.equal(crops[index]["image"], plain[index]["image"])
        held = sum(pixels.nbytes for pixels in crops.cache.values())
        assert held <= room and crops.room == room - held and bool(held) == bool(room)
    monkeypatch.setattr(image_data, "memory", lambda: 4096)
    for workers, cache, room in ((0, True, 1024), (1, True, 1024), (4, True, 256), (4, False, 0)):
        config = ImageDataConfig(root=str(EXAMPLES), workers=workers, cache=cache)
        data = ImageDataModule(config, 0, 1)
        data.setup("fit")
        assert data.train is not None and data.train.room == room


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_batches_are_pinned_for_a_gpu_alone(kind: str) -> None:
    """Whatever the machine has: a training on the CPU copies nothing."""
    names = {"world_size": 2, "global_rank": 1, "accumulate_grad_batches": 1, "global_step": 3}
    strategy = SimpleNamespace(root_device=torch.device(kind))
    trainer: Any = type("Stands", (Trainer,), {"__init__": lambda _: None, "strategy": strategy, **names})()
    config = ImageDataConfig(root=str(EXAMPLES), batch_size=2, workers=0)
    images = ImageCrops(list_images(str(EXAMPLES)), training_crops(16, [1.0], 0.0), 5)
    loader = training_batches(images, config, trainer, 5)
    assert loader.pin_memory == (kind == "cuda") and list(loader.sampler) == [14, 15, 18, 19]


def test_validation_crop_is_the_centre() -> None:
    pixels = np.arange(300 * 260 * 3, dtype=np.uint32).reshape(300, 260, 3).astype(np.uint8)
    np.testing.assert_array_equal(validation_crop(256)(image=pixels)["image"], pixels[22:278, 2:258])


def test_step_sampler_gives_each_process_its_part_of_every_global_batch() -> None:
    whole = list(StepSampler(0, 16, 4))
    shares = [list(StepSampler(0, 16, 2, rank, 2)) for rank in (0, 1)]
    for step in range(4):
        part = [index for share in shares for index in share[2 * step : 2 * step + 2]]
        assert part == whole[4 * step : 4 * step + 4]
    assert list(StepSampler(8, 16, 4)) == whole[8:]
    assert len(StepSampler(8, 16, 2, 1, 2)) == 8  # of the whole run: Lightning knows what is done


def test_folders_without_images_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_images(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="holds no image"):
        list_images(str(tmp_path))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_train(suffix: str, channels: int, tmp_path: Path) -> None:
    """Twelve-bit thermal frames are stretched by their percentiles, or kept in the full range."""
    levels = np.linspace(1000, 5095, 64 * 64).reshape(64, 64, 1).astype(np.uint16)
    pixels = np.concatenate([levels // (i + 1) for i in range(channels)], 2)
    path = tmp_path / f"deep{suffix}"
    cv2.imwrite(str(path), pixels[..., ::-1])
    full = read_deep(path, "RGB", "full")
    np.testing.assert_allclose(full, np.broadcast_to(pixels, (64, 64, 3)) / 65535, atol=1e-6)
    stretched = read_deep(path, "L")
    assert stretched.shape == (64, 64) and stretched.min() < 0.1 and stretched.max() > (0.95 if channels == 1 else 0.5)
    crops = ImageCrops([path], training_crops(16, [1.0, 2.0], 0.5), seed=1)
    images = torch.stack([crops[i]["image"] for i in range(20)])
    assert images.shape == (20, 3, 16, 16) and images.amin() >= 0 and 0.5 < images.amax() <= 1
    assert read_deep(EXAMPLES / "multi_focus" / "near" / "mountain.png").dtype == np.uint8


def test_pixels_without_data_do_not_stretch_a_deep_file(tmp_path: Path) -> None:
    """Zeros of a warp or a dead line, and what data.range calls no data, have no part in the range."""
    pixels = np.linspace(29000, 30000, 64 * 64).reshape(64, 64).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "whole.png"), pixels)
    expected = read_deep(tmp_path / "whole.png", "L")[:, 8:]
    for value, scale in ((0, "percentile"), (65535, "percentile,nodata=65535")):
        pixels[:, :8] = value
        cv2.imwrite(str(tmp_path / "warped.png"), pixels)
        np.testing.assert_allclose(read_deep(tmp_path / "warped.png", "L", scale)[:, 8:], expected, atol=0.01)
    cv2.imwrite(str(tmp_path / "empty.png"), np.full((8, 8), 7, np.uint16))
    with pytest.raises(ImageError, match="no pixel holds data"):
        read_deep(tmp_path / "empty.png", "L", "nodata=7")


def test_deep_files_that_are_damaged_are_one_line(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "whole.png"), np.random.default_rng(0).integers(0, 65535, (64, 64), dtype=np.uint16))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    cv2.imwrite(str(tmp_path / "nan.tiff"), np.full((8, 8), np.nan, np.float32))
    for name in ("cut.png", "nan.tiff"):
        with pytest.raises(ImageError, match=name) as caught:
            read_deep(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_images_are_listed_by_a_file_and_split_by_stem(tmp_path: Path) -> None:
    for side in ("ir", "vi"):
        for i in range(40):
            write(tmp_path / side / f"{i}.png", 8, 8)
    (tmp_path / "some.txt").write_text("# held out\nir/3.png\n\nir/5.png\n", encoding="utf-8-sig")  # Notepad's
    assert list_images(str(tmp_path / "some.txt")) == [tmp_path / "ir" / "3.png", tmp_path / "ir" / "5.png"]
    (tmp_path / "lost.txt").write_text("ir/300.png")
    with pytest.raises(FileNotFoundError, match=r"names .*300\.png"):
        list_images(str(tmp_path / "lost.txt"))
    (tmp_path / "other.txt").write_text("vi/3.png\nvi/5.png\n")
    named = find_pairs({"infrared": str(tmp_path / "some.txt"), "visible": str(tmp_path / "other.txt")})
    assert {pair.name: pair.missing for pair in named} == {"3": (), "5": ()}
    with pytest.raises(PairingError, match=r"sources\.visible: .*names"):
        find_pairs({"infrared": str(tmp_path / "some.txt"), "visible": str(tmp_path / "lost.txt")})
    paths = list_images(str(tmp_path))
    train, val = hold_out(paths, 0.25, 0)
    assert len(train) + len(val) == 80 and 8 <= len(val) <= 32
    assert not {path.stem for path in train} & {path.stem for path in val}
    assert hold_out(paths, 0.25, 1) != (train, val)
    more = hold_out([*paths, tmp_path / "new.png"], 0.25, 0)
    assert set(val) <= set(more[1])  # a new file moves no other
    assert [len(part) for part in hold_out(paths[:1], 0.1, 0)] == [1, 0]
    config = ImageDataConfig(root=str(tmp_path), val=str(tmp_path / "some.txt"))
    data = ImageDataModule(config, 0, 1)
    assert data.train is None  # files are listed in setup
    data.setup("fit")
    assert data.val is not None and data.train is not None and len(data.val) == 2 and len(data.train) == 78


@pytest.mark.parametrize("seed", range(5))
def test_a_folder_too_small_for_its_share_holds_one_image_out(seed: int, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.png", 8, 8) for i in range(3)]
    train, val = hold_out(paths, 0.1, seed)
    assert len(val) == 1 and sorted([*train, *val]) == paths and hold_out(paths, 0.0, seed) == (paths, [])
    data = ImageDataModule(ImageDataConfig(root=str(tmp_path), val_share=0.1), seed, 1)
    data.setup("fit")
    assert data.train is not None and data.val is not None and (len(data.train), len(data.val)) == (2, 1)
    assert data.val.paths == val


@pytest.mark.parametrize("module", ["datamodules.image_data", "datamodules.transforms", "dig2dig.training.run"])
def test_no_import_looks_anything_up_on_the_network(module: str) -> None:
    """albumentations asks the package index for its newest version when it is imported, unless it is told not to."""
    refuse = "import socket; socket.getaddrinfo = lambda *_, **__: print('asked') or exit(3)"
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-c", f"{refuse}; import {module}"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_validation_pairs_are_cropped_together() -> None:
    pairs = find_pairs({name: str(EXAMPLES / "infrared_visible" / name) for name in ("visible", "infrared")})
    whole = PairDataset(pairs, Reading())[0]
    assert isinstance(whole, Sample)
    sample = cropped(whole, 64)
    h, w = whole.sources.shape[-2:]
    middle = whole.sources[..., (h - 64) // 2 : (h + 64) // 2, (w - 64) // 2 : (w + 64) // 2]
    torch.testing.assert_close(sample.sources, middle)
    assert sample.chroma is not None and sample.chroma.shape == (2, 64, 64)
    for side in (w - 1, w + 7, h + w):  # reflected where it is smaller
        pixels = whole.sources[0].permute(1, 2, 0).numpy()
        expected = torch.from_numpy(validation_crop(side)(image=pixels)["image"])
        torch.testing.assert_close(cropped(whole, side).sources[0].permute(1, 2, 0), expected.view(side, side, 1))


@pytest.mark.parametrize(("task", "align"), [("mef", "ecc"), ("mff", "none")])
def test_tall_stacks_are_read_as_others_are(task: str, align: str, tmp_path: Path, monkeypatch) -> None:
    """Their arrays are in files that have no name: nothing is left of them."""
    folder = EXAMPLES / "multi_exposure_stack"
    (pair,) = find_pairs({one.name: str(one) for one in sorted(folder.iterdir()) if one.is_dir()})[:1]
    reading = Reading(task, align=align, ghosts="remove")
    whole = read_pair(pair, reading)
    monkeypatch.setattr("dig2dig.shapes.TALL", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tall = read_pair(pair, reading)
    assert isinstance(whole, Sample) and isinstance(tall, Sample)
    assert torch.equal(whole.sources, tall.sources) and whole.note == tall.note
    for a, b in ((whole.valid, tall.valid), (whole.chroma, tall.chroma)):
        assert torch.equal(a, b) if a is not None and b is not None else a is b
    assert (whole.chroma is None) == (task == "mff")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_arrays_in_memory(monkeypatch) -> None:
    monkeypatch.setattr("dig2dig.shapes.TALL", 1)
    array = np.ones((4, 5), np.float32)
    assert isinstance(aside(array, 3), np.memmap) and aside(array, 2) is array
    monkeypatch.setattr("datamodules.aside.disk_usage", lambda _: SimpleNamespace(free=100))
    assert not isinstance(aside(array, 3), np.memmap)


def test_what_follows_a_gap_in_a_video_is_not_read(tmp_path: Path) -> None:
    """A decoder goes on behind a damaged place, with frames of other moments."""
    file = tmp_path / "a.mp4"
    video.write_video(file, [np.full((16, 16), 10 * i, np.uint8) for i in range(8)], 25.0)
    opened = video.Video(file)
    capture = opened.capture

    class Damaged:
        at = 0

        def grab(self) -> bool:
            return capture.grab()

        def read(self) -> tuple[bool, object]:
            self.at += 1
            return (False, None) if self.at == 3 else capture.read()

    opened.capture = Damaged()  # pyright: ignore[reportAttributeAccessIssue]
    assert opened.read(0).shape == opened.read(1).shape == (16, 16, 3)
    for index in (2, 3, 7):
        with pytest.raises(ImageError, match=f"frame {index} of 8 cannot be read"):
            opened.read(index)
