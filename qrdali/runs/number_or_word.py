"""Settings that are a word or a number, such as `tail = "full"` and `tail = 2`."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator


def _number_as_text(value: Any) -> Any:
    """Returns a whole number as text, and anything else as it is."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


# Text. In a file and in Python a number may stand without quotation marks, as users write it.
NumberOrWord: TypeAlias = Annotated[str, BeforeValidator(_number_as_text)]
