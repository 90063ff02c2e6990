"""`qrdali build-mepi` on a trained network: files, manifest, reading back, resuming, refusals."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from devices import DEVICES
from PIL import Image, ImageOps
from recording_listener import RecordingListener

from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset as index_images
from qrdali.errors import InputError, Interrupted, OutOfMemory, RunError
from qrdali.interfaces import JobControl, Judgement, SilentListener
from qrdali.mepi import folder as mepi_set
from qrdali.mepi.folder import MepiSet, MepiSource
from qrdali.pipelines import host_ops as host
from qrdali.pipelines.image_reducer import HostImageReducer
from qrdali.reduction.png_entropy import entropy, png_bytes
from qrdali.reduction.quality import (
    MAX_TAIL,
    QUARTERS,
    REDUCTIONS,
    Dimensions,
    LevelScale,
    bin_width,
    scaled_size,
)
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import validate_settings
from qrdali.workflows import build_mepi as workflow
from qrdali.workflows.build_mepi import build_mepi
from qrdali.workflows.context import open_context
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator
from qrdali.workflows.train import run_training

ANCHORS = [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)]


@pytest.fixture(scope="module")
def data(dataset: Dataset) -> str:
    return str(dataset.folder)


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_training(
        validate_settings(
            {
                "method": "shared",
                "data": data,
                "epochs": 40,
                "model": "test_resnet",
                "input_size": 32,
                "batch_size": 8,
                "device": "cpu",
                "threads": 2,
                "lr": 2e-3,
                "augment": "none",
            }
        ),
        folder,
        False,
    )
    return folder


def options(run: Path, data: str, out: Path, **values: Any) -> dict[str, Any]:
    return {
        "run": str(run),
        "data": data,
        "out": str(out),
        "split": "train",
        "device": "cpu",
        "threads": 2,
        "batch_size": 8,
        "tail": "none",
        **values,
    }


def out_of(words: dict[str, Any]) -> dict[str, Any]:
    """The options less run and data, which may be given by position."""
    return {key: value for key, value in words.items() if key not in ("run", "data")}


@pytest.fixture(scope="module")
def built(run: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mepi") / "set"
    build_mepi(**options(run, data, out, step=0.1))
    return out


@pytest.fixture(scope="module")
def built_with_tail(run: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mepi-tail") / "set"
    words = options(run, data, out, step=0.1)
    del words["tail"]  # a new set has the whole tail by default
    build_mepi(**words)
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "manifest.parquet").to_pylist()  # type: ignore[no-any-return]


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*/*/*.png"))}


def test_evaluate_gives_exactly_100_percent(run: Path, built: Path) -> None:
    for reduction in mepi_set.SEARCHED:
        result = Evaluator(run, EvaluateOptions(8, "cpu", "auto", 2)).folder(
            f"mepi-{reduction}", built / reduction
        )
        assert result["accuracy"] == 1
        assert result["images"] == sum(r["reduction"] == reduction for r in rows(built)) > 8
        written = pq.read_table(run / "predictions" / f"mepi-{reduction}.parquet").to_pylist()
        assert {Path(r["path"]).stem for r in written} == {
            str(r["sample"]) for r in rows(built) if r["reduction"] == reduction
        }


@pytest.mark.parametrize("tail", [0, MAX_TAIL])
def test_the_manifest_rebuilds_every_file_byte_for_byte(
    built: Path, built_with_tail: Path, dataset: Dataset, tail: int
) -> None:
    built = built_with_tail if tail else built
    index, found = dataset.index("train"), rows(built)
    assert {
        str(Path(r["reduction"], dataset.classes[r["label"]], f"{r['sample']}.png")) for r in found
    } == set(files(built))
    for row in found:
        assert row["path"] == index.paths(np.array([row["sample"]]))[0]
        with Image.open(row["path"]) as file:
            whole = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
        scale = LevelScale(round(1 / row["step"]), tail)
        window = np.array([row["top"], row["left"], row["height"], row["width"]])
        assert (
            window[2:].tolist()
            == scaled_size(np.array([whole.shape[:2]]), np.array([row["crop_level"]]), scale)[0].tolist()
        )
        size = scaled_size(window[None, 2:], np.array([row["resolution_level"]]), scale)[0]
        picture = host.reduce(
            host.cut(whole, window[:2], window[2:]),
            size,
            int(bin_width(np.array([row["color_level"]]), scale)[0]),
        )
        png = png_bytes(np.ascontiguousarray(picture))
        assert (
            png
            == (
                built / row["reduction"] / dataset.classes[row["label"]] / f"{row['sample']}.png"
            ).read_bytes()
        )
        assert (row["entropy_mepi"], row["entropy_full"]) == (len(png), entropy(whole))
        assert row["quotient"] == row["entropy_mepi"] / row["entropy_full"]
        dimensions = REDUCTIONS[row["reduction"]]
        assert all(
            moves or not row[f"{name}_level"]
            for name, moves in zip(("color", "crop", "resolution"), dimensions, strict=True)
        )


def test_no_neighbour_built_by_pillow_is_right(run: Path, built: Path) -> None:
    """MEPIs are local minima without our pipelines too, but for resize filters that differ by a level."""
    model, trained = run_folder.load_best(run)
    model.eval()
    pre = trained.preprocessing
    wrong = Counter[bool]()
    for row in rows(built):
        with Image.open(row["path"]) as file:
            whole = ImageOps.exif_transpose(file).convert("RGB")
        n, dimensions = round(1 / row["step"]), REDUCTIONS[row["reduction"]]
        for picture in _neighbours(whole, row, dimensions, n):
            square = np.asarray(
                picture.resize(
                    (pre.input_size,) * 2,
                    Image.Resampling.BILINEAR
                    if pre.interpolation == "bilinear"
                    else Image.Resampling.BICUBIC,
                )
            )
            x = (square / 255 - np.array(pre.mean)) / np.array(pre.std)
            with torch.inference_mode():
                logits = model(torch.from_numpy(x).permute(2, 0, 1)[None].float())
            wrong[int(logits.argmax()) != row["label"]] += 1
    assert wrong.total() > 40
    assert wrong[False] <= max(1, 0.01 * wrong.total()), wrong


def _neighbours(
    whole: Image.Image, row: dict[str, Any], dimensions: tuple[bool, bool, bool], n: int
) -> list[Image.Image]:
    def side(length: int, level: int) -> int:
        return max(1, int(np.floor(length * ((n - level) / n) ** 0.5 + 0.5)))

    def made(color: int, window: tuple[int, int, int, int], resolution: int) -> Image.Image:
        top, left, height, width = window
        picture = whole.crop((left, top, left + width, top + height))
        size = side(width, resolution), side(height, resolution)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        d = min(128, int(np.floor(256 ** (color / n) + 0.5)))
        return Image.fromarray(
            np.minimum(255, np.asarray(picture).astype(int) // d * d + d // 2).astype(np.uint8)
            if d > 1
            else np.asarray(picture)
        )

    color, crop, resolution = row["color_level"], row["crop_level"], row["resolution_level"]
    top, left, height, width = window = row["top"], row["left"], row["height"], row["width"]
    found = []
    if dimensions[0]:
        widths = [min(128, int(np.floor(256 ** (k / n) + 0.5))) for k in range(n)]
        found += [made(k, window, resolution) for k in range(color + 1, n) if widths[k] != widths[color]][:1]
    if dimensions[2]:
        found += [
            made(color, window, k)
            for k in range(resolution + 1, n)
            if (side(height, k), side(width, k)) != (side(height, resolution), side(width, resolution))
        ][:1]
    if dimensions[1]:
        for k in [
            k for k in range(crop + 1, n) if (side(whole.height, k), side(whole.width, k)) != (height, width)
        ][:1]:
            h, w = side(whole.height, k), side(whole.width, k)
            places = [
                (top + int(y * (height - h) + 0.5), left + int(x * (width - w) + 0.5)) for y, x in ANCHORS
            ]
            found += [made(color, (*place, h, w), resolution) for place in places]
    return found


def test_summary_and_sheets(built: Path, dataset: Dataset) -> None:
    summary = json.loads((built / "summary.json").read_text())
    assert list(summary) == ["color", "crop", "resolution", "combination"]
    for reduction, row in summary.items():
        own = [r for r in rows(built) if r["reduction"] == reduction]
        assert row["images"] == 24
        assert row["without_mepi"] == 24 - len(own)
        assert row["unreadable"] == row["returned"] == 0
        assert row["mean_quotient"] == pytest.approx(np.mean([r["quotient"] for r in own]))
        assert row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(24 / row["seconds"], rel=0.01)
        assert row["encoder"].startswith("Pillow ")
        assert row["near_void_class"] in dataset.classes
        assert row["lowest_state_share"] == row["lowest_state"] / len(own)
        with Image.open(built / f"{reduction}.png") as sheet:
            assert sheet.width > 600
    lowest = [r for r in rows(built) if r["reduction"] == "color" and r["color_level"] == 9]
    assert summary["color"]["lowest_state"] == len(lowest)


def test_a_new_set_has_the_whole_tail(built: Path, built_with_tail: Path, dataset: Dataset) -> None:
    assert json.loads((built_with_tail / "options.json").read_text())["tail"] == "full"
    summary = json.loads((built_with_tail / "summary.json").read_text())
    without = json.loads((built / "summary.json").read_text())
    found = rows(built_with_tail)
    for reduction, row in summary.items():
        own = [r for r in found if r["reduction"] == reduction]
        lowest = [r for r in own if _is_lowest(r)]
        assert row["lowest_state"] == len(lowest)
        assert row["mean_quotient"] <= without[reduction]["mean_quotient"]
        above = [r["quotient"] for r in own if not _is_lowest(r)]
        assert row["mean_quotient_above_void"] == (pytest.approx(np.mean(above)) if above else None)
    assert any(max(r["crop_level"], r["resolution_level"]) >= 10 for r in found)


def _is_lowest(row: dict[str, Any]) -> bool:
    """Returns whether a row of a set of step .1 with a tail is of one pixel, and one value, as they move."""
    color, crop, resolution = REDUCTIONS[row["reduction"]]
    sides = np.array([[row["height"], row["width"]]])
    scale = LevelScale(10, MAX_TAIL)
    size = scaled_size(sides, np.array([row["resolution_level"]]), scale)[0].tolist()
    one_pixel = size == [1, 1] if crop or resolution else True
    return one_pixel and (not color or int(bin_width(np.array([row["color_level"]]), scale)[0]) == 256)


@pytest.mark.parametrize("given", [None, "none"])
def test_a_set_without_a_tail_goes_on_without_one(
    run: Path, data: str, tmp_path: Path, given: str | None
) -> None:
    """Version 0.1 wrote no tail into its options."""
    words = options(run, data, tmp_path / "set", step=0.25, reduction="color", limit=6)
    build_mepi(**words)
    file = tmp_path / "set" / "options.json"
    recorded = json.loads(file.read_text())
    del recorded["tail"]
    file.write_text(json.dumps(recorded))
    more = {**words, "reduction": "resolution", "tail": given}
    build_mepi(**more)
    assert max(r["resolution_level"] for r in rows(tmp_path / "set")) < 4
    with pytest.raises(InputError, match="tail"):
        build_mepi(**{**more, "reduction": "crop", "tail": "full"})
    assert not (tmp_path / "set" / "crop").exists()


def test_an_image_wrong_when_read_back_goes_on_from_its_parent(
    run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_mepi(**options(run, data, tmp_path / "plain", step=0.1, reduction="combination"))
    before = {r["sample"]: r for r in rows(tmp_path / "plain")}
    victims = sorted(before)[:3]
    real, calls = workflow.wrong_when_read_back, []

    def once(evaluator: Any, mepis: Any, reduction: str, check: Any) -> list[int]:
        calls.append(reduction)
        return victims if len(calls) == 1 else real(evaluator, mepis, reduction, check)

    monkeypatch.setattr(workflow, "wrong_when_read_back", once)
    summary = build_mepi(**options(run, data, tmp_path / "sent-on", step=0.1, reduction="combination"))
    assert summary["combination"]["returned"] >= 3
    after = {r["sample"]: r for r in rows(tmp_path / "sent-on")}
    state = ("color_level", "crop_level", "resolution_level", "top", "left")
    for sample, row in before.items():
        assert ([after[sample][k] for k in state] != [row[k] for k in state]) is (sample in victims)
        if sample not in victims:
            assert after[sample] == row
    assert (
        Evaluator(run, EvaluateOptions(8, "cpu", "auto", 2)).folder(
            "sent-on", tmp_path / "sent-on" / "combination"
        )["accuracy"]
        == 1
    )


def test_an_image_wrong_when_read_back_at_full_quality_has_none(
    run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent back again and again, it reaches full quality and is dropped."""
    real, victim = workflow.wrong_when_read_back, []

    def always(evaluator: Any, mepis: Any, reduction: str, check: Any) -> list[int]:
        alive = mepis.journal(reduction).with_mepi().tolist()
        victim[:] = victim or alive[:1]
        return victim if victim[0] in alive else real(evaluator, mepis, reduction, check)

    monkeypatch.setattr(workflow, "wrong_when_read_back", always)
    summary = build_mepi(**options(run, data, tmp_path / "set", step=0.25, reduction="color"))
    assert victim[0] not in {r["sample"] for r in rows(tmp_path / "set")}
    assert not list((tmp_path / "set").rglob(f"{victim[0]}.png"))
    assert summary["color"]["without_mepi"] >= 1


