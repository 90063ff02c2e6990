"""Which part of each batch this process takes, where the caller has initialised torch.distributed."""

from __future__ import annotations

import os
from typing import NamedTuple

from torch import distributed


class Shard(NamedTuple):
    """Says which process this is.

    rank: from 0. world_size: processes of the job. local_world_size: those that share this host's processors.
    """

    rank: int
    world_size: int
    local_world_size: int


def current_shard() -> Shard:
    """Returns this process' part of the job, (0, 1, 1) unless torch.distributed is initialised.

    Reads what this process knows already: it is not a collective. Only a launcher such
    as torchrun says how many processes share the host; without one it is 1.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return Shard(0, 1, 1)
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    return Shard(
        distributed.get_rank(),
        distributed.get_world_size(),
        max(1, int(local)) if local.isdecimal() else 1,
    )
