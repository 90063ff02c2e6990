"""Commands in processes of their own that are killed by SIGKILL at a chosen moment and repeated, and what
they leave.

A moment is a change or an opening of a file in the watched folder, as Python's audit events tell, a file half
written, or a batch, image or task begun; or, for the other half of the kills in the soak, any time at all.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

# Imported once: a child is a fork of a process that has them and has started no thread.
NEEDED = [
    "numpy",
    "torch",
    "timm",
    "pyarrow.parquet",
    "safetensors.torch",
    "PIL.Image",
    "nvidia.dali.plugin.pytorch",
    "kill_helpers",
    "qrdali.training.trainer",
    "qrdali.cli.main",
    "qrdali.cli.train",
    "qrdali.workflows.train",
    "qrdali.cli.evaluate",
    "qrdali.cli.build_mepi",
    "qrdali.workflows.evaluate",
    "qrdali.workflows.build_mepi",
    "qrdali.cli.data",
    "qrdali.cli.reproduce",
    "qrdali.mepi.build",
    "qrdali.pipelines.loader",
    "qrdali.pipelines.image_reducer",
    "qrdali.pipelines.engine",
    "qrdali.workflows.tasks",
    "qrdali.workflows.reproduce",
    "qrdali.workflows.report",
    "qrdali.report.build",
    "matplotlib.backends.backend_svg",
    "matplotlib.backends.backend_agg",
]
TOUCHING = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "shutil.rmtree",
    "os.truncate",
    "os.link",
}
TIMED = ("second", "time", "memory", "energy", "joules", "waited")
# Of a finished run or matrix what is not compared: locks, the save before the last, hashes of files that hold
# times; a matrix' claims, workers, notes and jobs, which hold times of files.
PASSED_OVER = {".lock", "SHA256SUMS", "slurm.json"}
PASSED_OVER_FOLDERS = {"last.old", ".progress", "report", "tasks", "workers", "slurm"}
LIMIT = 240.0  # seconds of a child


@dataclass
class Ended:
    """status: exit status, or minus a signal. moments: that the child has lived through, if it came to its
    end; halves: those of them in which half of a file was there."""

    status: int
    moments: int
    halves: list[int]
    seconds: float
    said: str


@dataclass
class Case:
    """command: words of `qrdali`, which work on `folder` and nothing else. prepare: makes what must be there
    before. check: after every kill, whether what is there can be or must not; raises AssertionError. again:
    words added when it is repeated."""

    name: str
    command: list[str]
    again: list[str] = field(default_factory=list)
    prepare: Callable[[Path], None] = lambda folder: None
    check: Callable[[Path, Path], None] = lambda folder, whole: None


@dataclass
class Outcome:
    """differences: none if all is well. redone: batches, images or tasks begun more than once, of `begun` in
    the uninterrupted one. longest: most redone after one kill."""

    name: str
    kills: int
    begun: int
    redone: int
    longest: int
    differences: list[str]


def call(
    command: list[str], folder: Path, log: Path, deadly: int | None = None, after: float | None = None
) -> Ended:
    """`qrdali COMMAND`, killed at the moment number `deadly` or `after` so many seconds if it is not at its
    end by then. What it begins is appended to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(NEEDED)
    said, count = log.with_suffix(".said"), log.with_suffix(".moments")
    count.unlink(missing_ok=True)
    child = context.Process(target=_child, args=(command, str(folder), str(log), deadly))
    begun = time.monotonic()
    child.start()
    child.join(LIMIT if after is None else after)
    late = child.is_alive() and after is None
    if child.is_alive():
        child.kill()
        child.join()
    assert not late, f"no end within {LIMIT:g} s: {' '.join(command)}"
    assert child.exitcode is not None
    moments, halves = json.loads(count.read_text()) if count.exists() else (0, [])
    return Ended(
        child.exitcode,
        moments,
        halves,
        time.monotonic() - begun,
        said.read_text(errors="replace") if said.exists() else "",
    )


