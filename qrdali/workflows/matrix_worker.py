"""One worker of a matrix: takes tasks whose needs are met, does them and notes it, until none is left.

    until every task is done, or has failed too often, or waits for one that has:
        read the notes that have changed
        claim the first open task in order that nobody else has     (experiment/claims.py)
        if it was not done meanwhile: perform it, write its note      (workflows/tasks.py)
        give the claim back
        if nothing could be claimed: wait for the others

Any number of processes on any hosts do this at once in the same folder; none of them is in charge.
"""

from __future__ import annotations

import gc
import time
import traceback

from qrdali.errors import InputError, Interrupted, InUse, RunError, printable
from qrdali.experiment.claims import Claim, ClaimLost, Claims, read_holder
from qrdali.experiment.estimate import Estimate
from qrdali.experiment.makespan import needs_of
from qrdali.experiment.order import chains, in_order, task_seconds
from qrdali.experiment.tasks import Task, Tasks
from qrdali.experiment.workers import Presence, Watch
from qrdali.interfaces import JobControl
from qrdali.workflows.task_control import TaskListener, controlled, open_log, stop_of
from qrdali.workflows.tasks import perform

REPORT = "report"
POLL_SECONDS = 2.0  # between looks at what others have done
_WAITING_SECONDS = 60.0  # between lines that say what is waited for
GIVEN_UP_SECONDS = 60.0  # in which nobody tries again what has failed, until what waits for it gives up
_AGAIN_SECONDS = 30.0  # before a folder that another process works in is tried again


