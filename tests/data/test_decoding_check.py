"""What is indexed is decoded by the decoder that trains, and by Pillow to the same pixels."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import crashing_decoder
import disagreeing_images
import fuzz_decoders
import malformed_images
import numpy as np
import pytest

import qrdali
from qrdali.data import decoder_process as decoder_module
from qrdali.data.build import index_root
from qrdali.data.decoder_process import DecoderProcess, decoder_process
from qrdali.data.index import Dataset
from qrdali.data.jpeg_structure import read_jpeg_structure
from qrdali.data.scan import DECODED, Reading, build_dataset, index_folder
from qrdali.errors import RunError

WHOLE = malformed_images.jpeg()
LIMIT = 1_000_000


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    """A root of two classes with a good image each, and `files` in the first."""
    for kind in ("a", "b"):
        (root / "train" / kind).mkdir(parents=True)
        (root / "train" / kind / "good.jpg").write_bytes(WHOLE)
    for name, data in files.items():
        (root / "train/a" / name).write_bytes(data)
    return root


def listed(file: Path) -> dict[str, str]:
    """The second column of a TSV, by file name."""
    rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()[1:]]
    return {Path(path).name: text for path, text in rows}


def names(dataset: Path) -> set[str]:
    index = Dataset.open(dataset).index("train")
    return {Path(path).name for path in index.paths(np.arange(len(index)))}


@pytest.mark.parametrize("name", disagreeing_images.refused())
def test_what_decoders_read_differently_is_rejected(name: str) -> None:
    (found,) = decoder_process.check([disagreeing_images.refused()[name]], 1, LIMIT)
    assert re.search("DALI|incomplete progressive|eXIf|orientation", found.reason), found


def test_every_way_to_an_index_asks_the_training_decoder(tmp_path: Path) -> None:
    bad = {
        "bad.jpg": disagreeing_images.between_segments(b"\0"),
        "wrong.tif": disagreeing_images.refused()["gray and unspecified.tif"],
    }
    root = folder_of(tmp_path / "r", bad)
    assert build_dataset(root, tmp_path / "d").rejected == 2
    assert set(listed(tmp_path / "d/rejected.tsv")) == set(bad)
    assert len(qrdali.index(str(root), tmp_path / "d2", threads=1)["train"]) == 2
    rejected = index_folder(root / "train", ("a", "b"), tmp_path / "set.arrow")
    assert {Path(path).name for path, _ in rejected} == set(bad)
    with tarfile.open(tmp_path / "train-0.tar", "w") as shard:
        for key, data in {"0.jpg": WHOLE, "1.jpg": WHOLE, "2.jpg": bad["bad.jpg"]}.items():
            for name, content in ((key, data), (f"{key[0]}.cls", b"%d" % (key == "1.jpg"))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                shard.addfile(info, BytesIO(content))
    shards = tmp_path / "shards"
    shards.mkdir()
    (tmp_path / "train-0.tar").rename(shards / "train-0.tar")
    summary = index_root(str(shards), tmp_path / "d3", DECODED)
    assert (summary.images, summary.rejected) == ({"train": 2}, 1)
    assert build_dataset(root, tmp_path / "d4", verify=False).images == {"train": 4}


def test_damaged_images_are_listed_and_decoders_are_silent(tmp_path: Path) -> None:
    damaged = disagreeing_images.damaged()
    root = folder_of(tmp_path / "r", damaged)
    words = ["data", "index", str(root), "--out", str(tmp_path / "d"), "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "qrdali", *words], capture_output=True, text=True, timeout=200, check=True
    )
    assert re.search(rf"{len(damaged)} damaged but\s+readable, see \S+warnings\.tsv", done.stderr)
    assert "Corrupt" not in done.stderr
    assert (tmp_path / "d/warnings.tsv").read_text().startswith("path\twhat\n")
    warnings = listed(tmp_path / "d/warnings.tsv")
    assert set(warnings) == set(damaged)
    assert all(re.search("Corrupt JPEG data", what) for what in warnings.values())
    assert names(tmp_path / "d") == {"good.jpg", *damaged}
    assert listed(tmp_path / "d/rejected.tsv") == {}


def test_a_large_batch_names_the_damaged_and_the_undecodable(tmp_path: Path) -> None:
    """One bad file in a batch must not be blamed on another, nor take its pixels."""
    damaged, bad = disagreeing_images.damaged()["flipped.jpg"], disagreeing_images.lossless_jpeg()
    contents = [*malformed_images.accepted().values(), WHOLE, damaged, WHOLE, bad, WHOLE]
    findings = decoder_process.check(contents, 2, LIMIT)
    assert [found.reason for found in findings[:-2]] == [""] * (len(contents) - 2)
    assert "DALI" in findings[-2].reason
    warned = [i for i, found in enumerate(findings) if found.warning]
    # The other is "taller.jpg", whose header claims more rows than there are.
    assert warned == [list(malformed_images.accepted()).index("taller.jpg"), len(contents) - 4]


def test_reasons_hold_no_addresses(tmp_path: Path) -> None:
    rubbish = {f"{i}.{kind}": bytes([i] * 50) for i, kind in enumerate(("jpg", "png", "bmp", "tif", "webp"))}
    root = folder_of(
        tmp_path / "r", rubbish | {name: data for name, (data, _) in malformed_images.cut().items()}
    )
    build_dataset(root, tmp_path / "d")
    reasons = listed(tmp_path / "d/rejected.tsv")
    assert set(rubbish) <= set(reasons)
    assert not any("0x" in reason or "BytesIO" in reason for reason in reasons.values())


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> DecoderProcess:
    monkeypatch.setattr(decoder_module, "_PROGRAM", "crashing_decoder")
    return DecoderProcess()


def test_a_file_that_crashes_or_hangs_the_decoder_is_rejected(
    faulty: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_module, "_BATCH_SECONDS", 3.0)
    bad = {
        crashing_decoder.CRASH: "crashes with SIGSEGV",
        crashing_decoder.HANG: "no answer within 3 s",
        crashing_decoder.KILLED: "want of memory",
    }
    findings = faulty.check([WHOLE, *(WHOLE + content for content in bad), WHOLE], 1, LIMIT)
    faulty.close()
    assert [(found.width, found.height) for found in findings[::4]] == [(48, 36)] * 2
    for found, reason in zip(findings[1:4], bad.values(), strict=True):
        assert reason in found.reason


def test_a_child_that_has_ended_is_started_again() -> None:
    process = DecoderProcess()
    assert process.check([WHOLE], 1, LIMIT)[0].width == 48
    child = process._child
    assert child is not None
    os.kill(child._process.pid, signal.SIGKILL)
    child._process.wait(10)
    assert process.check([WHOLE, WHOLE], 1, LIMIT) == process.check([WHOLE], 1, LIMIT) * 2
    process.close()


def test_a_child_that_was_started_early_may_have_ended_before_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Listing a large tree takes longer than a child waits."""
    process = DecoderProcess()
    process.start()
    child = process._child
    assert child is not None
    process.start()
    assert process._child is child
    child._requests.close()  # no request will come: it ends as after a long wait
    assert child._process.wait(60) == 0
    alone: list[bytes] = []
    monkeypatch.setattr(process, "_check_alone", lambda content, *_: alone.append(content))
    assert [found.width for found in process.check([WHOLE, WHOLE], 1, LIMIT)] == [48, 48]
    assert alone == []
    assert process._child is not child
    process.close()


