"""Every type that the public functions and classes take or return is public itself, under its own name."""

import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import torch

import qrdali

NAMES = sorted({*qrdali.__all__, *qrdali._TYPES} - {"__version__"})
PROTOCOL = ("__init__", "__getitem__", "__iter__", "__next__")
VALUES = ("Settings",)  # whose fields are numbers, texts and lists, and whose methods are not for callers


class Public(dict[str, Any]):
    """Names as annotations use them: what is imported for type checkers alone must be of `qrdali`."""

    def __missing__(self, name: str) -> Any:
        if name not in NAMES:
            raise KeyError(name)
        return getattr(qrdali, name)


def functions_of(value: Any) -> Iterator[Any]:
    """Yields a function itself, or the public methods and properties of a class."""
    if not inspect.isclass(value):
        yield value
        return
    if value.__name__ in VALUES or issubclass(value, Exception):
        return
    for name, member in vars(value).items():
        function = next(
            (getattr(member, part) for part in ("fget", "__func__", "func") if hasattr(member, part)), member
        )
        if inspect.isfunction(inspect.unwrap(function)) and (name in PROTOCOL or not name.startswith("_")):
            yield inspect.unwrap(function)


def types_in(hint: Any) -> Iterator[type]:
    parts = [hint, typing.get_origin(hint), *typing.get_args(hint)]
    for part in parts[1:]:
        if isinstance(part, list):
            for one in part:
                yield from types_in(one)
        elif part is not None and part is not hint:
            yield from types_in(part)
    if inspect.isclass(hint):
        yield hint


def types_of(value: Any) -> set[type]:
    """Returns the types of qrdali in the annotations of a public function, or of a class and its methods."""
    names = Public(pa=pa, torch=torch, nn=torch.nn)
    annotated = [*functions_of(value), *([value] if inspect.isclass(value) else [])]
    hints = [hint for one in annotated for hint in typing.get_type_hints(one, localns=names).values()]
    return {
        found for hint in hints for found in types_in(hint) if found.__module__.partition(".")[0] == "qrdali"
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name not in VALUES])
def test_every_type_of_an_annotation_is_public(name: str) -> None:
    for found in types_of(getattr(qrdali, name)):
        assert found.__name__ in NAMES, f"{name} speaks of {found.__module__}.{found.__name__}"
        assert getattr(qrdali, found.__name__) is found


def test_the_types_of_some_functions() -> None:
    """What the test above rests on: it would pass if nothing were found."""
    assert {found.__name__ for found in types_of(qrdali.evaluate)} == {"Run", "Dataset", "ProgressListener"}
    assert "Preprocessing" in {found.__name__ for found in types_of(qrdali.minimal)}
    assert {found.__name__ for found in types_of(qrdali.Schedule)} == {"Epoch", "ScheduleEvent"}
    assert {found.__name__ for found in types_of(qrdali.MinimalStep)} == {
        "StepLevels", "StepQualities", "Window"
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_docstring_can_be_typed(name: str) -> None:
    value = getattr(qrdali, name)
    for one in {value, *functions_of(value)}:
        for found in re.findall(r"\bqrdali((?:\.\w+)+)", one.__doc__ or ""):
            first, *rest = found[1:].split(".")
            assert first in NAMES, f"{name}: qrdali{found}"
            owner = getattr(qrdali, first)
            assert not rest or hasattr(owner, rest[0]), f"{name}: qrdali{found}"


def test_a_type_does_not_lengthen_the_help_of_the_package() -> None:
    assert not set(qrdali._TYPES) & set(qrdali.__all__)
    assert set(qrdali._TYPES) <= set(dir(qrdali))
    for name in qrdali._TYPES:
        summary = (getattr(qrdali, name).__doc__ or "").partition("\n\n")[0]
        assert summary
        assert "\n" not in summary
        assert re.search(rf"\b{name}\b", qrdali.__doc__ or ""), f"{name} is not in help(qrdali)"
