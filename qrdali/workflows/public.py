"""The border of the Python API: arguments of another kind than annotated are refused in one line."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import os
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from qrdali.errors import InputError, printable
from qrdali.workflows.python_words import python_errors

P = ParamSpec("P")
R = TypeVar("R")

_LISTENS = ("begin", "advance", "end", "line", "warn")
# By name, since these modules bring torch with them, or are made of public functions.
_CALLED = {
    "NoneType": "None",
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "Run": "a run (qrdali.Run)",
    "Dataset": "a data set (qrdali.Dataset)",
    "Index": 'an index such as data["train"]',
    "Module": "a torch module",
    "Preprocessing": "a qrdali.Preprocessing",
    "ProgressListener": f"a listener with the methods {', '.join(_LISTENS[:-1])} and {_LISTENS[-1]}",
}
_MOST_ITEMS = 10_000  # of a collection that are looked at
_COUNTS = {2: "two", 3: "three"}
_SHOWN = (str, bool, int, float, NoneType)


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function part of the Python API.

    An argument of another kind than its annotation says raises InputError, naming it and what to give; ranges
    and choices are the function's own matter. Errors are said in Python's words.
    """
    signature = inspect.signature(function)
    own = frozenset(signature.parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # which says it as Python does
        hints = _hints_of(function)
        for name, value in given.items():
            if name not in hints:
                continue
            is_keywords = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            for key, one in value.items() if is_keywords else ((name, value),):
                require_kind(key, one, hints[name])
        with python_errors(own):
            return function(*args, **kwargs)

    return checked


def require_kind(name: str, value: object, hint: Any) -> None:
    """Raises InputError for the argument `name` unless its value is of the kind that an annotation means."""
    if _is(value, hint):
        return
    what, culprit = f"{name} is {_shown(value)}", value
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    items = [get_args(kind)[0] for kind in kinds if get_origin(kind) in (collections.abc.Sequence, tuple)]
    if items and _is_collection(value):
        culprit = next((item for item in _first(value) if not _is(item, items[0])), value)
        what = f"{name} holds {_shown(culprit)}"
    raise InputError(f"{what}: give {_wanted(kinds, culprit)}")


@functools.cache
def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the types of a function's parameters; types of results may not be imported here."""
    parameters = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    return get_type_hints(SimpleNamespace(__annotations__=parameters), function.__globals__)


def _is(value: object, hint: Any) -> bool:
    """Returns whether a value is of the kind that an annotation means; of kinds not known here it is."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_is(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(choice) for choice in inner) or value in inner
    if origin is collections.abc.Mapping:
        return isinstance(value, collections.abc.Mapping) and all(
            _is(key, inner[0]) and _is(item, inner[1]) for key, item in value.items()
        )
    if origin in (collections.abc.Sequence, tuple):
        return _is_collection(value) and all(_is(item, inner[0]) for item in _first(value))
    if origin is collections.abc.Callable:
        return callable(value)
    if origin is os.PathLike:
        return isinstance(value, os.PathLike)
    if origin is np.ndarray:  # of numbers that anything like an array may hold, but for images
        return isinstance(value, np.ndarray) or np.dtype[np.uint8] not in inner
    if getattr(hint, "__name__", "") == "ProgressListener":  # a Protocol, which isinstance does not know
        return all(callable(getattr(value, name, None)) for name in _LISTENS)
    return _is_of_class(value, hint) if inspect.isclass(hint) else True


def _is_of_class(value: object, kind: type) -> bool:
    is_flag = isinstance(value, bool | np.bool_)
    if kind is bool:
        return is_flag
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real)
        # A tensor or an array of one number is one, too.
        is_scalar = getattr(value, "ndim", None) == 0 and hasattr(value, "__float__")
        return not is_flag and (number or (kind is float and is_scalar))
    return isinstance(value, kind)


def _is_collection(value: object) -> bool:
    is_text = isinstance(value, str | bytes | collections.abc.Mapping)
    return isinstance(value, collections.abc.Collection) and not is_text and not _is_module(value)


def _first(value: Any) -> Iterable[Any]:
    return (item for _, item in zip(range(_MOST_ITEMS), value, strict=False))


def _is_module(value: object) -> bool:
    """Returns whether a value is a torch module; torch is not imported for it."""
    return any(
        f"{kind.__module__}.{kind.__name__}" == "torch.nn.modules.module.Module"
        for kind in type(value).__mro__
    )


def _shown(value: object) -> str:
    if isinstance(value, _SHOWN):
        return printable(repr(value))[:80]
    kind = f"a {printable(type(value).__name__)[:80]}"
    return f"{kind}, a torch module" if _is_module(value) else kind


def _wanted(kinds: tuple[Any, ...], value: object) -> str:
    """Returns what to give for one of `kinds`, and where a value such as this belongs instead."""
    words = list(dict.fromkeys(word for kind in kinds if (word := _word(kind, kinds))))
    text = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    if _is_module(value) and "qrdali.Run" in text:
        text += "; qrdali.adopt makes a run of a network and its weights, and qrdali.minimal takes a module"
    return text


def _word(kind: Any, others: tuple[Any, ...]) -> str:
    """Returns what a kind is called, "" for one that another of `others` says with it."""
    origin, inner = get_origin(kind), get_args(kind)
    is_path = any(get_origin(other) is os.PathLike for other in others)
    if origin is os.PathLike or (kind is str and is_path):
        return "its folder" if {"Run", "Dataset"} & set(map(_name, others)) else "a path"
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is tuple and len(inner) in _COUNTS:
        return f"{_COUNTS[len(inner)]} {'whole numbers' if int in inner else 'numbers'}"
    if origin in (collections.abc.Sequence, tuple):
        inside = get_args(inner[0]) if get_origin(inner[0]) in (Union, UnionType) else (inner[0],)
        names = dict.fromkeys(word for item in inside if (word := _word(item, inside)))
        return f"a list, each item {' or '.join(names)}"
    if origin is collections.abc.Mapping:
        return f"a dict of {'numbers' if inner[1] is float else 'paths'} by name"
    if origin is np.ndarray:
        return "a numpy array, uint8 [H, W, 3]"
    return _CALLED.get(_name(kind), f"a {_name(kind)}")


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))
