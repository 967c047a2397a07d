"""train.py learns fusion weights: from pairs, stacks and photographs, alone and with the prior."""

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import load_file

import infer
import train
from datamodules.gain_data import GainCrops
from datamodules.made import made_exposures, made_focus, varied
from datamodules.pairing import find_pairs
from dig2dig.cli import load_strictly
from dig2dig.config import GuidanceConfig
from dig2dig.config_train import TrainConfig
from dig2dig.errors import UserError
from dig2dig.fusion.bands import surroundings, within
from dig2dig.fusion.sampler import fuse
from dig2dig.fusion.weight import WeightNetwork, load_weights, scale_space
from dig2dig.modules.weights import WeightModule, composed, stacked
from dig2dig.priors.build import build_prior
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import draw_noise, generators
from dig2dig.training.card import Facts, weight_card
from dig2dig.training.scenes import Scene, cached, training_scenes
from tests.conftest import EXAMPLES, ROOT
from tests.scans import nifti, scaled
from tests.training.test_train import Cut, repeat_the_first_batch

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:Checkpoint directory", "ignore:.*smaller than the logging interval"
)
PAIR = EXAMPLES / "infrared_visible"
SMALL = [
    "data.crop=64",
    "data.batch_size=2",
    "data.workers=0",
    "data.variants=1",
    "trainer.accelerator=cpu",
    "logger.wandb.mode=disabled",
    "optim.warmup=1",
    "fusion.crop=64",
    "save_every=1",
]


def arguments(out: Path, *more: str, preset: str = "weights_ivf") -> list[str]:
    sources = [f"data.sources.{side}={PAIR / side}" for side in ("visible", "infrared")] * (preset == "weights_ivf")
    return [str(ROOT / f"configs/{preset}.yaml"), *sources, *SMALL, f"out={out}", *more]


def learned(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "weights" / "weights.safetensors")


def test_weights_are_learned_compared_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeat_the_first_batch(monkeypatch)
    out = tmp_path / "run"
    argv = arguments(out, "optim.steps=8", "val_every=4", "data.val_share=0.5", "data.licence=CC0", "logger.every=1")
    assert train.main(argv) == 0
    told = capsys.readouterr().out
    assert f"sampler.weights={out}/weights" in told and "1 held-out pairs" in told
    assert "the preset ivf with sampler.weights=gain" in told
    card = (out / "weights" / "README.md").read_text()
    assert "CC0" in card and "| term | vif | ssim |" in card and "| learned |" in card
    assert train.main([*argv, "data.licence=MIT"]) == 0  # which shapes no weight
    assert "MIT" in (out / "weights" / "README.md").read_text()
    with (out / "log" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in table if row.get("train/loss")]
    assert len(losses) == 8 and losses[-1] < losses[0]
    terms = [f"train/{name}" for name in load_strictly(TrainConfig, argv).objective if name != "mask"]
    first = next(row for row in table if row.get("train/loss"))
    assert sum(float(first[name]) for name in terms) == pytest.approx(float(first["train/loss"]), rel=1e-4)
    assert any(row.get("fusion/VIF") for row in table) and list((out / "fusion").rglob("*_maps.png"))
    sources = [f"sources.{side}={PAIR / side / '00036N.png'}" for side in ("visible", "infrared")]
    command = [
        str(ROOT / "configs/ivf.yaml"),
        *sources,
        f"out={tmp_path / 'fused'}",
        "save.weights=true",
        "report.pairs=1",
    ]
    assert infer.main([*command, f"sampler.weights={out}/weights", "trainer.accelerator=cpu"]) == 0
    assert len(list((tmp_path / "fused" / "00036N_maps").iterdir())) > 4
    assert (tmp_path / "fused" / "report.html").is_file()


