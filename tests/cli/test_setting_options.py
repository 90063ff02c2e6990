"""The options of `qrdali train` are those of the fields of Settings, and a new field is all it takes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

import qrdali
from qrdali.cli.main import cli
from qrdali.cli.train_options import TrainCommand
from qrdali.errors import InputError
from qrdali.runs.option import EVERY, Option, Topic
from qrdali.runs.setting_table import settings_table
from qrdali.runs.settings import Settings, validate_settings

COMMAND = {"config", "dry_run", "print_config", "resume", "run"}
COMMON = {
    "data",
    "root",
    "model",
    "model_options",
    "init",
    "pretrained",
    "batch_size",
    "lr",
    "optimizer",
    "optimizer_options",
    "weight_decay",
    "lr_schedule",
    "warmup_epochs",
    "min_lr",
    "stage_epochs",
    "decay_epochs",
    "plateau_factor",
    "plateau_patience",
    "clip_grad",
    "label_smoothing",
    "accumulate",
    "ema",
    "ema_warmup",
    "sync_batch_norm",
    "freeze",
    "layer_decay",
    "input_size",
    "fit",
    "augment",
    "track_sets",
    "track_reduced",
    "log",
    "save_every",
    "seed",
    "device",
    "amp",
    "compile",
    "grad_checkpointing",
    "deterministic",
    "threads",
    "max_bad",
}
PATIENCE = {"patience", "max_epochs", "monitor", "restore_best"}
REDUCED = {"reduction", "step", "sequence", "same_order"}
OWN = {
    "shared": {"epochs"},
    "baseline": PATIENCE | {"match"},
    "fixed": PATIENCE | REDUCED | {"quality"},
    "linear": PATIENCE | REDUCED | {"tail", "direction"},
    "adaptive": PATIENCE | REDUCED | {"tail", "feedback", "prefer", "windows", "probe_batch_size"},
    "random": PATIENCE | REDUCED | {"low", "high"},
}


def command_of(method: str) -> click.Command:
    train = cli.get_command(click.Context(cli), "train")
    assert isinstance(train, click.Group)
    return train.commands[method]


def refusal(*words: str) -> str:
    """Returns the error of `qrdali train`, which is one line."""
    result = CliRunner().invoke(cli, ["train", *words], standalone_mode=False)
    error = result.exception
    assert isinstance(error, click.UsageError | InputError), (result.output, error)
    text = error.format_message() if isinstance(error, click.UsageError) else str(error)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("method", EVERY)
def test_every_method_has_its_options(method: str) -> None:
    """The names are a contract: scripts rely on them. An option that is added has no place in this test, one
    that is lost has."""
    names = {parameter.name for parameter in command_of(method).params}
    assert COMMAND | COMMON | OWN[method] <= names
    others = set().union(*OWN.values()) - OWN[method]
    assert not others & names


def test_every_setting_is_an_option_or_one_that_a_run_gets_at_its_begin() -> None:
    no_options = [name for name, setting in settings_table(Settings).items() if setting.option is None]
    assert no_options == ["method", "match_steps", "definitions", "epochs_before", "automatic"]
    assert all(setting.help for setting in settings_table(Settings).values())


class MoreSettings(Settings):
    """Settings with fields that there are not yet."""

    blur: Annotated[float, Option(Topic.INPUT, ("fixed", "random"), metavar="SIGMA", default="off")] = Field(
        0.0, ge=0, lt=9, description="Blur of R epochs in pixels."
    )
    kernel: Annotated[Literal["box", "gauss"], Option(Topic.INPUT, ("fixed", "random"))] = Field(
        "box", description="What it blurs with."
    )


def more_command(method: str, found: list[dict[str, Any]]) -> TrainCommand:
    def take(**options: Any) -> None:
        """Takes options."""
        found.append(options)

    return TrainCommand(method, take, MoreSettings)


def test_a_field_is_all_that_an_option_needs() -> None:
    found: list[dict[str, Any]] = []
    command, run = more_command("fixed", found), CliRunner()
    assert run.invoke(command, ["--blur", "1.5", "--kernel", "gauss"]).exit_code == 0
    assert (found[0]["blur"], found[0]["kernel"], found[0]["quality"]) == (1.5, "gauss", None)
    help = run.invoke(command, ["--help"]).output
    section = help.partition(f"{Topic.INPUT.value}:\n")[2].partition("\n\n")[0]
    assert "--blur SIGMA" in section
    assert "Blur of R epochs in pixels.  [default: off]" in " ".join(section.split()).replace(". [", ".  [")
    assert "--kernel [box|gauss]" in section
    assert (
        "'gaus' is not one of 'box', 'gauss'; near it: gauss"
        in run.invoke(command, ["--kernel", "gaus"]).output
    )
    other = run.invoke(more_command("linear", found), ["--blur", "1"])
    assert "--blur is for fixed and random, not linear: leave it out" in other.output
    assert len(found) == 1
    assert settings_table(MoreSettings)["blur"].describe_range() == "at least 0, less than 9"


@pytest.mark.parametrize(
    ("method", "words", "name", "value"),
    [
        ("adaptive", ["--windows", "9"], "windows", 9),
        ("linear", ["--no-restore-best"], "restore_best", False),
        ("linear", [], "restore_best", True),
        ("shared", ["--deterministic"], "deterministic", True),
        ("shared", ["--no-deterministic"], "deterministic", False),
        ("shared", ["--compile"], "compile", True),
        ("shared", ["--max-bad", "5%"], "max_bad", 0.05),
        ("shared", ["--track-set", "a=x", "--track-set", "b=y"], "track_sets", {"a": "x", "b": "y"}),
        ("shared", ["--model-option", "drop_rate=0.5"], "model_options", {"drop_rate": 0.5}),
        ("shared", ["--seed", "7"], "seed", 7),
        ("fixed", [], "reduction", "combination"),
        ("fixed", [], "sequence", "paired-epochs"),
        ("shared", [], "reduction", "none"),
    ],
)
def test_values_arrive_as_the_settings_have_them(
    method: str, words: list[str], name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Settings] = []
    monkeypatch.setattr("qrdali.workflows.train.run_training", lambda settings, *_: taken.append(settings))
    words = ["train", method, "--data", "d", "--run", "r", "--device", "cpu", *words]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    assert getattr(taken[0], name) == value
    assert type(getattr(taken[0], name)) is type(value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["linear", "--lr-shedule", "cosine"], "--lr-schedule"),
        (
            ["shared", "--patience", "3"],
            "--patience is for baseline, fixed, linear, adaptive and random, not",
        ),
        (["fixed", "--tail", "2"], "--tail is for linear and adaptive, not fixed: leave it out"),
        (["random", "--no-restore-bets"], "--no-restore-best"),
        (["shared", "--no-restore-best"], "--no-restore-best is for baseline"),
        (["shared", "--fit", "centre"], "near it: center"),
        (["fixed", "--quality", "3"], "quality = 3.0: Input should be less than or equal to 1"),
        (["fixed"], "Missing option '--run'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words: list[str], said: str) -> None:
    more = [] if words == ["fixed"] else ["--run", "nowhere"]
    assert said in refusal(*words, "--data", "nowhere", *more)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"patience": 5},
            "patience = 5: patience is for baseline, fixed, linear, adaptive and random, not",
        ),
        ({"lr_shedule": "cosine"}, "there is no such setting; near it: lr_schedule"),
        ({"lr_schedule": "cosin"}, "near it: cosine"),
        ({"batch_size": 0}, "batch_size = 0: Input should be greater than or equal to 1"),
    ],
)
def test_python_refuses_the_same(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        qrdali.train("shared", data="nowhere", run="nowhere", **values)
    assert said in str(error.value)


def test_a_default_of_another_method_says_nothing() -> None:
    with pytest.raises(InputError, match="nowhere"):  # the data set is missing, not the right to say it
        qrdali.train("shared", data="nowhere", run="nowhere", patience=3)


def test_a_file_may_hold_settings_of_several_methods() -> None:
    assert validate_settings({"method": "shared", "data": "", "patience": 5}).patience == 5


@pytest.mark.parametrize("command", ["build-mepi", "minimal", "predict", "evaluate", "reproduce"])
def test_other_commands_share_choices_and_ranges(command: str) -> None:
    options = {one.name: one for one in cli.get_command(click.Context(cli), command).params}  # type: ignore[union-attr]
    assert list(options["device"].type.choices) == ["auto", "cpu", "cuda"]  # type: ignore[attr-defined]
    threads = options["threads"].type
    assert isinstance(threads, click.IntRange)
    assert (threads.min, threads.max) == (1, 1024)
    if command in ("build-mepi", "minimal"):
        context = click.Context(click.Command("x"))
        assert options["windows"].process_value(context, "9") == 9
        assert options["windows"].get_default(context) == "5"
