"""What differs between the options that a folder was begun with and those given now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qrdali.errors import printable


def describe_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], ignored: Collection[str] = ()
) -> list[str]:
    """Returns "key old → new" for each key whose value differs, sorted by key; an absent one counts as None."""
    return [
        f"{printable(key)} {printable(before.get(key))} → {printable(now.get(key))}"
        for key in sorted({*before, *now} - set(ignored))
        if before.get(key) != now.get(key)
    ]