@pytest.mark.parametrize("prefer", ["confidence", "entropy"])
def test_a_set_stopped_at_any_moment_ends_as_if_it_had_not(
    run: Path, data: str, tmp_path: Path, prefer: str
) -> None:
    plain, halved = tmp_path / "plain", tmp_path / "halved"
    build_mepi(**options(run, data, plain, step=0.1, reduction="crop", prefer=prefer))
    words = [
        sys.executable,
        "-m",
        "qrdali",
        "build-mepi",
        *(
            word
            for key, value in options(run, data, halved, step=0.1, reduction="crop", prefer=prefer).items()
            for word in (f"--{key.replace('_', '-')}", str(value))
        ),
        "--resume",
    ]
    journal, begun = halved / ".progress" / "crop.jsonl", time.monotonic()
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not journal.exists() or len(journal.read_bytes().splitlines()) < 6):
            assert time.monotonic() - begun < 100
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    with open(journal, "ab") as file:
        file.write(b'{"sample": 3, "outc')  # a line cut short
    done = {p: p.stat().st_mtime_ns for p in halved.rglob("*/*/*.png")}
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "crop: mean quotient" in result.stderr
    kept = {json.loads(line)["sample"] for line in journal.read_bytes().splitlines()[1:6]}
    for path, stamp in done.items():
        assert path.stat().st_mtime_ns == stamp or int(path.stem) not in kept
    assert files(halved) == files(plain)
    assert rows(halved) == rows(plain)
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "crop is finished; nothing to do" in again.stderr


