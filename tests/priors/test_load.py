import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from azula.plugins.adm import make_model
from diffusers import DDPMPipeline, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from safetensors.torch import load_file, save_file

from dig2dig.__main__ import prior
from dig2dig.errors import PriorError
from dig2dig.priors import adm
from dig2dig.priors.build import as_denoiser, build_prior, save_prior
from dig2dig.priors.files import CHECKSUMS, prior_sha256, weights_files
from dig2dig.priors.load import load_prior

ADM_SMALL = {
    "attention_resolutions": [16],
    "channel_mult": [1, 1, 2],
    "image_size": 64,
    "num_channels": 64,
    "num_head_channels": 64,
    "num_res_blocks": 2,
}
ADM_256 = {
    "attention_resolutions": [32, 16, 8],
    "channel_mult": [1, 1, 2, 2, 4, 4],
    "image_size": 256,
    "num_channels": 256,
    "num_head_channels": 64,
    "num_res_blocks": 2,
}


def adm_reference(arguments: dict) -> torch.nn.Module:
    """OpenAI's architecture as azula keeps it, every tensor random: fresh networks have zeros in places."""
    model = make_model(clip_mean=False, resblock_updown=True, use_scale_shift_norm=True, **arguments)
    for parameter in model.parameters():
        scale = 0.7 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
        torch.nn.init.normal_(parameter, std=scale)
    return model.eval()


