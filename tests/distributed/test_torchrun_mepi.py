"""`build-mepi` and `evaluate` in several processes: the files of one process, whatever dies in between."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset as index_images
from qrdali.data.scan import index_folder
from qrdali.distributed import ProcessGroup
from qrdali.distributed.work_queue import WorkQueue
from qrdali.errors import Interrupted, OtherRankFailed, RunError
from qrdali.mepi.journal import Entry, Journal
from qrdali.reduction.quality import MAX_TAIL, QUARTERS, LevelScale
from qrdali.runs.settings import validate_settings
from qrdali.workflows.build_mepi import build_mepi
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator, evaluate
from qrdali.workflows.train import run_training


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_training(
        validate_settings(
            {
                "method": "shared",
                "data": str(dataset.folder),
                "epochs": 40,
                "model": "test_resnet",
                "input_size": 32,
                "batch_size": 8,
                "device": "cpu",
                "threads": 1,
                "lr": 2e-3,
                "augment": "none",
            }
        ),
        folder,
        False,
    )
    return folder


@pytest.fixture(scope="module")
def plain(run: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process' set."""
    out = tmp_path_factory.mktemp("plain") / "set"
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun does for its processes
    build_mepi(**options(run, dataset, out))
    torch.set_num_threads(before)
    return out


def options(run: Path, dataset: Dataset, out: Path) -> dict[str, Any]:
    return {
        "run": str(run),
        "data": str(dataset.folder),
        "out": str(out),
        "split": "train",
        "device": "cpu",
        "threads": 1,
        "batch_size": 8,
        "step": 0.1,
        # With a tail all images end at nearly the same time, which leaves no moment to stop a search in.
        "tail": "none",
        "reduction": "combination",
    }


def words(values: dict[str, Any]) -> list[str]:
    return [
        "build-mepi",
        *(word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))),
    ]


def torchrun(ranks: int, command: list[str], *more: str) -> "subprocess.Popen[str]":
    # "-m --": torchrun takes --run for an abbreviation of its own options.
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            *more,
            "-m",
            "--",
            "qrdali",
            *command,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def ended(process: "subprocess.Popen[str]", seconds: float = 100) -> tuple[int, str, str]:
    """Status, stdout, and what qrdali said on stderr."""
    out, said = process.communicate(timeout=seconds)
    return (
        process.returncode,
        out,
        "\n".join(line for line in said.splitlines() if not re.match(r"[WEI]\d{4} |\[W\d|=|-|\s|$", line)),
    )


def workers(process: "subprocess.Popen[str]") -> dict[int, int]:
    """Process numbers by rank."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        ranks = re.findall(rb"\0RANK=(\d+)", Path(f"/proc/{child}/environ").read_bytes())
        if ranks:
            found[int(ranks[0])] = int(child)
    return found


def wait(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < 100
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def found(out: Path, rank: int) -> int:
    """Entries of one rank's journal."""
    file = out / ".progress" / ("combination.jsonl" if not rank else f"combination.{rank}.jsonl")
    return file.read_bytes().count(b'"sample"') if file.exists() else 0


def assert_same(out: Path, plain: Path, ranks: int) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}

    assert files(out) == files(plain)
    assert (out / "manifest.parquet").read_bytes() == (plain / "manifest.parquet").read_bytes()
    rows = [json.loads((folder / "summary.json").read_text())["combination"] for folder in (out, plain)]
    for row in rows:
        row.pop("seconds")
        row.pop("images_per_second")
    if ranks > 1:
        assert rows[0].pop("ranks") == ranks
        assert 0 < rows[0].pop("idle_share") < 1
    assert rows[0] == rows[1]
    assert [p.name for p in (out / ".progress").iterdir()] == ["combination.jsonl"]


def works_on(out: Path, kept: int, process: "subprocess.Popen[str]") -> bool:
    """Waits until a second session has found more than `kept`; returns False if it ends before."""
    journal = out / ".progress" / "combination.jsonl"  # has a line for the beginning of each session
    while process.poll() is None:
        with suppress(FileNotFoundError):  # journals go when all is done
            begun = journal.read_bytes().count(b'"begin"')
            if begun == 2 and sum(found(out, rank) for rank in range(3)) > kept:
                return True
        time.sleep(0.005)
    return False


