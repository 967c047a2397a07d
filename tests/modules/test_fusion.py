"""What FusionModule logs against the metrics and statistics of the same pictures, and what its checkpoints hold."""

import math
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lightning import Trainer

from datamodules.pair_data import FusionDataModule, SizeBatches
from datamodules.pairing import find_pairs
from datamodules.pairs import Failure, Sample
from dig2dig.api import preset
from dig2dig.cli import from_dict
from dig2dig.color import luminance, merge, rgb_to_ycbcr, split
from dig2dig.config import DigConfig, FusionConfig, GuidanceConfig, PriorConfig, SamplerConfig, TrainerConfig
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.sampler import fuse
from dig2dig.metrics import fusion_metrics, grey_levels
from dig2dig.modules.fuser import Fuser
from dig2dig.modules.fusion import FusionModule
from dig2dig.modules.results import Tracing
from dig2dig.modules.scores import means, pair_scores
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.load import load_prior
from dig2dig.priors.schedule import alpha_bar
from dig2dig.tracking.trainer import build_trainer
from tests.corpus import picture
from tests.gaussian import GaussianDenoiser
from tests.pictures import crop_of, random_sources

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*batch sampler `SizeBatches`")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SIDE = 64  # gains are measured at half of it; VIF needs 41
CONFIG = FusionConfig(
    sampler=SamplerConfig(steps=3, dig=DigConfig(smoothing=1.0), guidance=GuidanceConfig("blend", 0.3)), seed=5
)


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, str]:
    """Two grey pairs: a of 64 × 68 pixels and b of 64 × 64."""
    for k, modality in enumerate(("visible", "infrared")):
        (tmp_path / modality).mkdir()
        for i, name in enumerate("ab"):
            cv2.imwrite(
                str(tmp_path / modality / f"{name}.png"), picture(10 * i + k, 1, SIDE, SIDE + 4 * (name == "a"))
            )
    return {modality: str(tmp_path / modality) for modality in ("visible", "infrared")}


def trainer(accelerator: str = "cpu") -> Trainer:
    return build_trainer(TrainerConfig(accelerator, "1"), logger=False, enable_checkpointing=False)


def read(pairs: dict[str, str], name: str) -> torch.Tensor:
    images = [cv2.imread(f"{folder}/{name}.png", cv2.IMREAD_GRAYSCALE) for folder in pairs.values()]
    return torch.tensor(np.stack(images))[None, :, None].float() / 255  # pyright: ignore[reportCallIssue, reportArgumentType]


def scores_by_hand(sources: torch.Tensor, fused: torch.Tensor, trace: list[Snapshot]) -> dict[str, float]:
    found = {f"fusion/{name}": float(value) for name, value in fusion_metrics(fused, sources).items()}
    weights, gains = (
        np.stack([getattr(step, name)[0, :, 0].numpy() for step in trace]).astype(float) for name in ("weight", "gain")
    )
    x0_hat = np.stack([step.x0_hat[0].numpy() for step in trace]).astype(float)  # pyright: ignore
    found["dig/entropy"] = float(-(weights * np.log2(weights)).sum(1).mean())  # bits: two sources have one at most
    final = trace[-1].guided[0].numpy()
    for k, modality in enumerate(("visible", "infrared")):
        contribution = 2 * 2 * (x0_hat[:, 0] - sources[0, k, 0].numpy()) * 2 * (x0_hat[:, 0] - final[0])
        w = weights[:, k]
        found[f"dig/weight_mean/{modality}"] = float(w.mean())
        found[f"dig/gain_mean/{modality}"] = float(gains[:, k].mean())
        found[f"dig/covariance/{modality}"] = float(
            sum((a * b).mean() - a.mean() * b.mean() for a, b in zip(w, contribution, strict=True))
        )
    return found


def expected_scores(pairs: dict[str, str], denoiser, config: FusionConfig = CONFIG) -> dict[str, float]:
    rows = []
    for name in "ab":
        sources, trace = read(pairs, name), list[Snapshot]()
        seed = zlib.crc32(f"{config.seed}/{name}".encode())
        fused = fuse(sources, denoiser, config.sampler, seed, observe=trace.append)
        rows.append(scores_by_hand(sources, fused, trace))
    return {name: (rows[0][name] + rows[1][name]) / 2 for name in rows[0]}


