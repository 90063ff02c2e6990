"""One process of a job, and what it says to the others."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed, nn

from qrdali.distributed import speech
from qrdali.distributed.counters import LaggedMax
from qrdali.distributed.speech import translate_errors
from qrdali.errors import InputError, Interrupted, OtherRankFailed, RunError

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """rank: this process among all `world`, from 0. local_rank, local_world: the same among those of this host. restarts: how often the
    job was begun again, on any of its hosts."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this one prints, writes and locks."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        return self.world_size == 1

    def all_gather(self, values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Every rank's array, in the order of ranks, on every rank. They may differ in length (axis 0), not in dtype or other axes."""
        if self.is_single:
            return [values]
        flat = np.ascontiguousarray(values)
        own = torch.from_numpy(np.frombuffer(flat.tobytes(), np.uint8).copy())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        with translate_errors(self):
            distributed.all_gather(lengths, torch.tensor([len(own)]))
            longest = max(int(length) for length in lengths)
            if not longest:
                return [flat] * self.world_size
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
            distributed.all_gather(
                parts, torch.cat([own, torch.zeros(longest - len(own), dtype=torch.uint8)])
            )
        found = [part[: int(length)].numpy() for part, length in zip(parts, lengths, strict=True)]
        return [part.view(flat.dtype).reshape(-1, *flat.shape[1:]) for part in found]

    def all_reduce_max(self, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The largest of all ranks at each place, on every rank; `values` are as many on all."""
        if self.is_single:
            return values
        tensor = torch.from_numpy(values.copy())
        with translate_errors(self):
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tensor.numpy()

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's value, anything that JSON holds, in the order of ranks."""
        if self.is_single:
            return [value]
        return [
            json.loads(part.tobytes())
            for part in self.all_gather(np.frombuffer(json.dumps(value).encode(), np.uint8))
        ]

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value, anything that JSON holds."""
        if self.is_single:
            return value
        found: T = json.loads(self._broadcast_bytes(json.dumps(value).encode() if self.is_main else b""))
        return found

    def _broadcast_bytes(self, data: bytes) -> bytes:
        with translate_errors(self):
            length = torch.tensor([len(data)])
            distributed.broadcast(length, 0)
            flat = (
                torch.frombuffer(bytearray(data), dtype=torch.uint8)
                if data
                else torch.empty(int(length), dtype=torch.uint8)
            )
            if len(flat):
                distributed.broadcast(flat, 0)
        return flat.numpy().tobytes()

    def run_on_all(self, work: Callable[[], T]) -> T:
        """The result of `work`, which must not speak to other ranks. Where it raises RunError, InputError or OSError on one rank, all
        raise: the first that failed its own error, the others Elsewhere, or Interrupted where all that happened is a signal."""
        if self.is_single:
            return work()
        failure: RunError | InputError | OSError | None = None
        result: T | None = None
        try:
            result = work()
        except (RunError, InputError, OSError) as error:
            failure = error
        own = failure is not None and not isinstance(failure, OtherRankFailed)
        told = self.all_gather_object(
            [str(failure), failure.signum if isinstance(failure, Interrupted) else 0] if own else None
        )
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
        raise (
            RunError(f"rank {rank}: {text}")
            if self.is_main and rank >= self.local_world_size
            else OtherRankFailed(f"rank {rank}: {text}")
        )

    def run_on_main(self, work: Callable[[], T]) -> T | None:
        """Returns the result of `work` on rank 0, which alone calls it, and None on the others. Collective; failures are raised
        everywhere, as `run_on_all` does."""
        return self.run_on_all(lambda: work() if self.is_main else None)

    def run_interruptible(self, work: Callable[[Callable[[], None]], T]) -> T:
        """As `together`, for long work: what it is given, to be called now and then, raises Elsewhere once another rank has failed."""
        if self.is_single:
            return work(lambda: None)
        store, key = speech.default_store(), f"failed-{next(speech.store_key_numbers)}"

        def check() -> None:
            with translate_errors(self):
                failed = store.check([key])
            if failed:
                raise OtherRankFailed("another process failed")

        def marked() -> T:
            try:
                return work(check)
            except BaseException:
                with translate_errors(self):
                    store.set(key, "failed")
                raise

        return self.run_on_all(marked)

    @property
    def seconds_waited(self) -> float:
        """Seconds that this process has spent on speaking to others and on waiting for them."""
        return speech.seconds_waited()

    def processes_on_these_cpus(self) -> int:
        """How many ranks run on the same processors as this one."""
        own: list[Any] = [platform.node(), sorted(os.sched_getaffinity(0))]
        return self.all_gather_object(own).count(own)

    def require_equal(self, what: str, value: str) -> None:
        """Raises RunError on all ranks unless `value` is the same on all."""
        found = self.all_gather_object(value)
        if len(set(found)) > 1:
            each = ", ".join(f"rank {i}: {text[:16]}" for i, text in enumerate(found))
            raise (RunError if self.is_main else OtherRankFailed)(
                f"{what} differ between ranks ({each}): do all see the same files and settings?"
            )

    def barrier(self) -> None:
        """Until all are here."""
        if not self.is_single:
            with translate_errors(self):
                distributed.barrier()

    def wrap_ddp(self, model: nn.Module, device: torch.device) -> nn.Module:
        """`model` such that gradients are the ranks' mean and every forward pass begins with rank 0's buffers; alone, as it is."""
        if self.is_single:
            return model
        with translate_errors(self):
            return nn.parallel.DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Rank 0's buffers, such as statistics of batch norm, on every rank."""
        if not self.is_single:
            with translate_errors(self), torch.no_grad():
                for buffer in model.buffers():
                    whole = buffer.contiguous()
                    distributed.broadcast(whole, 0)
                    buffer.copy_(whole)

    def record_started(self, what: str) -> None:
        """Notes that this job has begun `what`; what torchrun begins again can still ask for it."""
        if not self.is_single and self.is_main:
            with translate_errors(self):
                speech.torchrun_store[0].set(speech.started_key(what), "begun")

    def was_started(self, what: str) -> bool:
        """Whether this job had begun `what` before torchrun began it again: then it goes on without being told to."""
        if self.is_single or not self.restarts:
            return False
        with translate_errors(self):
            found = self.is_main and bool(speech.torchrun_store[0].check([speech.started_key(what)]))
        return self.broadcast_object(found)

    def lagged_max(self) -> LaggedMax:
        return LaggedMax(self)

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Around what speaks within a library, such as a backward pass: that another rank is gone becomes a RunError."""
        with translate_errors(self):
            yield


SINGLE_PROCESS = ProcessGroup()