def test_a_set_goes_on_whatever_ended_it_and_with_any_number_of_ranks(
    run: Path, dataset: Dataset, plain: Path, tmp_path: Path
) -> None:
    """Two ranks of which one is killed, then three that are sent SIGTERM, then one process."""
    out = tmp_path / "set"
    command = words(options(run, dataset, out))
    for _ in range(6):
        first = torchrun(2, command)
        while found(out, 1) <= 2 and first.poll() is None:
            time.sleep(0.005)
        if first.poll() is not None:
            # On a busy machine the whole search may end between two looks.
            assert ended(first)[0] == 0
            shutil.rmtree(out)
            continue
        os.kill(workers(first)[1], signal.SIGKILL)
        begun = time.monotonic()
        status, _, _ = ended(first)
        assert status == 1
        assert time.monotonic() - begun < 20
        kept = found(out, 0) + found(out, 1)
        assert kept < 24
        second = torchrun(3, [*command, "--resume"])
        if works_on(out, kept, second):
            break
        # On a busy machine little may be left to stop a second session in.
        assert second.wait(100) == 0
        shutil.rmtree(out)
    else:
        pytest.fail("no search could be stopped in time")
    second.send_signal(signal.SIGTERM)
    status, _, said = ended(second)
    assert status != 0
    assert said.count("MEPIs of 24 train images") == 1
    stopped = re.findall(
        r"stopped in combination with (\d+) images complete: the same command with --resume continues", said
    )
    assert stopped == [str(found(out, 0))], said
    assert [p.name for p in (out / ".progress").iterdir()] == [
        "combination.jsonl"
    ]  # what others found is in the one journal
    assert not (out / "manifest.parquet").exists()
    build_mepi(**options(run, dataset, out), resume=True)
    assert_same(out, plain, 1)
    assert found(out, 0) == 24  # none was searched twice


def test_torchrun_begins_again_and_goes_on(run: Path, dataset: Dataset, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    process = torchrun(2, words(options(run, dataset, out)), "--max-restarts", "1")
    wait(lambda: found(out, 0) > 3, process)
    os.kill(workers(process)[0], signal.SIGKILL)
    status, _, said = ended(process)
    assert status == 0, said
    assert_same(out, plain, 2)


def test_evaluate_gives_the_rows_of_one_process(
    run: Path, dataset: Dataset, plain: Path, tmp_path: Path
) -> None:
    """Every image counts once, a smaller last batch included, and so does a file that cannot be read."""
    folder, copy = tmp_path / "mepis", tmp_path / "run"
    shutil.copytree(plain / "combination", folder)
    shutil.copytree(run, copy)
    (folder / dataset.classes[0] / "broken.png").write_bytes(b"\x89PNG")
    sets = [
        "--data",
        str(dataset.folder),
        "--split",
        "val",
        "--set",
        f"mine={folder}",
        "--curve",
        "--reduced",
        "0.5",
        "--step",
        "0.25",
        "--batch-size",
        "5",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--json",
    ]
    evaluated = torchrun(3, ["evaluate", "--run", str(copy), *sets])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    evaluator = Evaluator(run, EvaluateOptions(5, "cpu", "auto", 1, LevelScale(4, MAX_TAIL), 0.5))
    alone = {"val": evaluator.split(dataset.folder, "val"), "mine": evaluator.folder("mine", folder)}
    torch.set_num_threads(before)
    status, printed, said = ended(evaluated)
    assert status == 0, said
    assert json.loads(printed)["sets"] == json.loads(json.dumps(alone).replace(str(run), str(copy)))
    assert alone["mine"]["unreadable"] == said.count("warning: left out") == 1
    for kind, count in (("predictions", 6), ("curves", 8)):
        names = sorted(p.name for p in (run / kind).iterdir())
        assert names == sorted(p.name for p in (copy / kind).iterdir())
        assert len(names) == count
        for name in names:
            if not name.endswith(("svg", "png")):  # the run's name is in the picture
                assert (copy / kind / name).read_bytes() == (run / kind / name).read_bytes(), name


def test_a_suite_gives_the_rows_of_one_process(
    run: Path, dataset: Dataset, plain: Path, tmp_path: Path
) -> None:
    root, copy = tmp_path / "human", tmp_path / "run"
    shutil.copytree(plain / "combination", root / "combination")
    (root / "combination" / dataset.classes[0] / "broken.png").write_bytes(b"\x89PNG")
    shutil.copytree(run, copy)
    words = ["--suite", f"human={root}", "--batch-size", "5", "--device", "cpu", "--threads", "1", "--json"]
    together = torchrun(2, ["evaluate", "--run", str(copy), *words])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    (alone,) = evaluate(run, suites={"human": root}, batch_size=5, device="cpu", threads=1)
    torch.set_num_threads(before)
    status, printed, said = ended(together)
    assert status == 0, said
    expected = json.loads(json.dumps(alone).replace(str(run), str(copy)))
    assert json.loads(printed)["suites"]["human"] == expected
    assert alone["accuracy"] == 1  # minimal images are right by definition
    name = "predictions/human-combination.parquet"
    assert (copy / name).read_bytes() == (run / name).read_bytes()


def test_an_image_that_one_rank_cannot_read_ends_all_with_one_line(
    run: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "images")
    index_images(tmp_path / "images", tmp_path / "data")
    victim = Path(
        Dataset.open(tmp_path / "data").index("train").paths(np.array([9]))[0]
    )  # in the second batch, rank 1's
    victim.unlink()
    status, _, said = ended(
        torchrun(
            2,
            [
                "evaluate",
                "--run",
                str(run),
                "--data",
                str(tmp_path / "data"),
                "--split",
                "train",
                "--batch-size",
                "8",
                "--device",
                "cpu",
                "--threads",
                "1",
            ],
        )
    )
    assert status == 1
    assert re.findall("qrdali: .*", said) == [
        f"qrdali: rank 1: error: sample 9, {victim}, is gone since it was indexed: restore it, say "
        "by --root OLD=NEW where it is now, or index again"
    ]


class Pretended(ProcessGroup):
    """A rank with invented peers: `all_gather_object` returns the values of `others`, then its own."""

    def say(self, *others: Any) -> "Pretended":
        object.__setattr__(self, "others", others)
        return self

    def all_gather_object(self, value: Any) -> list[Any]:
        return [*self.others, value]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("others", "raised"), [(None, RunError), (["disk", 0], OtherRankFailed), (["stopped", 15], RunError)]
)
def test_what_a_failure_of_several_ranks_raises(others: Any, raised: type[Exception]) -> None:
    def fails() -> None:
        raise RunError("here")

    with pytest.raises(raised) as caught:
        Pretended(1, 2, 1, 2).say(others).run_on_all(fails)
    assert type(caught.value) is raised


