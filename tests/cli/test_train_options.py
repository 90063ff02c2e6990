"""Options of recipes on the command line: keywords, refusals in one line, and the epochs of a dry run."""

from typing import Any

import pytest
from click.testing import CliRunner

from qrdali.cli.main import cli
from qrdali.cli.setting_options import parse_keywords
from qrdali.errors import InputError
from qrdali.experiment.estimate import least, most
from qrdali.runs.configuration import distinguishing
from qrdali.runs.settings import validate_settings

TRAIN = ["--data", "nowhere", "--run", "nowhere", "--dry-run"]


def dry_run(method: str, *words: str) -> list[str]:
    result = CliRunner().invoke(cli, ["train", method, *TRAIN, *words])
    if result.exception:
        raise result.exception
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=3", 3),
        ("a=-0.5", -0.5),
        ("a=1e-3", 1e-3),
        ("a=true", True),
        ("a=False", False),
        ("a=silu", "silu"),
        ("a=b=c", "b=c"),
        ("a=0.9,0.98", [0.9, 0.98]),
        ("a=1,two", [1, "two"]),
    ],
)
def test_values_of_keywords(text: str, value: Any) -> None:
    found = parse_keywords((text,), "--option")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)


@pytest.mark.parametrize("texts", [("a",), ("=3",), ("a=",), ("a=1", "a=2")])
def test_what_is_no_keyword(texts: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="--option (is|gives)"):
        parse_keywords(texts, "--option")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lr-schedule", "stage"], "--lr-schedule stage needs --stage-epochs N"),
        (["--stage-epochs", "2"], "--stage-epochs is for --lr-schedule stage, not constant: leave it out"),
        (["--warmup-epochs", "11"], "--warmup-epochs 11 is not shorter than the 10 epochs of --epochs"),
        (["--optimizer-option", "beta=1"], "optimizer adamw has no such option; near it: betas"),
        (["--optimizer-option", "betas"], "--optimizer-option is 'betas': give KEYWORD=VALUE"),
        (["--optimizer-option", "a.b=1"], "optimizer_options"),
        (["--auto-augment", "rand-9"], "auto_augment = 'rand-9': give rand-mM with M from 0 to 30, such as"),
        (["--erase", "2"], "erase = 2.0: "),
        (["--mixup", "-1"], "mixup = -1.0: "),
        (["--cutmix", "inf"], "cutmix = inf: "),
    ],
)
def test_refused_in_one_line(words: list[str], said: str) -> None:
    with pytest.raises(InputError) as error:
        dry_run("shared", *words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_decay_is_part_of_a_dry_run() -> None:
    fixed = ["fixed", "--patience", "1", "--reduction", "crop", "--lr-schedule", "wsd"]
    lines = dry_run(*fixed, "--max-epochs", "7", "--decay-epochs", "2")
    assert [line.split()[4] for line in lines[:-1]] == list("RCRCCC")
    assert [line.endswith("full quality, the learning rate decays") for line in lines[:-1]] == [False] * 4 + [
        True
    ] * 2
    lines = dry_run(*fixed, "--max-epochs", "4", "--decay-epochs", "2")
    assert len(lines) == 4 + 2
    assert "# no epoch is left for the decay: --max-epochs 4 comes first" in lines
    lines = dry_run("shared", "--epochs", "5", "--lr-schedule", "wsd", "--decay-epochs", "2")
    assert [line.endswith("decays") for line in lines] == [False, False, False, True, True]


def test_an_experiment_counts_the_epochs_of_the_decay() -> None:
    base: dict[str, Any] = {"method": "fixed", "data": "", "reduction": "crop", "patience": 1}
    plain = validate_settings({**base, "max_epochs": 20})
    decaying = validate_settings({**base, "max_epochs": 20, "lr_schedule": "wsd", "decay_epochs": 3})
    assert least(plain).phases == "RCRC"
    assert least(decaying).phases == "RCRCCCC"
    assert most(decaying).phases == "RC" * 8 + "CCC"
    assert least(decaying.model_copy(update={"decay_epochs": 0})).phases == "RCRCC"


def test_schedules_tell_runs_apart_and_what_has_no_effect_does_not() -> None:
    def of(**values: Any) -> dict[str, Any]:
        return distinguishing(validate_settings({"method": "shared", "data": "", **values}))

    assert of() == of(compile=True)
    for one in ({"lr_schedule": "cosine"}, {"warmup_epochs": 1}, {"clip_grad": 1}, {"layer_decay": 0.5}):
        assert of() != of(**one)
    wsd = of(lr_schedule="wsd")
    assert "decay_epochs" in wsd
    assert not {"stage_epochs", "plateau_factor", "plateau_patience", "ema_warmup"} & wsd.keys()
