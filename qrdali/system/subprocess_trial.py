"""Runs a function in a subprocess so that crashes and hangs become results."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qrdali.errors import printable

_KILL_SECONDS = 5.0  # a killed process that has not ended by then hangs in the kernel
_LONGEST = 300  # characters of a reason
_MAX_BYTES = 1 << 20  # that are read of a child's output

Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Answer:
    """Holds what a child has done.

    said: the objects that it wrote before it ended, in order. failure: one line on why it did not end well,
    or None.
    """

    said: tuple[dict[str, Any], ...]
    failure: str | None


def run_in_child(function: str, *arguments: object, limit: float) -> Answer:
    """Calls `function` ("package.module:name") with `say` and `arguments` in a new interpreter; never raises.

    `arguments` are plain literals; `say` writes one result, a JSON object. The child has this process's
    import path and is killed after `limit` seconds; nothing it does can end this process.
    """
    # -c would import from the working directory first, where anything may lie: this process's path replaces
    # that.
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from qrdali.system.subprocess_trial import answer_parent; "
        f"answer_parent({function!r}, {arguments!r}, {math.ceil(limit)})"
    )
    try:
        # Files and no pipes: a hung grandchild would keep a pipe open.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            failure = _run([sys.executable, "-c", program], out.fileno(), err.fileno(), limit)
            said = _objects(_read(out.fileno()))
            last_error_line = _last_line(_read(err.fileno()))
    except OSError as error:
        return Answer((), _line(f"no process can be started: {error}"))
    if said and "failure" in said[-1]:
        failure = said.pop()["failure"]
    elif failure is not None and failure.startswith("ended") and last_error_line:
        failure = last_error_line
    return Answer(tuple(said), None if failure is None else _line(failure))


def answer_parent(function: str, arguments: tuple[Any, ...], limit: int) -> None:
    """Runs the child's side of `run_in_child`, and ends the process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected: it leaves no core file
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(limit + 1)  # if the parent has gone
    results = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not a result

    def say(value: dict[str, Any]) -> None:
        os.write(results, json.dumps(value).encode() + b"\n")

    module, _, name = function.partition(":")
    try:
        getattr(importlib.import_module(module), name)(say, *arguments)
    except BaseException as error:  # whatever it is, it is the result
        say({"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"})
    os._exit(0)  # without the libraries' own cleanup, whose failures would hide the result


def _run(command: list[str], out: int, err: int, limit: float) -> str | None:
    """Returns None if the child ended by itself with status 0, else what happened to it."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
    )
    try:
        status = child.wait(limit)
    except subprocess.TimeoutExpired:
        return f"no answer within {limit:g} s"
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_KILL_SECONDS)
    if status < 0:
        return f"crashed: {_signal(-status)}"
    return f"ended with status {status}" if status else None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _read(file: int) -> bytes:
    size = os.fstat(file).st_size
    return os.pread(file, _MAX_BYTES, max(0, size - _MAX_BYTES))


def _objects(data: bytes) -> list[dict[str, Any]]:
    """Returns the JSON objects among the lines; a killed child may leave half a line."""
    objects = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                objects.append(value)
    return objects


def _last_line(data: bytes) -> str:
    lines = [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _line(text: object) -> str:
    line = printable(text)
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"
