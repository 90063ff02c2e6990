"""Experiment files whose shared run is adopted: planned, done, resumed, refused where it changes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import save_file

import qrdali
from qrdali.data.index import Dataset
from qrdali.errors import InputError
from qrdali.experiment.config import read
from qrdali.experiment.expand import expand
from qrdali.models import create
from qrdali.runs import folder as run_folder
from qrdali.runs.adoption import read_adoption
from qrdali.workflows.reproduce import TasksFailed, plan, reproduce


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """Weights of six classes, those of the data among them, and of a thousand."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(2)
    save_file(create("test_resnet", 6).state_dict(), folder / "six.safetensors")
    save_file(create("test_resnet", 1000).state_dict(), folder / "thousand.safetensors")
    (folder / "six.tsv").write_text("\n".join(["x", *dataset.classes[::-1], "y"]))
    return folder


def written(folder: Path, dataset: Path, shared: dict[str, Any], **changes: Any) -> Path:
    values: dict[str, Any] = {
        "out": str(folder / "out"),
        "data": {"folder": str(dataset)},
        "train": {"device": "cpu", "threads": 1, "batch_size": 8, "patience": 1, "max_epochs": 1},
        "network": [{"model": "test_resnet", "input_size": 32, "shared": {"adopt": "test_resnet", **shared}}],
        "runs": {"methods": ["baseline"]},
        "mepi": {"runs": ["shared"], "reductions": ["color"], "step": 0.25, "limit": 2},
        "report": {"make": False},
        **changes,
    }
    (folder / "m.toml").write_bytes(tomli_w.dumps(values).encode())
    return folder / "m.toml"


def states(config: Path) -> dict[str, str]:
    return {f"{task.kind} {task.name}": task.state for task in plan(config).tasks}


def test_a_shared_run_of_known_classes_is_planned_done_and_resumed(
    weights: Path, dataset: Dataset, tmp_path: Path
) -> None:
    shared = {"weights": str(weights / "six.safetensors"), "classes": str(weights / "six.tsv")}
    config = written(tmp_path, dataset.folder, shared)
    tasks = [
        "adopt test_resnet/shared",
        "train test_resnet/baseline",
        "evaluate test_resnet/shared",
        "evaluate test_resnet/baseline",
        "mepi test_resnet/shared",
    ]
    assert states(config) == dict.fromkeys(tasks, "waiting")
    assert plan(config).tasks[0].remaining is None
    result = reproduce(config)
    assert {run.name: run.state for run in result.runs} == {
        "test_resnet/shared": "done",
        "test_resnet/baseline": "done",
    }
    assert (result.runs[0].val, result.runs[0].accuracy is not None) == (None, True)
    assert states(config) == dict.fromkeys(tasks, "done")
    run = tmp_path / "out" / "runs" / "test_resnet" / "shared"
    before = (run / "best" / "model.safetensors").stat()
    reproduce(config)
    assert (run / "best" / "model.safetensors").stat() == before
    # The file of weights is not needed any more; the run that is gone is adopted again, and what comes of it.
    shutil.rmtree(run)
    assert states(config)["adopt test_resnet/shared"] == "waiting"
    assert states(config)["evaluate test_resnet/shared"] == "waiting"
    reproduce(config)
    assert states(config) == dict.fromkeys(tasks, "done")


def test_a_shared_run_of_other_classes_is_not_evaluated(
    weights: Path, dataset: Dataset, tmp_path: Path
) -> None:
    config = written(tmp_path, dataset.folder, {"weights": str(weights / "thousand.safetensors")})
    tasks = ["adopt test_resnet/shared", "train test_resnet/baseline", "evaluate test_resnet/baseline"]
    assert states(config) == dict.fromkeys(tasks, "waiting")
    result = reproduce(config, only=["baseline"])
    assert not result.failed
    assert states(config) == dict.fromkeys(tasks, "done")
    generated = written(
        tmp_path,
        dataset.folder,
        {"weights": str(weights / "thousand.safetensors")},
        out=str(tmp_path / "generated"),
        data={"shapes": {"classes": 4}},
    )
    assert "evaluate test_resnet/shared" not in states(generated)