def test_validation_logs_the_metrics_and_statistics_of_the_fused_pictures(pairs, gaussian: GaussianDenoiser) -> None:
    (logged,) = trainer().validate(FusionModule(CONFIG, gaussian), FusionDataModule(pairs), verbose=False)
    expected = expected_scores(pairs, gaussian)
    assert set(expected) == set(logged) and "fusion/VIF" in logged
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert 0 < logged["dig/entropy"] < 1 and abs(logged["dig/covariance/visible"]) > 1e-3


def test_a_second_validation_starts_anew(pairs, gaussian: GaussianDenoiser) -> None:
    """What was logged before does not count again; pairs that cannot be read do not count either."""
    module = FusionModule(CONFIG, gaussian)
    module.scores.rows.append({"fusion/EN": 100.0})
    assert module.scores.means() == {"fusion/EN": 100.0} and module.scores.rows == []
    kept = module.validation_step([Failure("c", "c: gone")])
    assert kept["results"][0].reason == "c: gone" and module.scores.rows == []
    assert means([{"a": 1.0, "b": 4.0}, {"a": 2.0}]) == {"a": 1.5, "b": 4.0}


def test_a_validation_step_keeps_every_step_at_full_size_with_estimates(pairs, gaussian: GaussianDenoiser) -> None:
    sample = Sample("a", ("visible", "infrared"), read(pairs, "a")[0], None)
    (result,) = FusionModule(CONFIG, gaussian).validation_step([sample])["results"]
    assert [step.index for step in result.trace] == [0, 1, 2]
    assert all(step.x0_hat is not None and step.weight.shape == (1, 2, 1, SIDE, SIDE + 4) for step in result.trace)
    assert result.fused is not None
    deviation = float((result.fused * 255).round().std(correction=0))
    assert pair_scores(result)["fusion/SD"] == pytest.approx(deviation, rel=1e-4)
    coloured = replace(result, image=torch.cat([result.fused, 0.5 * result.fused, 1 - result.fused]))
    assert coloured.image is not None  # metrics are those of the picture that is written
    deviation = float(grey_levels(coloured.image).std(correction=0))
    assert pair_scores(coloured)["fusion/SD"] == pytest.approx(deviation, rel=1e-6)


def test_a_prediction_is_fuse_with_the_seed_of_its_name(pairs, gaussian: GaussianDenoiser) -> None:
    """Alone or in a batch, coloured or not; frames of a series share the seed of their series."""
    tint = torch.full((2, SIDE, SIDE), 0.05)
    samples = [
        Sample("b", ("visible", "infrared"), read(pairs, "b")[0], tint, note="n"),
        Sample("c", ("visible", "infrared"), read(pairs, "b")[0], None),
        Sample("d", ("visible", "infrared"), read(pairs, "b")[0], None, series="b"),
    ]
    together = [[*samples, Failure("e", "no")]]
    for batches, grid in ([[one] for one in together[0]], "logsnr"), (together, "logsnr"), (together, "gain"):
        sampler = replace(CONFIG.sampler, guidance=GuidanceConfig("blend", 0.6), grid=grid)
        module = FusionModule(replace(CONFIG, sampler=sampler), gaussian)
        results = [result for batch in batches for result in module.predict_step(batch)]
        by_name = {result.name: result for result in results}
        for name, seed in (("b", "5/b"), ("c", "5/c"), ("d", "5/b")):
            number = zlib.crc32(seed.encode())
            expected = fuse(read(pairs, "b"), gaussian, sampler, number)[0]
            assert by_name[name].seed == number and by_name[name].trace == []
            torch.testing.assert_close(by_name[name].fused, expected, rtol=0, atol=1e-5)
        image, fused = by_name["b"].image, by_name["b"].fused
        assert image is not None and fused is not None and image.shape == (3, SIDE, SIDE) and by_name["b"].note == "n"
        tinted = fused[0] + 1.402 * 0.05  # red of YCbCr, where it has room
        room = (fused[0] < 0.9) & (fused[0] > 0.1)
        torch.testing.assert_close(image[0][room], tinted[room], rtol=0, atol=1e-4)
        assert by_name["e"].reason == "no" and by_name["e"].fused is None
        assert by_name["c"].image is not None and torch.equal(by_name["c"].image, by_name["c"].fused)


