"""Every reader of what qrdali writes, on bytes that nobody wrote: a value, or one line.

Never another error, code or a wait.
"""

import functools
import io
import json
import os
import pickle
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qrdali.cli.worker_view import worker_line
from qrdali.data import provenance as source
from qrdali.data import verify
from qrdali.data.index import FILES_SCHEMA, SCHEMA, Dataset, Index
from qrdali.errors import InputError, RunError, printable
from qrdali.evaluation.prediction_rows import read_metadata, read_rows
from qrdali.experiment import config as matrix
from qrdali.experiment.claims import read_holder
from qrdali.experiment.estimate import rows as timed_rows
from qrdali.experiment.folder import ExperimentFolder
from qrdali.experiment.workers import Workers
from qrdali.mepi.folder import MepiSet, MepiSource
from qrdali.mepi.journal import Entry, Journal
from qrdali.models import Preprocessing
from qrdali.reduction.levels import PerImageLevels
from qrdali.reduction.quality import QUARTERS
from qrdali.report.read import read_epochs
from qrdali.report.read_mepis import read_mepis
from qrdali.runs import checkpoint
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import read_toml as read_settings
from qrdali.runs.settings import validate_settings
from qrdali.schedule import epoch_schedule
from qrdali.workflows.matrix_status import known_workers

