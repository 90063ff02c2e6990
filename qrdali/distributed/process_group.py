"""The ranks of one job, and the collectives between them."""

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

from qrdali.distributed import error_translation, store
from qrdali.distributed.error_translation import translate_errors
from qrdali.errors import InputError, Interrupted, OtherRankFailed, RunError

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """The ranks of a job as this one sees them.

    Every method marked "Collective" is called by all of them, in the same order.

    rank, world_size: this process among all, from 0. local_rank, local_world_size: the same among those of
    this host. restarts: how often torchrun has begun the job again, on any of its hosts.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Returns whether this is rank 0, the one that prints, writes results and locks."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """Returns whether there is no other rank: then every collective returns at once."""
        return self.world_size == 1

    @property
    def seconds_waited(self) -> float:
        """Returns the seconds this process has spent in collectives and in the store, waiting included."""
        return error_translation.seconds_waited()

    def all_gather(self, values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Returns every rank's array, in the order of ranks. Collective.

        Arrays may differ in length (axis 0), not in dtype or in the other axes.
        """
        if self.is_single:
            return [values]
        contiguous = np.ascontiguousarray(values)
        mine = torch.from_numpy(np.frombuffer(contiguous.tobytes(), np.uint8).copy())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        with translate_errors(self):
            distributed.all_gather(lengths, torch.tensor([len(mine)]))
            longest = max(int(length) for length in lengths)
            if not longest:
                return [contiguous] * self.world_size
            padded = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
            padding = torch.zeros(longest - len(mine), dtype=torch.uint8)
            distributed.all_gather(padded, torch.cat([mine, padding]))
        parts = [part[: int(length)].numpy() for part, length in zip(padded, lengths, strict=True)]
        return [part.view(contiguous.dtype).reshape(-1, *contiguous.shape[1:]) for part in parts]

    def all_reduce_max(self, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Returns the elementwise maximum over all ranks; `values`, uint8 [N], have one length on all.

        Collective.
        """
        if self.is_single:
            return values
        tensor = torch.from_numpy(values.copy())
        with translate_errors(self):
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tensor.numpy()

    def all_gather_object(self, value: Any) -> list[Any]:
        """Returns every rank's value, in the order of ranks.

        Collective. Values are what JSON can hold, never pickles.
        """
        if self.is_single:
            return [value]
        texts = self.all_gather(np.frombuffer(json.dumps(value).encode(), np.uint8))
        return [json.loads(text.tobytes()) for text in texts]

    def broadcast_object(self, value: T) -> T:
        """Returns rank 0's value; the other ranks' is ignored.

        Collective. Values are what JSON can hold: tuples become lists.
        """
        if self.is_single:
            return value
        text = self._broadcast_bytes(json.dumps(value).encode() if self.is_main else b"")
        result: T = json.loads(text)
        return result

    def _broadcast_bytes(self, data: bytes) -> bytes:
        with translate_errors(self):
            length = torch.tensor([len(data)])
            distributed.broadcast(length, 0)
            if data:
                buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            else:
                buffer = torch.empty(int(length), dtype=torch.uint8)
            if len(buffer):
                distributed.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Returns this rank's result of `work`, which must contain no collective. Collective.

        Where `work` raises RunError, InputError or OSError on one rank, all ranks raise, so that none waits
        for it: the first that failed its own error, the others OtherRankFailed; or all Interrupted, where
        signals are all that happened.
        """
        if self.is_single:
            return work()
        failure: RunError | InputError | OSError | None = None
        result: T | None = None
        try:
            result = work()
        except (RunError, InputError, OSError) as error:
            failure = error
        report: list[Any] | None = None
        if failure is not None and not isinstance(failure, OtherRankFailed):
            report = [str(failure), failure.signum if isinstance(failure, Interrupted) else 0]
        reports = self.all_gather_object(report)
        failed = [(rank, *failed_report) for rank, failed_report in enumerate(reports) if failed_report]
        if not failed:
            if failure is not None:
                raise failure
            return result  # type: ignore[return-value]
        # An error before a signal: what failed would be lost if the job ended as one that can simply be
        # resumed.
        first_rank, text, signum = min(failed, key=lambda entry: (entry[2] != 0, entry[0]))
        if report and (first_rank == self.rank or (signum and isinstance(failure, Interrupted))):
            assert failure is not None
            raise failure
        if signum:
            raise Interrupted(text, signum)
        # Who watches rank 0 may not see what is printed on other hosts: there rank 0 prints the error itself.
        is_on_other_host = first_rank >= self.local_world_size
        error_type = RunError if self.is_main and is_on_other_host else OtherRankFailed
        raise error_type(f"rank {first_rank}: {text}")

    def run_on_main(self, work: Callable[[], T]) -> T | None:
        """Returns the result of `work` on rank 0, None on the others, which do not run it. Collective.

        All ranks raise where `work` fails, as in `run_on_all`. The result is not sent: `broadcast_object`
        does that.
        """
        return self.run_on_all(lambda: work() if self.is_main else None)

    def run_interruptible(self, work: Callable[[Callable[[], None]], T]) -> T:
        """Does as `run_on_all` for long work, which ends early if another rank fails. Collective.

        `work` is given a function to call now and then; it raises OtherRankFailed once another rank has
        failed.
        """
        if self.is_single:
            return work(lambda: None)
        failed_key = store.next_key("failed")

        def raise_if_other_failed() -> None:
            with translate_errors(self):
                has_failed = store.default_store().check([failed_key])
            if has_failed:
                raise OtherRankFailed("another process failed")

        def work_and_mark_failure() -> T:
            try:
                return work(raise_if_other_failed)
            except BaseException:
                with translate_errors(self):
                    store.default_store().set(failed_key, "failed")
                raise

        return self.run_on_all(work_and_mark_failure)

    def processes_on_these_cpus(self) -> int:
        """Returns how many ranks run on the same processors of the same host as this one. Collective."""
        mine: list[Any] = [platform.node(), sorted(os.sched_getaffinity(0))]
        processors = self.all_gather_object(mine)
        return processors.count(mine)

    def require_equal(self, what: str, value: str) -> None:
        """Raises RunError on all ranks unless `value` is the same on all.

        Collective. `what` names it, in the plural.
        """
        values = self.all_gather_object(value)
        if len(set(values)) > 1:
            each = ", ".join(f"rank {rank}: {text[:16]}" for rank, text in enumerate(values))
            raise (RunError if self.is_main else OtherRankFailed)(
                f"{what} differ between ranks ({each}): do all see the same files and settings?"
            )

    def barrier(self) -> None:
        """Returns once all ranks have called it. Collective."""
        if not self.is_single:
            with translate_errors(self):
                distributed.barrier()

    def wrap_ddp(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Returns `model` in DistributedDataParallel; of a single process, `model` itself. Collective.

        Gradients then are the mean over ranks, and every forward pass begins with rank 0's buffers.
        """
        if self.is_single:
            return model
        with translate_errors(self):
            return nn.parallel.DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copies rank 0's buffers of `model`, such as statistics of batch norm, to every rank. Collective."""
        if not self.is_single:
            with translate_errors(self), torch.no_grad():
                for buffer in model.buffers():
                    contiguous = buffer.contiguous()
                    distributed.broadcast(contiguous, 0)
                    buffer.copy_(contiguous)

    def record_started(self, name: str) -> None:
        """Notes in torchrun's store that this job has started `name`, for `was_started` after a restart."""
        if not self.is_single and self.is_main:
            with translate_errors(self):
                store.set_started(name)

    def was_started(self, name: str) -> bool:
        """Returns whether an earlier attempt of this job has started `name`.

        A restart by torchrun implies --resume.

        Collective.
        """
        if self.is_single or not self.restarts:
            return False
        with translate_errors(self):
            is_started = self.is_main and store.is_started(name)
        return self.broadcast_object(is_started)

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Wraps library code that runs collectives, such as a backward pass.

        A lost rank raises RanksLost there.
        """
        with translate_errors(self):
            yield


SINGLE_PROCESS = ProcessGroup()
