"""Does a task of a matrix in several processes of this host, which torchrun starts: a rank for each GPU.

The worker that has the task starts torchrun (`rank_agent.py`), hands on what the ranks print, and stops them
by SIGTERM, which torchrun hands on to them, whatever signal it has got itself. The ranks
(`qrdali/cli/rank_task.py`) do the task by `perform_as_group`, and the first writes down what came of it.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from qrdali.errors import InputError, Interrupted, RunError
from qrdali.experiment.tasks import Task, Tasks
from qrdali.files.json_objects import read_object
from qrdali.interfaces import JobControl

TASK, RESULT = "task.json", "result.json"
RANKS_MODULE = "qrdali.cli.rank_task"
_POLL_SECONDS = 0.2
# In which ranks may save after SIGTERM, before torchrun kills them.
_SAVE_SECONDS = 300
_TORCHRUN_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


def perform_in_ranks(tasks: Tasks, task: Task, control: JobControl) -> dict[str, Any] | None:
    """Does a task in as many processes as its network has `gpus`; returns what is to be noted.

    Raises Interrupted after a signal, when the ranks have saved; InputError or RunError as the ranks did.
    """
    with TemporaryDirectory(prefix="qrdali-") as folder:
        ranks = _Ranks(tasks, task, Path(folder))
        try:
            signum = ranks.follow(control)
        except BaseException:  # another worker has the task, or a second Ctrl-C
            ranks.end()
            raise
        return ranks.result(signum)


class _Ranks:
    """Is torchrun and its ranks."""

    def __init__(self, tasks: Tasks, task: Task, folder: Path) -> None:
        count = tasks.gpus(task)
        matrix = tasks.matrix.model_dump(mode="json")
        if threads := matrix["train"].get("threads"):
            matrix["train"]["threads"] = max(1, int(threads) // count)  # of each process
        values = {"matrix": matrix, "data": str(tasks.data), "task": task.key}
        (folder / TASK).write_text(json.dumps(values), encoding="utf-8")
        self._task, self._result = task, folder / RESULT
        environment = {name: value for name, value in os.environ.items() if name not in _TORCHRUN_NAMES}
        words = [str(os.getpid()), "--standalone", "--nproc-per-node", str(count)]
        words += ["--shutdown-timeout", str(_SAVE_SECONDS), "-m", "--", RANKS_MODULE, str(folder)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qrdali.workflows.rank_agent", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C comes to the worker alone
        )
        assert self._process.stderr is not None
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def follow(self, control: JobControl) -> int:
        """Hands on what the ranks print until they have ended; returns the signal that stopped them, or 0."""
        signum, is_open = 0, True
        while is_open or self._process.poll() is None:
            try:
                line = self._lines.get(timeout=_POLL_SECONDS)
                is_open = line is not None
                if line:
                    control.listener.line(line)
            except queue.Empty:
                pass
            if not signum and (signum := control.stop()):
                self._process.terminate()
        return signum

    def end(self) -> None:
        """Stops the ranks, with a save if they can."""
        self._process.terminate()
        try:
            self._process.wait(_SAVE_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()

    def result(self, signum: int) -> dict[str, Any] | None:
        """Returns what is to be noted. signum: the signal that stopped the ranks, 0 for none."""
        result = read_object(self._result) if self._result.exists() else {}
        if "note" in result and self._process.returncode == 0:
            note = result["note"]
            return note if isinstance(note, dict) else None
        if signum:
            raise Interrupted(f"{self._task.key} was stopped", signum)
        if "error" in result:
            raise (InputError if result.get("final") else RunError)(str(result["error"]))
        raise RunError(
            f"its processes ended with status {self._process.returncode}: what they printed says why"
        )
