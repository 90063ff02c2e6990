"""benchmarks/peers.py: what it measures of the peers that are installed, and how it counts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ALWAYS = ["qrdali", "decode alone", "plain DALI", "torchvision, Pillow", "torchvision.io"]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peers  # type: ignore[import-not-found, unused-ignore]

    return peers


@pytest.mark.slow
def test_eight_images_through_the_peers_that_are_there(peers: ModuleType, tmp_path: Path) -> None:
    options = ["--images", "8", "--rounds", "2", "--threads", "1", "--batch-size", "3", "--input-size", "96"]
    file = tmp_path / "peers.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "peers.py"), *options, "--json", str(file)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    for name in ALWAYS:
        assert f"{name}: ready" in done.stderr
        assert name not in result["skipped"]
    for name, peer in peers.PEERS.items():
        if peers.missing_packages(peer):
            assert "is not installed: pip install" in result["skipped"][name]
            assert f"{name}: {result['skipped'][name]}" in done.stderr
    assert (result["images"], result["rounds"], result["threads"], result["batch_size"]) == (8, 2, 1, 3)
    measured = result["images_per_second"]
    assert {*ALWAYS, "qrdali color", "qrdali combination", "torchvision, Pillow combination"} <= set(measured)
    for speed in (*measured.values(), *result["speed_ratio"].values()):
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert all(row["median"] > 0 for row in result["cpu_seconds_per_1000_images"].values())
    assert set(result["time_reduced_over_full"]) == {"color", "crop", "resolution", "combination"}
    assert set(result["output_shape"]) == set(measured) - {"decode alone"}
    assert all(shape == [3, 96, 96] for shape in result["output_shape"].values())
    # torch's resize of bytes, which ours is, differs from Pillow's by a level here and there.
    assert result["pixels"]["torchvision, Pillow"]["max_difference"] == 0
    assert result["pixels"]["qrdali"]["max_difference"] <= 1
    assert result["pixels"]["qrdali"]["mean_difference"] <= 0.02
    assert result["command"].startswith("python benchmarks/peers.py --images 8 --rounds 2")
    assert {"cpu", "cores", "torch", "dali"} <= set(result["machine"])
    assert {"Pillow", "torchvision"} <= set(result["versions"])


def row(seconds: float, cpu: float) -> dict[str, float]:
    return {"images": 100, "seconds": seconds, "cpu_seconds": cpu}


def test_figures_worked_by_hand(peers: ModuleType) -> None:
    found = peers.summary(
        {
            "qrdali": [row(1, 2), row(2, 2.5), row(4, 2)],
            "qrdali combination": [row(0.5, 1), row(2, 1), row(3, 1)],
            "decode alone": [row(0.5, 1), row(1.5, 1), row(1, 1)],
            "cv2 + DataLoader": [row(3, 6), row(3, 6), row(3, 6)],
            "cv2 + DataLoader combination": [row(1, 6), row(1, 6), row(1, 6)],
        }
    )
    assert found["images_per_second"]["qrdali"] == {"median": 50, "min": 25, "max": 100}
    assert found["cpu_seconds_per_1000_images"]["qrdali"] == {"median": 20, "min": 20, "max": 25}
    # Of the same round: 3 ÷ 1, 3 ÷ 2, 3 ÷ 4; the ratio of the medians would be another.
    assert found["speed_ratio"] == {
        "decode alone": {"median": 0.5, "min": 0.25, "max": 0.75},
        "cv2 + DataLoader": {"median": 1.5, "min": 0.75, "max": 3},
    }
    assert found["cpu_time_ratio"]["cv2 + DataLoader"] == {"median": 3, "min": 2.4, "max": 3}
    assert found["share_of_decode_alone"]["qrdali"]["median"] == 0.5
    assert found["time_reduced_over_full"] == {"combination": {"median": 0.75, "min": 0.5, "max": 1}}
    assert found["speed_ratio_combination"] == {"cv2 + DataLoader": {"median": 0.5, "min": 0.333, "max": 2}}


def test_distance_is_in_levels(peers: ModuleType) -> None:
    reference = np.full((1, 3, 2, 2), 100, np.uint8)
    levels = reference.astype(np.float64)
    levels[0, 1, 0, 0] = 103
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (peers.MEAN, peers.STD))
    batch = ((levels / 255 - mean) / std).astype(np.float32)
    assert peers.distance(batch, reference) == {"mean_difference": 0.25, "max_difference": 3.0}


def test_what_cannot_be_measured_is_said(peers: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert [peers.classes_of(images) for images in (2, 8, 17 * 3, 2048)] == [2, 8, 3, 16]
    for words, reason in (
        (["--images", "17"], "--images is 17: choose a multiple of 16"),
        (["--images", "0"], "--images is 0"),
        (["--rounds", "0"], "--rounds is 0: give 1 or more"),
        (["--batch-size", "-3"], "--batch-size is -3"),
    ):
        with pytest.raises(SystemExit):
            peers.arguments(words)
        assert reason in capsys.readouterr().err


def test_a_missing_package_is_named(peers: ModuleType) -> None:
    absent = peers.PEERS["SPDL"]._replace(packages=("json", "no_such_package.part", "no_such_module"))
    assert peers.missing_packages(absent) == ["no_such_package.part", "no_such_module"]


def test_a_peer_that_fails_is_skipped_with_its_reason(
    peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, task: object) -> None:
        raise RuntimeError(f"{name} has no FFmpeg")

    monkeypatch.setattr(peers, "start", fail)
    task = peers.Task(tmp_path, [], 32, 4, 1)
    with peers.servers(["torchvision.io"], task) as (found, skipped):
        assert found == {}
        assert skipped == {"torchvision.io": "torchvision.io has no FFmpeg"}
    # Without ours there is nothing to compare.
    with pytest.raises(RuntimeError, match="qrdali has no FFmpeg"), peers.servers(["qrdali"], task):
        pass


def test_each_round_begins_with_another_loader(peers: ModuleType) -> None:
    asked: list[tuple[str, int]] = []

    class Fake:
        def __init__(self, *kinds: str) -> None:
            self.kinds = list(kinds)

        def run(self, kind: str, number: int) -> dict[str, float]:
            asked.append((kind, number))
            return row(number, 1)

    rows = peers.measure({"a": Fake("a", "a reduced"), "b": Fake("b")}, 4)
    assert [kind for kind, number in asked if number == 1] == ["a reduced", "b", "a"]
    assert [kind for kind, number in asked if number == 2] == ["b", "a", "a reduced"]
    assert [kind for kind, number in asked if number == 3] == ["a", "a reduced", "b"]
    assert [found["seconds"] for found in rows["b"]] == [1, 2, 3, 4]