def test_noise_of_the_configuration_is_removed(pairs, gaussian: GaussianDenoiser) -> None:
    sample = Sample("b", ("visible", "infrared"), read(pairs, "b")[0], None)
    config = replace(CONFIG, noise={"infrared": "51"})
    (result,) = FusionModule(config, gaussian).predict_step([sample])
    expected = fuse(read(pairs, "b"), gaussian, CONFIG.sampler, result.seed, noise=torch.tensor([[0.0, 0.2]]))
    torch.testing.assert_close(result.fused, expected[0], rtol=0, atol=1e-6)


def test_noise_of_colours_is_removed_too(bundled: Denoiser) -> None:
    """Where a source in colour is said to be noisy; the others stay as they are."""
    clean = crop_of("multi_focus", 150, 60, 128, "truth", mode="RGB")[0, 0]
    noisy = clean + 20 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    sources, chroma = split([noisy, luminance(clean)], "ivf")
    sample = Sample("b", ("visible", "infrared"), sources, chroma, coloured=("visible",))
    for noise, share, notes in ((("visible", "auto"), 0.4, 1), (("infrared", "5"), 1.0, 0)):
        config = FusionConfig(noise=dict([noise]), sampler=preset("ivf"))
        (result,) = Fuser(bundled, config)([sample], torch.device("cpu"))
        assert result.image is not None and result.fused is not None and result.note.count("colour noise") == notes
        wanted = merge(result.fused, rgb_to_ycbcr(clean)[1:])
        off = [rgb_to_ycbcr(image - wanted)[1:].square().mean().sqrt()
               for image in (result.image, merge(result.fused, chroma))]  # fmt: skip
        assert off[0] <= share * off[1]


def test_traces_are_those_that_were_asked_for(pairs, gaussian: GaussianDenoiser) -> None:
    watched: list[Snapshot] = []
    samples = [Sample(name, ("visible", "infrared"), read(pairs, "b")[0], None) for name in "ab"]
    tracing = Tracing(names={"b"}, estimates=(), side=11, watch=watched.append)
    first, second = Fuser(gaussian, CONFIG, tracing)(samples, torch.device("cpu"))
    assert first.trace == [] and [step.guided.shape for step in second.trace] == [(1, 1, 11, 11)] * 3
    assert len(watched) == 3 and len(watched[0].guided) == 2  # both images of the batch
    assert torch.equal(second.trace[0].guided[0], watched[0].guided[1])


def test_batches_hold_pairs_of_one_size_and_are_shared(pairs) -> None:
    found = find_pairs(pairs)
    assert [pair.name for pair in found] == ["a", "b"]
    assert list(SizeBatches(found * 2, 8)) == [[0, 2], [1, 3]]
    assert list(SizeBatches(found * 3, 2)) == [[0, 2], [4], [1, 3], [5]]
    assert list(SizeBatches(found * 3, 2, 1, 2)) == [[4], [5]] and list(SizeBatches(found, 8, 2, 3)) == [[]]


def saved(module: FusionModule, pairs: dict[str, str], path: Path) -> dict:
    """The checkpoint of a module after a prediction."""
    running = trainer()
    running.predict(module, FusionDataModule(pairs), return_predictions=False)
    running.save_checkpoint(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def test_a_module_comes_back_from_its_checkpoint_with_configuration_and_weights(pairs, tiny: Path, tmp_path) -> None:
    config = replace(CONFIG, prior=PriorConfig(str(tiny), precision="fp32"))
    module = FusionModule(config)
    with torch.no_grad():
        for weight in module.denoiser.parameters():
            weight.add_(0.02)  # not what is on disk
    checkpoint = saved(module, pairs, tmp_path / "fusion.ckpt")
    assert from_dict(FusionConfig, checkpoint["hyper_parameters"]["config"]) == config
    assert checkpoint["hyper_parameters"]["config"]["sampler"]["guidance"]["sigma_n"] == 0.3
    again = FusionModule.load_from_checkpoint(tmp_path / "fusion.ckpt", map_location="cpu")
    assert again.config == config
    sample = Sample("b", ("visible", "infrared"), read(pairs, "b")[0], None)
    (before,), (after,) = module.predict_step([sample]), again.predict_step([sample])
    assert before.fused is not None and torch.equal(before.fused, after.fused) and before.seed == after.seed
    (untouched,) = FusionModule(config).predict_step([sample])
    assert not torch.equal(before.fused, untouched.fused)


def test_a_trainer_of_ones_own_may_fuse_with_gradients(pairs) -> None:
    """Lightning's default is inference mode, in which no gradient is known."""
    denoiser, guidance = GaussianDenoiser(0.4, 0.5, alpha_bar()), GuidanceConfig("posterior", 0.1)
    module = FusionModule(replace(CONFIG, sampler=replace(CONFIG.sampler, guidance=guidance)), denoiser)
    batches = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).predict(
        module, FusionDataModule(pairs)
    )
    assert batches is not None
    for (result,) in batches:  # pyright: ignore[reportGeneralTypeIssues]
        sample = Sample(result.name, ("visible", "infrared"), read(pairs, result.name)[0], None)
        (expected,) = module.predict_step([sample])
        torch.testing.assert_close(result.fused, expected.fused)