def test_a_signal_ends_with_one_line_and_its_status(run: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    words = [
        sys.executable,
        "-m",
        "qrdali",
        "build-mepi",
        *(
            word
            for key, value in options(run, data, out, reduction="combination").items()
            for word in (f"--{key.replace('_', '-')}", str(value))
        ),
    ]
    journal, begun = out / ".progress" / "combination.jsonl", time.monotonic()
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        while not journal.exists() or len(journal.read_bytes().splitlines()) < 2:
            assert time.monotonic() - begun < 100
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 143
    assert "the same command with --resume continues" in said
    assert "Traceback" not in said


def test_python_builds_silently_and_the_listener_is_told_every_pass(
    run: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"step": 0.25, "reduction": "color", "limit": 8}
    build_mepi(run, Path(data), **out_of(options(run, data, tmp_path / "silent", **words)))
    assert capsys.readouterr() == ("", "")
    listener = RecordingListener()
    told = options(run, data, tmp_path / "told", **words)
    summaries = build_mepi(**told, control=JobControl(listener))
    mepis = len(rows(tmp_path / "told"))
    assert listener.passes == [("color", 8, 8), ("evaluate color, read back", mepis, mepis)]
    assert listener.lines == [
        "MEPIs of 8 train images, test_resnet at 32 px, step 0.25, tail none, CPU",
        workflow.summary_line("color", summaries["color"]),
        f"MEPI set: {tmp_path / 'told'}",
    ]
    assert files(tmp_path / "told") == files(tmp_path / "silent")
    with pytest.raises(InputError, match="--reduction is 'colour': give one of color, crop"):
        build_mepi(run, data, out=tmp_path / "none", reduction="colour", device="cpu")


@pytest.mark.parametrize("call", [1, 4, 9])
def test_a_stop_interrupts_the_search_and_resume_ends_it(
    run: Path, data: str, tmp_path: Path, call: int
) -> None:
    words = {"step": 0.1, "reduction": "crop", "limit": 8}
    build_mepi(**options(run, data, tmp_path / "plain", **words))
    listener, calls = RecordingListener(), iter(range(1, 10_000))
    control = JobControl(listener, lambda: 15 if next(calls) == call else 0)
    stopped = options(run, data, tmp_path / "stopped", **words)
    message = r"stopped in crop with \d images complete: the same command with --resume continues"
    with pytest.raises(Interrupted, match=message) as interruption:
        build_mepi(**stopped, control=control)
    assert interruption.value.signum == 15
    assert str(interruption.value) not in listener.lines  # whoever catches it reports it, once
    assert listener.open is None
    assert not (tmp_path / "stopped" / "manifest.parquet").exists()
    build_mepi(**stopped, resume=True)
    assert files(tmp_path / "stopped") == files(tmp_path / "plain")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "plain")