EXAMPLES = int(os.environ.get("QRDALI_FUZZ", "60"))
PRE = Preprocessing(32, "whole", 0.9, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Ran(BaseException):
    """What a malicious pickle raises where it runs: nothing catches it."""


def boom() -> None:
    raise Ran


@dataclass
class Evil:
    def __reduce__(self) -> Any:
        return boom, ()


@dataclass(frozen=True)
class Reader:
    """file: what is damaged, of the good folder that `made` fills. read: what reads it."""

    file: str
    read: Callable[[Path], object]

    def __str__(self) -> str:
        return f"{self.file} {self.read.__name__}".replace("/", "-")


def checkpoint_tensors(folder: Path) -> object:
    return checkpoint.load(folder / "run/best", "model")


def trained(folder: Path) -> object:
    return run_folder.describe_best(folder / "run")


def rows_of(folder: Path) -> object:
    return [read_metadata(folder / "run", "test"), read_rows(folder / "run", "test", 1)]


def metrics_of(folder: Path) -> object:
    found = [
        list(run_folder.metrics_rows(folder / "run")),
        timed_rows(folder / "run"),
        run_folder.last_recorded(folder / "run", "environment"),
    ]
    read_epochs(folder / "run/metrics.jsonl", lambda line: None)
    return [found, run_folder.optimizer_steps(folder / "run")]


def config_of(folder: Path) -> object:
    return validate_settings(read_settings(folder / "run/config.toml"))


def index_of(folder: Path) -> object:
    index = Index(folder / "data/train.arrow", 4)
    every = np.arange(len(index))
    return [index.paths(every), index.labels(every), index.sizes(every), index.fingerprint]


def verified(folder: Path) -> object:
    return list(verify.changes(Dataset.open(folder / "data"), threads=1))


def levels_of(folder: Path) -> object:
    return PerImageLevels.load(folder / "levels", 1, 5, QUARTERS, False, False).for_samples(np.arange(5))


def large_index_of(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qrdali.data.index_columns.MAPPED", 0)
        return index_of(folder)


def large_levels_of(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qrdali.reduction.levels.MAPPED", 0)
        return levels_of(folder)


def journal_of(folder: Path) -> object:
    journal = Journal(folder / "journal.jsonl", 9, QUARTERS)
    return [journal.seconds, journal.complete, journal.mean_quotient()]


def mepis_of(folder: Path) -> object:
    return read_mepis(folder / "mepi", "mepi", [])


def mepi_source_of(folder: Path) -> MepiSource:
    return MepiSource(Index(folder / "data/train.arrow", 4), fake_runs.CLASSES, QUARTERS)


def mepi_set_of(folder: Path) -> object:
    opened = MepiSet.open(folder / "mepi", mepi_source_of(folder), {"run": "x"}, None)
    try:
        return opened.summaries()
    finally:
        opened.close()


def summaries_of(folder: Path) -> object:
    return MepiSet(folder / "mepi", mepi_source_of(folder), io.StringIO()).summaries()


def attempts_of(folder: Path) -> object:
    return [attempt.get("reason") for attempt in ExperimentFolder(folder / "notes").attempts("train a")]


def workers_of(folder: Path) -> object:
    """What cannot be read is read over; here that is an error, as elsewhere."""
    (worker,) = known_workers(Workers(folder / "notes")) or [None]
    if worker is None or not worker.task:
        raise RunError("no worker, or no activity")
    return worker_line("w", worker)


def holder_of(folder: Path) -> object:
    holder = read_holder(folder / "notes/tasks/train+a")
    if holder is None or holder.worker is None:
        raise RunError("no holder")
    return holder


READERS = [
    Reader("run/best/state.json", trained),
    Reader("run/best/model.safetensors", checkpoint_tensors),
    Reader("sums/best/SHA256SUMS", lambda folder: checkpoint.load(folder / "sums/best", "model")),
    Reader("run/predictions/test.parquet", rows_of),
    Reader("run/metrics.jsonl", metrics_of),
    Reader("run/config.toml", config_of),
    Reader("matrix.toml", lambda folder: matrix.read(folder / "matrix.toml")),
    Reader("data/train.arrow", index_of),
    Reader("data/train.arrow", large_index_of),
    Reader("data/train.files.arrow", verified),
    Reader("data/classes.tsv", lambda folder: Dataset.open(folder / "data")),
    Reader("data/source.json", lambda folder: source.brief(source.read(folder / "data"))),
    Reader("levels/0001.levels.npy", levels_of),
    Reader("levels/0001.levels.npy", large_levels_of),
    Reader("journal.jsonl", journal_of),
    Reader("mepi/options.json", mepi_set_of),
    Reader("mepi/summary.json", summaries_of),
    Reader("mepi/summary.json", mepis_of),
    Reader("mepi/manifest.parquet", mepis_of),
    Reader("notes/done.json", lambda folder: ExperimentFolder(folder / "notes")),
    Reader("notes/failures.json", lambda folder: ExperimentFolder(folder / "notes")),
    Reader("notes/begun.json", lambda folder: ExperimentFolder(folder / "notes").tail),
    Reader("notes/tasks/train+a/done.json", lambda folder: ExperimentFolder(folder / "notes")),
    Reader("notes/tasks/train+a/failed.json", attempts_of),
    Reader("notes/tasks/train+a/claim-000001", holder_of),
    Reader("notes/workers/000001.worker", workers_of),
    Reader("notes/workers/000001.activity", workers_of),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each file, as qrdali writes it.

    The run's checkpoint without hashes, which would refuse every change alike.
    """
    root = tmp_path_factory.mktemp("good")
    run = fake_runs.run(
        root / "run",
        [0.25, 0.5],
        {"test": np.array([True, False, True, True])},
        extra={"environment": {"torch": "2"}},
    )
    shutil.copytree(run, root / "sums")
    (run / "best/SHA256SUMS").unlink()
    fake_runs.mepis(root / "mepi", run, {"crop": {0: 0.5, 2: 0.25}, "color": {1: 0.75}}, 3)
    data = root / "data"
    data.mkdir()
    (data / "classes.tsv").write_text("label\tname\n0\tant\n1\tbee\n2\tcat\n3\tdog\n")
    table = pa.table(
        [[f"/gone/{i}.jpg" for i in range(5)], [0, 1, 2, 3, 0], [10] * 5, [12] * 5], schema=SCHEMA
    )
    files = pa.table([[100] * 5, [None] * 5], schema=FILES_SCHEMA)
    for name, content in (("train", table), ("train.files", files)):
        with pa.ipc.new_file(str(data / f"{name}.arrow"), content.schema) as writer:
            writer.write_table(content)
    source.write(data, {"name": "shapes", "files": {"train": 5}})
    PerImageLevels(np.ones((5, 3), np.uint8), None, None).save(root / "levels", 1)
    entry = Entry(3, "mepi", ((1, 0, 0, 0, 0),), (0.9, 0.8), (), 4, 100, 50)
    journal = Journal(root / "journal.jsonl", 9, QUARTERS)
    journal.begin()
    journal.append(entry, 1.5)
    journal.close()
    (root / "notes").mkdir()
    (root / "notes/.lock").touch()
    (root / "notes/done.json").write_text('{"evaluate a": {"weights": [1, 2], "seconds": 1.5}}')
    (root / "notes/failures.json").write_text('{"train a": {"reason": "disk"}}')
    (root / "notes/begun.json").write_text('{"tail": "full"}')
    task, workers = root / "notes/tasks/train+a", root / "notes/workers"
    task.mkdir(parents=True)
    workers.mkdir()
    (task / "done.json").write_text('{"seconds": 1.5, "worker": "w"}')
    (task / "failed.json").write_text('{"reason": "r", "attempts": [{"reason": "r", "final": false}]}')
    (task / "claim-000001").write_text('{"state": "held", "worker": 1}\n')
    (workers / "000001.worker").write_text(
        '{"host": "h", "pid": 1, "machine": "m", "name": "n", "gpu": "0", "begun": 1.5, "locked": true, '
        '"matrix": {"seeds": [0]}}\nbeats 00000000000000000007\n'
    )
    (workers / "000001.activity").write_text('{"task": "train a", "seconds": 1.5, "done": 3, "rate": 1.5}')
    (root / "matrix.toml").write_text(
        'out = "o"\nseeds = [0]\n[data]\nfolder = "d"\n[[network]]\nmodel = "test_resnet"\nepochs = 2\n'
    )
    return root


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """No reader may take 4 GB more than the process has."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def tried(reader: Reader, folder: Path) -> bool:
    """Whether it was read; else it was refused in one line."""
    try:
        reader.read(folder)
        return True
    except (InputError, RunError) as error:
        line = str(error)
    assert line == printable(line)
    assert line
    return False


WORDS = [
    b"",
    b"\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80",
    b"\n",
    b"[" * 3000,
    b"{",
    b'"',
    b"1e999",
    b"-1",
    b"null",
    b"NaN",
    b"9" * 400,
    b"9" * 5000,
    b"\\ud800",
    b"0",
    b"true",
    b'{"a":' * 50,
    b"ARROW1",
    b"PAR1",
    b"PK\x03\x04",
]
EDIT = st.tuples(
    st.floats(0, 1), st.integers(0, 12), st.one_of(st.binary(max_size=8), st.sampled_from(WORDS))
)


def edited(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for place, length, put in edits:
        at = int(place * len(content))
        content = content[:at] + put + content[at + length :]
    return content


@pytest.mark.parametrize("reader", READERS, ids=str)
def test_any_bytes_give_a_value_or_one_line(
    good: Path, tmp_path_factory: pytest.TempPathFactory, reader: Reader
) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "good"
    shutil.copytree(good, folder)
    file = folder / reader.file
    content = file.read_bytes()
    assert tried(reader, folder) or reader.read in (mepi_set_of,)  # it has other options

    @settings(
        max_examples=EXAMPLES,
        deadline=20_000,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.one_of(
            st.binary(max_size=200),
            st.lists(EDIT, min_size=1, max_size=3).map(functools.partial(edited, content)),
        )
    )
    def fuzz(damaged: bytes) -> None:
        # a new file: the old one's pages may still be mapped
        file.unlink()
        file.write_bytes(damaged)
        tried(reader, folder)

    fuzz()


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


def replaced(value: Any, path: list[int], new: Any) -> Any:
    """`value` with what stands at `path` (positions, modulo) replaced."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = replaced(value[key], path[1:], new)
    return copy


@pytest.mark.parametrize("reader", [r for r in READERS if r.file.endswith((".json", ".jsonl"))], ids=str)
def test_any_json_value_gives_a_value_or_one_line(
    good: Path, tmp_path_factory: pytest.TempPathFactory, reader: Reader
) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "good"
    shutil.copytree(good, folder)
    file = folder / reader.file
    lines = (
        [json.loads(line) for line in file.read_text().splitlines()]
        if reader.file.endswith("l")
        else [json.loads(file.read_text())]
    )

    @settings(
        max_examples=EXAMPLES,
        deadline=20_000,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 9), st.lists(st.integers(0, 30), max_size=4), VALUES)
    def fuzz(line: int, path: list[int], value: Any) -> None:
        changed = [
            replaced(old, path, value) if number == line % len(lines) else old
            for number, old in enumerate(lines)
        ]
        file.write_text("".join(json.dumps(one) + "\n" for one in changed))
        tried(reader, folder)

    fuzz()


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def object_npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Evil()] * 5, object), allow_pickle=True)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def arrow(content: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content)
    return bytes(sink.getvalue())


def lying_arrow() -> bytes:
    """A footer that says it is longer than the file."""
    whole = arrow(pa.table([["/a"], [0], [1], [1]], schema=SCHEMA))
    return whole[:-10] + struct.pack("<i", 1 << 30) + whole[-6:]


def arrow_bomb() -> bytes:
    """3 GB of paths in a small file."""
    name = "/" + "a" * 1_000_000
    return arrow(pa.table([[name] * 200, [0] * 200, [1] * 200, [1] * 200], schema=SCHEMA), compression="zstd")


def parquet_bomb() -> bytes:
    """100 million rows in a few bytes."""
    count = 100_000_000
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, pa.schema([("sample", pa.int64())]), compression="zstd") as writer:
        writer.write_table(pa.table({"sample": np.zeros(count, np.int64)}), row_group_size=count)
    return bytes(sink.getvalue())


HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 3)}"
BOMB = b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
LARGE = b'{"a": [' + b"[]," * 6_000_000 + b"0]}"
HOSTILE = {
    "pickle.npy": ("levels/0001.levels.npy", pickle.dumps(Evil()), "cannot be read"),
    "object.npy": ("levels/0001.levels.npy", object_npy(), "cannot be read"),
    "npz.npy": ("levels/0001.levels.npy", npz(), "cannot be read"),
    "huge.npy": ("levels/0001.levels.npy", npy(HEADER % 10**12), "cannot be read"),
    "vast.npy": ("levels/0001.levels.npy", npy(HEADER % 10**60), "cannot be read"),
    "code.npy": ("levels/0001.levels.npy", npy("__import__('os').abort()"), "cannot be read"),
    "pickle.safetensors": ("run/best/model.safetensors", pickle.dumps(Evil()), "cannot be read"),
    "torch.safetensors": ("run/best/model.safetensors", b"", "cannot be read"),
    "long.safetensors": ("run/best/model.safetensors", safetensors({}, length=1 << 62), "cannot be read"),
    "lying.safetensors": (
        "run/best/model.safetensors",
        safetensors({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
        "cannot be read",
    ),
    "offsets.safetensors": (
        "run/best/model.safetensors",
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(8)),
        "cannot be read",
    ),
    "deep.safetensors": ("run/best/model.safetensors", safetensors(BOMB), "cannot be read"),
    "bomb.json": ("run/best/state.json", BOMB, "cannot be read"),
    "large.json": ("run/best/state.json", LARGE, "larger than the allowed 16 MiB"),
    "bomb.source": ("data/source.json", BOMB, "cannot be read"),
    "bomb.task": ("notes/tasks/train+a/failed.json", BOMB, "cannot be read.*remove it"),
    "bomb.notes": ("notes/done.json", BOMB, "cannot be read.*remove it"),
    "bomb.summary": ("mepi/summary.json", LARGE, "larger than the allowed 16 MiB"),
    "bomb.metrics": ("run/metrics.jsonl", BOMB, "cut or damaged|no whole line"),
    "endless.metrics": ("run/metrics.jsonl", b"1" * (9 << 20), "cut or damaged|no whole line"),
    "bomb.toml": ("run/config.toml", b"a = " + b"[" * 300_000, "cannot be read as TOML"),
    "large.toml": ("run/config.toml", b"#" * 1_000_001, "larger than 1 MB"),
    "unknown.toml": (
        "run/config.toml",
        b'method = "shared"\ndata = "d"\nsurprise = 1\n',
        "surprise = 1: there is no such setting",
    ),
    "lying.arrow": ("data/train.arrow", lying_arrow(), "not a readable index"),
    "bomb.arrow": ("data/train.arrow", arrow_bomb(), "larger than the file"),
    "holes.arrow": (
        "data/train.arrow",
        arrow(pa.table([[None], [0], [1], [1]], schema=SCHEMA)),
        "has empty cells",
    ),
    "infinite.journal": ("journal.jsonl", b'{"seconds": ' + b"9" * 400 + b"}\n", "line 1 is damaged"),
    "bomb.parquet": ("run/predictions/test.parquet", parquet_bomb(), "its footer claims 100000000 rows"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_malicious_file_is_refused_in_one_line(good: Path, tmp_path: Path, name: str) -> None:
    file, content, message = HOSTILE[name]
    if name == "torch.safetensors":
        torch.save({"w": Evil()}, tmp_path / "w")
        content = (tmp_path / "w").read_bytes()
    shutil.copytree(good, tmp_path / "good")
    (tmp_path / "good" / file).write_bytes(content)
    readers = [reader for reader in READERS if reader.file == file]
    assert readers
    for reader in readers:
        with pytest.raises((InputError, RunError), match=message) as raised:
            reader.read(tmp_path / "good")
        assert str(raised.value) == printable(raised.value)


@pytest.mark.parametrize("reader", READERS, ids=str)
@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
@pytest.mark.timeout(60, method="thread")
def test_what_is_no_file_is_not_waited_for(good: Path, tmp_path: Path, reader: Reader, kind: str) -> None:
    shutil.copytree(good, tmp_path / "good")
    file = tmp_path / "good" / reader.file
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    assert not tried(reader, tmp_path / "good")


@pytest.mark.parametrize("key", list(epoch_schedule.ScheduleState(0.5).as_dict()))
@pytest.mark.parametrize("value", [[], {}, "x", -2, 1.5, True])
def test_a_state_of_other_types_is_refused(key: str, value: Any) -> None:
    state = epoch_schedule.ScheduleState(0.5, 3, 2, True, False, "C", 1, 0.5, 0.5, 2, 1, 3, "")
    assert epoch_schedule.ScheduleState.from_dict(state.as_dict()) == state
    kind = {"float": (float, int), "int": (int,), "bool": (bool,), "str": (str,)}[
        str(epoch_schedule.ScheduleState.__dataclass_fields__[key].type)
    ]
    if type(value) in kind and not (value == -2 and kind == (int,)):
        assert getattr(epoch_schedule.ScheduleState.from_dict({**state.as_dict(), key: value}), key) == value
    else:
        with pytest.raises((TypeError, ValueError), match=f"{key} is a|count below 0"):
            epoch_schedule.ScheduleState.from_dict({**state.as_dict(), key: value})
