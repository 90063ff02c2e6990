"""The recipes that come with qrdali: found by name from any folder, valid for the methods they are for, and
able to train."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.errors import InputError
from qrdali.runs import recipes
from qrdali.runs.settings import Settings, read_toml, validate_settings
from qrdali.schedule.methods import check_settings

FILES = Path(__file__).resolve().parents[2] / "configs" / "recipes"
NAMES = sorted(file.stem for file in FILES.glob("*.toml"))
METHODS = ("shared", "baseline", "fixed", "linear", "adaptive", "random")
TINY = [
    "--model",
    "test_resnet",
    "--input-size",
    "32",
    "--batch-size",
    "8",
    "--device",
    "cpu",
    "--threads",
    "1",
]


def qrdali(*words: str) -> str:
    result = CliRunner().invoke(cli, words)
    if result.exception:
        raise result.exception
    return result.stdout


def refusal(*words: str) -> str:
    with pytest.raises(InputError) as error:
        qrdali(*words)
    assert "\n" not in str(error.value)
    return str(error.value)


def values_of(name: str) -> dict[str, Any]:
    return read_toml(recipes.find_settings_file(f"recipes/{name}"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_file_is_a_recipe() -> None:
    assert set(NAMES) >= {"thesis", "a3", "finetune", "small-cpu"}
    assert recipes.recipe_names() == tuple(f"recipes/{name}" for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_is_valid_for_its_methods(name: str) -> None:
    values = values_of(name)
    assert set(values) <= set(Settings.model_fields)
    for method in [values["method"]] if "method" in values else METHODS:
        check_settings(validate_settings({**values, "method": method, "data": "data"}))


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is_for_and_where_its_figures_come_from(name: str) -> None:
    lines = (FILES / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    assert any(f"--config recipes/{name} " in line for line in lines if line.startswith("#"))
    assert max(map(len, lines)) <= 128
    for line in lines:
        if " = " in line and not line.startswith("#"):
            key = line.partition(" = ")[0]
            assert "# " in line or key in ("method", "pretrained", "device"), f"{key} lacks its source"


@pytest.mark.parametrize("name", NAMES)
def test_trains_a_tiny_run(dataset: Dataset, elsewhere: Path, name: str) -> None:
    # Two epochs: warm-ups are shorter, and fine-tuning begins with a run, as nothing is downloaded.
    words = ["--data", str(dataset.folder), "--config", f"recipes/{name}", *TINY]
    if "pretrained" in values_of(name):
        qrdali("train", "shared", "--data", str(dataset.folder), "--run", "start", *TINY, "--epochs", "1")
        words = [*words[:4], "--init", "start", *TINY[2:]]
    if "warmup_epochs" in values_of(name):
        words += ["--warmup-epochs", "0.5"]
    qrdali("train", "shared", "--run", "run", *words, "--epochs", "2")
    trained = read_toml(elsewhere / "run" / "config.toml")
    own = {"model", "input_size", "batch_size", "epochs", "warmup_epochs", "pretrained", "device", "threads"}
    expected = {key: value for key, value in values_of(name).items() if key not in own}
    assert expected == {key: trained[key] for key in expected}
    assert (trained["model"], trained["pretrained"]) == ("test_resnet", False)


@pytest.mark.parametrize("word", ["recipes/a3", "recipes/a3.toml", "configs/recipes/a3.toml"])
def test_is_found_by_name_from_any_folder(elsewhere: Path, word: str) -> None:
    shown = qrdali("train", "shared", "--data", "d", "--run", "r", "--dry-run", "--config", word)
    assert shown.splitlines()[-1].startswith("epoch 100 ")


@pytest.mark.parametrize(("word", "file"), [("recipes/a3", "a3"), ("recipes/a3", "a3.toml"), ("a.toml", "")])
def test_a_file_of_that_path_wins(elsewhere: Path, word: str, file: str) -> None:
    (elsewhere / "recipes").mkdir()
    own = elsewhere / "recipes" / file if file else elsewhere / word
    own.write_text("epochs = 7\n")
    shown = qrdali("train", "shared", "--data", "d", "--run", "r", "--dry-run", "--config", word)
    assert len(shown.splitlines()) == 7


def test_a_folder_of_that_path_is_no_recipe(elsewhere: Path) -> None:
    (elsewhere / "recipes" / "a3").mkdir(parents=True)
    words = ["train", "shared", "--data", "d", "--run", "r", "--dry-run", "--config", "recipes/a3"]
    assert refusal(*words) == "recipes/a3 is not a file: give one of TOML"


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("recipes/a33", "recipes/a3"),
        ("a3", "recipes/a3"),
        ("recipes/Fine-tune.toml", "recipes/finetune"),
        ("recipes/../recipes/a3", "recipes/a3"),
        ("recipes/quite-another", ""),
        ("x" * 5000, ""),
    ],
)
def test_an_unknown_one_is_named_with_those_near_it(elsewhere: Path, word: str, near: str) -> None:
    said = refusal("train", "shared", "--data", "d", "--run", "r", "--dry-run", "--config", word)
    assert said.endswith(f"; {', '.join(recipes.recipe_names())} came with qrdali")
    assert (f"did you mean {near}?" in said) if near else ("did you mean" not in said)
    assert len(said) < 500


def test_the_help_names_all() -> None:
    shown = " ".join(qrdali("train", "shared", "--help").split())
    assert all(name in shown for name in recipes.recipe_names())


def test_a_recipe_of_one_method_is_refused_by_the_others(elsewhere: Path) -> None:
    said = refusal("train", "linear", "--data", "d", "--run", "r", "--dry-run", "--config", "recipes/a3")
    assert said.startswith("recipes/a3 is for `train shared`, this is `train linear`")


@pytest.mark.parametrize(
    ("of_file", "given", "merged"),
    [
        ({"lr": 1.0, "seed": 1}, {"lr": 2.0}, {"lr": 2.0, "seed": 1}),
        ({"pretrained": True, "model": "a"}, {"init": "r"}, {"init": "r"}),
        ({"pretrained": True, "model": "a"}, {"model": "b"}, {"pretrained": True, "model": "b"}),
        ({"init": "r", "lr": 1.0}, {"pretrained": True}, {"pretrained": True, "lr": 1.0}),
        ({"model": "a"}, {"init": "r", "model": "b"}, {"init": "r", "model": "b"}),
    ],
)
def test_what_the_command_says_wins(
    of_file: dict[str, Any], given: dict[str, Any], merged: dict[str, Any]
) -> None:
    assert recipes.merge(of_file, given) == merged
