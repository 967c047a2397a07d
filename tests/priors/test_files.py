"""Priors as people have them: variants, shards, hub ids, and pipelines that are no prior."""

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dig2dig.errors import PriorError
from dig2dig.fusion.weight import FILE, SETTINGS, load_weights, weights_folder, weights_sha256
from dig2dig.priors import files
from dig2dig.priors.build import build_prior, save_prior
from dig2dig.priors.files import CHECKSUMS, file_sha256, prior_sha256, weights_files
from dig2dig.priors.load import load_prior
from dig2dig.priors.lora import CONFIG, WEIGHTS, adapter_file
from tests.hub import Hub, got, serve, use

PLAIN = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small prior without checksums, so that its files can be changed."""
    save_prior(build_prior([32], 1, 1), tmp_path / "prior")
    (tmp_path / "prior" / CHECKSUMS).unlink()
    return tmp_path / "prior"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another one fetched."""
    files.fetched_folder.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def error_of(path: str | Path, sha256: str | None = None) -> str:
    with pytest.raises(PriorError) as caught:
        load_prior(path, sha256)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(unet: Path, index: str, names: list[str]) -> None:
    """The weights of a folder as shards, by diffusers' layout."""
    state = load_file(unet / PLAIN)
    (unet / PLAIN).unlink()
    where = {name: names[i % len(names)] for i, name in enumerate(state)}
    for file in names:
        save_file({name: tensor for name, tensor in state.items() if where[name] == file}, unet / file)
    (unet / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def same(first: Path, second: torch.nn.Module) -> bool:
    ours, theirs = load_prior(first).state_dict(), second.state_dict()
    return all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_variants_come_after_the_plain_name(folder: Path) -> None:
    unet = folder / "unet"
    state = load_file(unet / PLAIN)
    half = {name: tensor.half() for name, tensor in state.items()}
    save_file(half, unet / "diffusion_pytorch_model.fp16.safetensors")
    torch.save(half, unet / "diffusion_pytorch_model.fp16.bin")
    torch.save(state, unet / "diffusion_pytorch_model.bin")
    order = [PLAIN, *(f"diffusion_pytorch_model.{kind}" for kind in ("bin", "fp16.safetensors", "fp16.bin"))]
    for name in order:
        assert [file.name for file in weights_files(folder)] == [name]
        loaded = load_prior(folder)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        expected = half if "fp16" in name else state
        assert torch.equal(loaded.network.unet.conv_in.weight, expected["conv_in.weight"].float())
        (unet / name).unlink()
    assert f"unet/{PLAIN}: no such file" in error_of(folder)


@pytest.mark.parametrize(
    ("index", "pattern"),
    [
        (".safetensors.index.json", "-{}-of-2.safetensors"),
        (".safetensors.index.fp16.json", ".fp16-{}-of-2.safetensors"),
        (".fp16.safetensors.index.json", "-{}-of-2.fp16.safetensors"),
    ],
)
def test_shards_are_one_prior(index: str, pattern: str, folder: Path) -> None:
    whole = load_prior(folder)
    index = f"diffusion_pytorch_model{index}"
    names = [f"diffusion_pytorch_model{pattern.format(i)}" for i in (1, 2)]
    shard(folder / "unet", index, names)
    assert same(folder, whole)
    content = b"".join((folder / "unet" / name).read_bytes() for name in names)
    assert prior_sha256(folder) == hashlib.sha256(content).hexdigest()
    assert same(folder, load_prior(folder, prior_sha256(folder)))
    assert "expected 00" in error_of(folder, "00")
    (folder / "unet" / names[1]).unlink()
    assert f"{names[1]}: no such file, though unet/{index} lists it" in error_of(folder)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Weights that are read to be hashed, from now on; what was written a moment ago counts as old."""
    opened, original = list[Path](), Path.open

    def noted(self: Path, *arguments: Any, **more: Any) -> Any:
        opened.extend([self] * (self.name.endswith(".safetensors")))
        return original(self, *arguments, **more)

    monkeypatch.setattr(files, "FRESH", 0)
    monkeypatch.setattr(Path, "open", noted)
    return opened


def test_a_process_hashes_each_file_once(folder: Path, reads: list[Path]) -> None:
    names = [f"diffusion_pytorch_model-{i}-of-2.safetensors" for i in (1, 2)]
    shard(folder / "unet", "diffusion_pytorch_model.safetensors.index.json", names)
    shards = weights_files(folder)
    sums = [f"{hashlib.sha256(one.read_bytes()).hexdigest()}  unet/{one.name}" for one in shards]
    (folder / CHECKSUMS).write_text("\n".join(sums))
    reads.clear()
    expected = prior_sha256(folder)
    for _ in range(2):
        load_prior(folder, expected)
    assert [file_sha256(one) for one in shards] == [line[:64] for line in sums]
    assert prior_sha256(folder) == hashlib.sha256(b"".join(map(Path.read_bytes, shards))).hexdigest() == expected
    assert [reads.count(one) - 1 for one in shards] == [1, 1]  # once more for the line above


@pytest.mark.parametrize("kept", [False, True])
def test_a_file_that_was_written_again_is_hashed_again(kept: bool, folder: Path, reads: list[Path]) -> None:
    path = weights_files(folder)[0]
    before, time_of_it = file_sha256(path), path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if kept:  # size and time of what was there
        os.utime(path, ns=(time_of_it.st_atime_ns, time_of_it.st_mtime_ns))
    assert file_sha256(path) == hashlib.sha256(content).hexdigest() != before


def test_a_file_written_a_moment_ago_is_not_remembered(folder: Path, reads: list[Path], monkeypatch) -> None:
    monkeypatch.setattr(files, "FRESH", 60e9)
    for _ in range(2):
        prior_sha256(folder)
    assert len(reads) == 2


def test_weights_that_are_replaced_while_they_are_read_are_refused(folder: Path, monkeypatch) -> None:
    def replacing(path: Path) -> dict[str, torch.Tensor]:
        state = load_file(path)
        other = path.with_name("other")
        save_file({name: tensor + 1 for name, tensor in state.items()}, other)
        other.replace(path)
        return state

    expected = prior_sha256(folder)
    monkeypatch.setattr("dig2dig.priors.load.read_weights", replacing)
    assert "altered or cut" in error_of(folder, expected)


@pytest.mark.parametrize(
    "listed", [None, {}, [1], {"conv_in.weight": 1}, {"conv_in.weight": "../../secret.safetensors"}]
)
def test_an_index_without_shards_is_refused(listed: object, folder: Path) -> None:
    (folder / "unet" / PLAIN).rename(folder.parent / "secret.safetensors")
    (folder / "unet" / f"{PLAIN}.index.json").write_text(json.dumps({"weight_map": listed}))
    assert error_of(folder).endswith("get it again")


PIPELINES = {
    "StableDiffusionPipeline works on latents (vae)": ["vae", "text_encoder", "tokenizer", "unet", "scheduler"],
    "LDMPipeline works on latents (vqvae)": ["vqvae", "unet", "scheduler"],
    "IFPipeline needs a text (text_encoder)": ["text_encoder", "tokenizer", "unet", "scheduler"],
    "ControlPipeline needs a control image (controlnet)": ["controlnet", "unet", "scheduler"],
    "FlowPipeline has a transformer (transformer)": ["transformer", "scheduler"],
    "OtherPipeline needs another part (mel)": ["mel", "unet", "scheduler"],
}


@pytest.mark.parametrize("reason", PIPELINES)
def test_other_pipelines_are_refused_by_their_index(reason: str, folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    index = {part: ["library", "Class"] for part in PIPELINES[reason]}
    index |= {"_class_name": reason.split()[0], "requires_safety_checker": False, "safety_checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert error_of(folder) == f"{folder}: a {reason}; a prior here is an unconditional UNet2DModel on pixels"


DIFFUSERS = {"_class_name": "UNet2DModel", "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel"),
        ({"_class_name": "ControlNetModel"}, "holds a ControlNetModel"),
        ({"num_class_embeds": 1000}, "needs a class (num_class_embeds=1000)"),
        ({"class_embed_type": "timestep"}, "needs a class (class_embed_type=timestep)"),
        ({"in_channels": 6}, "makes 3 channels of 6"),
        ({"in_channels": "many"}, "makes 3 channels of many"),
        ({"in_channels": 5, "out_channels": 5}, "makes 5 channels of 5"),
        ({"layers_per_block": 2_000_000}, "no network of a usable size"),
        ({"layers_per_block": None}, "no network of a usable size"),
        ({"block_out_channels": [10**12]}, "no network of a usable size"),
        ({"block_out_channels": [32] * 2_000_000}, "no network of a usable size"),
        ({"block_out_channels": [32.5]}, "no network of a usable size"),
        ({"down_block_types": ["DownBlock2D"] * 2_000_000}, "no network of a usable size"),
        (DIFFUSERS | {"down_block_types": ["NoBlock"]}, "does not describe a network"),
        (DIFFUSERS | {"norm_num_groups": 0}, "does not describe a network"),
        (DIFFUSERS | {"time_embedding_dim": 10**12}, "does not describe a network"),
        (DIFFUSERS, "missing (conv_norm_out.bias"),
        ({"layers_per_block": 2}, "missing (mid_block.1"),
        ({"block_out_channels": [64]}, "size mismatch"),
    ],
)
def test_other_networks_are_refused_by_their_config(changes: dict, reason: str, folder: Path) -> None:
    change(folder / "unet" / "config.json", **changes)
    start = time.perf_counter()
    message = error_of(folder)
    assert reason in message and message.startswith(str(folder)) and len(message) < 500 + len(str(folder))
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_train_timesteps", 10**12),
        ("beta_end", "x"),
        ("trained_betas", [2.0]),
        ("trained_betas", []),
        ("trained_betas", 3),
    ],
)
def test_schedules_without_sense_are_refused(key: str, value: object, folder: Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", **{key: value})
    assert "scheduler_config.json: expected 1 to 100000 steps" in error_of(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.complex64, torch.bool, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(dtype: torch.dtype, folder: Path) -> None:
    state = load_file(weights_files(folder)[0])
    state["conv_in.weight"] = torch.zeros(state["conv_in.weight"].shape).to(dtype)
    save_file(state, weights_files(folder)[0])
    assert f"conv_in.weight is {str(dtype).removeprefix('torch.')}; weights are float32" in error_of(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_float_weights_are_taken(dtype: torch.dtype, folder: Path) -> None:
    state = {name: tensor.to(dtype) for name, tensor in load_file(weights_files(folder)[0]).items()}
    save_file(state, weights_files(folder)[0])
    assert {parameter.dtype for parameter in load_prior(folder).parameters()} == {torch.float32}


def test_foreign_json_is_refused(folder: Path) -> None:
    for content, reason in (
        ("[]", "found a list"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
    ):
        (folder / "unet" / "config.json").write_text(content)
        message = error_of(folder)
        assert "unet/config.json: " in message and reason in message


def test_checksums_without_sense_are_refused(folder: Path) -> None:
    (folder / CHECKSUMS).write_bytes(b"nonsense\xff\n")
    assert "though SHA256SUMS lists it" in error_of(folder)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    yield from serve(folder, monkeypatch)


JSON_FILES = {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json"}


def test_a_hub_id_is_fetched_with_one_set_of_weights(hub: type[Hub], folder: Path, monkeypatch) -> None:
    for other in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors", "model.onnx"):
        (folder / "unet" / other).write_bytes(b"not wanted")
    whole = load_prior(folder)
    assert same(Path("someone/prior"), whole)
    assert got(hub) == JSON_FILES | {f"unet/{PLAIN}"}
    count = len(hub.asked)
    assert prior_sha256("someone/prior") == prior_sha256(folder) and len(hub.asked) == count
    # later without a network: offline by choice, a hub that is silent, and none at all
    for attribute, value in (("HF_HUB_OFFLINE", True), ("HF_HUB_OFFLINE", False)):
        files.fetched_folder.cache_clear()
        monkeypatch.setattr(constants, attribute, value)
        use(monkeypatch, 9)
        assert same(Path("someone/prior"), whole) and len(hub.asked) == count


def test_a_revision_of_a_hub_id(hub: type[Hub], folder: Path) -> None:
    assert same(Path("someone/prior@v1.2"), load_prior(folder))
    assert hub.revisions == {"v1.2", "a" * 40} and "GET /api/models/someone/prior/revision/v1.2" in hub.asked


def test_learned_weights_and_adapters_of_a_hub(hub: type[Hub], folder: Path, monkeypatch) -> None:
    for file in (SETTINGS, FILE):
        (folder / file).write_bytes((weights_folder("bundled/ivf") / file).read_bytes())
    for file in (CONFIG, WEIGHTS):
        (folder / file).write_text(file)
    expected = file_sha256(folder / FILE)
    assert weights_sha256("someone/weights@v2") == expected and "v2" in hub.revisions
    assert load_weights("someone/weights@v2").settings == load_weights("bundled/ivf").settings
    assert got(hub) == {SETTINGS, FILE}
    assert adapter_file("someone/adapter").read_text() == WEIGHTS
    assert got(hub) == {SETTINGS, FILE, CONFIG, WEIGHTS}
    files.fetched_folder.cache_clear()
    use(monkeypatch, 9)  # later without a network
    assert weights_sha256("someone/weights@v2") == expected
    with pytest.raises(PriorError, match=r"^someone/others: neither a local folder nor to be had"):
        weights_sha256("someone/others")


def test_shards_are_fetched(hub: type[Hub], folder: Path) -> None:
    whole = load_prior(folder)
    names = [f"diffusion_pytorch_model-{i}-of-2.safetensors" for i in (1, 2)]
    shard(folder / "unet", f"{PLAIN}.index.json", names)
    assert same(Path("someone/shards"), whole)
    assert got(hub) == JSON_FILES | {f"unet/{name}" for name in (*names, f"{PLAIN}.index.json")}


def test_a_hub_id_is_judged_before_its_weights_are_fetched(hub: type[Hub], folder: Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", sigma_max=80)
    assert error_of("someone/karras").startswith("someone/karras/scheduler/scheduler_config.json: ")
    assert got(hub) == JSON_FILES
    change(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"], _class_name="StableDiffusionPipeline")
    assert error_of("someone/latent").startswith("someone/latent: a StableDiffusionPipeline works on latents (vae)")
    assert not any(PLAIN in line for line in hub.asked)


@pytest.mark.parametrize("mute", ["/api/", "unet/config.json"])
def test_a_silent_hub_ends_in_time(mute: str, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LIMIT", 1.0)
    hub.mute = mute
    start = time.perf_counter()
    assert "it does not answer" in error_of("someone/silent")
    assert time.perf_counter() - start < 8


def test_a_silent_hub_does_not_hinder_what_is_cached(hub: type[Hub], folder: Path, monkeypatch) -> None:
    whole = load_prior("someone/cached")
    for mute in ("/api/", "unet/config.json"):
        files.fetched_folder.cache_clear()
        monkeypatch.setattr(files, "LIMIT", 1.0)
        hub.mute = mute
        start = time.perf_counter()
        assert same(Path("someone/cached"), whole)
        assert time.perf_counter() - start < 8


def test_a_server_that_accepts_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LIMIT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        use(monkeypatch, server.getsockname()[1])
        start = time.perf_counter()
        message = error_of("someone/some-prior")
        assert time.perf_counter() - start < 8
    assert message.startswith("someone/some-prior: neither a local folder") and "it does not answer" in message


def test_a_half_fetched_prior_without_a_network_is_one_line(hub: type[Hub], folder: Path, monkeypatch) -> None:
    load_prior("someone/half")
    (cached,) = (Path(constants.HF_HUB_CACHE)).glob(f"*half/snapshots/*/unet/{PLAIN}")
    cached.unlink()
    files.fetched_folder.cache_clear()
    use(monkeypatch, 9)
    assert f"someone/half/unet/{PLAIN}: no such file" in error_of("someone/half")
