"""Work in a process of its own, where a crash or a hang is an answer and not an end."""

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
_LONGEST, _MOST = 300, 1 << 20  # characters of a reason; bytes read of what a child wrote

Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Answer:
    """said: the objects the child said before it ended, in order. failure: one line on why it did not end well, or None."""

    said: tuple[dict[str, Any], ...]
    failure: str | None


def run_in_child(function: str, *arguments: object, limit: float) -> Answer:
    """Calls `function` ("package.module:name") with `say` and `arguments` (plain literals) in a new interpreter that has this one's
    import path. It is killed after `limit` seconds; nothing it does can end this process. Never raises."""
    # -c would import from the working directory first, where anything may lie: this process' path replaces that.
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from qrdali.system.subprocess_trial import answer_parent; "
        f"answer_parent({function!r}, {arguments!r}, {math.ceil(limit)})"
    )
    try:
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):  # no pipes: a hung grandchild would keep them open
            failure = _run([sys.executable, "-c", program], out.fileno(), err.fileno(), limit)
            said, complaint = _objects(_read(out.fileno())), _last(_read(err.fileno()))
    except OSError as error:
        return Answer((), _line(f"no process can be started: {error}"))
    if said and "failure" in said[-1]:
        failure = said.pop()["failure"]
    elif failure is not None and failure.startswith("ended") and complaint:
        failure = complaint
    return Answer(tuple(said), None if failure is None else _line(failure))


def answer_parent(function: str, arguments: tuple[Any, ...], limit: int) -> None:
    """The child's side of `ask`: ends the process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected: it leaves no file
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(limit + 1)  # if the parent has gone
    said = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not an answer

    def say(value: dict[str, Any]) -> None:
        os.write(said, json.dumps(value).encode() + b"\n")

    module, _, name = function.partition(":")
    try:
        getattr(importlib.import_module(module), name)(say, *arguments)
    except BaseException as error:  # whatever it is, it is the answer
        say({"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"})
    os._exit(0)  # libraries that fail when they are taken down have nothing to do with the question


def _run(command: list[str], out: int, err: int, limit: float) -> str | None:
    """None if the child ended by itself with status 0, else what happened to it."""
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
    return os.pread(file, _MOST, max(0, size - _MOST))


def _objects(data: bytes) -> list[dict[str, Any]]:
    """The whole lines that are JSON objects: a killed child may leave half a line."""
    found = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found


def _last(data: bytes) -> str:
    lines = [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _line(text: object) -> str:
    line = printable(text)
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"