def test_a_signal_anywhere_interrupts_all() -> None:
    with pytest.raises(Interrupted) as caught:
        Pretended(1, 2, 1, 2).say(["stopped", 15]).run_on_all(lambda: 1)
    assert caught.value.signum == 15


def test_who_watches_rank_0_sees_what_failed_on_another_host() -> None:
    class Last(ProcessGroup):
        def all_gather_object(self, value: Any) -> list[Any]:
            return [value, None, ["disk", 0]]

    with pytest.raises(RunError, match="rank 2: disk") as caught:
        Last(0, 3, 0, 2).run_on_all(lambda: 1)
    assert not isinstance(caught.value, OtherRankFailed)
    with pytest.raises(OtherRankFailed):
        Last(0, 3, 0, 3).run_on_all(lambda: 1)


def test_work_for_the_main_rank_runs_there_alone_and_fails_everywhere() -> None:
    calls: list[int] = []

    def work() -> str:
        calls.append(1)
        return "done"

    assert Pretended(0, 2, 0, 2).say(None).run_on_main(work) == "done"
    assert Pretended(1, 2, 1, 2).say(None).run_on_main(work) is None
    assert len(calls) == 1
    with pytest.raises(OtherRankFailed, match="rank 0: disk"):
        Pretended(1, 2, 1, 2).say(["disk", 0]).run_on_main(work)
    assert len(calls) == 1


