"""The processes of one job, as torchrun starts them: the only file that reads its environment or calls torch.distributed.

Every method that speaks to the others must be called by all ranks, in the same order. What they tell one another are numbers and
JSON, never pickles.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed, nn

from qrdali.errors import Elsewhere, InputError, Interrupted, Lost, RunError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # that one rank may wait for the others, as where images of one take longer than those of all others
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Ranks:
    """rank: this process among all `world`, from 0. local_rank, local_world: the same among those of this host. restarts: how often the
    job was begun again, on any of its hosts."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    restarts: int = 0

    @property
    def main(self) -> bool:
        """Whether this one prints, writes and locks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world == 1

    def gather(self, values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Every rank's array, in the order of ranks, on every rank. They may differ in length (axis 0), not in dtype or other axes."""
        if self.alone:
            return [values]
        flat = np.ascontiguousarray(values)
        own = torch.from_numpy(np.frombuffer(flat.tobytes(), np.uint8).copy())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with _spoken(self):
            distributed.all_gather(lengths, torch.tensor([len(own)]))
            longest = max(int(length) for length in lengths)
            if not longest:
                return [flat] * self.world
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
            distributed.all_gather(parts, torch.cat([own, torch.zeros(longest - len(own), dtype=torch.uint8)]))
        found = [part[:int(length)].numpy() for part, length in zip(parts, lengths, strict=True)]
        return [part.view(flat.dtype).reshape(-1, *flat.shape[1:]) for part in found]

    def largest(self, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The largest of all ranks at each place, on every rank; `values` are as many on all."""
        if self.alone:
            return values
        tensor = torch.from_numpy(values.copy())
        with _spoken(self):
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tensor.numpy()

    def tell(self, value: Any) -> list[Any]:
        """Every rank's value, anything that JSON holds, in the order of ranks."""
        if self.alone:
            return [value]
        return [json.loads(part.tobytes()) for part in self.gather(np.frombuffer(json.dumps(value).encode(), np.uint8))]

    def of_main(self, value: T) -> T:
        """Rank 0's value, anything that JSON holds."""
        if self.alone:
            return value
        found: T = json.loads(self._bytes_of_main(json.dumps(value).encode() if self.main else b""))
        return found

    def _bytes_of_main(self, data: bytes) -> bytes:
        with _spoken(self):
            length = torch.tensor([len(data)])
            distributed.broadcast(length, 0)
            flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(int(length), dtype=torch.uint8)
            if len(flat):
                distributed.broadcast(flat, 0)
        return flat.numpy().tobytes()

    def together(self, work: Callable[[], T]) -> T:
        """The result of `work`, which must not speak to other ranks. Where it raises RunError, InputError or OSError on one rank, all
        raise: the first that failed its own error, the others Elsewhere, or Interrupted where all that happened is a signal."""
        if self.alone:
            return work()
        failure: RunError | InputError | OSError | None = None
        result: T | None = None
        try:
            result = work()
        except (RunError, InputError, OSError) as error:
            failure = error
        own = failure is not None and not isinstance(failure, Elsewhere)
        told = self.tell([str(failure), failure.signum if isinstance(failure, Interrupted) else 0] if own else None)
        failed = [(rank, *what) for rank, what in enumerate(told) if what]
        if not failed:
            if failure is not None:
                raise failure
            return result  # type: ignore[return-value]
        rank, text, signum = min(failed, key=lambda one: (one[2] != 0, one[0]))
        if own and (rank == self.rank or (signum and isinstance(failure, Interrupted))):
            assert failure is not None
            raise failure
        if signum:
            raise Interrupted(text, signum)
        # Who watches rank 0 may not see what is said on other hosts.
        raise RunError(f"rank {rank}: {text}") if self.main and rank >= self.local_world else Elsewhere(f"rank {rank}: {text}")

    def watched(self, work: Callable[[Callable[[], None]], T]) -> T:
        """As `together`, for long work: what it is given, to be called now and then, raises Elsewhere once another rank has failed."""
        if self.alone:
            return work(lambda: None)
        store, key = _store(), f"failed-{next(_numbers)}"

        def check() -> None:
            with _spoken(self):
                failed = store.check([key])
            if failed:
                raise Elsewhere("another process failed")

        def marked() -> T:
            try:
                return work(check)
            except BaseException:
                with _spoken(self):
                    store.set(key, "failed")
                raise

        return self.together(marked)

    @property
    def waited(self) -> float:
        """Seconds that this process has spent on speaking to others and on waiting for them."""
        return _waited

    def sharing(self) -> int:
        """How many ranks run on the same processors as this one."""
        own: list[Any] = [platform.node(), sorted(os.sched_getaffinity(0))]
        return self.tell(own).count(own)

    def same(self, what: str, value: str) -> None:
        """Raises RunError on all ranks unless `value` is the same on all."""
        found = self.tell(value)
        if len(set(found)) > 1:
            each = ", ".join(f"rank {i}: {text[:16]}" for i, text in enumerate(found))
            raise (RunError if self.main else Elsewhere)(f"{what} differ between ranks ({each}): do all see the same files and settings?")

    def wait(self) -> None:
        """Until all are here."""
        if not self.alone:
            with _spoken(self):
                distributed.barrier()

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """`model` such that gradients are the ranks' mean and every forward pass begins with rank 0's buffers; alone, as it is."""
        if self.alone:
            return model
        with _spoken(self):
            return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None,
                                                       gradient_as_bucket_view=True)

    def share_buffers(self, model: nn.Module) -> None:
        """Rank 0's buffers, such as statistics of batch norm, on every rank."""
        if not self.alone:
            with _spoken(self), torch.no_grad():
                for buffer in model.buffers():
                    whole = buffer.contiguous()
                    distributed.broadcast(whole, 0)
                    buffer.copy_(whole)

    def mark(self, what: str) -> None:
        """Notes that this job has begun `what`; what torchrun begins again can still ask for it."""
        if not self.alone and self.main:
            with _spoken(self):
                _kept[0].set(_mark(what), "begun")

    def marked(self, what: str) -> bool:
        """Whether this job had begun `what` before torchrun began it again: then it goes on without being told to."""
        if self.alone or not self.restarts:
            return False
        with _spoken(self):
            found = self.main and bool(_kept[0].check([_mark(what)]))
        return self.of_main(found)

    def agreement(self) -> Agreement:
        return Agreement(self)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Around what speaks within a library, such as a backward pass: that another rank is gone becomes a RunError."""
        with _spoken(self):
            yield


ALONE = Ranks()


class Agreement:
    """Numbers of which all ranks get the largest, one call later, so that nobody waits for it: flags such as a signal to stop."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._flying: tuple[torch.Tensor, Any] | None = None

    def largest(self, *values: int) -> tuple[int, ...]:
        """Of the call before; zeros at the first. Alone: `values` themselves."""
        if self._ranks.alone:
            return values
        found = self.settled() or (0,) * len(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        with _spoken(self._ranks):
            self._flying = tensor, distributed.all_reduce(tensor, distributed.ReduceOp.MAX, async_op=True)
        return found

    def settled(self) -> tuple[int, ...]:
        """What is under way, waited for: to be called by all ranks when no call of `largest` follows. Empty if there is nothing."""
        if self._flying is None:
            return ()
        tensor, work = self._flying
        self._flying = None
        with _spoken(self._ranks):
            work.wait()
        return tuple(tensor.tolist())


class Counter:
    """A number that all ranks share; to be made by all, in the same order as others."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._sum = ranks, 0
        self._key = f"counter-{next(_numbers)}"

    def add(self, amount: int) -> int:
        """The sum of what all ranks have added, with this."""
        if self._ranks.alone:
            self._sum += amount
            return self._sum
        with _spoken(self._ranks):
            return int(_store().add(self._key, amount))


_numbers = itertools.count()  # of what is kept in the store: all ranks count alike
_waited = 0.0
_kept: list[Any] = []  # the store that torchrun keeps over attempts
# What torch.distributed says when others are gone or do not answer; of other errors the text and the place are wanted.
_GONE = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "broken pipe", "peer", "rendezvous", "store")


def _mark(what: str) -> str:
    return f"qrdali/begun/{hashlib.sha256(what.encode()).hexdigest()}"


def _store() -> Any:
    """What the processes of one attempt share beside what they tell one another."""
    return distributed.distributed_c10d._get_default_store()


def _attempt(store: Any, ranks: Ranks) -> tuple[str, int]:
    """A name that only the ranks of this attempt have, and how often ranks met here before.

    torchrun may keep its store when it begins a job again, and then old addresses are there: so nothing is believed that does not
    answer a word of one's own. Its count of restarts does not serve: each host has its own.
    """
    if not ranks.main:
        word = secrets.token_hex(8)
        store.set(f"qrdali/{ranks.rank}", word)
        name, before = json.loads(store.get(f"qrdali/{word}"))
        store.set(f"qrdali/{name}/{ranks.rank}", word)
        return name, before
    name, before = secrets.token_hex(8), store.add("qrdali/attempts", 1) - 1
    missing, end = set(range(1, ranks.world)), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        if time.monotonic() > end:
            raise RunError(f"rank {min(missing)} of {ranks.world} did not come within {TIMEOUT}")
        for rank in list(missing):
            if store.check([f"qrdali/{rank}"]):
                store.set(f"qrdali/{store.get(f'qrdali/{rank}').decode()}", json.dumps([name, before]))
            if store.check([f"qrdali/{name}/{rank}"]):
                missing.remove(rank)
        time.sleep(0.01)
    return name, before


@contextmanager
def _spoken(ranks: Ranks) -> Iterator[None]:
    """torch.distributed raises RuntimeError, of many texts, when another process is gone."""
    global _waited
    begun = time.perf_counter()
    try:
        yield
    except RuntimeError as error:
        if ranks.alone or isinstance(error, (RunError, torch.OutOfMemoryError)):
            raise
        first = (str(error).splitlines() or ["no text"])[0]
        if not isinstance(error, distributed.DistError) and not any(word in str(error).lower() for word in _GONE):
            raise
        raise Lost(f"rank {ranks.rank} of {ranks.world} lost the others ({first[:160]}): what ended one of them is told "
                   "above") from None
    finally:
        _waited += time.perf_counter() - begun


def declared() -> Ranks:
    """What torchrun's environment says, without joining: alone where it says nothing. Raises InputError for what cannot be."""
    missing = [name for name in _NAMES if name not in os.environ]
    if missing and os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    if missing:
        raise InputError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} is not set: start with torchrun")
    try:
        rank, world, local_rank, local_world = (int(os.environ[name]) for name in _NAMES)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except ValueError:
        raise InputError(f"{', '.join(_NAMES)} are set and are no numbers: unset them, or start with torchrun") from None
    if not (0 <= rank < world and 0 <= local_rank < local_world <= world):
        raise InputError(f"RANK {rank} of WORLD_SIZE {world}, LOCAL_RANK {local_rank} of {local_world}: start with torchrun")
    return Ranks(rank, world, local_rank, local_world, restarts)