def test_an_interrupted_training_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    whole, cut = arguments(tmp_path / "whole", "optim.steps=4"), arguments(tmp_path / "cut", "optim.steps=4")
    assert train.main(whole) == 0
    with pytest.MonkeyPatch.context() as patch:
        original = WeightModule.training_step

        def stop(self: WeightModule, batch: list, index: int) -> torch.Tensor:
            if self.trainer.global_step == 2:
                raise Cut
            return original(self, batch, index)

        patch.setattr(WeightModule, "training_step", stop)
        with pytest.raises(Cut):
            train.main(cut)
    assert not (tmp_path / "cut" / "weights").exists()
    assert train.main(cut) == 0
    ours, theirs = learned(tmp_path / "cut"), learned(tmp_path / "whole")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_a_prior_that_learns_with_the_weights_recomputes_too(tmp_path: Path) -> None:
    config = load_strictly(TrainConfig, arguments(tmp_path, "adapt.mode=full+weights", "recompute=true"))
    blocks = [part for part in WeightModule(config).modules() if type(part).__name__ == "ResidualBlock"]
    assert blocks and all("forward" in vars(block) for block in blocks)
    with pytest.raises(UserError, match=r"lora\+weights: merge it first"):
        load_strictly(TrainConfig, arguments(tmp_path, "adapt.mode=lora+weights", "adapter=x"))


@pytest.mark.parametrize(("mode", "folder"), [("lora+weights", "adapter"), ("full+weights", "prior")])
def test_the_objective_reaches_the_prior_through_the_gains(mode: str, folder: str, tmp_path: Path) -> None:
    assert (
        train.main(arguments(tmp_path, "optim.steps=2", f"adapt.mode={mode}", "adapt.rank=2", "data.batch_size=1")) == 0
    )
    use = f"prior.{'path' if folder == 'prior' else 'adapter'}={tmp_path / folder} sampler.weights={tmp_path}/weights"
    assert all(use in (tmp_path / export / "README.md").read_text() for export in (folder, "weights"))
    config = load_strictly(TrainConfig, arguments(tmp_path, f"adapt.mode={mode}", "adapt.rank=2"))
    module = WeightModule(config)
    torch.nn.init.normal_(module.network.last.weight)
    crop = GainCrops(sorted((tmp_path / "scenes").iterdir()), 64, 0)[0]
    assert crop["gains"] == []
    module.log = module.log_dict = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    module.training_step([crop], 0).backward()
    prior = [weight for weight in module.denoiser.parameters() if weight.requires_grad]
    assert prior and any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in prior)
    rates = [group.get("lr") for group in module.rates()]
    assert rates == [None, pytest.approx(0.02 * config.optim.lr)]


@pytest.mark.parametrize(("preset", "more"), [
    ("weights_mff", [f"data.root={EXAMPLES / 'multi_focus' / 'truth'}"]),
    ("weights_mef", [f"data.root={EXAMPLES / 'multi_focus' / 'truth'}", "data.made=exposures"]),
    ("weights_mif", [f"data.sources.{side}={PAIR / side}" for side in ("visible", "infrared")]),
    ("weights_universal", [f"data.sources.{side}={PAIR / side}" for side in ("visible", "infrared")]),
])  # fmt: skip
def test_each_preset_trains(preset: str, more: list[str], tmp_path: Path) -> None:
    assert train.main(arguments(tmp_path, "optim.steps=1", "data.val_share=0", *more, preset=preset)) == 0
    assert load_weights(str(tmp_path / "weights")).settings.steps == 5


def test_stacks_of_different_lengths_and_masks_train_together(tmp_path: Path) -> None:
    rows = ["name,dark,middle,bright,mask"]
    stack = [EXAMPLES / "multi_exposure_stack" / side / "Tower.png" for side in ("dark", "middle", "bright")]
    rows += [f"three,{','.join(map(str, stack))},", f"two,{stack[0]},,{stack[2]},{stack[2]}"]
    manifest = tmp_path / "scenes.csv"
    manifest.write_text("\n".join(rows))
    argv = arguments(
        tmp_path / "run", "optim.steps=2", f"data.manifest={manifest}", "data.val_share=0", preset="weights_mef"
    )
    assert train.main([*argv, "objective.mask=1"]) == 0
    crops = GainCrops(sorted((tmp_path / "run" / "scenes").iterdir()), 64, 0)
    found = [crops[i] for i in range(12)]
    assert {len(crop["sources"]) for crop in found} == {2, 3} and any("mask" in crop for crop in found)
    for crop in found:
        assert crop["sources"].shape[-2:] == (64, 64) and len(crop["gains"]) == 6
    groups = stacked(found, torch.device("cpu"))
    assert sum(len(group["sources"]) for group in groups) == 12


def test_crops_move_images_and_gains_alike(tmp_path: Path) -> None:
    from datamodules.gain_data import write_scene

    ramp = (torch.arange(128)[:, None] * 3 + torch.arange(160)).float() / 1000
    sources = torch.stack([ramp, 1 - ramp])[:, None]
    gains = [torch.nn.functional.avg_pool2d(sources, factor) for factor in (32, 8, 1)]
    write_scene(tmp_path / "a.safetensors", {"sources": sources, "truth": ramp[None]}, gains)
    for index in range(8):
        crop = GainCrops([tmp_path / "a.safetensors"], 64, 0)[index]
        torch.testing.assert_close(crop["truth"], crop["sources"][0], atol=1e-3, rtol=0)
        for factor, maps in zip((32, 8, 1), crop["gains"], strict=True):
            expected = torch.nn.functional.avg_pool2d(crop["sources"], factor)
            torch.testing.assert_close(maps, expected, atol=2e-3, rtol=0)


def test_training_composes_what_inference_fuses(bundled: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    like = torch.zeros(1)  # the same noise for both
    same = lambda _, index, shape: (None, draw_noise(shape, generators(index.tolist(), len(index)), like))  # noqa: E731
    monkeypatch.setattr("dig2dig.modules.weights.draws", same)
    config = load_strictly(TrainConfig, arguments(Path("x")))
    network = WeightNetwork(config.fusion.sampler).eval().requires_grad_(False)
    torch.nn.init.normal_(network.last.weight, std=4.0)
    module = WeightModule(config, bundled, network)
    module.config = replace(config, adapt=replace(config.adapt, mode="lora+weights"))  # gains measured now
    sources = torch.nn.functional.avg_pool2d(torch.rand(2, 1, 96, 96), 5, 1, 2)[None]
    space = scale_space(2 * sources - 1, module.sigmas, 32.0)
    levels = network(space, module.gains(2 * sources - 1, {"index": [0]}), module.sigmas)
    fused = within(composed(space, levels, module.sigmas, GuidanceConfig()), *surroundings(2 * sources - 1)) / 2 + 0.5
    expected = fuse(sources, bundled, seed=0, weights=network)
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=0)


