"""Names what an image can be reduced by, and imports next to nothing: `qrdali --help` answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from qrdali.errors import InputError, printable

SearchedName = Literal["color", "crop", "resolution", "combination"]
# In the order in which they are applied: scene, lens, sensor, file. Each is a file in `distortions/`.
DistortionName = Literal["gray", "contrast", "blur", "noise", "jpeg"]
ReductionName = Literal[SearchedName, DistortionName, "none"]

SEARCHED: tuple[str, ...] = get_args(SearchedName)
DISTORTIONS: tuple[str, ...] = get_args(DistortionName)
REDUCING: tuple[str, ...] = (*SEARCHED, *DISTORTIONS)  # all that `evaluate` and `preview` can show
TRAINED: tuple[str, ...] = (*REDUCING, "none")  # the choices of `train --reduction`


def chosen(reductions: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the reductions that are meant, in the order of `REDUCING`, each once.

    None means those of a search; "all" means all. Raises InputError for a name that is none, and for none.
    """
    if reductions is None:
        return SEARCHED
    unknown = [name for name in reductions if name not in (*REDUCING, "all")]
    if unknown or not reductions:
        given = printable(unknown[0])[:80] if unknown else ""
        raise InputError(f"reduction {given!r}: give one or more of {', '.join(REDUCING)}, or all")
    return tuple(name for name in REDUCING if name in reductions or "all" in reductions)


def why_not_searched(distortion: str) -> str:
    """Returns why a search of minimal images does not take a distortion, to stand behind its name."""
    return (
        f"is a distortion of what the network sees, which makes no image smaller: a search takes "
        f"{', '.join(SEARCHED[:-1])} or {SEARCHED[-1]}"
    )