@contextmanager
def joined(gpus: bool = True) -> Iterator[Ranks]:
    """The ranks of this job, connected, each with the GPU of its local rank if there are GPUs and they are wanted.

    Raises InputError or RunError.
    """
    ranks = declared()
    if ranks.alone:
        yield ranks
        return
    gpus = gpus and torch.cuda.is_available()
    if gpus:
        if ranks.local_world > torch.cuda.device_count():
            raise InputError(f"{ranks.local_world} processes on a host with {torch.cuda.device_count()} GPUs: "
                             f"give torchrun --nproc-per-node {torch.cuda.device_count()}")
        torch.cuda.set_device(ranks.local_rank)
    with _spoken(ranks):
        store = next(distributed.rendezvous("env://", timeout=TIMEOUT))[0]  # type: ignore[attr-defined]
        name, before = _attempt(store, ranks)
        _kept[:] = [store]
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT,
                                       store=distributed.PrefixStore(name, store),  # type: ignore[attr-defined]
                                       rank=ranks.rank, world_size=ranks.world)
    try:
        yield replace(ranks, restarts=max(before, *ranks.tell(ranks.restarts)))
    except BaseException:
        if gpus:
            distributed.distributed_c10d._abort_process_group()  # what waits for a rank that is gone would wait on
        raise
    distributed.destroy_process_group()
