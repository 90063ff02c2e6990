"""How the processes that torchrun has started become the ranks of one job."""

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

from qrdali.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from qrdali.distributed.speech import TIMEOUT, torchrun_store, translate_errors
from qrdali.errors import InputError, RunError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def from_environment() -> ProcessGroup:
    """What torchrun's environment says, without joining: alone where it says nothing. Raises InputError for what cannot be."""
    missing = [name for name in _NAMES if name not in os.environ]
    if missing and os.environ.get("WORLD_SIZE", "1") == "1":
        return SINGLE_PROCESS
    if missing:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} is not set: start with torchrun"
        )
    try:
        rank, world, local_rank, local_world = (int(os.environ[name]) for name in _NAMES)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except ValueError:
        raise InputError(
            f"{', '.join(_NAMES)} are set and are no numbers: unset them, or start with torchrun"
        ) from None
    if not (0 <= rank < world and 0 <= local_rank < local_world <= world):
        raise InputError(
            f"RANK {rank} of WORLD_SIZE {world}, LOCAL_RANK {local_rank} of {local_world}: start with torchrun"
        )
    return ProcessGroup(rank, world, local_rank, local_world, restarts)


@contextmanager
def init_process_group(gpus: bool = True) -> Iterator[ProcessGroup]:
    """The ranks of this job, connected, each with the GPU of its local rank if there are GPUs and they are wanted.

    Raises InputError or RunError.
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
        name, before = _meet(store, group)
        torchrun_store[:] = [store]
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            timeout=TIMEOUT,
            store=distributed.PrefixStore(name, store),  # type: ignore[attr-defined]
            rank=group.rank,
            world_size=group.world_size,
        )
    try:
        yield replace(group, restarts=max(before, *group.all_gather_object(group.restarts)))
    except BaseException:
        if gpus:
            distributed.distributed_c10d._abort_process_group()  # what waits for a rank that is gone would wait on
        raise
    distributed.destroy_process_group()


def _meet(store: Any, group: ProcessGroup) -> tuple[str, int]:
    """A name that only the ranks of this attempt have, and how often ranks met here before.

    torchrun may keep its store when it begins a job again, and then old addresses are there: so nothing is believed that does not
    answer a word of one's own. Its count of restarts does not serve: each host has its own.
    """
    if not group.is_main:
        word = secrets.token_hex(8)
        store.set(f"qrdali/{group.rank}", word)
        name, before = json.loads(store.get(f"qrdali/{word}"))
        store.set(f"qrdali/{name}/{group.rank}", word)
        return name, before
    name, before = secrets.token_hex(8), store.add("qrdali/attempts", 1) - 1
    missing, end = set(range(1, group.world_size)), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        if time.monotonic() > end:
            raise RunError(f"rank {min(missing)} of {group.world_size} did not come within {TIMEOUT}")
        for rank in list(missing):
            if store.check([f"qrdali/{rank}"]):
                store.set(f"qrdali/{store.get(f'qrdali/{rank}').decode()}", json.dumps([name, before]))
            if store.check([f"qrdali/{name}/{rank}"]):
                missing.remove(rank)
        time.sleep(0.01)
    return name, before