def test_a_stop_after_a_reduction_is_finished_interrupts_before_the_next(
    run: Path, data: str, tmp_path: Path
) -> None:
    listener = RecordingListener()
    control = JobControl(listener, lambda: 2 * any("color: mean" in line for line in listener.lines))
    words = options(run, data, tmp_path / "set", step=0.25, limit=4)
    with pytest.raises(Interrupted, match="stopped after color: the same command with --resume") as stopped:
        build_mepi(**words, control=control)
    assert stopped.value.signum == 2
    assert str(stopped.value) not in listener.lines
    assert list(json.loads((tmp_path / "set" / "summary.json").read_text())) == ["color"]
    assert list(build_mepi(**words, resume=True)) == list(mepi_set.SEARCHED)


def test_more_reductions_join_a_set(run: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=8))
    first = rows(out)
    with pytest.raises(InputError, match=r"was begun with other options: limit 8 → 4"):
        build_mepi(**options(run, data, out, step=0.25, reduction="resolution", limit=4))
    build_mepi(**options(run, data, out, step=0.25, reduction="resolution", limit=8))
    assert [r["reduction"] for r in rows(out)] == ["color"] * len(first) + ["resolution"] * len(first)
    assert rows(out)[: len(first)] == first
    assert len({r["label"] for r in first}) == 4  # a limited search is spread over the classes
    made = build_mepi(**options(run, data, out, step=0.25, reduction="all", limit=8))
    assert list(made) == list(mepi_set.SEARCHED)
    assert rows(out)[: len(first)] == first


def test_a_search_that_was_stopped_is_not_joined(run: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=8))
    (out / "summary.json").unlink()  # as if it had been killed before its end
    with pytest.raises(InputError, match="an unfinished search of color: continue with --resume"):
        build_mepi(**options(run, data, out, step=0.25, reduction="all", limit=8))
    build_mepi(**options(run, data, out, step=0.25, reduction="crop", limit=8))


def test_a_set_of_version_0_1_is_marked_where_it_goes_on(run: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    words = options(run, data, out, step=0.25, limit=4)
    build_mepi(**words, reduction="color")
    begun = json.loads((out / "options.json").read_text())
    assert begun.pop("definitions") == 2
    assert begun["preprocessing"].pop("crop_mode") == "center"
    (out / "options.json").write_text(json.dumps(begun))  # as that version wrote it

    def resume(reduction: str) -> list[str]:
        listener = RecordingListener()
        build_mepi(**words, reduction=reduction, resume=True, control=JobControl(listener=listener))
        return [warning for warning in listener.warnings if "definitions" in warning]

    assert resume("color") == []  # nothing is searched, so it stays as it is
    assert json.loads((out / "options.json").read_text()) == begun
    (warning,) = resume("crop")
    assert "was begun under other definitions: what is searched from now on goes by definitions 2" in warning
    assert json.loads((out / "options.json").read_text()) == {**begun, "continued_under": 2}
    assert resume("resolution") == []


def test_a_set_notes_the_precision_that_it_was_searched_in(run: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    words = options(run, data, out, step=0.25, limit=4)
    build_mepi(**words, reduction="color")
    begun = json.loads((out / "options.json").read_text())
    assert (begun["device"], begun["amp"]) == ("cpu", "off")
    # Version 0.1 noted auto, which is off on a CPU.
    for noted in ("off", "auto"):
        (out / "options.json").write_text(json.dumps({**begun, "amp": noted}))
        with pytest.raises(InputError, match="amp off → bf16"):
            build_mepi(**words, reduction="color", resume=True, amp="bf16")
        for amp in ("auto", "off"):
            build_mepi(**words, reduction="color", resume=True, amp=amp)
    # On a GPU it is whatever auto chooses there now.
    (out / "options.json").write_text(json.dumps({**begun, "device": "cuda", "amp": "auto"}))
    source = MepiSource(Dataset.open(Path(data)).index("train"), ("a",), QUARTERS)
    for amp in ("bf16", "fp16"):
        MepiSet.open(out, source, {**begun, "device": "cuda", "amp": amp}, None).close()


def test_refusals(run: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=4))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="already holds MEPIs: continue with --resume"):
        build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=4))
    with pytest.raises(InputError, match=r"was begun with other options: limit 4 → 5; step 0.25 → 0.5"):
        build_mepi(**options(run, data, out, step=0.5, reduction="color", limit=5), resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a MEPI set"):
        build_mepi(**options(run, data, tmp_path / "other"), resume=True)
    with pytest.raises(InputError, match="exhaustive is for color and resolution"):
        build_mepi(**options(run, data, tmp_path / "new", reduction="crop", search="exhaustive"))
    with pytest.raises(InputError, match="is not a run folder"):
        build_mepi(**options(tmp_path / "no", data, tmp_path / "new"))
    stripped = tmp_path / "stripped"
    shutil.copytree(run, stripped)
    (stripped / "best" / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"model.safetensors cannot be read"):
        build_mepi(**options(stripped, data, tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_other_classes_are_refused(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    for split in ("train", "val", "test"):
        first = sorted((tmp_path / "images" / split).iterdir())[0]
        first.rename(first.with_name("another"))
    index_images(tmp_path / "images", tmp_path / "data")
    with pytest.raises(InputError, match="only here: another"):
        build_mepi(**options(run, str(tmp_path / "data"), tmp_path / "set"))


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"[]",
        b'{"seconds": 1}',
        b'{"sample": 99999, "outcome": "wrong"}',
        b"[" * 100_000,
        b'{"sample": 1e999}',
        b" " * 2_000_000,
        json.dumps(
            {
                "sample": 1,
                "outcome": "mepi",
                "path": [[99, 0, 0, 0, 0]],
                "confidence": [1, 1],
                "struck": [],
                "evaluations": 1,
                "full": 5,
                "mepi": 1,
                "why": "",
                "seconds": 1,
            }
        ).encode(),
        json.dumps(
            {
                "sample": 1,
                "outcome": "mepi",
                "path": [],
                "confidence": [1],
                "struck": [],
                "evaluations": 1,
                "full": 0,
                "mepi": 1,
                "why": "",
                "seconds": 1,
            }
        ).encode(),
        json.dumps(
            {
                "sample": 1,
                "outcome": "mepi",
                "path": [[0, 0, 0, 1 << 33, 0]],
                "confidence": [1, 1],
                "struck": [],
                "evaluations": 1,
                "full": 5,
                "mepi": 1,
                "why": "",
                "seconds": 1,
            }
        ).encode(),
        json.dumps(
            {
                "sample": True,
                "outcome": "wrong",
                "path": [],
                "confidence": [],
                "struck": [],
                "evaluations": 1,
                "full": 0,
                "mepi": 1,
                "why": "",
                "seconds": 1,
            }
        ).encode(),
        *(
            json.dumps(
                {
                    "sample": 1,
                    "outcome": "mepi",
                    "path": [],
                    "confidence": [1],
                    "struck": [],
                    "evaluations": 1,
                    "full": 5,
                    "mepi": 5,
                    "why": "",
                    "seconds": 1,
                    "failed_step": failed_step,
                }
            ).encode()
            for failed_step in (
                [[0, 0, 9, 0, 0], 1, 0.5, 0.5],
                [[0, 0, 1, 0, 0], -1, 0.5, 0.5],
                [[0, 0, 1, 0, 0], 1, 1.5, 0.5],
                [[0, 0, 1, 0, 0], 1, 0.5, float("nan")],
                [[0, 0, 1, 0, 0], 1, 0.5],
                7,
            )
        ),
    ],
)
def test_a_damaged_journal_is_named(run: Path, data: str, tmp_path: Path, line: bytes) -> None:
    out = tmp_path / "set"
    build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=4))
    (out / "summary.json").unlink()
    with open(out / ".progress" / "color.jsonl", "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(RunError, match=r"color.jsonl line \d+ is damaged"):
        build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=4), resume=True)


@pytest.mark.parametrize("failed_step", [[[0, 1, 0, 90, 0], 1, 0.5, 0.5], [[0, 0, 1, 0, 0], 4, 0.5, 0.5]])
def test_a_failed_step_that_the_image_or_the_network_cannot_have(
    run: Path, data: str, tmp_path: Path, failed_step: list[Any]
) -> None:
    out = tmp_path / "set"
    build_mepi(**options(run, data, out, step=0.25, reduction="resolution", limit=4))
    journal = out / ".progress" / "resolution.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    changed = [{**line, "failed_step": failed_step} if line.get("path") else line for line in lines]
    assert changed != lines
    journal.write_text("".join(json.dumps(line) + "\n" for line in changed))
    with pytest.raises(RunError, match="holds states that its images cannot have"):
        build_mepi(**options(run, data, out, step=0.25, reduction="resolution", limit=4), resume=True)