def test_a_deal_gives_each_number_to_one_rank_and_single_ones_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    total = [0]

    def add(counter: Any, amount: int) -> int:
        total[0] += amount
        return total[0]

    monkeypatch.setattr("qrdali.distributed.SharedCounter.add", add)
    deals = [iter(WorkQueue(ProcessGroup(rank, 3, rank, 3), 200)) for rank in range(3)]
    given: list[list[int]] = [[], [], []]
    turn = 0
    while (number := next(deals[turn % 3 if turn % 7 else 0], None)) is not None:  # the first rank is faster
        given[turn % 3 if turn % 7 else 0].append(number)
        turn += 1
    for rank in range(3):
        given[rank] += deals[rank]
    assert sorted(number for own in given for number in own) == list(range(200))
    assert len(given[0]) > len(given[1]) > 40
    assert given[1][:8] == list(range(given[1][0], given[1][0] + 8))
    assert [
        WorkQueue(ProcessGroup(), 9).chunk_size(),
        WorkQueue(ProcessGroup(0, 3), 200).chunk_size(),
        WorkQueue(ProcessGroup(0, 3), 30).chunk_size(),
        WorkQueue(ProcessGroup(0, 3), 5).chunk_size(),
    ] == [8, 8, 2, 1]


def _entry(sample: int, levels: int, outcome: str = "mepi") -> Entry:
    return Entry(sample, outcome, ((levels, 0, 0, 0, 0),), (0.9, 0.8), (), 4, 100, 50 - levels)


def test_parts_of_other_ranks_are_taken_in_and_go(tmp_path: Path) -> None:
    file = tmp_path / "crop.jsonl"
    for rank, sample in ((0, 4), (1, 2), (12, 7)):
        journal = Journal(file, 9, QUARTERS, rank)
        journal.begin()
        journal.append(_entry(sample, 1), 14 - rank)
        journal.close()
    with open(tmp_path / "crop.12.jsonl", "ab") as part:
        part.write(b'{"sample": 8, "outc')  # killed while writing
    (tmp_path / "crop.copy.jsonl").write_text("not a rank's")
    other = Journal(file, 9, QUARTERS, 1)
    assert other.with_mepi().tolist() == [4]
    journal = Journal(file, 9, QUARTERS)
    journal.merge_rank_parts()
    assert journal.with_mepi().tolist() == [2, 4, 7]
    assert journal.entry(7) == _entry(7, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["crop.copy.jsonl", "crop.jsonl"]
    other.reload()
    assert np.array_equal(other.rows, journal.rows)
    assert other.entry(2) == _entry(2, 1)
    journal.begin()
    journal.append(_entry(2, 2), 1)
    journal.close()
    assert Journal(file, 9, QUARTERS).entry(2) == _entry(2, 2)
    assert Journal(file, 9, QUARTERS).seconds == pytest.approx(
        14 + 1
    )  # the longest of the ranks, then the next session


def test_a_damaged_part_is_named_and_kept(tmp_path: Path) -> None:
    part = tmp_path / "crop.3.jsonl"
    part.write_bytes(b"[]\n")
    with pytest.raises(RunError, match=r"crop.3.jsonl line 1 is damaged"):
        Journal(tmp_path / "crop.jsonl", 9, QUARTERS).merge_rank_parts()
    assert part.exists()


def test_ranks_index_one_folder_alike(images: Path, dataset: Dataset, tmp_path: Path) -> None:
    """Rank 1 of two is given the list of files, and what rank 0 found in its half."""
    shutil.copytree(images / "val", tmp_path / "val")
    first = sorted((tmp_path / "val" / dataset.classes[1]).iterdir())[1]
    first.write_bytes(b"nothing")
    alone = index_folder(tmp_path / "val", dataset.classes, tmp_path / "alone.arrow")
    assert [path for path, _ in alone] == [str(first)]
    bad = [0, 0, "bad"]
    listed = [
        [label, str(p)]
        for label, name in enumerate(dataset.classes)
        for p in sorted((tmp_path / "val" / name).iterdir())
    ]

    told = [listed, [], []]  # the files, the end, and what was not read

    class Second(ProcessGroup):
        def broadcast_object(self, value: Any) -> Any:
            return told.pop(0)

        def run_on_all(self, work: Callable[[], Any]) -> Any:
            return work()

        def all_gather_object(self, value: Any) -> list[Any]:
            return [
                [bad if path == str(first) else [*Image.open(path).size, ""] for _, path in listed[::2]],
                value,
            ]

    found = index_folder(
        tmp_path / "val", dataset.classes, tmp_path / "second.arrow", group=Second(1, 2, 1, 2)
    )
    assert [path for path, _ in found] == [str(first)]
    assert (tmp_path / "second.arrow").read_bytes() == (tmp_path / "alone.arrow").read_bytes()
