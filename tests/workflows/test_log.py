"""`qrdali log`, `--log` at the command line and their bad inputs."""

import fcntl
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import qrdali
from qrdali.cli.exit_status import run_and_exit
from qrdali.cli.main import cli
from qrdali.errors import InputError
from qrdali.loggers import choice
from qrdali.runs import automatic
from qrdali.runs.logger_names import LOGGERS, normalize_logger_names
from qrdali.runs.settings import read_toml, validate_settings
from qrdali.workflows.continued_run import require_same_settings
from qrdali.workflows.train_settings import settings_of


def command(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def events(run: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0})
    found.Reload()
    return found


def made(folder: Path, **settings: Any) -> Path:
    return fake_runs.run(folder, [0.25, 0.5, 0.375, 0.75], {}, **settings)


def test_the_table_of_loggers_has_the_names_of_the_setting() -> None:
    assert tuple(choice.KINDS) == LOGGERS
    extras = read_toml(Path(__file__).parents[2] / "pyproject.toml")["project"]["optional-dependencies"]
    assert set(LOGGERS) <= set(extras)


def test_a_run_is_replayed_and_replayed_again_without_doubles(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    runs = [made(tmp_path / "a"), made(tmp_path / "b")]
    for _ in range(2):
        done = command("log", *runs, "--to", "tensorboard", "--json")
        assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "runs": [
            {"run": str(run), "epochs": 4, "places": {"tensorboard": f"{run}/tensorboard"}} for run in runs
        ]
    }
    for run in runs:
        found = [(event.step, event.value) for event in events(run).Scalars("val_accuracy")]
        assert found == [(0, 0.25), (1, 0.5), (2, 0.375), (3, 0.75)]
        assert len(list((run / "tensorboard").iterdir())) == 1


def test_the_times_and_previews_of_a_run_are_replayed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = made(tmp_path / "a")
    (run / "previews").mkdir()
    Image.new("RGB", (20, 10), "red").save(run / "previews" / "stage-1-epoch-2.png")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[2]["time"] = "2026-01-02T03:04:05+00:00"
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    qrdali.log([run], to=["tensorboard"])
    (image,) = events(run).Images("preview")
    assert (image.step, image.width, image.height) == (2, 20, 10)
    assert events(run).Scalars("val_accuracy")[2].wall_time == 1767323045


def test_hostile_rows_are_logged_as_far_as_they_are_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = made(tmp_path / "a")
    deep: Any = 1
    for _ in range(50):
        deep = {"x": deep}
    row = {"epoch": 4, "stage": "x", "time": [], "huge": 10**400, "deep": deep, "a\nb": 1, "many": [1] * 9999}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row | {"yes": True, "nothing": None}) + "\n")
    assert qrdali.log([run], to="tensorboard")[0].epochs == 5
    tags = set(events(run).Tags()["scalars"])
    assert {"a?b", "many/0"} <= tags
    assert len(tags) < 2100
    assert not {"huge", "yes", "nothing", "time"} & tags
    assert not any(tag.startswith("deep") for tag in tags)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "tensorbord"], "there is no logger of this name; near it: tensorboard"),
        (["--to", "excel"], "there are tensorboard, wandb, mlflow, trackio"),
        (["--to", "none"], "names no logger"),
    ],
)
def test_unknown_loggers_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = command("log", made(tmp_path / "a"), *arguments)
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_what_is_not_a_run_is_refused_before_any_is_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run, empty = made(tmp_path / "a"), made(tmp_path / "b")
    (empty / "metrics.jsonl").write_text("")
    for folder, message in ((tmp_path / "gone", "is not a run folder"), (empty, "holds no row")):
        with pytest.raises(InputError, match=message):
            qrdali.log([run, folder], to="tensorboard")
    assert not (run / "tensorboard").exists()


def test_a_log_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = made(tmp_path / "a")
    (run / "tensorboard").write_text("a file")
    with pytest.raises(
        InputError, match=r"cannot be written to .*tensorboard: .*tensorboard is not a folder"
    ):
        qrdali.log([run], to="tensorboard")


def test_a_run_that_is_being_trained_is_not_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = made(tmp_path / "a")
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(qrdali.RunError, match="is being trained by"):
            qrdali.log([run], to="tensorboard")


