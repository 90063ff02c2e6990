"""Makes the processes that torchrun has started the ranks of one job."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import distributed

from qrdali.distributed.error_translation import TIMEOUT, translate_errors
from qrdali.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from qrdali.distributed.store import keep_torchrun_store
from qrdali.errors import InputError, RunError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def from_environment() -> ProcessGroup:
    """Returns the group that torchrun's environment variables describe, not yet connected.

    A single process without them.

    Raises InputError for variables that contradict one another.
    """
    missing = [name for name in _NAMES if name not in os.environ]
    if missing and os.environ.get("WORLD_SIZE", "1") == "1":
        return SINGLE_PROCESS
    if missing:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} is not set: start with "
            "torchrun"
        )
    try:
        rank, world_size, local_rank, local_world_size = (int(os.environ[name]) for name in _NAMES)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except ValueError:
        raise InputError(
            f"{', '.join(_NAMES)} are set and are not numbers: unset them, or start with torchrun"
        ) from None
    if not (0 <= rank < world_size and 0 <= local_rank < local_world_size <= world_size):
        raise InputError(
            f"RANK {rank} of WORLD_SIZE {world_size}, LOCAL_RANK {local_rank} of {local_world_size}: "
            "start with torchrun"
        )
    return ProcessGroup(rank, world_size, local_rank, local_world_size, restarts)


@contextmanager
def init_process_group(gpus: bool = True) -> Iterator[ProcessGroup]:
    """Connects the ranks of this job and yields their group; each takes the GPU of its local rank.

    Collective.

    `gpus`: whether GPUs are wanted, if there are any. Raises InputError for more processes than GPUs on a
    host, RunError if the ranks cannot be connected.
    """
    group = from_environment()
    if group.is_single:
        yield group
        return
    gpus = gpus and torch.cuda.is_available()
    if gpus:
        if group.local_world_size > torch.cuda.device_count():
            raise InputError(
                f"{group.local_world_size} processes on a host with {torch.cuda.device_count()} GPUs: "
                f"give torchrun --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(group.local_rank)
    with translate_errors(group):
        store = next(distributed.rendezvous("env://", timeout=TIMEOUT))[0]  # type: ignore[attr-defined]
        attempt, earlier_attempts = _agree_on_attempt(store, group)
        keep_torchrun_store(store)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            timeout=TIMEOUT,
            store=distributed.PrefixStore(attempt, store),  # type: ignore[attr-defined]
            rank=group.rank,
            world_size=group.world_size,
        )
    try:
        restarts = group.all_gather_object(group.restarts)
        yield replace(group, restarts=max(earlier_attempts, *restarts))
    except BaseException:
        if gpus:
            # NCCL's kernels would wait for ever for a rank that is gone.
            distributed.distributed_c10d._abort_process_group()
        raise
    distributed.destroy_process_group()


def _agree_on_attempt(store: Any, group: ProcessGroup) -> tuple[str, int]:
    """Returns a name that only the ranks of this attempt know, and how many attempts there were before.

    Collective.

    Ranks exchange nonces, because torchrun may reuse a store that still holds addresses of an earlier
    attempt: each rank publishes a fresh nonce, believes only a name that is filed under it, and confirms that
    name. Rank 0 answers whatever nonce it finds, again and again, until every rank has confirmed. torchrun's
    own count of restarts does not serve as a name, because each host counts its own.
    """
    if not group.is_main:
        nonce = secrets.token_hex(8)
        store.set(f"qrdali/{group.rank}", nonce)
        name, earlier_attempts = json.loads(store.get(f"qrdali/{nonce}"))
        store.set(f"qrdali/{name}/{group.rank}", nonce)
        return name, earlier_attempts
    name = secrets.token_hex(8)
    earlier_attempts = store.add("qrdali/attempts", 1) - 1
    missing = set(range(1, group.world_size))
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise RunError(f"rank {min(missing)} of {group.world_size} did not come within {TIMEOUT}")
        for rank in list(missing):
            if store.check([f"qrdali/{rank}"]):
                nonce = store.get(f"qrdali/{rank}").decode()
                store.set(f"qrdali/{nonce}", json.dumps([name, earlier_attempts]))
            if store.check([f"qrdali/{name}/{rank}"]):
                missing.remove(rank)
        time.sleep(0.01)
    return name, earlier_attempts
