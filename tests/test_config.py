import re
import subprocess
import sys
from pathlib import Path

import pytest

from dig2dig.benchmark.config import QualityConfig
from dig2dig.benchmark.methods import sampler_of
from dig2dig.cli import from_yaml, help_text, is_hub_id, load, load_strictly, to_yaml
from dig2dig.config import DigConfig, GuidanceConfig, InferConfig, PriorConfig, ResearchConfig, SamplerConfig
from dig2dig.config_train import TrainConfig
from dig2dig.errors import UserError
from dig2dig.metrics.objectives import TERMS

ROOT = Path(__file__).parents[1]
SOURCES = ["sources.a=x", "sources.b=y"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    if path.stem in ("ablation", "steps", "results"):
        config = load(QualityConfig, [str(path)])
        for task in ("ivf", "mif", "mef", "mff"):
            assert all(sampler_of(name, task, config.variants) for name in config.variants)
    elif path.stem.startswith("weights_bundled"):
        base = path.with_stem(path.stem.replace("bundled_", ""))
        assert load(TrainConfig, [str(base), str(path)]).learns_weights
    elif path.stem.startswith("weights"):
        config = load(TrainConfig, [str(path), "data.root=x", "data.sources.a=x", "data.sources.b=y"])
        assert config.learns_weights and set(config.objective) <= set(TERMS)
        assert path.stem == f"weights_{config.fusion.task}" or path.stem == "weights_universal"
    elif path.stem.startswith(("prior", "finetune", "smoke")):
        assert load(TrainConfig, [str(path), "data.root=x"]).data.root == "x"
    else:
        task = "ivf" if path.stem in ("universal", "paper") else path.stem
        assert load(InferConfig, [str(path), *SOURCES]).task == task


def test_later_layers_win_and_types_are_kept(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("sampler: {steps: 5, dig: {kind: change}}")
    config = load(
        InferConfig,
        [str(ROOT / "configs/mff.yaml"), str(tmp_path / "more.yaml"), "sampler.steps=7", *SOURCES],
    )
    assert config.sampler.steps == 7 and config.sampler.dig.kind == "change" and config.sampler.dig.smoothing == 4.0
    assert config.sources == {"a": "x", "b": "y"}


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("sampler.step=3", "unknown option 'sampler.step'; did you mean 'sampler.steps'?"),
        ("sampler.steps=many", "sampler.steps: Value 'many'"),
        ("task=video", "expected one of ['ivf', 'mif', 'mef', 'mff']"),
        ("sampler.dig.temperature=0", "dig.temperature must be above 0"),
        ("batch_size=0", "batch_size must be at least 1"),
        ("shard=0/4", "shard must be I/N with I from 1 to N, as 2/8, not '0/4'"),
        ("shard=half", "shard must be I/N"),
        ("nowhere.yaml", "no config file 'nowhere.yaml'"),
        ("ifv", "no config file 'ifv': did you mean 'mif' or 'ivf'?"),
        ("prefr.infrared=2", "unknown option 'prefr.infrared'; did you mean 'prefer'?"),
        ("sampler={a: [", "cannot read"),
        ("sources=[a,b]", "sources"),
    ],
)
def test_mistakes_are_one_line(argument: str, line: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        load(InferConfig, [*SOURCES, argument])
    printed = capsys.readouterr().err
    assert caught.value.code == 2
    assert line in printed and printed.count("\n") == 1


def test_contradictions_and_missing_sources_are_told(capsys: pytest.CaptureFixture) -> None:
    for arguments, line in (
        ([*SOURCES, "sampler.grid=gain", "sampler.dig.kind=static"], "needs gains"),
        (
            ["ivf", *SOURCES, "sampler.dig.kind=gain"],
            "kind has no effect: learned weights bring their own",
        ),
        ([*SOURCES, "sources.b="], "a source is missing: at least two are needed, as in sources.visible=DIR"),
        ([*SOURCES, "task=mef", "sampler.weights=bundled"], "no weights are bundled for task=mef"),
        ([], "no sources given"),
    ):
        with pytest.raises(SystemExit):
            load(InferConfig, arguments)
        assert line in capsys.readouterr().err


def test_a_yaml_file_with_a_python_tag_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"out: !!python/object/apply:pathlib.Path.touch ['{tmp_path}/pwned']")
    with pytest.raises(SystemExit):
        load(InferConfig, [str(bad), *SOURCES])
    assert str(bad) in capsys.readouterr().err
    assert not (tmp_path / "pwned").exists()


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = load(InferConfig, [*SOURCES, "sampler.sigma_start=null", "seed=3"])
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert from_yaml(InferConfig, tmp_path / "run.yaml") == config
    assert load(InferConfig, [str(tmp_path / "run.yaml"), "out=out"]) == config
    assert from_yaml(InferConfig, tmp_path / "none.yaml") is None


def test_help_names_every_option_with_its_default() -> None:
    text = help_text(InferConfig, "all")
    for line in (
        "sampler.steps=8",
        "sampler.dig.kind=residual [gain | change | residual | static]",
        "save.weights=false",
    ):
        assert f"  {line}\n" in text


def test_help_is_short_and_research_has_a_page_of_its_own(capsys: pytest.CaptureFixture) -> None:
    for schema in (InferConfig, TrainConfig):
        assert len(help_text(schema).splitlines()) <= 40
    assert "research" not in help_text(InferConfig).replace("report, research", "") and "sources=" in help_text(
        InferConfig
    )
    for preset, line in (("ivf", "sampler.weights=bundled"), ("mef", "ghosts=remove"), ("paper", "prefer={}")):
        assert f"  {line} " in help_text(InferConfig, given=[preset])
    with pytest.raises(SystemExit, match="2"):
        load(InferConfig, ["finetune", "--help"])
    assert capsys.readouterr().err.count("\n") == 1
    page = help_text(InferConfig, "research")
    names = ("noise", "eta", "scope", "draws", "em_form")
    assert all(f"  research.{name}=" in page for name in names) and "sampler.steps" not in page
    with pytest.raises(SystemExit):
        load(InferConfig, ["--help", "nonsense"])
    assert "no options under 'nonsense'" in capsys.readouterr().err
    config = load(InferConfig, [*SOURCES, "research.eta=0.5", "sampler.research.draws=3"])
    assert (config.sampler.research.eta, config.sampler.research.draws) == (0.5, 3)


def test_mistakes_of_a_beginner_say_what_to_type(capsys: pytest.CaptureFixture) -> None:
    for argument, line in (
        ("samplr.steps=4", "unknown option 'samplr.steps'; did you mean 'sampler.steps'?"),
        ("a.jpg", "'a.jpg' is no config: name what it is, as sources.visible=a.jpg"),
        (str(ROOT), f"'{ROOT}' is no config: name what it is, as sources.visible={ROOT}"),
        ("--out=x", "'--out=x': options are typed as out=DIR, without dashes"),
        ("=", "'=': options are typed as out=DIR, without dashes and without spaces"),
        ("weights=gain", "unknown option 'weights'; did you mean 'save.weights' or 'sampler.weights'?"),
        ("steps=9", "unknown option 'steps'; did you mean 'sampler.steps'?"),
        ("align.x=1", "align: no group of options; give align=VALUE"),
    ):
        with pytest.raises(SystemExit):
            load(InferConfig, [*SOURCES, argument])
        assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "name", "value", "line"),
    [
        (DigConfig(), "kind", "foo", "sampler.dig.kind must be one of gain, change, residual, static, not 'foo'"),
        (GuidanceConfig(), "sigma_n", -1.0, "sampler.guidance.sigma_n must be at least 0, not -1.0"),
        (SamplerConfig(), "grid", "even", "sampler.grid must be one of"),
        (SamplerConfig(), "sigma_start", 0.0, "sampler.sigma_start must be above 0, not 0.0"),
        (PriorConfig(), "precision", "fp8", "prior.precision must be one of"),
        (ResearchConfig(), "eta", 1.5, "research.eta must be at most 1, not 1.5"),
    ],
)
def test_configs_that_are_built_in_python_are_as_strict(config, name: str, value: object, line: str) -> None:
    """Checked after the fact: under pytest, the types of the constructor are checked first."""
    setattr(config, name, value)
    with pytest.raises(ValueError, match=re.escape(line)):
        config.__post_init__()