def _child(command: list[str], folder: str, log: str, deadly: int | None) -> None:
    out = os.open(Path(log).with_suffix(".said"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    moments, halves = 0, []

    def moment(half: bool = False) -> None:
        nonlocal moments
        moments += 1
        if half:
            halves.append(moments)
        if moments == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if (
            event in TOUCHING
            and isinstance(arguments[0], (str, os.PathLike))
            and os.fspath(arguments[0]).startswith(folder)
        ):
            moment()

    notes = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def begins(what: str) -> None:
        os.write(notes, f"{what}\n".encode())
        moment()

    _watch(begins)
    _halve(folder, moment)
    sys.addaudithook(heard)
    sys.argv = ["qrdali", *command]
    from qrdali.cli.main import main

    try:
        main()
    finally:
        Path(log).with_suffix(".moments").write_text(json.dumps([moments, halves]))


def _watch(begins: Callable[[str], None]) -> None:
    """Tells of every training batch its epoch, number, samples, labels and a checksum of its pixels; of `data
    index` every file, of `build-mepi` every entry, of `evaluate` every set and of `reproduce` every task."""
    from qrdali.data import file_check
    from qrdali.mepi import folder as mepi_set
    from qrdali.training import epoch as epoch_trainer
    from qrdali.workflows import evaluate, matrix_worker

    steps, look, append, rows, perform = (
        epoch_trainer.EpochTrainer._steps,
        file_check.read_content,
        mepi_set.Journal.append,
        evaluate.Evaluator.rows,
        matrix_worker.perform,
    )

    def told_steps(self: Any, plan: Any, epoch: int) -> Iterator[Any]:
        for step in steps(self, plan, epoch):
            batch = step.batch
            pixels = zlib.crc32(batch.images.contiguous().cpu().numpy().tobytes())
            begins(
                f"{self.spec.run} epoch {epoch} step {step.number}: {batch.samples.tolist()} "
                f"{batch.labels.tolist()} {pixels:08x}"
            )
            yield step

    def told_look(path: str, *rest: Any, **named: Any) -> Any:
        begins(f"look at {path}")
        return look(path, *rest, **named)

    def told_append(self: Any, entry: Any, seconds: float) -> None:
        begins(f"MEPI {self.file} {entry.sample}")
        append(self, entry, seconds)

    def told_rows(self: Any, name: str, *rest: Any, **named: Any) -> Any:
        begins(f"classify {name}")
        return rows(self, name, *rest, **named)

    def told_perform(tasks: Any, task: Any, *rest: Any) -> Any:
        begins(f"task {task.key}")
        return perform(tasks, task, *rest)

    epoch_trainer.EpochTrainer._steps, file_check.read_content, mepi_set.Journal.append = (
        told_steps,
        told_look,
        told_append,
    )  # type: ignore[method-assign]
    evaluate.Evaluator.rows, matrix_worker.perform = told_rows, told_perform  # type: ignore[method-assign]


def _halve(folder: str, moment: Callable[[bool], None]) -> None:
    """One more moment in every file that is written at once: when half of it is there."""
    import pyarrow.parquet as pq

    def halved(real: Callable[..., Any], place: int) -> Callable[..., Any]:
        def written(*args: Any, **named: Any) -> Any:
            done = real(*args, **named)
            file = Path(args[place])
            if str(file).startswith(folder) and file.is_file():
                content = file.read_bytes()
                os.truncate(file, len(content) // 2)  # which is a moment, and so is what opens the file again
                moment(True)
                with open(file, "wb") as again:
                    again.write(content)
            return done

        return written

    pq.write_table = halved(pq.write_table, 1)  # type: ignore[assignment]
    Path.write_text, Path.write_bytes = halved(Path.write_text, 0), halved(Path.write_bytes, 0)  # type: ignore[method-assign]


def contents(folder: Path) -> dict[str, str]:
    """Every file that should be as if nothing had been killed, by its path: a digest of what is in it less
    what was measured."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or name.name in PASSED_OVER or PASSED_OVER_FOLDERS & set(name.parts):
            continue
        found[str(name)] = sha256(_content(path)).hexdigest()
    return found


def _content(path: Path) -> bytes:
    if path.suffix == ".json":
        return json.dumps(less_times(json.loads(path.read_text()))).encode()
    if path.suffix == ".jsonl":
        return "\n".join(
            json.dumps(less_times(json.loads(line))) for line in path.read_text().splitlines()
        ).encode()
    return b"" if path.suffix == ".svg" else path.read_bytes()  # matplotlib dates its drawings


def less_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: less_times(v) for k, v in value.items() if not any(word in k for word in TIMED)}
    return [less_times(one) for one in value] if isinstance(value, list) else value


def killed(case: Case, folder: Path, seed: str, kills: int | None, timed: bool = False) -> Outcome:
    """Runs `case` once to its end and once killed up to `kills` times at moments drawn by `seed`, at the same
    path, and compares. kills None: at every moment in which half of a file is there, of a case that begins
    anew each time."""
    draw = random.Random(f"{seed} {case.name}")
    now, whole, log = folder / "now", folder / "whole", folder / "log"
    now.mkdir(parents=True)
    case.prepare(now)
    reference = call(case.command, now, log)
    if reference.status:
        return Outcome(
            case.name,
            0,
            0,
            0,
            0,
            [f"the uninterrupted one ended with {reference.status}: {reference.said[-300:]}"],
        )
    expected = log.read_text().splitlines()
    log.unlink()
    now.rename(whole)
    now.mkdir()
    case.prepare(now)
    differences: list[str] = []
    done, longest, before = 0, 0, 0
    times = len(reference.halves) if kills is None else kills
    for attempt in range(times + 1):
        last = attempt == times
        by_time = timed and draw.random() < 0.5
        share = draw.uniform(
            0, draw.choice((0.5, 1))
        )  # half of the kills come early, so that there is something left to kill again
        deadly = (
            None
            if last or by_time
            else 1 + int(share * reference.moments)
            if kills
            else reference.halves[attempt]
        )
        after = share * reference.seconds if by_time and not last else None
        seen: set[str] = set(log.read_text().splitlines()) if log.exists() else set()
        ended = call(case.command + (case.again if attempt else []), now, log, deadly, after)
        lines = log.read_text().splitlines() if log.exists() else []
        longest, before = max(longest, sum(line in seen for line in lines[before:])), len(lines)
        if ended.status == -signal.SIGKILL and not last:
            done += 1
            try:
                case.check(now, whole)
            except AssertionError as error:
                differences.append(f"after kill {done} ({deadly or after}): {error}")
            continue
        if ended.status:
            differences.append(f"after {done} kills it ended with {ended.status}: {ended.said[-300:]}")
        break
    return Outcome(
        case.name,
        done,
        len(expected),
        len(lines) - len(set(lines)),
        longest,
        differences + _differing(whole, now, expected, lines),
    )


def _differing(whole: Path, now: Path, expected: list[str], lines: list[str]) -> list[str]:
    first, second = contents(whole), contents(now)
    found = [
        f"{name} {'is left over' if name not in first else 'differs' if name in second else 'is missing'}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]
    # In the order in which each was begun first: a step that was taken again must have had the same samples.
    # Files are looked at and MEPIs found by several threads.
    orders = [
        list(dict.fromkeys(line for line in log if not line.startswith(("MEPI", "look"))))
        for log in (expected, lines)
    ]
    if orders[0] != orders[1] or set(lines) != set(expected):
        unlike = next(
            (pair for pair in zip(*orders, strict=False) if pair[0] != pair[1]),
            sorted(set(lines) ^ set(expected))[:2],
        )
        found.append(f"the log of samples differs: {' | '.join(unlike)}")
    return found
