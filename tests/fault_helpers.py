"""Runs commands in a process of their own whose file operations fail as on network shares and FUSE."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parent / "files" / "file_system_faults.c"
# Several commands in one process: it takes seconds to import torch.
_PROGRAM = """
import json, sys
from click.testing import CliRunner
from qrdali.cli.main import cli
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(cli, words)
    print(json.dumps([result.exit_code, result.output + (str(result.exception) if result.exception else "")]))
    sys.stdout.flush()
"""


@dataclass(frozen=True)
class Ended:
    """How a command has ended, and all that it has printed."""

    status: int
    text: str


def compiled(folder: Path) -> Path:
    """Returns the library to preload. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build the library with that makes file operations fail")
    library = folder / "file_system_faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"], check=True)
    return library


def environment(library: Path, faults: dict[str, int], below: Path) -> dict[str, str]:
    """Returns the environment of a process in which `faults` (errno by operation) happen to files `below`."""
    words = " ".join(f"{name}={number}" for name, number in faults.items())
    return {**os.environ, "LD_PRELOAD": str(library), "FAULTS": words, "FAULTS_BELOW": str(below)}


def run_all(commands: list[list[object]], env: dict[str, str]) -> list[Ended]:
    """Runs commands one after another in one process."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, words], env=env, capture_output=True, text=True, timeout=280
    )
    ended = [Ended(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(ended) == len(commands), (done.returncode, done.stderr[-2000:])
    return ended
