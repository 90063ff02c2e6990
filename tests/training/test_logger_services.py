"""MLflow, W&B and Trackio on this machine alone: nothing is sent. Skipped where they are not installed."""

import importlib.util
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qrdali.loggers.choice import create_logger
from qrdali.loggers.interface import LoggedEpoch, LoggedRun

KEY = "0123456789abcdef"


def needs(package: str) -> None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed: pip install 'qrdali[{package}]'")


def epoch(number: int, sheet: Path | None = None) -> LoggedEpoch:
    values = {"val_accuracy": number / 10, "quality/crop": 0.5, "tracked/me & you": 0.25}
    if not number:
        return LoggedEpoch(0, 1.7e9, values)
    return LoggedEpoch(number, 1.7e9 + number, values, number, {"stages/1/val_accuracy": number / 10}, sheet)


def logged(folder: Path, epochs: int) -> LoggedRun:
    """A run of that many epochs after the start, the first with a sheet."""
    sheet = folder / "stage-1-epoch-1.png"
    Image.new("RGB", (8, 8)).save(sheet)
    config = {"method": "linear", "lr": 0.01, "network": {"gmacs": None}}
    found = tuple(epoch(i, sheet if i == 1 else None) for i in range(epochs + 1))
    return LoggedRun(folder, KEY, config, found)


@pytest.fixture(params=["file", "sqlite"])
def mlflow_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    needs("mlflow")
    if request.param == "sqlite" and importlib.util.find_spec("sqlalchemy") is None:
        pytest.skip("this MLflow has no databases: pip install mlflow, not mlflow-skinny")
    scheme = "sqlite:///" if request.param == "sqlite" else "file://"
    store = f"{scheme}{tmp_path / 'mlflow-store'}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    return store


def mlflow_runs(deleted: bool = False) -> list[Any]:
    import mlflow
    from mlflow.entities import ViewType

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("qrdali")
    assert experiment is not None
    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    return list(client.search_runs([experiment.experiment_id], run_view_type=view))


def mlflow_steps(run: Any, name: str) -> list[tuple[int, float]]:
    import mlflow

    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
    return [(metric.step, metric.value) for metric in history]


def test_mlflow_holds_the_run_and_goes_on_in_it(tmp_path: Path, mlflow_store: str) -> None:
    import mlflow

    logger = create_logger("mlflow", tmp_path)
    logger.begin(logged(tmp_path, 1))
    logger.epoch(epoch(2))
    # Killed here: metrics.jsonl holds epoch 3, which the log lacks.
    again = create_logger("mlflow", tmp_path)
    again.begin(logged(tmp_path, 3))
    again.epoch(epoch(4))
    again.end(True)
    (run,) = mlflow_runs()
    assert mlflow_steps(run, "val_accuracy") == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert [step for step, _ in mlflow_steps(run, "stages/1/val_accuracy")] == [1, 2, 3, 4]
    assert len(mlflow_steps(run, "tracked/me _ you")) == 5
    assert (run.data.params["method"], run.data.params["lr"]) == ("linear", "0.01")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == tmp_path.name
    artifacts = mlflow.MlflowClient().list_artifacts(run.info.run_id, "previews")
    assert [file.path for file in artifacts] == ["previews/stage-1-epoch-1.png"]
    assert not mlflow_runs(deleted=True)


def test_mlflow_writes_anew_what_holds_more_than_the_run(tmp_path: Path, mlflow_store: str) -> None:
    logger = create_logger("mlflow", tmp_path)
    logger.begin(logged(tmp_path, 3))  # killed before last/ was saved: epoch 3 is done again
    again = create_logger("mlflow", tmp_path)
    again.begin(logged(tmp_path, 2))
    again.epoch(epoch(3))
    again.end(False)
    (run,) = mlflow_runs()
    assert [step for step, _ in mlflow_steps(run, "val_accuracy")] == [0, 1, 2, 3]
    assert run.info.status == "KILLED"
    assert len(mlflow_runs(deleted=True)) == 1


def wandb_records(file: Path) -> list[Any]:
    """The records of an offline run, in LevelDB's log format after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, part, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is filled
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


def test_wandb_offline_holds_every_epoch_once_after_a_second_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    logger = create_logger("wandb", tmp_path)
    logger.begin(logged(tmp_path, 1))
    logger.epoch(epoch(2))
    logger.end(False)
    again = create_logger("wandb", tmp_path)
    again.begin(logged(tmp_path, 2))
    again.epoch(epoch(3))
    again.end(True)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    steps, names = [], set()
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            steps.append(record.history.step.num)
            names |= {item.key or "/".join(item.nested_key) for item in record.history.item}
    assert steps == [0, 1, 2, 3]
    assert {"val_accuracy", "quality/crop", "stages/1/val_accuracy", "stage_epoch"} <= names
    assert any(name.startswith("preview") for name in names)
    assert again.place() == str(folder)


def test_trackio_holds_every_epoch_once_after_a_second_start(tmp_path: Path) -> None:
    """In a process of its own: Trackio reads TRACKIO_DIR when it is imported."""
    needs("trackio")
    code = """
from pathlib import Path
from test_logger_services import epoch, logged
from qrdali.loggers.choice import create_logger
folder = Path.cwd() / "run"
folder.mkdir()
for begun in (1, 2):
    logger = create_logger("trackio", folder)
    logger.begin(logged(folder, begun))
    logger.epoch(epoch(begun + 1))
    logger.end(True)
import trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("qrdali")
rows = SQLiteStorage.get_logs("qrdali", run.name)
print([(row["step"], row["val_accuracy"], row.get("stage_epoch")) for row in rows], run.name)
"""
    environment = {
        **os.environ,
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    printed, _, name = done.stdout.strip().rpartition(" ")
    assert printed == "[(0, 0.0, None), (1, 0.1, 1), (2, 0.2, 2), (3, 0.3, 3)]"
    assert name.startswith("run-")
