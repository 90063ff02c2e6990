"""Which level each image has: drawn, or its own on the disk."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from qrdali.errors import RunError
from qrdali.reduction.levels import ConstantLevels, PerImageLevels, RandomLevels, histogram
from qrdali.reduction.quality import COLOR, CROP, QUARTERS, RESOLUTION, Dimensions, LevelScale


def test_drawn_levels_cover_their_range_evenly_and_depend_on_the_epoch() -> None:
    samples = np.arange(4000)
    a, b = (
        RandomLevels(Dimensions(True, False, True), 0, 3, 7, epoch).for_samples(samples) for epoch in (1, 2)
    )
    assert (a[:, COLOR] == a[:, RESOLUTION]).all()
    assert not a[:, CROP].any()
    assert (np.abs(np.bincount(a[:, COLOR], minlength=4) / 4000 - 0.25) < 0.03).all()
    assert 0.6 < (a[:, COLOR] != b[:, COLOR]).mean() < 0.9
    assert (
        RandomLevels(Dimensions(True, False, True), 0, 3, 7, 1).for_samples(samples[100:110]) == a[100:110]
    ).all()


def test_levels_on_disk_come_back_and_damage_is_named(tmp_path: Path) -> None:
    images = PerImageLevels.at_full_quality(10, True, True)
    images.assign(np.array([3]), np.array([[1, 2, 3]], np.uint8), np.array([[5, 6, 7, 8]], np.int32))
    images.save(tmp_path, 2)
    back = PerImageLevels.load(tmp_path, 2, 10, QUARTERS, True, True)
    assert back.for_samples(np.array([3, 4])).tolist() == [[1, 2, 3], [0, 0, 0]]
    origins = back.window_origins(np.array([3]))
    assert origins is not None
    assert origins.tolist() == [[5, 6]]
    assert histogram(back, 10, QUARTERS).tolist() == [[9, 1, 0, 0], [9, 0, 1, 0], [9, 0, 0, 1]]
    assert histogram(ConstantLevels(1, 0, 2), 10, QUARTERS)[RESOLUTION].tolist() == [0, 0, 10, 0]
    with pytest.raises(RunError, match="holds uint8"):
        PerImageLevels.load(tmp_path, 2, 11, QUARTERS, True, True)
    with pytest.raises(RunError, match="outside 0..2"):
        PerImageLevels.load(tmp_path, 2, 10, LevelScale(3), True, True)
    np.save(tmp_path / "0002.levels.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(RunError, match="levels.npy cannot be read"):
        PerImageLevels.load(tmp_path, 2, 10, QUARTERS, True, True)


def test_levels_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`last/`, which is written next, names them: after a loss of power they must be there."""
    events: list[tuple[str, str]] = []
    fsync, folder, recording = os.fsync, tmp_path / "levels", True

    def recorded(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        assert os.path.isdir(path) or os.path.getsize(path) > 0
        events.append(("sync", "folder" if path == str(folder) else os.path.basename(path)))
        fsync(handle)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if recording and event == "os.rename":  # from pathlib too
            events.extend(("rename", os.path.basename(str(path))) for path in arguments[:2])

    monkeypatch.setattr(os, "fsync", recorded)
    sys.addaudithook(audit)
    try:
        PerImageLevels.at_full_quality(10, True, True).save(folder, 7)
    finally:
        recording = False  # a hook cannot be taken away
    names = ["0007.levels.npy", "0007.places.npy", "0007.steps.npy"]
    assert sorted(file.name for file in folder.iterdir()) == names
    for name, written in zip(names, (events[i : i + 4] for i in range(0, len(events), 4)), strict=True):
        partial = written[0][1]
        assert partial != name
        assert written == [("sync", partial), ("rename", partial), ("rename", name), ("sync", "folder")]