def test_made_scenes_hold_their_truth() -> None:
    import numpy as np

    photo = np.random.default_rng(0).random((64, 96, 3), np.float32)
    focus = made_focus(photo, np.random.default_rng(1))
    near, far = (focus["sources"] - focus["truth"]).abs().mean(1)
    assert focus["sources"].shape == (2, 3, 64, 96)
    assert (torch.minimum(near, far) < 0.03).float().mean() > 0.8  # one of the planes is sharp at nearly every pixel
    assert near.mean() > 0.02 and far.mean() > 0.02
    sources = made_exposures(photo, np.random.default_rng(2))["sources"]
    brightness = sources.mean((1, 2, 3))
    assert brightness.tolist() == sorted(brightness.tolist()) and sources.min() >= 0 and sources.max() <= 1
    again = made_exposures(photo, np.random.default_rng(2))["sources"]
    assert torch.equal(sources, again)
    changed = varied(focus, np.random.default_rng(3))
    assert changed["sources"].shape == (2, 3, 64, 96) and changed["truth"].equal(focus["truth"])


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_half_precision_leaves_the_objective_whole() -> None:
    config = load_strictly(TrainConfig, ["weights_mff", "data.root=photos", "data.crop=64"])
    module = WeightModule(config, build_prior([32], 1, 2))
    truth = torch.nn.functional.avg_pool2d(torch.rand(3, 64, 64), 5, 1, 2)
    gains = [torch.rand(2, 1, 64, 64) for _ in range(6)]
    crop = {"sources": torch.stack([truth, truth.roll(1, -1)]), "truth": truth, "gains": gains, "index": 0}
    whole = float(module.training_step([crop], 0).detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert float(module.training_step([crop], 0).detach()) == pytest.approx(whole, rel=1e-5)


def test_gains_of_another_seed_or_task_are_measured_anew(tmp_path: Path) -> None:
    scene, files = Scene("s", lambda: "id", lambda: {"sources": torch.rand(2, 1, 64, 64)}), []
    for other in ("seed=0", "seed=1", "fusion.task=mff"):
        config = load_strictly(TrainConfig, arguments(tmp_path, other))
        files += cached([scene], config, build_prior([32], 1, 2), tmp_path)
    assert len({*files}) == 3


@pytest.mark.parametrize(("options", "words"), [
    (["prior="], "learned weights need a prior"),
    (["validate=true", "weights=bundled/ivf", "data.val_share=0"], "nothing is held out to measure"),
    (["data.val=examples"], "data.val is for priors"),
    (["data.exclude=[a]"], "data.exclude leaves out photographs of data.root"),
    (["validate=true"], "validate=true needs weights="),
    ([f"data.mask={EXAMPLES / 'multi_exposure' / 'under'}"], "no mask has the name of a pair"),
    (["objective.vfi=1"], "no term vfi"),
    (["data.crop=100"], "multiples of 32"),
    (["weights=nowhere"], "no weights.safetensors there"),
    (["fusion.sampler.dig.refresh=2"], "gains in every step"),
    (["weights=bundled/ivf", "fusion.sampler.steps=4"], "trained with other steps"),
])  # fmt: skip
def test_mistakes_are_one_line(options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    try:
        code = train.main(arguments(tmp_path, *options))
    except SystemExit as error:
        code = error.code
    assert code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in told and told.startswith("error: ") and not (tmp_path / "scenes").exists()  # before minutes pass


def test_a_scene_that_cannot_be_read_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [str(PAIR / side / "00036N.png") for side in ("visible", "infrared")]
    manifest = tmp_path / "scenes.csv"
    manifest.write_text(f"name,visible,infrared\ngood,{','.join(files)}\nlost,{files[0]},{tmp_path / 'nowhere.png'}\n")
    more = ["data.sources={}", f"data.manifest={manifest}", "data.val_share=0", "optim.steps=1"]
    argv = [one for one in arguments(tmp_path / "run", *more) if not one.startswith("data.sources.")]
    assert train.main(argv) == 0
    assert "nowhere.png" in capsys.readouterr().err and len(list((tmp_path / "run" / "scenes").iterdir())) == 1


def test_validation_needs_no_scene_to_learn_from(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fused = [f"fusion.sources.{side}={PAIR / side}" for side in ("visible", "infrared")]
    more = ["validate=true", "weights=bundled/ivf", "logger.pairs=1", *fused]
    argv = [one for one in arguments(tmp_path / "run", *more) if not one.startswith("data.sources.")]
    assert train.main(argv) == 0
    values = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("fusion/"))
    assert float(values["fusion/VIF"]) > 0.5 and not (tmp_path / "run").exists()


def test_scenes_of_one_name_are_held_out_or_learned_together(tmp_path: Path) -> None:
    """Pairs of two lists may share their names; none is lost, and none is on both sides."""
    manifest = tmp_path / "pairs.csv"
    names = [path.name for path in sorted((PAIR / "visible").glob("*.png"))]
    lines = [f"{Path(name).stem},{PAIR / 'visible' / name},{PAIR / 'infrared' / name}" for name in names]
    manifest.write_text("\n".join(["name,visible,infrared", *lines]))
    more = [f"data.manifest={manifest}", "data.val_share=0.5"]
    config = load_strictly(TrainConfig, arguments(tmp_path / "run", *more))
    train_scenes, held_out = training_scenes(config)
    learned_names, held_names = {scene.name for scene in train_scenes}, {pair.name for pair in held_out}
    assert len(train_scenes) + len(held_out) == 2 * len(names) and not learned_names & held_names


def test_without_photographs_none_are_taken_from_where_the_command_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(EXAMPLES / "multi_focus" / "truth")
    pair = [f"data.sources.{side}={PAIR / side}" for side in ("visible", "infrared")]
    config = load_strictly(TrainConfig, arguments(tmp_path, *pair, "data.val_share=0", preset="weights_mff"))
    assert config.data.made and {scene.name for scene in training_scenes(config)[0]} == {"00036N", "00537D"}
    with pytest.raises(UserError, match=r"or data\.made and data\.root"):
        load_strictly(TrainConfig, arguments(tmp_path, preset="weights_mff"))


def test_pairs_that_judge_the_weights_never_train(tmp_path: Path) -> None:
    """However they are named; and no other pair is held out beside them."""
    again = PAIR / ".." / PAIR.name
    fused = [f"fusion.sources.{side}={again / side / '00036N.png'}" for side in ("visible", "infrared")]
    config = load_strictly(TrainConfig, arguments(tmp_path, "data.val_share=0.9", *fused))
    scenes, held_out = training_scenes(config, find_pairs(config.fusion.sources))
    assert [scene.name for scene in scenes] == ["00537D"] and [pair.name for pair in held_out] == ["00036N"]


def test_pixels_without_data_train_as_they_are_fused(tmp_path: Path) -> None:
    """A border that a warp left is filled from what it surrounds, no black edge to keep."""
    shown = cv2.imread(str(PAIR / "infrared" / "00537D.png"), cv2.IMREAD_GRAYSCALE).astype("uint16") * 100 + 5000
    whole, warped = shown.copy(), shown
    warped[:, :80] = 0
    for name, pixels in (("warped.png", warped), ("whole.png", whole)):
        cv2.imwrite(str(tmp_path / name), pixels)
    sources = [f"data.sources.a={tmp_path / 'whole.png'}", f"data.sources.b={tmp_path / 'warped.png'}"]
    argv = [one for one in arguments(tmp_path / "run", *sources, "data.val_share=0") if "/examples/" not in one]
    (scene,) = training_scenes(load_strictly(TrainConfig, argv))[0]
    _, border = scene.read()["sources"]
    assert border[..., :80].min() > 0.05


def test_each_slice_of_a_volume_is_a_scene_and_no_volume_is_on_both_sides(tmp_path: Path) -> None:
    for side in ("MRI", "PET"):
        (tmp_path / side).mkdir()
        for name in "abc":
            nifti(tmp_path / side / f"{name}.nii", scaled(1, 1, 1))
    sources = [f"data.sources.{side}={tmp_path / side}" for side in ("MRI", "PET")]
    config = load_strictly(TrainConfig, arguments(tmp_path, *sources, "data.val_share=1e-9", preset="weights_mif"))
    scenes, held_out = training_scenes(config)
    assert len(scenes) == 12 and len(held_out) == 6 and len({pair.series for pair in held_out}) == 1
    assert not {scene.name[0] for scene in scenes} & {pair.name[0] for pair in held_out}


def test_the_card_says_on_which_prior_the_weights_were_learned(tmp_path: Path) -> None:
    config = load_strictly(TrainConfig, arguments(tmp_path, "prior=p", "adapter=q"))
    card = weight_card(config, WeightNetwork(config.fusion.sampler), Facts(1, 0, 1, {}))
    assert f"prior.path=p prior.adapter=q sampler.weights={tmp_path}/weights" in card
    assert "| prior | `p`, with the adapter `q` |" in card


@pytest.mark.parametrize("option", ["sigma_end=null", "sigma_start=null", "grid=gain"])
def test_levels_that_inference_would_not_share_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match="learned weights have levels of their own"):
        load_strictly(TrainConfig, arguments(tmp_path / "run", f"fusion.sampler.{option}"))


def test_weights_can_be_learned_without_gains(tmp_path: Path) -> None:
    """The study of what gains are worth (docs/results.md) leaves them out."""
    config = load_strictly(TrainConfig, arguments(tmp_path / "run", "fusion.sampler.dig.kind=static"))
    assert config.fusion.sampler.dig.kind == "static"
    card = weight_card(config, WeightNetwork(config.fusion.sampler), Facts(1, 0, 1, {}))
    assert "the bands of the sources alone; no prior runs." in card and "| prior | none |" in card
