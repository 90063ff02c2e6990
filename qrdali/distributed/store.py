"""The key-value stores of a job: torch's, which ends with this attempt, and torchrun's, which outlives it."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

from torch import distributed

_key_numbers = itertools.count()
_torchrun_store: list[Any] = []  # empty before `init_process_group`, then the one store


def default_store() -> Any:
    """Returns the store that the processes of this attempt share."""
    return distributed.distributed_c10d._get_default_store()


def next_key(purpose: str) -> str:
    """Returns a new key for the default store.

    The same on all ranks, because all ask for keys in the same order.
    """
    return f"{purpose}-{next(_key_numbers)}"


def keep_torchrun_store(store: Any) -> None:
    """Keeps the store that torchrun made for `set_started` and `is_started`."""
    _torchrun_store[:] = [store]


def set_started(name: str) -> None:
    """Notes in torchrun's store that this job has started `name`."""
    _torchrun_store[0].set(_started_key(name), "begun")


def is_started(name: str) -> bool:
    """Returns whether an attempt of this job has started `name`."""
    return bool(_torchrun_store[0].check([_started_key(name)]))


def _started_key(name: str) -> str:
    return f"qrdali/begun/{hashlib.sha256(name.encode()).hexdigest()}"