def test_where_nothing_can_be_decoded_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(decoder_module, "_PROGRAM", "there_is_no_such_module")
    process = DecoderProcess()
    with pytest.raises(RunError, match=r"No module named .*`qrdali doctor`.*--no-verify") as raised:
        process.check([WHOLE], 1, LIMIT)
    assert "\n" not in str(raised.value)


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Also where the parent is killed and can close nothing."""
    code = (
        "import sys, time; from qrdali.data.decoder_process import decoder_process as d; "
        "d.check([open(sys.argv[1], 'rb').read()], 1, 10**6); print(d._child._process.pid, flush=True); "
        "time.sleep(60)"
    )
    (tmp_path / "x.jpg").write_bytes(WHOLE)
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "x.jpg")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_hashes_are_of_the_bytes_that_were_decoded(tmp_path: Path) -> None:
    from qrdali.data.verify import changes

    root = folder_of(tmp_path / "r", {"more.png": malformed_images.accepted()["rgb.PNG"]})
    index_root(str(root), tmp_path / "d", Reading(hashed=True, threads=1))
    assert list(changes(Dataset.open(tmp_path / "d"), hashed=True)) == []


def test_large_files_come_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qrdali.data import file_check

    root = folder_of(tmp_path / "r", {f"{i}.png": malformed_images.accepted()["rgb.PNG"] for i in range(5)})
    monkeypatch.setattr(file_check, "_BATCH_BYTES", 500)  # all are longer than this
    assert build_dataset(root, tmp_path / "d").images == {"train": 7}


def test_structures_of_jpegs() -> None:
    plain = read_jpeg_structure(WHOLE)
    assert plain.is_plain
    assert not plain.may_be_turned_or_recoloured(is_square=True)
    assert read_jpeg_structure(malformed_images.accepted()["cmyk.jpg"]).may_be_turned_or_recoloured(False)
    whole = malformed_images.jpeg(progressive=True)
    assert read_jpeg_structure(whole).is_plain
    assert not read_jpeg_structure(whole).lacks_scans()
    assert len(read_jpeg_structure(whole).scans) == 10
    for scans in range(1, 10):
        incomplete = read_jpeg_structure(disagreeing_images.incomplete_progressive(scans))
        assert incomplete.lacks_scans()
        assert not incomplete.is_plain
    for junk in (b"\0", b"\r\n", b"\xff\xe5\0\0", b"\xff\xd0"):
        assert not read_jpeg_structure(disagreeing_images.between_segments(junk)).is_plain
        assert not read_jpeg_structure(disagreeing_images.between_scans(junk)).is_plain
    for data in (b"", b"\xff", b"\xff\xd8\xff", WHOLE[:300], b"\xff\xd8\xff\xda\0\2", WHOLE[:-2], whole[:-2]):
        assert not read_jpeg_structure(data).is_plain


def scan_parts(progressive: bytes) -> list[bytes]:
    """A progressive JPEG's header, its scans with their tables, and its end."""
    starts = [match.start() for match in re.finditer(rb"\xff[\xc4\xda]", progressive)]
    firsts = [
        start for before, start in pairwise([0, *starts]) if progressive[before : before + 2] != b"\xff\xc4"
    ]
    bounds = [0, *firsts, len(progressive) - 2, len(progressive)]
    return [progressive[start:end] for start, end in pairwise(bounds)]


