"""Workers of a tiny matrix in processes of their own, which may be killed in a kind of task."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from hashlib import sha256
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tomli_w
from kill_helpers import NEEDED, contents, less_times
from safetensors.torch import save_file

_MEASURED = tuple(
    f"report/tables/{name}." for name in ("networks", "mepi-seconds", "epoch-seconds", "energy")
)
LIMIT = 280.0  # seconds of a worker
SHAPES = {"classes": 2, "train": 8, "val": 3, "test": 3, "size": "40x32"}


def written(folder: Path, out: Path, **changes: Any) -> Path:
    """Writes a matrix with every kind of task: pictures, an adopted network, runs, MEPIs and a report."""
    import torch

    from qrdali.models import create

    torch.manual_seed(2)
    weights = folder / "two.safetensors"
    save_file(create("test_resnet", 2).state_dict(), weights)
    classes = folder / "two.tsv"
    from qrdali.data.shapes import class_names

    classes.write_text("\n".join(sorted(class_names(2))))
    adopted = {"adopt": "test_resnet", "weights": str(weights), "classes": str(classes)}
    values: dict[str, Any] = {
        "out": str(out),
        "data": {"shapes": SHAPES},
        "train": {"device": "cpu", "threads": 1, "batch_size": 8, "patience": 1, "max_epochs": 2},
        "network": [
            {"model": "test_resnet", "input_size": 32, "epochs": 1},
            {"model": "test_resnet", "name": "adopted", "input_size": 32, "shared": adopted},
        ],
        "runs": {
            "methods": ["baseline", "fixed"],
            "reductions": ["crop"],
            "only": ["test_resnet/*", "shared"],
        },
        "mepi": {"runs": ["test_resnet/baseline"], "limit": 2, "step": 0.25, "reductions": ["crop"]},
        **changes,
    }
    (folder / "matrix.toml").write_text(tomli_w.dumps(values))
    return folder / "matrix.toml"


def start(config: Path, log: Path, kill_in: str = "", *, words: tuple[str, ...] = ()) -> BaseProcess:
    """Starts a worker. What it begins is appended to `log`; what it prints goes to `log`.said.

    kill_in: the kind of task at whose first progress the worker gets SIGKILL.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*NEEDED, "matrix_helpers", "qrdali.workflows.matrix_worker"])
    child = context.Process(target=_work, args=(str(config), str(log), kill_in, words))
    child.start()
    return child


def joined(child: BaseProcess) -> int:
    """Waits for a worker and returns its exit status, or minus a signal."""
    child.join(LIMIT)
    if child.is_alive():
        child.kill()
        child.join()
        raise AssertionError(f"no end within {LIMIT:g} s")
    assert child.exitcode is not None
    return child.exitcode


def begun(log: Path) -> list[str]:
    """Returns the tasks that workers began, in order."""
    return log.read_text().splitlines() if log.exists() else []


def whole_contents(out: Path) -> dict[str, str]:
    """Returns every file of a finished matrix, the report's too, whose JSON is without what was measured."""
    report = {f"report/{name}": digest for name, digest in contents(out / "report").items()}
    page = less_times(json.loads((out / "report" / "report.json").read_text()))
    del page["tables"]["networks"]  # with peak memory
    report["report/report.json"] = sha256(json.dumps(page).encode()).hexdigest()
    return contents(out) | report


def same_as_serial(ground: Path) -> None:
    """Asserts that `now` holds what both serial calls hold, where they agree, and nothing else."""
    first, second, now = (whole_contents(ground / name) for name in ("serial", "again", "now"))
    assert first.keys() == second.keys() == now.keys()
    # Measured seconds and peak memory, which two calls may share by chance.
    agreeing = {name for name in first if first[name] == second[name] and not name.startswith(_MEASURED)}
    assert len(agreeing) > 0.9 * len(first), sorted(first.keys() - agreeing)
    assert any(name.endswith("last/model.safetensors") for name in agreeing)
    assert any(name.endswith("test.parquet") for name in agreeing)
    assert any(name.endswith("manifest.parquet") for name in agreeing)
    assert any(name.startswith("report/") and name.endswith(".csv") for name in agreeing)
    assert {name for name in agreeing if now[name] != first[name]} == set()


class _Deadly:
    """Kills this process at the first sign of progress."""

    def begin(self, what: str, total: int, unit: str = "images") -> None: ...

    def advance(self, images: int, note: Callable[[], str]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def end(self) -> None: ...

    def line(self, text: str) -> None:
        if not text.startswith("epoch   0"):  # with a first save behind it
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def warn(self, text: str) -> None: ...


def _work(config: str, log: str, kill_in: str, words: tuple[str, ...]) -> None:
    import sys

    said = os.open(Path(log).with_suffix(f".said-{os.getpid()}"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    from qrdali.interfaces import JobControl
    from qrdali.workflows import matrix_worker

    perform = matrix_worker.perform
    notes = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def told(tasks: Any, task: Any, control: JobControl) -> Any:
        os.write(notes, f"{task.key}\n".encode())
        if task.kind == kill_in:
            if task.kind in ("adopt", "report"):  # they show no progress
                perform(tasks, task, control)
                os.kill(os.getpid(), signal.SIGKILL)
            control = JobControl(_Deadly(), control.stop, control.group)
        return perform(tasks, task, control)

    matrix_worker.perform = told
    matrix_worker.POLL_SECONDS = 0.2
    sys.argv = ["qrdali", "reproduce", config, *words]
    from qrdali.cli.main import main

    main()