def test_changes_of_what_is_adopted_are_refused(weights: Path, dataset: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    shutil.copyfile(weights / "thousand.safetensors", file)
    shared = {"weights": str(file), "mean": [0.5, 0.5, 0.5]}
    runs = {"methods": [], "only": ["shared"]}
    mepi: dict[str, Any] = {}
    reproduce(written(tmp_path, dataset.folder, shared, runs=runs, mepi=mepi))
    folder = tmp_path / "out" / "runs" / "test_resnet" / "shared"
    adoption = read_adoption(folder)
    assert adoption is not None
    assert adoption.asked["mean"] == [0.5, 0.5, 0.5]

    def refusal(shared: dict[str, Any], **changes: Any) -> str:
        config = written(tmp_path, dataset.folder, shared, **{"runs": runs, "mepi": mepi, **changes})
        with pytest.raises(InputError) as error:
            plan(config)
        return str(error.value)

    assert "mean [0.5, 0.5, 0.5] → [0.5, 0.5, 0.4]" in refusal({**shared, "mean": [0.5, 0.5, 0.4]})
    assert "fit whole → center" in refusal(shared, train={"device": "cpu", "fit": "center"})
    assert "classes '' → imagenet" in refusal({**shared, "classes": "imagenet"})
    file.unlink()
    plan(written(tmp_path, dataset.folder, shared, runs=runs, mepi=mepi))
    save_file(create("test_resnet", 1000).state_dict(), file)
    assert f"the SHA-256 of {file} {adoption.file_sha256} → " in refusal(shared)
    trained = {"network": [{"model": "test_resnet", "input_size": 32, "epochs": 1}]}
    assert "method adopted → shared" in refusal({}, **trained)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            {"shared": {"adopt": "resnet18"}},
            "network.1.shared.adopt = 'resnet18', and model is 'test_resnet'",
        ),
        (
            {"shared": {"adopt": "test_resnet", "lr": 1}},
            "network.1.shared.lr: the shared run is adopted, not",
        ),
        (
            {"shared": {"adopt": "test_resnet"}, "epochs": 3},
            "network.1.epochs = 3: the shared run is adopted",
        ),
        ({"shared": {"adopt": 3}}, "network.1.shared.adopt: Input should be a valid string"),
        (
            {"shared": {"adopt": "test_resnet", "mean": [0.5, 1]}},
            "network.1.shared.mean: List should have at",
        ),
        ({"shared": {"weights": "x.pth"}}, "network.1.shared.weights is no setting of a run"),
    ],
)
def test_tables_that_cannot_be(network: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = written(tmp_path, tmp_path, {}, network=[{"model": "test_resnet", **network}])
    with pytest.raises(InputError, match="m.toml: ") as error:
        read(config)
    assert message in str(error.value)


def test_the_request_has_the_networks_size_and_the_matrix_fit(tmp_path: Path) -> None:
    config = written(
        tmp_path, tmp_path, {"weights": "w.pth"}, train={"fit": "center"}, runs={"methods": ["baseline"]}
    )
    shared, baseline = expand(read(config), tmp_path)
    assert shared.adopt is not None
    assert (shared.adopt.fit, shared.adopt.input_size) == ("center", 32)
    assert shared.adopt.weights == str(Path("w.pth").absolute())
    assert (baseline.adopt, baseline.needs) == (None, (shared.name,))


def test_a_missing_file_is_refused_before_anything_is_done(dataset: Dataset, tmp_path: Path) -> None:
    config = written(tmp_path, dataset.folder, {"weights": "none.pth"})
    with pytest.raises(InputError, match=r"shared.weights = '\S+none.pth' is not a file"):
        reproduce(config)


def test_weights_that_do_not_fit_fail_their_task(weights: Path, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    config = written(tmp_path, dataset.folder, {"weights": str(tmp_path / "bad.pth")})
    with pytest.raises(TasksFailed) as failure:
        reproduce(config)
    assert "cut or damaged" in failure.value.result.failed["adopt test_resnet/shared"]
    assert failure.value.result.waiting["train test_resnet/baseline"] == "adopt test_resnet/shared"


def fine_tuned(folder: Path, dataset: Path, start: Path, **network: Any) -> Path:
    model = {"model": "test_resnet", "input_size": 32, "epochs": 1, "shared": {"init": str(start)}}
    return written(folder, dataset, {}, network=[{**model, **network}], mepi={})


def test_a_shared_run_fine_tunes_another_run(weights: Path, dataset: Dataset, tmp_path: Path) -> None:
    start = tmp_path / "adopted"
    qrdali.adopt("test_resnet", run=start, weights=weights / "thousand.safetensors", input_size=32)
    config = fine_tuned(tmp_path, dataset.folder, start)
    assert states(config)["train test_resnet/shared"] == "waiting"
    assert not reproduce(config).failed
    shared = tmp_path / "out" / "runs" / "test_resnet" / "shared"
    first = next(iter(run_folder.metrics_rows(shared)))
    assert first["epoch"] == 0
    assert run_folder.begun_with(shared)["init"] == str(start)
    assert run_folder.describe_best(shared).classes == dataset.classes
    # What is trained does not need the other run any more.
    shutil.rmtree(start)
    assert set(states(config).values()) == {"done"}


def test_a_start_that_is_not_there_or_is_another_network_is_refused(
    weights: Path, dataset: Dataset, tmp_path: Path
) -> None:
    start = tmp_path / "adopted"
    with pytest.raises(InputError, match=r"shared.init of test_resnet: .*adopted.* Make that run first"):
        reproduce(fine_tuned(tmp_path, dataset.folder, start))
    qrdali.adopt("test_resnet", run=start, weights=weights / "thousand.safetensors", input_size=32)
    with pytest.raises(InputError, match=r"adopted is a run of test_resnet, and model is resnet18: give the"):
        reproduce(fine_tuned(tmp_path, dataset.folder, start, model="resnet18"))
    with pytest.raises(InputError, match=r"network.1.others.init is set by the matrix itself"):
        read(fine_tuned(tmp_path, dataset.folder, start, others={"init": str(start)}))
