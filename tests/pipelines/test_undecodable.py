"""Files that Pillow reads and DALI's decoders refuse: each is named, wherever images are read."""

import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from refused_images import refused
from tiny_data import jpeg

import qrdali
from qrdali.data.index import Dataset, Index
from qrdali.data.inspect import FileReport
from qrdali.data.scan import build_dataset
from qrdali.errors import OutOfMemory, RunError, Unreadable
from qrdali.interfaces import CandidateRequest
from qrdali.models import Preprocessing
from qrdali.pipelines import diagnose as diagnosis
from qrdali.pipelines.diagnose import InFlight, diagnose
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.file_reader import FileReader
from qrdali.pipelines.graph_inputs import DecodeInputs, window_bounds
from qrdali.pipelines.image_reducer import open_image_reducer
from qrdali.pipelines.loader import open_loader
from qrdali.pipelines.undecodable import check_decoder, decode_once, decoder_message, undecodable
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.reduction.neighbors import Candidates
from qrdali.reduction.quality import LevelScale
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.workflows.preview import draw_preview

PRE = Preprocessing(32, "whole", 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
REFUSED = refused()
HOST, GRAPH = Engine(threads=1, depth=2), Engine(threads=1, depth=2, whole_graph=True)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Thirty training images of 48×36."""
    return indexed(tmp_path, ("cat", "dog"), 15)


def indexed(folder: Path, classes: tuple[str, ...], count: int) -> Index:
    for split, images in (("train", count), ("val", 1)):
        for name in classes:
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(images):
                (folder / "images" / split / name / f"{i}.jpg").write_bytes(jpeg((48, 36), i))
    build_dataset(folder / "images", folder / "data")
    return Dataset.open(folder / "data").index("train")


def replace_with(index: Index, files: dict[int, bytes]) -> None:
    for sample, content in files.items():
        Path(index.paths(np.array([sample]))[0]).write_bytes(content)


def every_other(index: Index) -> dict[int, bytes]:
    """One file of each kind, at even samples."""
    return dict(zip(range(0, len(index), 2), REFUSED.values(), strict=False))


@pytest.mark.parametrize("name", REFUSED)
def test_pillow_reads_what_the_decoder_refuses(name: str) -> None:
    with Image.open(io.BytesIO(REFUSED[name])) as image:
        image.load()
        assert image.size == (48, 36)
    inputs = DecodeInputs([np.frombuffer(REFUSED[name], np.uint8)], window_bounds(whole_windows(1)))
    assert list(undecodable(partial(decode_once, HOST, True), inputs)) == [0]


@pytest.mark.parametrize("decode", ["windows", "whole"])
@pytest.mark.parametrize("name", ["one byte between.jpg", "palette of 8194.bmp", "too small.jpg", "empty"])
def test_the_decoder_never_sees_what_would_crash_it(name: str, decode: Literal["windows", "whole"]) -> None:
    # DALI 2.4 crashes once in ten times or so if its decoder finds these in the last part of a large batch.
    bad = {"too small.jpg": jpeg((40, 30)), "empty": bytes(1), **REFUSED}[name]
    files = [np.frombuffer(content, np.uint8) for content in [jpeg((48, 36))] * 31 + [bad]]
    with pytest.raises(RuntimeError) as raised:
        decode_once(Engine(decode=decode), True, DecodeInputs(files, window_bounds(whole_windows(32))))
    operator = re.search("operator `nvidia.dali.([a-z_.]+)`", str(raised.value))
    assert operator is not None
    assert operator[1] in ("fn.peek_image_shape", "fn.slice")
    assert "in _inside" in str(raised.value)


def whole_windows(count: int) -> Any:
    return np.tile(np.array([0, 0, 36, 48], np.int32), (count, 1))


@pytest.mark.parametrize("engine", [HOST, GRAPH], ids=["host", "graph"])
def test_an_epoch_goes_on_without_them(index: Index, engine: Engine) -> None:
    bad = every_other(index)
    plan = EpochPlan(len(index), 4, FULL_QUALITY, seed=2, epoch=1, training=True)
    replace_with(index, bad)
    told: dict[int, str] = {}
    seen = {b.number: b.samples.tolist() for b in open_loader(index, PRE, 4, engine).epoch(plan, told.update)}
    assert sorted(told) == sorted(bad)
    good = {n: [s for s in plan.batch(n).tolist() if s not in bad] for n in range(plan.batches)}
    assert seen == {number: samples for number, samples in good.items() if samples}
    for sample, reason in told.items():
        path = index.paths(np.array([sample]))[0]
        assert reason.startswith(f"sample {sample}, {path}, cannot be decoded: ")
        assert "Pillow reads it, but DALI's decoder does not" in reason
        assert not {"traceback", "pipeline", "\n"} & set(reason.split(" "))


@pytest.mark.parametrize("engine", [HOST, GRAPH], ids=["host", "graph"])
def test_a_probe_and_a_search_name_them(index: Index, engine: Engine) -> None:
    replace_with(index, {5: REFUSED["one byte between.jpg"]})
    request = CandidateRequest(np.array([4, 5, 6]), whole_windows(3), candidates_of(3))
    with pytest.raises(Unreadable, match="sample 5, .*: Pillow reads it") as raised:
        list(open_loader(index, PRE, 4, engine).candidates(iter([request]), 4, (0,), False))
    assert list(raised.value.reasons) == [5]
    told: dict[int, str] = {}
    found = open_image_reducer(index, PRE, engine).decode(iter(range(12)), told.__setitem__)
    assert [sample for sample, _ in found] == [s for s in range(12) if s != 5]
    assert list(told) == [5]


def candidates_of(count: int) -> Candidates:
    one = np.ones((count, 1), np.bool_)
    return Candidates(
        levels=np.ones((count, 1, 3), np.uint8),
        window=whole_windows(count)[:, None],
        size=whole_windows(count)[:, None, 2:],
        bin_width=np.full((count, 1), 2, np.int32),
        exists=one,
    )


@pytest.mark.parametrize("name", ["one byte between.jpg", "header twice.png", "inks of 16 bits.tif"])
def test_single_images_are_named_with_the_reason(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(REFUSED[name])
    words = f"{name} cannot be decoded: Pillow reads it, but DALI's decoder does not"
    with pytest.raises(RunError, match=words) as read:
        qrdali.read(file)
    with pytest.raises(RunError, match=words) as previewed:
        draw_preview(str(file), tmp_path / "sheet.png")
    assert str(read.value) == str(previewed.value)
    assert not (tmp_path / "sheet.png").exists()


def counted(bad: set[int], calls: list[int]) -> Callable[[DecodeInputs], None]:
    def decode(inputs: DecodeInputs) -> None:
        calls.append(len(inputs.files))
        if bad & {int(file[0]) for file in inputs.files}:
            raise RuntimeError("encountered:\n\nbroken\nC++ context: [/x.cc:1]")

    return decode


@pytest.mark.parametrize("bad", [set(), {0}, {255}, {3, 200}, set(range(256))])
def test_batches_are_halved(bad: set[int]) -> None:
    calls: list[int] = []
    inputs = DecodeInputs(
        [np.array([i], np.uint8) for i in range(256)], window_bounds(np.zeros((256, 4), np.int32))
    )
    assert undecodable(counted(bad, calls), inputs) == dict.fromkeys(sorted(bad), "broken")
    assert len(calls) <= min(1 + 2 * 8 * len(bad), 511)


def in_flight(index: Index, samples: range) -> list[InFlight]:
    numbers = np.array(samples)
    files = FileReader(index)(numbers)
    return [InFlight(numbers, DecodeInputs(files, window_bounds(whole_windows(len(numbers)))))]


SHORTAGES = [
    RuntimeError("in pipeline\nencountered:\n\nstd::bad_alloc\n"),
    RuntimeError("encountered:\n\nnvImageCodec failure: '#5'"),
    RuntimeError("encountered:\n\nnvImageCodec failure: '#15'"),
    RuntimeError("encountered:\n\nCUDA allocation failed"),  # cuda_error.h of DALI
    RuntimeError("encountered:\n\nCan't allocate 1048576 bytes on device 3."),
    MemoryError("Can't allocate 1048576 bytes on host."),
    RuntimeError("CUDA driver API error CUDA_ERROR_OUT_OF_MEMORY (2):\nout of memory"),
    RuntimeError("CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory"),
    RuntimeError("nvjpeg error: Memory allocator error"),
    RuntimeError("device allocator failed"),
    MemoryError(),
]
ADVICE = "^out of memory while .*--batch-size or --threads, in build-mepi also .* or --memory$"


@pytest.mark.parametrize("error", SHORTAGES)
def test_a_shortage_of_memory_is_no_files_fault(index: Index, error: Exception) -> None:
    replace_with(index, {0: b""})  # bad as well, and not the cause
    with pytest.raises(OutOfMemory, match=ADVICE):
        diagnose(FileReader(index), error, in_flight(index, range(4)), partial(decode_once, HOST, False))


@pytest.mark.parametrize("refused", [4, 5])  # the files in flight, or the sound pictures that are tried first
@pytest.mark.parametrize("error", [RuntimeError("CUDA allocation failed"), MemoryError()])
def test_a_shortage_while_files_are_tried_again(index: Index, error: Exception, refused: int) -> None:
    def decode(inputs: DecodeInputs) -> None:
        if len(inputs.files) == refused:
            raise error

    with pytest.raises(OutOfMemory, match=ADVICE):
        diagnose(FileReader(index), RuntimeError("it broke"), in_flight(index, range(4)), decode)


def test_torchs_shortage_of_memory_stays_what_it_is(index: Index) -> None:
    replace_with(index, {0: b""})
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(torch.OutOfMemoryError) as raised:
        diagnose(FileReader(index), error, in_flight(index, range(4)), partial(decode_once, HOST, False))
    assert raised.value is error


def test_a_decoder_that_takes_nothing_blames_no_file(index: Index) -> None:
    def broken(inputs: DecodeInputs) -> None:
        raise RuntimeError("encountered:\n\nno driver")

    replace_with(index, {0: b""})
    with pytest.raises(
        RunError, match="failed: it broke; sound pictures cannot be decoded either .no driver"
    ):
        diagnose(FileReader(index), RuntimeError("it broke"), in_flight(index, range(4)), broken)


@pytest.mark.parametrize(
    "reason", ["[Errno 24] Too many open files: '/x'", "[Errno 116] Stale", "MemoryError"]
)
def test_a_shortage_met_by_pillow_blames_no_file(
    index: Index, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    decode = partial(decode_once, HOST, False)
    monkeypatch.setattr(diagnosis, "inspect_file", lambda path, **how: FileReport(path, reason=reason))
    with pytest.raises(RunError, match=f"cannot be opened: {re.escape(reason)}") as raised:
        diagnose(FileReader(index), RuntimeError("it broke"), in_flight(index, range(4)), decode)
    assert not isinstance(raised.value, Unreadable)


def test_a_name_that_sounds_like_a_shortage_is_a_name(tmp_path: Path) -> None:
    index = indexed(tmp_path, ("cat", "out of memory"), 3)
    gone = next(s for s in range(6) if "out of memory" in index.paths(np.array([s]))[0])
    Path(index.paths(np.array([gone]))[0]).unlink()
    told: dict[int, str] = {}
    list(open_loader(index, PRE, 2, HOST).epoch(EpochPlan(6, 2, FULL_QUALITY, LevelScale(1)), told.update))
    assert list(told) == [gone]
    assert "is gone since it was indexed" in told[gone]


@pytest.mark.parametrize("needs_bytes", [False, True])
def test_sound_pictures_are_taken(needs_bytes: bool) -> None:
    check_decoder(partial(decode_once, HOST, needs_bytes), needs_bytes)


def test_the_decoders_words_stand_alone() -> None:
    text = (
        "Critical error\nError in CPU operator `fn.io.file.read`,\nencountered:\n\nFile mapping failed: /x\n"
    )
    assert decoder_message(RuntimeError(text + "C++ context: [a.cc:105] \n")) == "File mapping failed: /x"
    codec = RuntimeError(
        "encountered:\n\nnvImageCodec failure: '#4'\nCurrent pipeline object is no longer valid."
    )
    assert decoder_message(codec) == "nvImageCodec: unsupported code stream"
