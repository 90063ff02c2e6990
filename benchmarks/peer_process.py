"""The process of one loader that benchmarks/peers.py compares: it runs epochs as they are asked for."""

from __future__ import annotations

import multiprocessing
import os
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peer_loaders import PEERS, Epoch, Peer, Task


def missing_packages(peer: Peer) -> list[str]:
    """Returns the modules that `peer` needs and that are not installed."""
    missing = []
    for module in peer.packages:
        try:
            found = find_spec(module) is not None
        except ModuleNotFoundError:  # the package of a submodule
            found = False
        if not found:
            missing.append(module)
    return missing


def serve(name: str, task: Task, pipe: Connection) -> None:
    """Runs epochs of the peer `name` as they are asked for, until the other end of `pipe` closes.

    Sends the names of its kinds of epochs, or the exception that kept it from opening. Then each request, the
    name and number of an epoch, is answered by {"images", "seconds", "cpu_seconds"}, for number 0 also
    {"first"}: its first batch, a float32 array [N, 3, S, S], or None for the peer that only decodes.
    """
    try:
        kinds = PEERS[name].open(task)
    except Exception as error:
        pipe.send(_plain(error))
        return
    pipe.send(list(kinds))
    while True:
        try:
            kind, number = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_measured(kinds[kind], number, task.device))
        except Exception as error:
            pipe.send(_plain(error))


def _plain(error: Exception) -> RuntimeError:
    """Returns `error` as one that every process can unpickle, on one line."""
    return RuntimeError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _measured(epoch: Epoch, number: int, device: str) -> dict[str, Any]:
    images, first = 0, None
    begun, cpu_begun = time.perf_counter(), _cpu_seconds()
    for batch in epoch(number):
        if number == 0 and images == 0 and not isinstance(batch, range):
            first = batch.cpu().numpy().copy()
        images += len(batch)
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    answer = {"images": images, "seconds": seconds, "cpu_seconds": _cpu_seconds() - cpu_begun}
    return answer if number else {**answer, "first": first}


def _cpu_seconds() -> float:
    """Returns what this process and the workers that it has begun have used of the processors, in seconds."""
    seconds = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds
