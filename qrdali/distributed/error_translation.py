"""Times calls of `torch.distributed`, and translates its errors when another rank is gone into one line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import distributed

from qrdali.errors import RanksLost, RunError

if TYPE_CHECKING:
    from qrdali.distributed.process_group import ProcessGroup

# How long one rank may wait for the others in a collective, as where the images of one take longer to read.
TIMEOUT = timedelta(minutes=30)
# Words in the errors of torch.distributed when other ranks are gone or do not answer. Other errors, such as
# one of a shape, keep their text and traceback.
_RANKS_GONE = (
    "gloo",
    "nccl",
    "connection",
    "timed out",
    "timeout",
    "socket",
    "broken pipe",
    "peer",
    "rendezvous",
    "store",
)

_seconds_waited = 0.0


@contextmanager
def translate_errors(group: ProcessGroup) -> Iterator[None]:
    """Raises RanksLost for the many RuntimeErrors with which torch reports that another process is gone.

    The time spent within is added to `seconds_waited`.
    """
    global _seconds_waited
    start = time.perf_counter()
    try:
        yield
    except RuntimeError as error:
        if group.is_single or isinstance(error, (RunError, torch.OutOfMemoryError)):
            raise
        text = str(error)
        if not isinstance(error, distributed.DistError) and not any(
            word in text.lower() for word in _RANKS_GONE
        ):
            raise
        first_line = (text.splitlines() or ["no text"])[0]
        raise RanksLost(
            f"rank {group.rank} of {group.world_size} lost the others ({first_line[:160]}): the messages "
            "above say what ended one of them"
        ) from None
    finally:
        _seconds_waited += time.perf_counter() - start


def seconds_waited() -> float:
    """Returns the seconds that this process has spent in collectives and in the store, waiting included."""
    return _seconds_waited
