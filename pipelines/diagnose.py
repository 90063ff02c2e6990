"""Finds which file a failure of DALI is about, and why: DALI's own message seldom names it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qrdali.data import storage
from qrdali.data.index import Index
from qrdali.data.inspect import MAX_PIXELS, inspect_file, quiet_pillow
from qrdali.errors import RunError, printable


def diagnose(index: Index, error: RuntimeError, samples: Iterable[int]) -> dict[int, str]:
    """Returns which of `samples`, those in flight at a pipeline's `error`, cannot be read, and why.

    Raises RunError if none of them is the cause; an error that is a RunError already is the source's own, no
    file's fault.
    """
    if isinstance(error, RunError):
        raise error from None
    reasons = {sample: reason for sample in samples if (reason := why_unreadable(index, sample))}
    if not reasons:
        raise RunError(one_line_error(error)) from None
    return reasons


def why_unreadable(index: Index, sample: int) -> str | None:
    """Returns why an indexed image cannot be read any more, naming it, or None if it can."""
    number = np.array([sample])
    path = index.paths(number)[0]
    if not storage.exists(path):
        return (
            f"sample {sample}, {printable(path)}, is gone since it was indexed: restore it, say by "
            "--root OLD=NEW where it is now, or index again"
        )
    height, width = index.sizes(number)[0].tolist()
    quiet_pillow()
    inspected = inspect_file(path, verify=True, max_pixels=max(MAX_PIXELS, height * width))
    if inspected.reason:
        return f"sample {sample}, {printable(path)}, cannot be decoded: {inspected.reason}"
    if (inspected.width, inspected.height) != (width, height):
        return (
            f"sample {sample}, {printable(path)}, is {inspected.width}x{inspected.height} pixels, "
            f"was indexed as {width}x{height}: index again"
        )
    return None


def one_line_error(error: RuntimeError) -> str:
    """Returns a pipeline's error on one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"the image pipeline failed: {printable(' '.join(lines)[:400])}"
