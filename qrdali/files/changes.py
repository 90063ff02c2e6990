"""How settings that were recorded differ from those given now, for a message."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qrdali.errors import printable


def describe_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], ignored: Collection[str] = ()
) -> list[str]:
    """Returns `KEY OLD → NEW` for each key, in alphabetical order, whose values differ.

    `ignored` keys are left out.

    A key that one of the two lacks has the value None there. An empty text is shown as ''.
    """
    return [
        f"{printable(key)} {_shown(before.get(key))} → {_shown(now.get(key))}"
        for key in sorted({*before, *now} - {*ignored})
        if before.get(key) != now.get(key)
    ]


def _shown(value: Any) -> str:
    return "''" if value == "" else printable(value)
