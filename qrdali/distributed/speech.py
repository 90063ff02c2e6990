"""What all speaking has in common: an error of one line where others are gone, the time it takes, and the store beside it."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from qrdali.errors import RanksLost, RunError

if TYPE_CHECKING:
    from qrdali.distributed.process_group import ProcessGroup

TIMEOUT = timedelta(
    minutes=30
)  # that one rank may wait for the others, as where images of one take longer than those of all others
# What torch.distributed says when others are gone or do not answer; of other errors the text and the place are wanted.
_GONE = (
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

store_key_numbers = itertools.count()  # of what is kept in the store: all ranks count alike
torchrun_store: list[Any] = []  # the store that torchrun keeps over attempts
_waited = 0.0


@contextmanager
def translate_errors(group: ProcessGroup) -> Iterator[None]:
    """torch.distributed raises RuntimeError, of many texts, when another process is gone."""
    global _waited
    begun = time.perf_counter()
    try:
        yield
    except RuntimeError as error:
        if group.is_single or isinstance(error, (RunError, torch.OutOfMemoryError)):
            raise
        first = (str(error).splitlines() or ["no text"])[0]
        if not isinstance(error, distributed.DistError) and not any(
            word in str(error).lower() for word in _GONE
        ):
            raise
        raise RanksLost(
            f"rank {group.rank} of {group.world_size} lost the others ({first[:160]}): what ended one of them is told "
            "above"
        ) from None
    finally:
        _waited += time.perf_counter() - begun


def seconds_waited() -> float:
    """Seconds that this process has spent on speaking to others and on waiting for them."""
    return _waited


def started_key(what: str) -> str:
    """The key under which it is kept that a job has begun `what`."""
    return f"qrdali/begun/{hashlib.sha256(what.encode()).hexdigest()}"


def default_store() -> Any:
    """What the processes of one attempt share beside what they tell one another."""
    return distributed.distributed_c10d._get_default_store()
