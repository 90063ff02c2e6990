"""What a GPU test may do to the others of `pytest -m gpu`: nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import os, signal, time
import pytest

pytestmark = pytest.mark.gpu
def test_before(): pass
@pytest.mark.parametrize("time", range(5))
def test_crash(time): os.kill(os.getpid(), signal.SIGSEGV)
@pytest.mark.timeout(3)
def test_hang():
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # as code that waits for a GPU
    time.sleep(100)
@pytest.mark.parametrize("number", range(3))
def test_after(number): assert number
"""
INI = "[pytest]\npythonpath = {tests}\nmarkers = gpu\n"
CONFTEST = "from gpu_isolation import pytest_cmdline_main, pytest_collection_modifyitems\n"


@pytest.mark.timeout(200)
def test_a_crash_and_a_hang_cost_one_result_each(tmp_path: Path) -> None:
    done = inner_pytest(tmp_path, "-m", "(gpu) and not slow")
    results = set(re.findall(r"(PASSED|FAILED) \S+::(\S+)", done))
    assert results == {
        ("PASSED", "test_before"),
        *(("FAILED", f"test_crash[{i}]") for i in range(5)),
        ("FAILED", "test_hang"),
        ("FAILED", "test_after[0]"),
        ("PASSED", "test_after[1]"),
        ("PASSED", "test_after[2]"),
    }


@pytest.mark.parametrize("selected", ["not gpu", ""])
def test_other_selections_have_no_worker(tmp_path: Path, selected: str) -> None:
    done = inner_pytest(tmp_path, "-m", selected, "-k", "before")
    assert "[gw0]" not in done
    assert ("1 passed" in done) == (not selected)


def inner_pytest(folder: Path, *words: str) -> str:
    (folder / "pytest.ini").write_text(INI.format(tests=Path(__file__).parents[1]))
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_inner.py").write_text(TESTS)
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *words],
        cwd=folder,
        env=own,
        capture_output=True,
        text=True,
        timeout=180,
    ).stdout