@cuda
@pytest.mark.parametrize("guidance", ["bands", "posterior"])
@pytest.mark.parametrize("options", [{}, {"offload": True}, {"precision": "bf16"}])
def test_predictions_on_cuda_are_those_on_the_cpu(pairs, tiny: Path, guidance, options) -> None:
    """Whole on the device, with the weights in main memory, and with the weights in bf16."""
    sampler = replace(CONFIG.sampler, guidance=GuidanceConfig(guidance, 0.05))
    plain = replace(CONFIG, sampler=sampler, prior=PriorConfig(str(tiny), precision="fp32"))
    config = replace(plain, prior=replace(plain.prior, **options))
    module = FusionModule(config)
    batches = trainer("gpu").predict(module, FusionDataModule(pairs))
    assert batches is not None
    if options.get("precision") == "bf16":
        assert {weight.dtype for weight in module.denoiser.parameters()} == {torch.bfloat16}
    here = FusionModule(plain, load_prior(tiny, precision="fp32"))
    for (result,) in batches:  # pyright: ignore[reportGeneralTypeIssues]
        assert result.fused is not None and not result.fused.is_cuda, result.reason
        sample = Sample(result.name, ("visible", "infrared"), read(pairs, result.name)[0], None)
        (expected,) = here.predict_step([sample])
        atol = 0.05 if options.get("precision") else 5e-3
        torch.testing.assert_close(result.fused, expected.fused, rtol=0, atol=atol)


@cuda
def test_validation_on_cuda_logs_what_the_cpu_logs(pairs, tiny: Path) -> None:
    denoiser = load_prior(tiny, precision="fp32")
    expected = expected_scores(pairs, denoiser)
    (logged,) = trainer("gpu").validate(FusionModule(CONFIG, denoiser), FusionDataModule(pairs), verbose=False)
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value, rel=0.02, abs=1e-3), name


@cuda
def test_memory_that_ran_out_is_met_with_small_windows(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call of the network fails as CUDA's allocator does; the pair is fused all the same, with a note."""
    denoiser = load_prior(tiny, precision="fp32", device="cuda")
    left = [torch.OutOfMemoryError("CUDA out of memory")]
    outputs = type(denoiser).outputs
    monkeypatch.setattr(
        type(denoiser), "outputs", lambda self, x, t: (_ for _ in ()).throw(left.pop()) if left else outputs(self, x, t)
    )
    sample = Sample("a", ("visible", "infrared"), random_sources(1, 2, 1, 32, 32), None)
    (result,) = Fuser(denoiser, CONFIG)([sample], torch.device("cuda"))
    assert result.fused is not None and result.note == "memory ran out: fused in small windows"
    assert math.isfinite(float(result.fused.sum()))


def test_weights_that_stay_in_main_memory_stay_when_a_strategy_moves_the_module(tiny: Path) -> None:
    """The device is Lightning's choice, the weights are not its to move; without the option they go along."""
    meta, cpu = torch.device("meta"), torch.device("cpu")
    for away in (True, False):
        module = FusionModule(replace(CONFIG, prior=PriorConfig(str(tiny), precision="fp32", offload=away)))
        module.to(meta).half()
        assert module.device == meta and module.denoiser.device == (cpu if away else meta)
        assert {weight.device for weight in module.denoiser.parameters()} == {cpu if away else meta}
        assert {weight.dtype for weight in module.denoiser.parameters()} == {torch.float32 if away else torch.float16}