def test_scans_in_another_order_are_not_plain() -> None:
    head, *scans, end = scan_parts(malformed_images.jpeg(progressive=True))
    assert len(scans) == 10
    assert read_jpeg_structure(head + b"".join(scans) + end).is_plain
    for i in range(10):
        twice, swapped = [*scans[: i + 1], *scans[i:]], [*scans]
        swapped[i], swapped[i - 1] = swapped[i - 1], swapped[i]
        assert not read_jpeg_structure(head + b"".join(twice) + end).is_plain
        assert not read_jpeg_structure(head + b"".join(scans[:i] + scans[i + 1 :]) + end).is_plain
        if i in (0, 1, 5):  # DC before AC, and both before what refines them; the rest is in any order
            assert not read_jpeg_structure(head + b"".join(swapped) + end).is_plain


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("value", range(1, 9))
def test_exif_that_every_reader_understands(order: str, value: int) -> None:
    entries = ((0x010F, 2, 4, 7), (0x0112, 3, 1, value), (0x0131, 2, 4, 9))
    data = malformed_images.with_segments(malformed_images.exif(*entries, order=order))
    structure = read_jpeg_structure(data)
    assert structure.is_plain
    assert structure.may_be_turned_or_recoloured(is_square=True) == (value != 1)
    assert structure.may_be_turned_or_recoloured(is_square=False) == (value in (2, 3, 4))
    (found,) = decoder_process.check([data], 1, LIMIT)
    assert (found.reason, found.width) == ("", 48 if value < 5 else 36)


ORIENTED = malformed_images.exif((0x0112, 3, 1, 6))


@pytest.mark.parametrize(
    "segments",
    [
        (malformed_images.XMP,),
        (ORIENTED, malformed_images.XMP),
        (ORIENTED, ORIENTED),
        (ORIENTED[:-6],),
        (ORIENTED[:-1],),
        (b"EXIF\0\0" + ORIENTED[6:],),
        (ORIENTED.replace(b"II*", b"II+"),),
        (malformed_images.exif((0x0112, 3, 1, 6), count=200),),
        (malformed_images.exif((0x0112, 4, 1, 6), order=">"),),
        (malformed_images.exif((0x0112, 3, 2, 6)),),
        (malformed_images.exif((0x0112, 3, 1, 0)),),
        (malformed_images.exif((0x0112, 3, 1, 9)),),
        (malformed_images.exif((0x0112, 3, 1, 6), (0x0112, 3, 1, 6)),),
        (ORIENTED + b"\x12\x01\x03\0\1\0\0\0\3\0\0\0",),
    ],
)
def test_exif_and_xmp_that_readers_may_understand_otherwise_are_asked_about(
    segments: tuple[bytes, ...],
) -> None:
    data = malformed_images.with_segments(*segments)
    assert read_jpeg_structure(data).may_be_turned_or_recoloured(is_square=False)


def test_exif_after_the_frame_is_asked_about() -> None:
    at = disagreeing_images.segments_end(WHOLE, 0xDA)
    data = WHOLE[:at] + malformed_images.segment(ORIENTED) + WHOLE[at:]
    assert read_jpeg_structure(data).may_be_turned_or_recoloured(is_square=False)


def test_a_turn_that_another_damaged_entry_has_dali_ignore_is_rejected() -> None:
    """A turned square is told by its pixels alone: its size is the same without the turn."""
    for value in range(2, 9):
        entries = ((0x0112, 3, 1, value), (0x011A, 5, 1, 1 << 24))  # a resolution beyond the end of the block
        square = malformed_images.saved(malformed_images.photo((40, 40)), "JPEG", quality=90)
        block = malformed_images.segment(malformed_images.exif(*entries))
        oblong = malformed_images.with_segments(malformed_images.exif(*entries))
        for data in (square[:2] + block + square[2:], oblong):
            (found,) = decoder_process.check([data], 1, LIMIT)
            assert "DALI" in found.reason


def test_mutated_headers() -> None:
    """A small part of what `fuzz_decoders.py` does at length."""
    counts = fuzz_decoders.fuzz(1_200, seed=5)
    assert counts.failures() == 0, counts
    assert sum(counts.accepted.values()) > 200
    assert sum(counts.disagreements.values()) > 30
    assert not counts.crashes
