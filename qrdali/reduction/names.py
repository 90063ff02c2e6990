"""Names what an image can be reduced by. It imports nothing, so that `qrdali --help` answers at once."""

from __future__ import annotations

from typing import Literal, get_args

SearchedName = Literal["color", "crop", "resolution", "combination"]
# In the order in which they are applied: scene, lens, sensor, file. Each is a file in `distortions/`.
DistortionName = Literal["gray", "contrast", "blur", "noise", "jpeg"]
ReductionName = Literal[SearchedName, DistortionName, "none"]

SEARCHED: tuple[str, ...] = get_args(SearchedName)
DISTORTIONS: tuple[str, ...] = get_args(DistortionName)
REDUCING: tuple[str, ...] = (*SEARCHED, *DISTORTIONS)  # all that `evaluate` measures
TRAINED: tuple[str, ...] = (*REDUCING, "none")  # the choices of `train --reduction`


def why_not_searched(distortion: str) -> str:
    """Returns why a search of minimal images does not take a distortion, to stand behind its name."""
    return (
        f"is a distortion of what the network sees, which makes no image smaller: a search takes "
        f"{', '.join(SEARCHED[:-1])} or {SEARCHED[-1]}"
    )
