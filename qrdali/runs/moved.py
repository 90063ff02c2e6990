"""Tells paths of a run's settings that have moved from settings that have changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qrdali.errors import RunError
from qrdali.runs import configuration
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import Settings

_STARTS = ("init", "match")


def moved_paths(
    run: Path, settings: Settings, before: Mapping[str, Any], images: Mapping[str, Mapping[str, str]]
) -> set[str]:
    """Returns which of data, init and match name the same as when the run began, in another place.

    before: the settings that the run was begun with. images: the fingerprints of the training and the
    validation images that `settings.data` has now, as `Index.fingerprints` gives them, by split. Images are
    the same if a recorded fingerprint of each split agrees; a run that is started from is the same if the
    recorded digest of its own chain of settings and images does. All three may be elsewhere in a run of
    which nothing is recorded or saved yet: it begins anew.
    """
    first = None
    if (run / "metrics.jsonl").exists():
        try:
            first = next(iter(run_folder.metrics_rows(run)), None)
        except RunError:  # whoever goes on with the run says what is wrong
            return set()
    if first is None:
        return set() if run_folder.has_checkpoint(run) else {"data", *_STARTS}
    moved = {"data"} if settings.data != before.get("data") and _same_images(run, first, images) else set()
    differing = [key for key in _STARTS if getattr(settings, key) != before.get(key)]
    if differing and isinstance(recorded := first.get("chain"), dict):
        now = configuration.chain_of(settings).model_dump(exclude_defaults=True)
        moved |= {key for key in differing if key in now and now[key] == recorded.get(key)}
    return moved


def _same_images(run: Path, first: dict[str, Any], images: Mapping[str, Mapping[str, str]]) -> bool:
    recorded = first.get("fingerprints")
    if not isinstance(recorded, dict):  # of a version before
        return configuration.recorded_index(run) in images.get("train", {}).values()
    for split, now in images.items():
        known = recorded.get(split)
        values = known.values() if isinstance(known, dict) else ()
        if not {value for value in values if isinstance(value, str) and value} & {*now.values()}:
            return False
    return bool(images)
