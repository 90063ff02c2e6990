"""After a loss of power `last/` must not name levels that never reached the disk."""

import os
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import trainer_of


@pytest.mark.parametrize("feedback", ["probe", "online"])
def test_levels_are_on_the_disk_before_last_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feedback: str
) -> None:
    """Each file of a stage's levels: its content is synced, then it gets its name, then its folder is
    synced."""
    fsync, events, run = os.fsync, list[tuple[str, str]](), tmp_path / "run"

    def noted_fsync(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_relative_to(run):
            events.append(("fsync", str(path.relative_to(run))))
        fsync(handle)

    def note_renames(owner: Any, name: str) -> None:
        rename = getattr(owner, name)

        def noted(source: Path, target: Path) -> Any:
            if Path(target).is_relative_to(run):
                events.append(("rename", f"{Path(source).relative_to(run)} {Path(target).relative_to(run)}"))
            return rename(source, target)

        monkeypatch.setattr(owner, name, noted)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    for owner in (os, Path):
        note_renames(owner, "rename")
        note_renames(owner, "replace")
    values = {"reduction": "crop", "sequence": "R", "patience": 1, "max_epochs": 4, "feedback": feedback}
    trainer_of(run, method="adaptive", **values).train(False)
    saves = [i for i, event in enumerate(events) if event == ("rename", "last.new last")]
    files = sorted(path.name for path in (run / "levels").iterdir())
    kinds = ("levels", "places", "steps") if feedback == "online" else ("levels", "places")
    stages = {name[:4] for name in files}
    assert len(stages) > 1
    assert files == sorted(f"{stage}.{kind}.npy" for stage in stages for kind in kinds)
    for name in files:
        named = next(
            i
            for i, (kind, text) in enumerate(events)
            if kind == "rename" and text.endswith(f" levels/{name}")
        )
        partial = events[named][1].split()[0]
        next_save = next(i for i in saves if i > named)
        # Between the save before and the one that names these levels, in this order.
        previous_save = max((i for i in saves if i < named), default=-1)
        assert ("fsync", partial) in events[previous_save + 1 : named]
        assert ("fsync", "levels") in events[named + 1 : next_save]
