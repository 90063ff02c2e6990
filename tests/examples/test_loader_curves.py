"""benchmarks/loader_curves.py: its points, and what it writes of two small ones."""

import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def loader_curves(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import loader_curves  # type: ignore[import-not-found, unused-ignore]

    return loader_curves


def test_one_thing_at_a_time_differs(loader_curves: ModuleType) -> None:
    curves = loader_curves.curves(4, 1.0)
    assert list(curves["threads"]) == ["1", "2", "4"]
    assert list(curves["images"]) == ["104", "520", "1024", "5000", "20000"]
    base = curves["input_size"]["224"]
    assert base == loader_curves.Point(threads=2, width=500, side=224, batch=32, images=1024)
    for name, points in curves.items():
        assert base in points.values(), name
        for point in points.values():
            differing = [field for field in base._fields if getattr(point, field) != getattr(base, field)]
            # Large images are fewer.
            assert len(differing) <= (2 if name == "image_size" else 1), (name, point)


@pytest.mark.slow
def test_two_small_points(loader_curves: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = loader_curves.Point(threads=1, width=500, side=32, batch=8, images=16)
    more = point._replace(images=40)
    monkeypatch.setattr(
        loader_curves, "curves", lambda cores, scale: {"threads": {"1": point}, "images": {"40": more}}
    )
    # Of fewer files than images: the others are links.
    monkeypatch.setattr(loader_curves, "PICTURES", {500: (375, 16, 16)})
    loader_curves.main(["--rounds", "2", "--json", str(tmp_path / "curves.json")])
    result = json.loads((tmp_path / "curves.json").read_text())
    assert result["rounds"] == 2
    assert result["curves"]["images"]["40"]["images"] == 40
    for curve in result["curves"].values():
        for row in curve.values():
            for loader in ("qrdali", "decode alone"):
                assert 0 < row["images_per_second"][loader]["min"] <= row["images_per_second"][loader]["max"]
            assert row["share_of_decode_alone"]["median"] > 0
            assert row["cpu_seconds_per_1000_images"]["qrdali"]["median"] > 0
    assert result["command"].startswith("python benchmarks/loader_curves.py --rounds 2")


def test_a_share_is_of_the_same_round(loader_curves: ModuleType) -> None:
    taken = loader_curves.Taken
    found = loader_curves.summary(
        {
            "qrdali": [taken(1.0, 2.0), taken(4.0, 2.5), taken(6.0, 2.0)],
            "decode alone": [taken(2.0, 1.0), taken(4.0, 2.0), taken(24.0, 1.5)],
        }
    )
    assert found["share_of_decode_alone"] == {"median": 0.5, "min": 0.25, "max": 1.0}
    assert found["share_of_decode_alone_by_cpu_time"] == {"median": 0.75, "min": 0.5, "max": 0.8}
    assert found["images_per_second"]["qrdali"] == {"median": 4.0, "min": 1.0, "max": 6.0}
    assert found["cpu_seconds_per_1000_images"]["decode alone"] == {"median": 1.5, "min": 1.0, "max": 2.0}