@pytest.mark.parametrize("script", ["infer.py", "train.py"])
@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("no.such=1", 2)])
def test_scripts_answer_without_heavy_imports(script: str, argument: str, code: int) -> None:
    """Under two seconds, told without a clock: torch and lightning are not imported for help and mistakes."""
    probe = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}', '{argument}']\n"
        f"try:\n    runpy.run_path('{script}', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not {'torch', 'lightning', 'diffusers'} & set(sys.modules)\n"
        "    raise"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_imports_of_a_command_are_not_collected() -> None:
    """What packages make stays for good, so no collection visits it; one that is there already changes nothing."""
    probe = """if True:
        import gc
        from dig2dig.cli import importing
        with importing():
            import torch
            assert not gc.isenabled()
        kept = gc.get_freeze_count()
        assert gc.isenabled() and kept > 10_000
        with importing():
            more = [[] for _ in range(500)]
        assert gc.isenabled() and gc.get_freeze_count() <= kept
    """
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)


def test_paths_stay_as_they_were_typed(tmp_path: Path) -> None:
    for text in ("2024_01", "007", "1e3", "no", "run #2", "12:30:00", "a=b", "[x]"):
        config = load(InferConfig, [f"sources.a={text}", "sources.b=y", f"out={text}", f"prior.path={text}"])
        assert config.out == config.sources["a"] == config.prior.path == text
    odd = tmp_path / "steps=25.yaml"
    odd.write_text("sampler: {steps: 25}")
    assert load(InferConfig, [str(odd), *SOURCES, "prior.sha256=null"]).sampler.steps == 25


def test_a_yaml_file_without_keys_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(SystemExit):
        load(InferConfig, [str(tmp_path / "list.yaml"), *SOURCES])
    assert "expected 'key: value'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("noise.c=25", "noise.c: no source is called c; there are a, b"),
        ("noise.a=loud", "number of 255 or auto"),
        ("noise.a=-3", "auto"),
    ],
)
def test_noise_is_of_a_source_and_a_number_or_auto(argument: str, line: str, capsys: pytest.CaptureFixture) -> None:
    assert load(InferConfig, [*SOURCES, "noise.a=12.5", "noise.b=auto"]).noise == {"a": "12.5", "b": "auto"}
    with pytest.raises(SystemExit):
        load(InferConfig, [*SOURCES, argument])
    assert line in capsys.readouterr().err


def test_a_training_fuses_with_the_bundled_weights_of_its_task() -> None:
    config = load(TrainConfig, ["data.root=DIR", "fusion.task=mif", "fusion.sampler.weights=bundled"])
    assert config.fusion.sampler.weights == "bundled/ivf"


@pytest.mark.parametrize("scales", ["[0.01]", "[1, 1e6]", "[-1]", "[]"])
def test_a_crop_has_a_size(scales: str) -> None:
    with pytest.raises(UserError, match=r"data\.scales=.*: data\.crop=32 times each must be 1 to 16384 pixels"):
        load_strictly(TrainConfig, ["data.root=x", "data.crop=32", f"data.scales={scales}"])


def test_home_in_a_file_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("out: ~/o\nsources: {visible: ~/v, infrared: i}")
    config = load_strictly(InferConfig, [str(tmp_path / "c.yaml")])
    assert (config.out, config.sources["visible"]) == (f"{tmp_path}/o", f"{tmp_path}/v")


@pytest.mark.parametrize("text", ["2024_01", "007", "12:30:00"])
def test_a_path_in_a_file_is_no_number(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"out: {text}\nseed: 12\nsources: {{a: 1, b: -2}}")
    config = load_strictly(InferConfig, [str(tmp_path / "c.yaml")])
    assert config.out == text and config.seed == 12 and config.sources == {"a": "1", "b": "-2"}


def test_a_group_in_the_place_of_a_value_is_one_line() -> None:
    with pytest.raises(UserError, match=r"sources\.my must be one value"):
        load_strictly(InferConfig, [*SOURCES, "sources.my.cam=v"])


def test_a_path_that_begins_with_a_dot_is_no_hub_id() -> None:
    assert not is_hub_id("./nope") and not is_hub_id("../nope") and is_hub_id("owner/name")
