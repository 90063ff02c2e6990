"""Threads of a pool hand CUDA tensors to DALI: over a stand-in driver, for CI has no GPU.

What the stand-in cannot show is what a real driver does after the documented rule.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qrdali.data.index import Dataset

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda that has contexts per thread and nothing else."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to make the stand-in driver with")
    folder = tmp_path_factory.mktemp("driver")
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command += ["-o", str(folder / "libcuda.so.1"), str(HERE / "cuda_stand_in.c")]
    compiled = subprocess.run(command, capture_output=True, text=True)
    if compiled.returncode:
        pytest.skip(f"the stand-in driver cannot be compiled: {compiled.stderr[-300:]}")
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    return folder


def reduced(driver: Path, dataset: Dataset, device_id: int, stream: str) -> dict[str, Any]:
    """What becomes of `reduced_images` in a pool's thread: the error, and the contexts made current."""
    done = subprocess.run(
        [sys.executable, str(HERE / "cuda_thread_child.py"), str(dataset.folder), str(device_id), stream],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_on_the_default_stream_the_driver_refuses(driver: Path, dataset: Dataset) -> None:
    """This is why the reducer has a stream of its own. If it fails, DALI asks otherwise by now."""
    answer = reduced(driver, dataset, 0, "default")
    assert "CUDA_ERROR_INVALID_CONTEXT (201)" in answer["error"]
    assert answer["pushes"] == [0, 0]


@pytest.mark.parametrize("device_id", [0, 1])
def test_on_a_stream_of_its_own_dali_takes_them_in_the_context_of_its_gpu(
    driver: Path, dataset: Dataset, device_id: int
) -> None:
    answer = reduced(driver, dataset, device_id, "own")
    # DALI's binding has taken the tensors; it hands them to a pipeline that has no such input.
    assert "Could not find an input operator" in answer["error"]
    assert answer["pushes"] == [int(device_id == 0), int(device_id == 1)]