def test_a_logger_that_is_not_installed_names_its_extra_before_a_run_folder_is_made(
    tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda package: None)
    run = tmp_path / "run"
    arguments = ["train", "shared", "--data", str(workplace / "data"), "--run", str(run)]
    arguments += ["--model", "test_resnet", "--input-size", "32", "--log", "tensorboard"]
    monkeypatch.setattr(sys, "argv", ["qrdali", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_and_exit(cli)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the logger tensorboard is not installed: install the extra qrdali[tensorboard]" in line
    assert not run.exists()


def test_a_folder_named_as_a_package_is_not_that_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb_of_nobody").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(choice.KINDS, "wandb", choice.KINDS["wandb"]._replace(package="wandb_of_nobody"))
    with pytest.raises(InputError, match="the logger wandb is not installed"):
        choice.require_installed(["wandb"])


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", ""),
        ("none", ""),
        ("wandb", "wandb"),
        (" TensorBoard , wandb,wandb", "tensorboard,wandb"),
        (["mlflow", "trackio"], "mlflow,trackio"),
    ],
)
def test_names_of_loggers_are_written_in_one_way(value: object, names: str) -> None:
    assert normalize_logger_names(value) == names
    assert validate_settings({"method": "shared", "data": "d", "log": value}).log == names


@pytest.mark.parametrize("value", ["tensorbord", 3, ["wandb", 1], {"wandb": True}])
def test_a_setting_that_names_no_logger_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"^log = .*(near it: tensorboard|of tensorboard, wandb)"):
        validate_settings({"method": "shared", "data": "d", "log": value})


def test_a_copied_run_is_logged_as_its_own(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = made(tmp_path / "a")
    qrdali.log([run], to="tensorboard")
    shutil.copytree(run, tmp_path / "copy")
    qrdali.log([tmp_path / "copy"], to="tensorboard")
    run.rename(tmp_path / "moved")
    qrdali.log([tmp_path / "moved"], to="tensorboard")
    keys = [json.loads((tmp_path / name / "log.json").read_text())["key"] for name in ("copy", "moved")]
    assert keys[0] != keys[1]
    assert keys[1] == json.loads((tmp_path / "moved" / "log.json").read_text())["key"]


def test_a_real_run_draws_previews_and_goes_on_with_its_log(tmp_path: Path, workplace: Path) -> None:
    """The sheets show what the pipelines make of the images: reduced ones differ, the original is whole."""
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    options: dict[str, Any] = {
        "reduction": "crop",
        "patience": 1,
        "max_epochs": 4,
        "batch_size": 8,
        "threads": 1,
    }
    start = {"data": workplace / "data", "init": workplace / "runs" / "shared", "device": "cpu"}
    first = qrdali.train("linear", run=run, log="tensorboard", **start, **options)
    assert first.settings.log == "tensorboard"
    sheets = sorted((run / "previews").iterdir())
    assert sheets[0].name == "stage-1-epoch-1.png"
    images = events(run).Images("preview")
    assert [image.step for image in images] == [int(sheet.stem.rpartition("-")[2]) for sheet in sheets]
    assert images[0].encoded_image_string == sheets[0].read_bytes()
    pixels = np.asarray(Image.open(sheets[0]).convert("RGB")).astype(int)
    grey = (pixels == 0xE4).all(axis=2).mean()  # what a crop of quality 0.75 leaves of the right halves
    assert 0.03 < grey < 0.25
    again = tmp_path / "again"
    qrdali.train("linear", run=again, log="tensorboard", **start, **options)
    for sheet in sheets:
        assert (again / "previews" / sheet.name).read_bytes() == sheet.read_bytes()


def test_a_run_that_continues_keeps_its_loggers_unless_told_otherwise(tmp_path: Path) -> None:
    run = made(tmp_path / "a", log="tensorboard,mlflow")
    assert read_toml(run / "config.toml")["log"] == "tensorboard,mlflow"
    assert settings_of("baseline", run, {}, True).log == "tensorboard,mlflow"
    changed = settings_of("baseline", run, {"log": "none"}, True)
    assert changed.log == ""
    require_same_settings(run, changed, automatic.recorded(run))  # a log may change
    with pytest.raises(InputError, match="seed"):
        require_same_settings(run, changed.model_copy(update={"seed": 5}), automatic.recorded(run))