class MatrixWorker:
    """Does tasks of a matrix together with other workers.

    retries: how often this worker lets a task be tried again after it has failed, by whomever; what failed
    before this worker began does not count.
    """

    def __init__(self, tasks: Tasks, presence: Presence, retries: int, control: JobControl) -> None:
        self._tasks, self._presence, self._retries = tasks, presence, retries
        self._control = JobControl(control.listener, stop_of(control, presence), control.group)
        self._claims = Claims(presence)
        self._by_key = {task.key: task for task in tasks.all}
        # Whether the report is done is seen when nothing else is left: what it is made of changes until then.
        self._done = {task.key for task in tasks.all if task.kind != REPORT and tasks.done(task)}
        self._before = {task.key: len(tasks.folder.attempts(task.key)) for task in tasks.all}
        estimate = Estimate(tasks)
        self._order = in_order(tasks, chains(tasks, task_seconds(tasks, estimate)))
        self._own_failures: set[str] = set()
        self._in_use: dict[str, float] = {}
        self._said = time.monotonic() - _WAITING_SECONDS
        own = presence.workers.read(presence.number)
        self._impossible = {
            task.key for task in tasks.all if own is not None and not own.can_use(tasks.gpus(task))
        }
        self._left_to_nobody: set[str] = set()  # of them, those that no living worker can do either

    @property
    def done(self) -> int:
        """Returns how many tasks are done now."""
        report = self._by_key.get(REPORT)
        return len(self._done) + (report is not None and self._tasks.done(report))

    def work(self) -> dict[str, str]:
        """Does tasks until none is left; returns, by task, the one that it waits for and that has failed.

        Raises Interrupted after a signal, and OSError or RunError if nothing can be noted in the folder.
        """
        while True:
            self._look()
            open_tasks = [task for task in self._order if not self._is_settled(task)]
            if [task.kind for task in open_tasks] == [REPORT] and self._tasks.done(open_tasks[0]):
                self._done.add(REPORT)
                continue
            if not open_tasks:
                return self._waiting()
            if not self._do_one(open_tasks):
                self._wait(open_tasks)

    def work_on(self, task: Task, wait: bool) -> None:
        """Does one task, as often as it may be tried, if it is not done.

        wait: whether what it needs, and another worker that has it, are waited for. The report is made of
        what is there, or, with wait, once nothing more is to come. Raises RunError where needs are missing or
        another worker has it and that is not waited for, where nobody tries a need again that has failed, and
        if the task fails; else as `work`.
        """
        if task.key in self._impossible:
            raise RunError(f"{task.key} needs {self._tasks.gpus(task)} GPUs, more than are here")
        needs = needs_of(self._tasks)[task.key]
        failed = Watch()
        while True:
            self._look()
            if task.key in self._done or self._tasks.done(task):
                return
            missing = [self._by_key[need] for need in needs if need not in self._done]
            if missing and self._must_wait(task, missing, failed, wait):
                self._wait(missing)
            elif self._has_failed(task):
                reason = self._tasks.folder.failures[task.key].get("reason", "")
                raise RunError(f"{task.key} failed: {printable(reason)}")
            elif not self._do_one([task]):
                if not wait:
                    raise RunError(
                        f"{task.key} is being done by {self._holder(task)}: wait for it, or give --wait"
                    )
                self._wait([task])

    def _must_wait(self, task: Task, missing: list[Task], failed: Watch, wait: bool) -> bool:
        """Returns whether to wait for needs that are not done. Raises RunError if that is of no use."""
        if not wait:
            if task.kind == REPORT:
                return False
            raise RunError(
                f"{task.key} needs {_some([need.key for need in missing])}, not done yet: do that first, or "
                "give --wait"
            )
        given_up = {one.key for one in self._tasks.all if self._is_given_up(one, failed)}
        hopeless = [need for need in missing if self._hangs_on(need, given_up)]
        if hopeless and task.kind != REPORT:
            raise RunError(
                f"{task.key} needs {hopeless[0].key}, which has failed or waits for what has, and which "
                "nobody tries again"
            )
        return len(hopeless) < len(missing)

    def _is_given_up(self, task: Task, failed: Watch) -> bool:
        """Returns whether a task has failed and nobody has tried it again for a while."""
        folder = self._tasks.folder
        is_left = task.key in folder.failures and not self._claims.is_held(folder.task(task.key))
        return failed.unchanged(task.key, is_left) >= GIVEN_UP_SECONDS and is_left

    def _hangs_on(self, task: Task, given_up: set[str]) -> bool:
        if task.key in given_up:
            return True
        return any(self._hangs_on(self._by_key[need], given_up) for need in task.needs)

    def _holder(self, task: Task) -> str:
        holder = read_holder(self._tasks.folder.task(task.key))
        if holder is None or holder.is_free or holder.worker in (None, self._presence.number):
            return "another process, which works in its folder"
        assert holder.worker is not None
        worker = self._presence.workers.read(holder.worker)
        return f"worker {holder.worker}" if worker is None else worker.title

    def _look(self) -> None:
        """Reads what others have noted since the last look."""
        for task in self._tasks.all:
            changed = task.key not in self._done and self._tasks.folder.refresh(task.key)
            if changed and task.kind != REPORT and self._tasks.done(task):
                self._done.add(task.key)
        if self._impossible:
            self._left_to_nobody = self._without_a_worker()

    def _without_a_worker(self) -> set[str]:
        """Returns the keys of tasks that need more GPUs than any worker has that is not gone."""
        workers = self._presence.workers
        others = [other for other in workers.all() if not workers.is_gone(other.number)]
        by_key = {key: self._tasks.gpus(self._by_key[key]) for key in self._impossible - self._done}
        return {key for key, gpus in by_key.items() if not any(other.can_use(gpus) for other in others)}

    def _has_failed(self, task: Task) -> bool:
        """Returns whether a task has failed so often that this worker does not try it."""
        attempts = self._tasks.folder.attempts(task.key)[self._before[task.key] :]
        return len(attempts) > self._retries or any(attempt.get("final") is True for attempt in attempts)

    def _is_settled(self, task: Task) -> bool:
        """Returns whether nothing more comes of a task: it is done, has failed, or waits for one that has.

        What has failed too often for this worker may be tried by another.
        """
        if task.key in self._done:
            return True
        if self._has_failed(task) or task.key in self._left_to_nobody:
            return not self._claims.is_held(self._tasks.folder.task(task.key))
        needs = (self._by_key[need] for need in task.needs if need not in self._done)
        return any(self._is_settled(need) for need in needs)

    def _waiting(self) -> dict[str, str]:
        undone = (task for task in self._tasks.all if task.key not in self._done)
        needs = {
            task.key: next((need for need in task.needs if need not in self._done), "") for task in undone
        }
        for key in self._left_to_nobody:
            needs[key] = f"a worker with {self._tasks.gpus(self._by_key[key])} GPUs"
        return {key: need for key, need in needs.items() if need}

    def _is_ready(self, task: Task, open_tasks: list[Task]) -> bool:
        if task.kind == REPORT:  # of whatever is there once nothing more is to come
            return len(open_tasks) == 1
        return task.key not in self._impossible and all(need in self._done for need in task.needs)

    def _do_one(self, open_tasks: list[Task]) -> bool:
        """Does the first task that can be had; returns whether there was one.

        What failed here before is left to the end, so that another worker may take it.
        """
        ready = [
            task for task in open_tasks if self._is_ready(task, open_tasks) and not self._has_failed(task)
        ]
        # What needs several GPUs comes first where they are: other workers cannot do it.
        for task in sorted(
            ready, key=lambda task: (task.key in self._own_failures, -max(1, self._tasks.gpus(task)))
        ):
            if time.monotonic() < self._in_use.get(task.key, 0.0):
                continue
            claim = self._claims.take(self._tasks.folder.task(task.key))
            if claim is None:
                continue
            try:
                self._tasks.folder.refresh(task.key)
                if self._tasks.done(task):  # by another worker, between the last look and the claim
                    self._done.add(task.key)
                elif not self._has_failed(task):  # as above
                    self._attempt_or_stop(task, claim)
            finally:
                self._presence.says(dict)
                claim.release()
            return True
        return False

    def _wait(self, open_tasks: list[Task]) -> None:
        if signum := self._control.stop():
            raise Interrupted("stopped while others do the tasks that are left", signum)
        if time.monotonic() - self._said >= _WAITING_SECONDS:
            self._said = time.monotonic()
            self._control.listener.line(f"waiting for {_some([task.key for task in open_tasks])}")
        time.sleep(POLL_SECONDS)

    def _attempt_or_stop(self, task: Task, claim: Claim) -> None:
        """Does a task; raises Interrupted if a signal comes meanwhile, also where the task itself did not
        look for it.
        """
        number = self._tasks.all.index(task) + 1
        heading = f"[{number}/{len(self._tasks.all)}] {task.key}"
        self._control.listener.line(heading)
        if claim.before is not None:
            self._control.listener.line(f"{task.key} goes on: {self._who(claim)} is gone")
        stopped = f"{heading} was stopped: the same command goes on with it"
        if signum := self._control.stop():
            raise Interrupted(stopped, signum)
        try:
            self._attempt(task, claim)
        except Interrupted as interruption:
            self._control.listener.line(str(interruption))
            raise Interrupted(stopped, interruption.signum) from None
        except BaseException:  # KeyboardInterrupt, of callers without signal handlers
            self._control.listener.line(stopped)
            raise
        if signum := self._control.stop():
            raise Interrupted(stopped, signum)

    def _who(self, claim: Claim) -> str:
        assert claim.before is not None
        worker = claim.before.worker
        known = None if worker is None else self._presence.workers.read(worker)
        return "its worker" if known is None else known.title

    def _attempt(self, task: Task, claim: Claim) -> None:
        """Does a task and writes down how it ended; an error ends the task, not the matrix."""
        worker = self._presence.workers.read(self._presence.number)
        title = "" if worker is None else worker.title
        log = open_log(
            self._tasks.folder.task(task.key) / "log.txt",
            f"{time.strftime('%Y-%m-%d %H:%M:%S')} {task.key}: {title}",
        )
        control, listener = controlled(self._control, claim, log)
        begun = time.monotonic()
        self._presence.says(lambda: _activity(task, begun, listener))
        try:
            self._perform(task, claim, control, title)
        except ClaimLost as lost:
            control.listener.warn(f"{task.key}: {lost}")
        finally:
            if log is not None:
                log.close()
            release_memory()

    def _perform(self, task: Task, claim: Claim, control: JobControl, title: str) -> None:
        begun = time.monotonic()

        def failed(reason: str, trace: str = "", final: bool = False) -> None:
            claim.require()
            self._own_failures.add(task.key)
            self._tasks.folder.failed(task.key, reason, trace, worker=title, final=final)

        try:
            note = perform(self._tasks, task, control)
            claim.require()
            seconds = {"seconds": round(time.monotonic() - begun, 3), "worker": title}
            self._tasks.folder.succeeded(task.key, {**seconds, **(note or {})})
            self._done.add(task.key)
        except (Interrupted, ClaimLost):
            raise
        except InUse as use:
            self._in_use[task.key] = time.monotonic() + _AGAIN_SECONDS
            control.listener.warn(f"{task.key} is tried again later: {use}")
        except InputError as error:
            failed(str(error), final=True)
            control.listener.warn(f"{task.key} failed: {printable(error)}")
        except (RunError, OSError) as error:
            failed(str(error))
            control.listener.warn(f"{task.key} failed: {printable(error)}")
        except Exception as error:  # of a library: the other runs of a day shall not die of it
            failed(f"{type(error).__name__}: {error}", traceback.format_exc())
            control.listener.warn(
                f"{task.key} failed: {type(error).__name__}: {printable(error)[:300]} (failed.json in "
                f"{self._tasks.folder.task(task.key)} says where)"
            )


def _activity(task: Task, begun: float, listener: TaskListener) -> dict[str, object]:
    seconds = round(time.monotonic() - begun, 1)
    return {"task": task.key, "seconds": seconds, **listener.activity()}


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return printable(", ".join(keys[:3]) + more)


def release_memory() -> None:
    """Gives memory back: the next network needs what this one had, and DALI and torch cannot use each
    other's.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        from nvidia.dali import backend

        torch.cuda.empty_cache()
        backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]
