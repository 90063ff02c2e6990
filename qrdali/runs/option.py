"""Says how a setting is offered as an option of `qrdali train`: its topic, its methods, what its help shows.

`cli/setting_options.py` makes the options of this; names, types, ranges, choices and help come from the field
that an `Option` stands at.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

# Which methods an option is for.
EVERY: Final = ("shared", "baseline", "fixed", "linear", "adaptive", "random")
PATIENT: Final = EVERY[1:]  # those that end by patience
REDUCED: Final = EVERY[2:]  # those that have reduced epochs


class Topic(Enum):
    """Names what options are about, in the order in which help lists them."""

    START = "Data, network and start"
    OPTIMIZATION = "Optimization"
    FINE_TUNING = "Fine-tuning"
    INPUT = "Input and what is evaluated"
    RUNNING = "How it runs"
    END = "When it ends"
    REDUCTION = "Reductions"


@dataclass(frozen=True)
class Option:
    """Stands at a field of `Settings` that is an option, as `Annotated[type, Option(…)]`.

    topic: under which help lists it, in the order of the fields.
    methods: that have it; other methods refuse it, and their fields keep the default.
    schedules: of the learning rate that have it, () for all.
    name: of the option, where it is not the field's with dashes for underscores.
    help: of the option, where it is not the field's description, as of a flag --no-NAME.
    metavar: what help shows for the value, where it is not the type's.
    default: what help shows as the default, where the field's own only stands for it; "" shows none.
    method_default: the default of the methods that have the option, where it is not the field's own.
    is_path: whether the value is a file or folder.
    is_share: whether the value may end with %.
    is_pair: of a flag, whether help lists --no-NAME beside --NAME. A flag that is on by default is --no-NAME.
    is_of_start: whether a run that begins with another one's weights (--init) takes that run's value by
        default.
    """

    topic: Topic
    methods: tuple[str, ...] = EVERY
    schedules: tuple[str, ...] = ()
    name: str = ""
    help: str = ""
    metavar: str = ""
    default: str | None = None
    method_default: Any = None
    is_path: bool = False
    is_share: bool = False
    is_pair: bool = False
    is_of_start: bool = False