def test_a_journal_without_failed_steps_goes_on(
    run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is as version 0.1 wrote it."""
    words = options(run, data, tmp_path / "set", step=0.25, reduction="resolution", tail="full")
    build_mepi(**words)
    complete = rows(tmp_path / "set")
    journal = tmp_path / "set" / ".progress" / "resolution.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        line.pop("failed_step", None)
    half = lines[: len(lines) // 2]
    journal.write_text("".join(json.dumps(line) + "\n" for line in half))
    (tmp_path / "set" / "summary.json").unlink()
    build_mepi(**words, resume=True)
    before = {line["sample"] for line in half if "sample" in line}
    resumed = rows(tmp_path / "set")
    names = [name for name in resumed[0] if name.startswith("next_")]
    assert len(names) == 7
    for row, whole in zip(resumed, complete, strict=True):
        known = dict.fromkeys(names) if row["sample"] in before else {name: whole[name] for name in names}
        assert row == {**whole, **known}
    assert any(row["next_class"] for row in resumed)
    assert any(row["sample"] in before for row in resumed)


def test_a_full_disk_stops_and_what_is_complete_stays(
    run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_mepi(**options(run, data, tmp_path / "plain", step=0.25, reduction="color"))
    out, real, left = tmp_path / "set", Path.write_bytes, [6]

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".partial" and ".png" in path.name:
            left[0] -= 1
            if left[0] < 0:
                real(path, content[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        RunError, match=r"No space left on device.*images that are complete are kept.*--resume"
    ):
        build_mepi(**options(run, data, out, step=0.25, reduction="color"))
    assert len(files(out)) == 6
    assert not list(out.rglob("*.partial"))
    monkeypatch.undo()
    build_mepi(**options(run, data, out, step=0.25, reduction="color"), resume=True)
    assert files(out) == files(tmp_path / "plain")
    assert rows(out) == rows(tmp_path / "plain")


def test_an_image_gone_or_broken_is_named_and_counted(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    index_images(tmp_path / "images", tmp_path / "data")
    index = Dataset.open(tmp_path / "data").index("train")
    first, second = (Path(p) for p in index.paths(np.array([2, 9])))
    first.unlink()
    second.write_bytes(second.read_bytes()[:300])
    listener = RecordingListener()
    summary = build_mepi(
        **options(run, str(tmp_path / "data"), tmp_path / "set", step=0.25, reduction="resolution"),
        control=JobControl(listener),
    )
    assert summary["resolution"]["unreadable"] == 2
    assert summary["resolution"]["images"] == 24
    gone, broken = sorted(listener.warnings, key=lambda warning: first.name not in warning)
    assert f"{first.name}, is gone" in gone
    assert f"{second.name}, cannot be decoded" in broken
    assert not {2, 9} & {r["sample"] for r in rows(tmp_path / "set")}


def test_no_correct_image_is_a_result(
    run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrdali.data.index.Index.labels", lambda self, samples: np.full(len(samples), 3))

    def always_0(logits: torch.Tensor, labels: torch.Tensor) -> Judgement:
        return Judgement(torch.zeros_like(labels), torch.ones(len(labels)), torch.zeros(len(labels)))

    monkeypatch.setattr("qrdali.workflows.build_mepi.judge_own_classes", always_0)
    listener = RecordingListener()
    words = options(run, data, tmp_path / "set", step=0.25, reduction="color", limit=5)
    summary = build_mepi(**words, control=JobControl(listener))
    assert summary["color"]["without_mepi"] == 5
    assert summary["color"]["mean_quotient"] is None
    assert rows(tmp_path / "set") == []
    assert any("there are no MEPIs" in line for line in listener.lines)


def test_hostile_class_names_make_no_folder(run: Path, data: str, tmp_path: Path, dataset: Dataset) -> None:
    for name in ("..", "a/b", ""):
        with pytest.raises(InputError, match="cannot be a folder's"):
            MepiSet.open(
                tmp_path / "set", MepiSource(dataset.index("train"), ("fine", name), QUARTERS), {}, None
            )
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("tail", [0, MAX_TAIL])
def test_the_naive_reference_gives_the_same_answers(
    run: Path, built: Path, built_with_tail: Path, tail: int
) -> None:
    """Up to what the resize filters may tip."""
    from qrdali.workflows.bench_mepi import naive_module

    built = built_with_tail if tail else built
    model, trained = run_folder.load_best(run)
    naive = naive_module().Naive(model.eval(), "cpu", trained.preprocessing)
    same = Counter[bool]()
    for row in rows(built)[::3]:
        state, quotient = naive.search(row["path"], row["label"], REDUCTIONS[row["reduction"]], 10, tail)
        own = tuple(row[k] for k in ("color_level", "crop_level", "resolution_level", "top", "left"))
        same[state == own] += 1
        if state == own and not row["resolution_level"]:
            assert quotient == row["quotient"]
    assert same.total() > 15
    assert same[True] >= 0.85 * same.total(), same


def test_bench_mepi_measures_both(data: str) -> None:
    from qrdali.workflows.bench_mepi import measure

    class Seen(SilentListener):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def advance(self, count: int, note: Callable[[], str]) -> None:
            self.notes.append(note())

    seen = Seen()
    result = measure(
        Dataset.open(Path(data)).index("train"),
        name="test_resnet",
        side=32,
        threads=2,
        images=5,
        naive_images=2,
        step=0.25,
        tail="2",
        rounds=1,
        reductions=("color", "combination"),
        listener=seen,
    )
    assert seen.notes == ["color, ours", "color, naive", "combination, ours", "combination, naive"]
    assert result["images"] == 5
    assert result["naive_images"] == 2
    for row in result["reductions"].values():
        assert row["ratio"] == pytest.approx(
            row["images_per_second"] / row["naive_images_per_second"], rel=0.05
        )
        assert row["evaluations_per_image"] >= 2
        assert 0 < row["mean_quotient"] <= 1


def test_a_graphs_reducer_builds_the_same_from_many_threads(
    run: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """Builds as on a GPU does: one pipeline, and several threads that want its pictures."""
    from qrdali.mepi.build import Builder
    from qrdali.mepi.search import Search, SearchLimits, SearchRule
    from qrdali.mepi.search_path import params_of_states
    from qrdali.pipelines.engine import Engine
    from qrdali.pipelines.image_reducer import open_image_reducer
    from qrdali.reduction.neighbors import DescentRule

    model, trained = run_folder.load_best(run)
    index = dataset.index("train")
    mepis = MepiSet.open(tmp_path / "set", MepiSource(index, dataset.classes, QUARTERS), {}, None)
    reducer = open_image_reducer(index, trained.preprocessing, Engine(whole_graph=True))
    rule = SearchRule(DescentRule(Dimensions(True, True, True), QUARTERS, 5, "entropy"))
    context = open_context("cpu", "off", JobControl())
    search = Search(model, reducer, rule, SearchLimits(16, 1 << 30, 4), context)
    Builder(mepis, "combination", search, lambda check: [], context).build(list(range(24)))
    journal = mepis.journal("combination")
    pixels = dict(reducer.decode(iter(range(24)), lambda sample, reason: None))
    assert len(journal.with_mepi()) > 12
    for sample in journal.with_mepi().tolist():
        state = journal.entry(sample).state
        (picture,) = reducer.reduced_images(
            [pixels[sample]], params_of_states([state], index.sizes(np.array([sample])), QUARTERS)
        )
        assert mepis.png("combination", sample).read_bytes() == png_bytes(picture)
        assert journal.rows[sample]["full"] == entropy(np.ascontiguousarray(pixels[sample]))


@pytest.mark.parametrize("stray", ["copy.png", "99999.png", "7.png"])
def test_a_stray_file_is_named(run: Path, data: str, tmp_path: Path, stray: str, dataset: Dataset) -> None:
    out = tmp_path / "set"
    build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=8))
    (out / "summary.json").unlink()
    Image.new("RGB", (9, 9)).save(out / "color" / dataset.classes[3] / stray)
    with pytest.raises(RunError, match=f"{stray} is not a file of this set"):
        build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=8), resume=True)
    (out / "color" / dataset.classes[3] / stray).unlink()
    build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=8), resume=True)


def test_a_damaged_or_removed_file_is_made_again(run: Path, data: str, tmp_path: Path) -> None:
    out, words = tmp_path / "set", {"step": 0.25, "reduction": "color", "limit": 8}
    build_mepi(**options(run, data, out, **words))
    before, table = files(out), rows(out)
    first, second = sorted(before)[:2]
    (out / first).unlink()
    build_mepi(**options(run, data, out, **words), resume=True)
    assert files(out) == before
    (out / second).write_bytes(b"\0" * len(before[second]))
    (out / first).unlink()  # so that the reduction is not finished, and is read back
    with pytest.raises(RunError, match="was not as it had been written"):
        build_mepi(**options(run, data, out, **words), resume=True)
    build_mepi(**options(run, data, out, **words), resume=True)
    assert files(out) == before
    assert rows(out) == table


def test_what_was_unreadable_is_tried_again(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    index_images(tmp_path / "images", tmp_path / "data")
    victim = Path(Dataset.open(tmp_path / "data").index("train").paths(np.array([4]))[0])
    victim.rename(tmp_path / "away")
    words = options(run, str(tmp_path / "data"), tmp_path / "set", step=0.25, reduction="color")
    assert build_mepi(**words)["color"]["unreadable"] == 1
    (tmp_path / "away").rename(victim)
    assert build_mepi(**words, resume=True)["color"]["unreadable"] == 0
    assert 4 in {r["sample"] for r in rows(tmp_path / "set")}


def test_images_that_moved_are_found_by_root(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    index_images(tmp_path / "images", tmp_path / "data")
    (tmp_path / "images").rename(tmp_path / "moved")
    words = options(run, str(tmp_path / "data"), tmp_path / "set", step=0.25, reduction="color", limit=4)
    with pytest.raises(RunError, match=r"could be read: /.*\.jpg is gone; --resume --root NEW says where"):
        build_mepi(**words)
    assert build_mepi(**words, resume=True, root=str(tmp_path / "moved"))["color"]["unreadable"] == 0
    for file in (tmp_path / "moved").rglob("*.jpg"):
        file.write_bytes(b"no image")
    broken = words | {"out": tmp_path / "other", "root": str(tmp_path / "moved")}
    with pytest.raises(RunError, match="could be read: see the lines above, mend the files, then --resume"):
        build_mepi(**broken)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("options.json", "null"),
        ("options.json", "[[1]]"),
        ("options.json", "{"),
        ("options.json", "[" * 100_000),
        ("summary.json", "[1]"),
        ("summary.json", '{"color": 5}'),
        ("summary.json", '{"color": {}}'),
        ("summary.json", '{"../x": {}}'),
    ],
)
def test_damaged_files_are_named(run: Path, data: str, tmp_path: Path, name: str, content: str) -> None:
    out = tmp_path / "set"
    build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=4))
    (out / name).write_text(content)
    with pytest.raises(RunError, match=f"{name} cannot be read"):
        build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=4), resume=True)


def test_a_journal_that_was_removed_makes_its_reduction_unfinished(
    run: Path, data: str, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=4))
    table = rows(out)
    (out / ".progress" / "color.jsonl").unlink()
    build_mepi(**options(run, data, out, step=0.25, reduction="resolution", limit=4), resume=True)
    assert list(json.loads((out / "summary.json").read_text())) == ["resolution"]
    build_mepi(**options(run, data, out, step=0.25, reduction="color", limit=4), resume=True)
    assert [r for r in rows(out) if r["reduction"] == "color"] == table


def test_two_builders_do_not_share_a_folder(run: Path, data: str, tmp_path: Path, dataset: Dataset) -> None:
    source = MepiSource(dataset.index("train"), dataset.classes, QUARTERS)
    held = MepiSet.open(tmp_path / "set", source, {}, None)
    with pytest.raises(RunError, match=f"is being built by process {os.getpid()} on "):
        build_mepi(**options(run, data, tmp_path / "set"), resume=True)
    held.close()


def test_a_moved_run_goes_on(run: Path, data: str, tmp_path: Path) -> None:
    build_mepi(**options(run, data, tmp_path / "set", step=0.25, reduction="color", limit=4))
    shutil.copytree(run, tmp_path / "moved")
    build_mepi(
        **options(tmp_path / "moved", data, tmp_path / "set", step=0.25, reduction="resolution", limit=4),
        resume=True,
    )


def test_reading_back_finds_what_the_network_gets_wrong(
    run: Path, data: str, tmp_path: Path, dataset: Dataset
) -> None:
    """Files that have changed places hold pictures of another class."""
    out = tmp_path / "set"
    build_mepi(**options(run, data, out, step=0.25, reduction="crop"))
    before = rows(out)
    first, second = next((a, b) for a in before for b in before if a["label"] != b["label"])
    places = [out / "crop" / dataset.classes[r["label"]] / f"{r['sample']}.png" for r in (first, second)]
    contents = [place.read_bytes() for place in places]
    for place, content in zip(places, reversed(contents), strict=True):
        place.write_bytes(content)
    evaluator, index = Evaluator(run, EvaluateOptions(8, "cpu", "auto", 2)), dataset.index("train")
    settings = json.loads((out / "options.json").read_text())
    held = MepiSet.open(out, MepiSource(index, dataset.classes, QUARTERS), settings, None)
    checked: list[None] = []
    assert workflow.wrong_when_read_back(evaluator, held, "crop", lambda: checked.append(None)) == sorted(
        [first["sample"], second["sample"]]
    )
    assert checked
    held.close()


def test_a_class_name_that_leaves_the_folder_is_not_followed(tmp_path: Path) -> None:
    from qrdali.data.index import Index
    from qrdali.data.scan import Reading, index_folder

    for folder in ("set/a", "outside"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / folder / "1.png")
    index_folder(
        tmp_path / "set",
        ("../outside", str(tmp_path / "outside"), "a"),
        tmp_path / "set.arrow",
        Reading(verify=False),
    )
    assert Index(tmp_path / "set.arrow", 3).paths(np.arange(1)) == [str(tmp_path / "set" / "a" / "1.png")]
    assert len(Index(tmp_path / "set.arrow", 3)) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        OutOfMemory("out of memory while images are decoded (…): lower --batch-size or --memory"),
    ],
)
def test_a_full_gpu_stops_the_search_which_can_be_continued(
    run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*arguments: Any) -> torch.Tensor:
        raise error

    wanted = options(run, data, tmp_path / "set", reduction="color", limit=3)
    with monkeypatch.context() as patch:
        patch.setattr(HostImageReducer, "network_inputs", refuse)
        with pytest.raises(RunError, match=r"memory.* lower .*--memory.*--resume continues"):
            build_mepi(**wanted)
    build_mepi(**wanted, resume=True)
    assert len(rows(tmp_path / "set")) > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prefer", ["confidence", "entropy"])
def test_a_set_is_built_on_a_gpu(
    run: Path, data: str, tmp_path: Path, prefer: str, device: torch.device
) -> None:
    """Threads of pools encode there what DALI makes of CUDA tensors."""
    wanted = options(run, data, tmp_path / "set", device=device.type, prefer=prefer, step=0.1)
    build_mepi(**wanted)
    found = rows(tmp_path / "set")
    for reduction in mepi_set.SEARCHED:
        assert sum(row["reduction"] == reduction for row in found) > 8
        result = Evaluator(run, EvaluateOptions(8, device.type, "auto", 2)).folder(
            f"{device.type}-{prefer}-{reduction}", tmp_path / "set" / reduction
        )
        assert result["accuracy"] == 1
