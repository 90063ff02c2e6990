"""The examples in the docstrings of the public names, and those of docs/tutorials, do what they show."""

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qrdali

DOCS = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "python.md"
OBJECTS = sorted(set(qrdali.__all__) - {"__version__", "InputError", "RunError"})
RUNNER_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def names() -> dict[str, Any]:
    return {"qrdali": qrdali, "np": np, "torch": torch, "json": json}


def failures(tests: list[doctest.DocTest]) -> str:
    runner, text = doctest.DocTestRunner(optionflags=RUNNER_FLAGS, verbose=False), []
    for test in tests:
        runner.run(test, out=text.append)
    return "".join(text)


def examples_of(name: str) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder().find(getattr(qrdali, name), name, module=False, globs=names())
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", OBJECTS)
def test_the_example_of_a_docstring_runs(name: str, in_workplace: Path) -> None:
    tests = examples_of(name)
    assert tests, f"{name} has no example"
    assert not failures(tests)


@pytest.mark.parametrize("name", sorted(name for name in qrdali._TYPES if examples_of(name)))
def test_the_example_of_a_type_runs(name: str, in_workplace: Path) -> None:
    assert not failures(examples_of(name))


def test_the_example_of_the_package_runs(in_workplace: Path) -> None:
    test = doctest.DocTestParser().get_doctest(qrdali.__doc__ or "", names(), "qrdali", None, None)
    assert len(test.examples) >= 5
    assert not failures([test])


def test_the_examples_of_the_docs_run(in_workplace: Path) -> None:
    test = doctest.DocTestParser().get_doctest(
        DOCS.read_text("utf-8"), names(), DOCS.name, str(DOCS), lineno=0
    )
    assert len(test.examples) > 10
    assert not failures([test])
