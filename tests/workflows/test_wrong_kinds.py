"""Arguments of the wrong kind: one line that names the argument, never a traceback from inside."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qrdali

FUNCTIONS = [
    "adopt", "build_mepi", "compare", "entropy", "evaluate", "index", "log", "minimal", "predict", "quotient",
    "read", "reduce", "reproduce", "train", "write_report",
]  # fmt: skip
MODULE = torch.nn.Linear(2, 2)
IMAGE = np.zeros((8, 8, 3), np.uint8)


def calls(workplace: Path, out: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Returns each public callable with arguments that are right, but that no work should be done."""
    data = qrdali.Dataset.open("data")
    loader = qrdali.Loader(data["val"], input_size=32, batch_size=4, device="cpu", threads=1)
    right: dict[str, dict[str, Any]] = {
        "adopt": {"model": "test_resnet", "run": out / "run", "weights": "none.pth"},
        "build_mepi": {"run": "runs/shared", "data": "data", "out": out / "mepi", "split": "none"},
        "compare": {"run_a": "runs/shared", "run_b": "runs/shared"},
        "entropy": {"image": IMAGE},
        "evaluate": {"run": "runs/shared", "data": "data", "split": "none"},
        "index": {"root": "none", "out": out / "data"},
        "log": {"runs": ["none"], "to": "tensorboard"},
        "minimal": {"image": "none.jpg", "model": "runs/shared", "device": "cpu"},
        "predict": {"run": "runs/shared", "images": "none.jpg"},
        "quotient": {"reduced": IMAGE, "image": IMAGE},
        "read": {"path": "photo.jpg"},
        "reduce": {"image": IMAGE},
        "reproduce": {"config": "none.toml"},
        "train": {"method": "baseline", "run": out / "run", "data": "none"},
        "write_report": {"runs": ["none"], "out": out / "report"},
    }
    found = {name: (getattr(qrdali, name), right[name]) for name in FUNCTIONS}
    schedule = qrdali.Schedule("baseline")
    return found | {
        "Run": (qrdali.Run, {"folder": "runs/shared"}),
        "Run.rows": (qrdali.Run("runs/shared").rows, {"name": "none"}),
        "Dataset.open": (qrdali.Dataset.open, {"folder": "data"}),
        "Dataset.index": (data.index, {"split": "val"}),
        "Loader": (qrdali.Loader, {"split": data["val"], "input_size": 32, "device": "cpu", "threads": 1}),
        "Loader.epoch": (partial(_first_batch, loader), {"number": 0}),
        "Schedule": (qrdali.Schedule, {"method": "linear"}),
        "Schedule.load_state_dict": (schedule.load_state_dict, {"state": schedule.state_dict()}),
    }


@contextmanager
def _kept(messages: list[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        messages.append(str(error))
        raise


def _first_batch(loader: qrdali.Loader, **options: Any) -> Any:
    return next(loader.epoch(**options))


def parameters(name: str) -> list[str]:
    """Returns what a public callable takes, `options` of train aside."""
    value: Any = qrdali
    for part in name.split("."):
        value = getattr(value, part)
    kinds = inspect.Parameter.VAR_KEYWORD
    signature = inspect.signature(value).parameters.values()
    return [one.name for one in signature if one.name != "self" and one.kind is not kinds]


CASES = [
    (name, parameter)
    for name in (
        *FUNCTIONS, "Run", "Run.rows", "Dataset.open", "Dataset.index", "Loader", "Loader.epoch", "Schedule",
        "Schedule.load_state_dict",
    )
    for parameter in parameters(name)
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameter"), CASES, ids=lambda value: str(value))
def test_an_argument_of_the_wrong_kind_is_one_line(
    name: str, parameter: str, in_workplace: Path, tmp_path: Path
) -> None:
    function, right = calls(in_workplace, tmp_path)[name]
    data = qrdali.Dataset.open("data")
    wrong = (
        None,
        3,
        -1.5,
        "no such",
        [],
        [None],
        {"a": MODULE},
        MODULE,
        data,
        data["val"],
        object(),
        b"x",
        True,
    )
    for value in wrong:
        # What is right, or not looked at before another argument is refused, is no matter here.
        with suppress(qrdali.InputError, qrdali.RunError), _kept(message := []):
            function(**{**right, parameter: value})
        assert "\n" not in "".join(message), value
        # The images' root is looked at by a room that knows options alone.
        assert "--" not in "".join(message).partition("`")[0] or parameter == "root", value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: qrdali.evaluate(MODULE, "data"),
            r"run is a Linear, a torch module: give a run \(qrdali.Run\) or its folder; qrdali.adopt makes a "
            "run of a network and its weights, and qrdali.minimal takes a module",
        ),
        (lambda: qrdali.compare("runs/shared", MODULE), "run_b is a Linear, .*: .* qrdali.minimal takes"),
        (lambda: qrdali.predict(MODULE, "photo.jpg"), "run is a Linear, .* qrdali.minimal takes a module"),
        (lambda: qrdali.build_mepi(MODULE, "data", out="o"), "run is a Linear, .* qrdali.minimal takes"),
        (
            lambda: qrdali.write_report([MODULE], out="o"),
            "runs holds a Linear, a torch module: give a list, each item a run .* qrdali.minimal takes",
        ),
        (
            lambda: qrdali.evaluate(qrdali.Dataset.open("data"), "data"),
            r"run is a Dataset: give a run \(qrdali.Run\) or its folder",
        ),
        (lambda: qrdali.evaluate("data", "data"), "it is a data set, which data takes; give the folder"),
        (
            lambda: qrdali.build_mepi("runs/shared", None, out="o"),
            r"data is None: give a data set \(qrdali.Dataset\) or its folder",
        ),
        (
            lambda: qrdali.build_mepi("runs/shared", qrdali.Run("runs/shared"), out="o"),
            "runs/shared is not a data set .*; it is a run",
        ),
        (
            lambda: qrdali.minimal("photo.jpg", 3),
            r"model is 3: give a torch module, a run \(qrdali.Run\) or its folder",
        ),
        (lambda: qrdali.Loader("data", input_size=32), "split is 'data': give an index such as data"),
        (lambda: qrdali.evaluate("runs/shared", threads="2"), "threads is '2': give a whole number or None"),
        (
            lambda: qrdali.evaluate("runs/shared", progress=1),
            "progress is 1: give True or False or a listener",
        ),
        (
            lambda: qrdali.minimal(IMAGE, "runs/shared", device="cpu").save(None),
            "file is None: give a path",
        ),
        (lambda: qrdali.Dataset.open(None), "folder is a NoneType: give the folder of a data set"),
        (lambda: qrdali.Dataset.open("data")["val"].sizes(["a"]), "samples is <U1.*: give rows of the split"),
        (lambda: qrdali.reduce(IMAGE, blur="much"), "blur is 'much': give a number"),
        (
            lambda: qrdali.train("baseline", data="data", run="r", init=MODULE),
            "init is a Linear, a torch module",
        ),
    ],
)
def test_what_to_give_is_said(call: Callable[[], Any], message: str, in_workplace: Path) -> None:
    with pytest.raises(qrdali.InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_and_torch_are_numbers(in_workplace: Path) -> None:
    crop, level = torch.tensor(0.5), tuple(np.array([0, 2, 0]))
    assert qrdali.reduce(IMAGE, crop=crop).shape == qrdali.reduce(IMAGE, crop=0.5).shape  # type: ignore[arg-type]
    assert qrdali.reduce(IMAGE, level=level, seed=np.int64(3)).shape == qrdali.reduce(IMAGE, crop=0.5).shape  # type: ignore[arg-type]
