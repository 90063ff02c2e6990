"""`qrdali train --print-config` prints settings of which --config makes the same again, with their help."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from qrdali.cli.main import cli
from qrdali.errors import InputError
from qrdali.runs.settings import Settings, default_settings, read_toml, validate_settings, write_settings


def print_config(method: str, *words: object) -> str:
    """Returns what is printed on stdout."""
    result = CliRunner().invoke(
        cli, ["train", method, *map(str, words), "--print-config"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Returns the settings that a command would train with."""
    taken: list[Settings] = []
    monkeypatch.setattr("qrdali.workflows.train.run_training", lambda settings, *_: taken.append(settings))

    def call(*words: object) -> Settings:
        result = CliRunner().invoke(cli, ["train", *map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return taken.pop()

    return call


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("shared", "--data d"),
        ("shared", "--data d --epochs 4 --lr 1e-3 --optimizer sgd --optimizer-option momentum=0.8 --seed 9"),
        ("baseline", "--data d --init runs/a --match runs/b --no-restore-best --max-bad 5%"),
        ("baseline", "--data d --init runs/a --model resnet10t --fit center"),
        ("fixed", "--data d --reduction crop --quality 0.75 --track-set a=x --track-set b=s3://y"),
        (
            "linear",
            "--data d --tail 3 --direction up --lr-schedule stage --stage-epochs 3 --ema 0.9 --ema-warmup",
        ),
        ("linear", '--data it\'s\t"#"\\\n[d] --reduction none --sequence paired-rounds'),
        (
            "adaptive",
            "--data d --windows 9 --prefer entropy --model-option drop_rate=0.1 --device cpu --threads 2",
        ),
        (
            "random",
            "--data d --low 0.5 --high 0.75 --log tensorboard --save-every 5m --compile --deterministic",
        ),
    ],
)
def test_the_same_settings_come_of_it(settings_of, method: str, words: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    options = words.split(" ")
    file = tmp_path / "my.toml"
    file.write_text(print_config(method, *options), encoding="utf-8")
    expected = settings_of(method, *options, "--run", tmp_path / "run")
    found = settings_of(method, "--config", file, "--run", tmp_path / "run")
    assert found.model_dump() == expected.model_dump()
    # What --init decides is still left to it.
    for name in ("model", "fit"):
        of_init = bool(expected.init) and name not in expected.model_fields_set
        assert (name in found.model_fields_set) != of_init
    assert print_config(method, "--config", file) == file.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [file]


def test_every_option_is_there_with_what_it_means() -> None:
    text = print_config("linear")
    lines = text.splitlines()
    at_begin = {"match_steps", "definitions", "epochs_before", "automatic"}
    for name in default_settings().keys() - at_begin - {"optimizer_options", "model_options", "track_sets"}:
        number = next(i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
        assert lines[number - 1].startswith("# "), name
    assert {"[optimizer_options]", "[model_options]", "[track_sets]", '# data = ""'} <= set(lines)
    assert "# Grid of qualities, 1/n. More than 0, at most 0.5. Default: 0.25.\nstep = 0.25\n" in text
    assert "One of down | up." in text
    assert "combination | gray | contrast | blur | noise | jpeg | none. Default" in text
    own, _, others = text.partition("# === Of other methods")
    assert "\ndirection = " in own
    assert "\nquality = " in others
    assert max(map(len, lines)) <= 110


def test_the_command_line_wins_over_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("seed = 4\npatience = 7\n")
    text = print_config("linear", "--config", file, "--seed", 5)
    assert "\nseed = 5\n" in text
    assert "\npatience = 7\n" in text
    file.write_text('lr_shedule = "cosine"\n')
    with pytest.raises(InputError, match="near it: lr_schedule"):
        print_config("linear", "--config", file)


def test_of_a_run_that_was_begun_its_own_are_printed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    recorded = validate_settings(
        {
            "method": "adaptive",
            "data": "/data",
            "model": "resnet10t",
            "init": "/a",
            "device": "cpu",
            "amp": "off",
            "threads": 3,
            "probe_batch_size": 16,
            "seed": 8,
            "epochs_before": 4,
            "automatic": ["amp", "threads"],
            "definitions": 1,
        }
    )
    write_settings(run / "config.toml", recorded)
    file = tmp_path / "my.toml"
    file.write_text(print_config("adaptive", "--run", run, "--resume"))
    # How many threads decode was left to the host, and is again.
    expected = recorded.model_dump() | {"threads": 0}
    assert validate_settings(read_toml(file)).model_dump() == expected
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.toml", "my.toml", "run"]
    with pytest.raises(InputError, match="is a run of adaptive, not of linear"):
        print_config("linear", "--run", run, "--resume")


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(InputError, match="needs --stage-epochs"):
        print_config("linear", "--lr-schedule", "stage")
