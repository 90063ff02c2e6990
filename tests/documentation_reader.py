"""Does what pages of documentation show, as a reader would, in a folder of its own.

`qrdali` takes seconds to import what it needs. So its commands are run in children of one process that has
imported all of it; whatever needs a shell (pipes, redirections, other programs) gets one. Python is run in
another process, which keeps its names from block to block.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from documentation_pages import ROOT, Block

_INTERPRETER = """
import json, sys, traceback
names = {"__name__": "__main__"}
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    try:
        exec(compile(json.loads(line), "block", "exec"), names)
        answer = ""
    except BaseException:
        answer = traceback.format_exc()
    print(json.dumps(answer), file=answers, flush=True)
"""
# Children are forked before this process has any thread: it imports and does nothing else.
_COMMANDS = """
import json, os, sys, tempfile
import torch, timm, pyarrow.parquet, scipy.stats, nvidia.dali.fn
import qrdali.cli.train, qrdali.workflows.jobs, qrdali.pipelines.loader
from qrdali.cli.exit_status import run_and_exit
from qrdali.cli.main import cli
for line in sys.stdin:
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            status = 70  # of an error that no command turns into a status
            try:
                for number in (1, 2):
                    os.dup2(output.fileno(), number)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                sys.argv = ["qrdali", *json.loads(line)]
                try:
                    run_and_exit(cli)
                except SystemExit as ended:
                    status = ended.code if isinstance(ended.code, int) else 1
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        said = output.read().decode(errors="replace")
    print(json.dumps({"status": status, "said": said}), flush=True)
"""


class Reader:
    """Runs the blocks of a page in `folder`. A context: its processes end with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "80",
        }
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.communicate()

    def read(self, block: Block) -> None:
        """Runs a block. Raises AssertionError, with its place and output, if a part of it fails."""
        if block.language == "python":
            problem = self._ask(_INTERPRETER, block.text)
            assert not problem, f"{block.place}:\n{problem}"
            return
        assert block.commands, f"{block.place} has no command: one stands behind '$ '"
        for command in block.commands:
            status, said = self._run(command)
            assert status == 0, f"{block.place}: $ {command}\n{said[-3000:]}"

    def _run(self, command: str) -> tuple[int, str]:
        if re.match(r"qrdali\s", command) and not needs_a_shell(command):
            words = self._shell(f'show() {{ printf "%s\\0" "$@"; }}; show {command}').stdout
            answer = self._ask(_COMMANDS, words.split("\0")[1:-1])
            return int(answer["status"]), str(answer["said"])
        ended = self._shell(command)
        return ended.returncode, ended.stdout + ended.stderr

    def _shell(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{command}"],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def _ask(self, program: str, question: Any) -> Any:
        """Returns the answer of a process that runs `program`, which is started at the first question."""
        if program not in self._processes:
            self._processes[program] = subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        process = self._processes[program]
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(question), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        assert answer, f"the process for {question!r} has died"
        return json.loads(answer)


def needs_a_shell(command: str) -> bool:
    """Returns whether a command has pipes, redirections or several parts."""
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    return any(set(word) <= set("|&;<>()") for word in lexer)
