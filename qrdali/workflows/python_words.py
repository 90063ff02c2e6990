"""Says messages in Python's words: rooms below write them for the command line, as options.

--patience 0 …                          patience 0 …
continue it with --resume               continue it with resume=True
--no-restore-best                       restore_best=False
`qrdali data index ROOT --out FOLDER`   as it is: a command to be typed
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from qrdali.errors import InputError, RunError

if TYPE_CHECKING:
    from qrdali.interfaces import ProgressListener

# Commands, in backquotes or not, then options.
_PARTS = re.compile(r"`[^`]*`|\bqrdali [a-z][^`;:,]*|(?<![\w-])(--[a-z][a-z0-9-]*)( (?=[A-Z]+\b(?!=)))?")
_OTHERWISE = {"--set": "sets", "--suite": "suites", "--track-set": "track_sets"}
_FUNCTIONS = ("adopt", "build_mepi", "compare", "evaluate", "index", "log", "predict", "reproduce", "train")


@contextmanager
def python_errors(own: Set[str] = frozenset()) -> Iterator[None]:
    """Says InputErrors and RunErrors of the block in Python's words. own: parameters of what was called."""
    try:
        yield
    except (InputError, RunError) as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (python_words(error.args[0], own), *error.args[1:])
        raise


def python_words(text: str, own: Set[str] = frozenset()) -> str:
    """Returns a message with the names of parameters in place of options.

    own: parameters of the function that was called, which win over others' of a like name. Options that no
    function has, such as docker's, stay.
    """

    def replaced(match: re.Match[str]) -> str:
        option = match[1]
        if option is None:
            return match[0]
        name = option.removeprefix("--").replace("-", "_")
        word = name if name in own and name not in _flags() else _words().get(option)
        return match[0] if word is None else f"{word}=" if match[2] else word

    return _PARTS.sub(replaced, text).replace("the same command with", "the same call with")


@cache
def _words() -> dict[str, str]:
    """Returns what stands for each option: of settings, then of the functions' parameters."""
    from qrdali.runs.setting_table import Kind, settings_table
    from qrdali.runs.settings import Settings
    from qrdali.workflows import jobs

    words: dict[str, str] = {}
    for function in _FUNCTIONS:
        for name, parameter in inspect.signature(getattr(jobs, function)).parameters.items():
            if name == "gpus":  # in messages it is docker's option, but for those of `reproduce` itself
                continue
            option = name.replace("_", "-")
            words[f"--{option}"] = f"{name}=True" if parameter.default is False else name
            if parameter.default is True:
                words[f"--no-{option}"] = f"{name}=False"
    for setting in settings_table(Settings).values():
        words[setting.flag] = setting.name
        if setting.kind is Kind.FLAG:
            words[setting.flag] = f"{setting.name}={not setting.is_negated}"
        if setting.option is not None and setting.option.is_pair:
            words[f"--no-{setting.flag.removeprefix('--')}"] = f"{setting.name}=False"
    return words | _OTHERWISE


@cache
def _flags() -> frozenset[str]:
    return frozenset(word.partition("=")[0] for word in _words().values() if "=" in word)


class PythonListener:
    """Hands a job's progress on to the caller's listener, lines and warnings in Python's words."""

    def __init__(self, listener: ProgressListener) -> None:
        self._listener = listener
        self.begin, self.advance, self.end = listener.begin, listener.advance, listener.end

    def line(self, text: str) -> None:
        """Hands on what has happened."""
        self._listener.line(python_words(text))

    def warn(self, text: str) -> None:
        """Hands on a warning."""
        self._listener.warn(python_words(text))
