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
from qrdali.distributed.counters import Agreement
from qrdali.distributed.speech import spoken
from qrdali.errors import Elsewhere, InputError, Interrupted, RunError

T = TypeVar("T")


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
        with spoken(self):
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
        with spoken(self):
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
        with spoken(self):
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
        store, key = speech.store(), f"failed-{next(speech.numbers)}"

        def check() -> None:
            with spoken(self):
                failed = store.check([key])
            if failed:
                raise Elsewhere("another process failed")

        def marked() -> T:
            try:
                return work(check)
            except BaseException:
                with spoken(self):
                    store.set(key, "failed")
                raise

        return self.together(marked)

    @property
    def waited(self) -> float:
        """Seconds that this process has spent on speaking to others and on waiting for them."""
        return speech.waited()

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
            with spoken(self):
                distributed.barrier()

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """`model` such that gradients are the ranks' mean and every forward pass begins with rank 0's buffers; alone, as it is."""
        if self.alone:
            return model
        with spoken(self):
            return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None,
                                                       gradient_as_bucket_view=True)

    def share_buffers(self, model: nn.Module) -> None:
        """Rank 0's buffers, such as statistics of batch norm, on every rank."""
        if not self.alone:
            with spoken(self), torch.no_grad():
                for buffer in model.buffers():
                    whole = buffer.contiguous()
                    distributed.broadcast(whole, 0)
                    buffer.copy_(whole)

    def mark(self, what: str) -> None:
        """Notes that this job has begun `what`; what torchrun begins again can still ask for it."""
        if not self.alone and self.main:
            with spoken(self):
                speech.kept[0].set(speech.mark(what), "begun")

    def marked(self, what: str) -> bool:
        """Whether this job had begun `what` before torchrun began it again: then it goes on without being told to."""
        if self.alone or not self.restarts:
            return False
        with spoken(self):
            found = self.main and bool(speech.kept[0].check([speech.mark(what)]))
        return self.of_main(found)

    def agreement(self) -> Agreement:
        return Agreement(self)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Around what speaks within a library, such as a backward pass: that another rank is gone becomes a RunError."""
        with spoken(self):
            yield


ALONE = Ranks()