@torch.no_grad()
def ddim_agreement(reference: torch.nn.Module, checkpoint: Path, side: int) -> float:
    """Largest difference after two DDIM steps from the same noise, ours against azula's sampler and network."""
    from azula.sample import DDIMSampler

    from dig2dig.fusion.sampler import ddim_step
    from dig2dig.priors.schedule import at, noise_level

    denoiser = load_prior(checkpoint, precision="fp32")

    class Discrete:
        """Azula's schedule at our indices; -1 is the clean image."""

        def __call__(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            a = denoiser.alpha_bar[int(t)] if t >= 0 else torch.ones((), dtype=torch.float64)
            # a hair below, so that azula's search for the index does not round up
            return a.sqrt().float(), ((1 - a).sqrt() * (1 - 1e-6)).float()

    reference.schedule = Discrete()
    sampler = DDIMSampler(reference, silent=True)
    theirs = ours = torch.randn(1, 3, side, side)
    for t, t_next in ((700, 200), (200, -1)):
        theirs = sampler.step(theirs, torch.tensor(float(t)), torch.tensor(float(t_next)))
        with torch.no_grad():
            x0_hat = denoiser(ours, torch.tensor([t]))
        signal = at(denoiser.alpha_bar, torch.tensor([t]), ours)
        levels = [float(noise_level(denoiser.alpha_bar)[i]) if i >= 0 else 0.0 for i in (t, t_next)]
        eps = (ours - signal.sqrt() * x0_hat) / (1 - signal).sqrt()
        ours = ddim_step(x0_hat, eps, *levels)
    assert theirs.std() > 0.1
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_adm_converts_and_samples_as_azula(tmp_path: Path) -> None:
    reference = adm_reference(ADM_SMALL)
    torch.save(reference.backbone.state_dict(), tmp_path / "adm.pt")
    assert ddim_agreement(reference, tmp_path / "adm.pt", 32) < 1e-4
    # once to a folder, by the command, with the same outputs
    command = [
        sys.executable,
        "-m",
        "dig2dig",
        "prior",
        "convert",
        str(tmp_path / "adm.pt"),
        str(tmp_path / "folder"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([5, 900])
    with torch.no_grad():
        torch.testing.assert_close(load_prior(tmp_path / "folder")(x, t), load_prior(tmp_path / "adm.pt")(x, t))


def test_adm_256_has_the_published_size() -> None:
    with torch.device("meta"):
        state = make_model(resblock_updown=True, use_scale_shift_norm=True, **ADM_256).backbone.state_dict()
        unet = UNet2DModel.from_config(adm.unet_config(state))
        unet.load_state_dict(adm.convert(state), strict=True, assign=True)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 552_814_086
    assert adm.unet_config(state) == adm.ADM_256
    denoiser = as_denoiser(unet, {})
    assert (denoiser.channels, denoiser.patch, denoiser.multiple, denoiser.layout.native) == (3, 1, 32, 256)
    attention = {type(module.processor) for module in unet.modules() if isinstance(module, Attention)}
    assert attention == {AttnProcessor2_0}  # torch's fused kernel: no matrix of all pairs of positions


@pytest.mark.huge
def test_full_size_adm_samples_as_azula(tmp_path: Path) -> None:
    reference = adm_reference(ADM_256)
    torch.save(reference.backbone.state_dict(), tmp_path / "256x256_diffusion_uncond.pt")
    assert ddim_agreement(reference, tmp_path / "256x256_diffusion_uncond.pt", 128) < 1e-4


def test_the_bundled_prior_is_small() -> None:
    assert weights_files()[0].stat().st_size <= 16e6


def test_diffusers_reads_what_is_saved_of_its_network(tmp_path: Path) -> None:
    unet = UNet2DModel(
        sample_size=16, in_channels=12, out_channels=12, block_out_channels=(32,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    ours = as_denoiser(unet.eval(), {"prediction_type": "v_prediction"})
    save_prior(ours, tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([300])
    with torch.no_grad():
        theirs = pipeline.unet(torch.nn.functional.pixel_unshuffle(x, 2), t).sample
        found = ours.outputs(x, t)
    torch.testing.assert_close(found, torch.nn.functional.pixel_shuffle(theirs, 2), rtol=1e-4, atol=1e-5)


def test_bundled_prior_denoises(bundled) -> None:
    """A guard against wrong weights: a real photograph gets far cleaner than the noisy input's 20.2 dB."""
    from datamodules.readers.pixels import read_image
    from dig2dig.priors.loss import denoising_psnr

    path = Path(__file__).parents[2] / "examples" / "multi_focus" / "truth" / "mountain.png"
    image = torch.tensor(read_image(path, "RGB"))[:256, :256].permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        assert denoising_psnr(bundled, image, torch.randn_like(image), 25.0) > 26.5


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_other_pipelines_keep_their_prediction_and_betas(prediction, tmp_path: Path) -> None:
    unet = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=2, block_out_channels=(32, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    betas = torch.linspace(1e-4, 0.03, 500, dtype=torch.float64).tolist()
    original = as_denoiser(unet.eval(), {"trained_betas": betas, "prediction_type": prediction})
    save_prior(original, tmp_path)
    loaded = load_prior(tmp_path, precision="fp32")
    assert (loaded.channels, loaded.patch, loaded.prediction, len(loaded.alpha_bar)) == (
        1,
        1,
        prediction,
        500,
    )
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 400])
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, t), original(x, t), rtol=1e-4, atol=1e-5)


def test_flat_folders_of_early_diffusers_load(tmp_path: Path, bundled) -> None:
    """Weights as .bin beside the config, attention under its early names."""
    unet = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    unet.eval().save_config(tmp_path)
    early = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = unet.state_dict()
    for new, old in early.items():
        state = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "linear"}))
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([500])
    with torch.no_grad():
        torch.testing.assert_close(
            load_prior(tmp_path, precision="fp32").outputs(x, t), unet(x, t).sample, rtol=1e-4, atol=1e-5
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_prior(build_prior([32], 1, 1), tmp_path / "prior")
    return tmp_path / "prior"


def error_of(path: str | Path, sha256: str | None = None) -> str:
    with pytest.raises(PriorError) as caught:
        load_prior(path, sha256)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_files_are_one_line(tmp_path: Path, folder: Path) -> None:
    assert "unet/config.json" in error_of(tmp_path / "nowhere")
    assert "guided-diffusion" in error_of(tmp_path / "nowhere.pt")
    weights_files(folder)[0].unlink()
    assert "diffusion_pytorch_model.safetensors: no such file" in error_of(folder)


def test_altered_weights_are_refused(folder: Path) -> None:
    weights = weights_files(folder)[0]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "altered or cut" in error_of(folder)


def test_wrong_sha256_is_refused(folder: Path) -> None:
    load_prior(folder, prior_sha256(folder))
    assert "expected 00" in error_of(folder, "00")


def test_short_and_foreign_files_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / CHECKSUMS).unlink()
    weights = weights_files(folder)[0]
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut short" in error_of(folder)
    state = dict(list(load_file_from(whole, tmp_path).items())[1:])
    save_file(state, weights)
    assert "1 missing" in error_of(folder)
    (tmp_path / "empty.pt").touch()
    assert "damaged or cut short (" in error_of(tmp_path / "empty.pt")
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pt")
    assert "expected keys like input_blocks.0.0.weight, found layer.weight" in error_of(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    assert str(tmp_path / "text.pt") in error_of(tmp_path / "text.pt")


def load_file_from(content: bytes, tmp_path: Path) -> dict[str, torch.Tensor]:
    (tmp_path / "copy.safetensors").write_bytes(content)
    return load_file(tmp_path / "copy.safetensors")


def test_wrong_shapes_are_refused(folder: Path) -> None:
    (folder / CHECKSUMS).unlink()
    state = load_file(weights_files(folder)[0])
    state["conv_in.weight"] = state["conv_in.weight"][:16].clone()
    save_file(state, weights_files(folder)[0])
    assert "size mismatch for conv_in.weight" in error_of(folder)


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("pwned"),))


def test_a_pickle_with_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"input_blocks.0.0.weight": Bomb()}))
    error_of(tmp_path / "bomb.pt")
    torch.save({"input_blocks.0.0.weight": Bomb()}, tmp_path / "zipped.pt")
    assert "was not loaded" in error_of(tmp_path / "zipped.pt")
    assert not (tmp_path / "pwned").exists()


def test_convert_reports_errors(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert prior(["convert", str(tmp_path / "no.pt"), str(tmp_path / "out")]) == 2
    assert "no such checkpoint" in capsys.readouterr().err
    assert prior(["something"]) == 2


@pytest.mark.parametrize(
    "changes",
    [{"beta_schedule": "sigmoid"}, {"rescale_betas_zero_snr": True}, {"prediction_type": "flow"}, {"sigma_max": 1348}],
)
def test_schedules_that_are_not_computed_here_are_refused(changes: dict, folder: Path) -> None:
    (folder / CHECKSUMS).unlink()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert "known are linear" in error_of(folder)
