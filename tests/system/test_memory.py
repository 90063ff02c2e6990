"""What goes on for days does not grow the process: benchmarks/memory.py on small pictures."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"
SMALL = (
    "--batches",
    "100",
    "--resets",
    "20",
    "--images",
    "12",
    "--size",
    "96",
    "72",
    "--input-size",
    "128",
    "--batch-size",
    "8",
    "--threads",
    "1",
    "--tolerance",
    "12",
)
KINDS = ("batch", "reset", "rebuild", "reopen", "probe", "search")


def measured(*options: str) -> tuple[int, dict[str, Any]]:
    if not BENCHMARK.exists():
        pytest.skip("needs a checkout")
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *SMALL, *options], capture_output=True, text=True, timeout=300
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.nightly
def test_nothing_grows() -> None:
    status, found = measured()
    assert (status, found["grows"]) == (0, [])
    for kind in KINDS:
        curve = found[kind]
        assert len(curve["resident"]["mb"]) == 20
        # A batch's inputs are 1.5 MB; a pipeline's rebuilding takes DALI some 2 KiB for good.
        assert curve["allocated"]["mb_added"] < 0.5, (kind, curve)


def test_a_leak_is_seen() -> None:
    status, found = measured("--leak", "--only", "reset")
    assert status == 1
    assert "reset, allocated" in found["grows"]
