"""Files that may be anything, through indexing, decoding, training, evaluation and MEPIs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import malformed_images
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from qrdali.data.index import Dataset
from qrdali.data.inspect import MAX_BYTES, inspect_file, quiet_pillow
from qrdali.errors import RunError
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.external_source import decode_inputs
from qrdali.pipelines.graphs import decode_windows
from qrdali.pipelines.image_reducer import open_image_reducer
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels
from qrdali.runs.settings import validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.workflows.build_mepi import build_mepi
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator
from qrdali.workflows.train import run_training

NAMES = [
    "with space.jpg",
    "tab\there.jpg",
    "new\nline.jpg",
    "'quotes\".jpg",
    "émoji 🦊.jpg",
    "\x1b[31mred\x1b]0;title\x07.jpg",
    "--help.jpg",
    "%s{}$(x).jpg",
    "a" * 250 + ".jpg",
]
CLASSES = ("plain", "a b '🦊'")
# 16 bits become 8, a palette of 16 bits and the colours of YCbCr and CMYK are computed: each decoder rounds
# its own way.
ROUNDED = re.compile(r"deep|palette\.tif|cmyk\.tif|ycc\.tif")


def command(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "qrdali", *map(str, words)], capture_output=True, text=True, timeout=200
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ holds everything, val/ and test/ what is accepted, in two classes."""
    root = tmp_path_factory.mktemp("hostile") / "root"
    refused = {
        name: data for name, (data, _) in (malformed_images.rejected() | malformed_images.animated()).items()
    }
    for split in ("train", "val", "test"):
        for label, kind in enumerate(CLASSES):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for name, data in [
                *malformed_images.accepted().items(),
                *((name, malformed_images.jpeg()) for name in NAMES),
            ][label::2]:
                (folder / name).write_bytes(data)
    folder = root / "train" / CLASSES[0]
    (folder / "broken").mkdir()
    for name, data in refused.items():
        (folder / f"x {name}").write_bytes(data)
    (root.parent / "outside.jpg").write_bytes(malformed_images.jpeg())
    (folder / "link out.jpg").symlink_to(root.parent / "outside.jpg")
    (folder / "link in.jpg").symlink_to("exif 1.jpg")
    (folder / "y link nowhere.jpg").symlink_to("nowhere")
    (folder / "y link to itself.jpg").symlink_to("y link to itself.jpg")
    (folder / "y device.jpg").symlink_to("/dev/zero")
    (folder / "y folder.jpg").mkdir()
    os.mkfifo(folder / "y fifo.jpg")
    with open(folder / "y sparse.webp", "wb") as file:
        file.write(malformed_images.saved(malformed_images.photo(), "WEBP"))
        file.truncate(MAX_BYTES + 1)
    with open(os.fsencode(folder) + b"/y \xff\x1b[1m.jpg", "wb") as file:
        file.write(malformed_images.jpeg())
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> Dataset:
    done = command("data", "index", root, "--out", root.parent / "data", "--threads", 2)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return Dataset.open(root.parent / "data")


def name_of(path: str) -> str:
    return path.rpartition("/")[2]


def test_what_enters_the_index(data: Dataset) -> None:
    wanted = {*malformed_images.accepted(), *NAMES}
    for split in data.splits:
        index = data.index(split)
        found = index.paths(np.arange(len(index)))
        assert {name_of(path) for path in found} == wanted | (
            {"link out.jpg", "link in.jpg"} if split == "train" else set()
        )


def test_what_is_rejected_and_why(data: Dataset) -> None:
    text = (data.folder / "rejected.tsv").read_text("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    reasons = {name_of(path): reason for path, reason in (line.split("\t") for line in text.splitlines()[1:])}
    wanted = {
        f"x {name}": pattern
        for name, (_, pattern) in (malformed_images.rejected() | malformed_images.animated()).items()
    }
    wanted |= {
        "y link nowhere.jpg": "No such file",
        "y link to itself.jpg": "symbolic links",
        "y device.jpg": "not a regular file",
        "y folder.jpg": "not a regular file",
        "y fifo.jpg": "not a regular file",
        "y sparse.webp": f"exceed {MAX_BYTES}",
        r"y \udcff\x1b[1m.jpg": "not UTF-8",
    }
    assert set(reasons) == set(wanted)
    for name, pattern in wanted.items():
        assert re.search(pattern, reasons[name]), (name, reasons[name])


def pillow(path: str) -> npt.NDArray[np.float64]:
    """Upright RGB. Pillow makes an RGB of 16-bit gray by cutting off what is above 255: it is scaled here."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16"):
            gray = np.rint(np.asarray(image).astype(np.float64) / 257)
            return np.repeat(gray[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB")).astype(np.float64)


@pytest.mark.parametrize("graph", [False, True])
def test_every_accepted_kind_is_decoded_to_pillows_pixels(data: Dataset, graph: bool) -> None:
    index = data.index("train")
    every = np.arange(len(index))
    paths, sizes = index.paths(every), index.sizes(every)
    maker = open_image_reducer(index, PRE, Engine(threads=1, whole_graph=graph))
    failed: list[str] = []
    decoded = dict(maker.decode(iter(every.tolist()), lambda sample, reason: failed.append(reason)))
    assert not failed
    assert sorted(decoded) == every.tolist()
    for sample, pixels in decoded.items():
        theirs = pillow(paths[sample])
        assert pixels.shape == theirs.shape == (*sizes[sample], 3), paths[sample]
        assert np.abs(pixels - theirs).max() <= (1 if ROUNDED.search(name_of(paths[sample])) else 0), paths[
            sample
        ]


PRE = Preprocessing(32, "whole", 0.9, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("levels", [FULL_QUALITY, ConstantLevels(0, 2, 0)])
def test_the_whole_graph_shows_the_network_the_same(data: Dataset, levels: ConstantLevels) -> None:
    """Windows of every kind too: DALI decodes regions of interest.

    Up to what its approximate resize differs.
    """
    index = data.index("train")
    seen = []
    for graph in (False, True):
        loader = open_loader(index, PRE, 8, Engine(threads=1, whole_graph=graph))
        batches = list(loader.epoch(EpochPlan(len(index), 8, levels)))
        seen.append(np.concatenate([batch.images.numpy() for batch in batches]))
    assert len(seen[0]) == len(index)
    assert np.abs(seen[0] - seen[1]).mean(axis=(1, 2, 3)).max() * 255 * 0.226 < 1.5


def decoded_by_dali(path: Path, height: int, width: int) -> npt.NDArray[np.uint8] | None:
    window = np.array([[0, 0, height, width]], np.int32)
    name = [np.frombuffer(str(path).encode(), np.uint8)]
    try:
        (output,) = decode_windows(lambda: decode_inputs(name, window), Engine(depth=1, threads=1), 1).run()
    except RuntimeError:
        return None
    return np.array(output.at(0))


def test_nothing_is_rejected_that_dali_decodes_as_pillow(tmp_path: Path) -> None:
    """But for animations, which are rejected on purpose; a header of 20,000 × 20,000 is not tried."""
    quiet_pillow()
    for name, (data, _) in (malformed_images.rejected() | malformed_images.animated()).items():
        if name == "huge.jpg":
            continue
        (tmp_path / name).write_bytes(data)
        try:
            theirs = pillow(str(tmp_path / name))
        except Exception:  # Pillow's decoders raise many types: there are no pixels to compare with
            continue
        ours = decoded_by_dali(tmp_path / name, *theirs.shape[:2])
        same = ours is not None and ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1
        assert same == (name in malformed_images.animated()), name


def test_training_evaluation_and_mepis_of_all_of_them(data: Dataset, tmp_path: Path) -> None:
    run_training(
        validate_settings(
            {
                "method": "adaptive",
                "data": str(data.folder),
                "model": "test_resnet",
                "input_size": 32,
                "batch_size": 8,
                "device": "cpu",
                "threads": 1,
                "reduction": "combination",
                "sequence": "RC",
                "max_epochs": 2,
            }
        ),
        tmp_path / "run",
        False,
    )
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["phase"] for line in lines] == ["start", "reduced", "full"]
    result = Evaluator(tmp_path / "run", EvaluateOptions(8, "cpu", "auto", 1)).split(data.folder, "test")
    assert result["images"] == len(data.index("test")) > 80
    done = build_mepi(
        run=str(tmp_path / "run"),
        data=str(data.folder),
        split="test",
        out=str(tmp_path / "mepi"),
        device="cpu",
        threads=1,
        reduction="all",
        step=0.25,
    )
    for reduction, row in done.items():
        assert row["unreadable"] == 0
        kept = Evaluator(tmp_path / "run", EvaluateOptions(8, "cpu", "auto", 1)).folder(
            "m", tmp_path / "mepi" / reduction
        )
        assert kept["accuracy"] == 1
        assert kept["images"] == row["images"] - row["without_mepi"] > 0


def test_max_pixels(root: Path, tmp_path: Path) -> None:
    limit = malformed_images.WIDTH * malformed_images.HEIGHT
    done = command("data", "index", root, "--out", tmp_path / "d", "--threads", 1, "--max-pixels", limit)
    assert done.returncode == 0, done.stderr
    kept = Dataset.open(tmp_path / "d").index("test")
    sizes = kept.sizes(np.arange(len(kept)))
    assert sizes.prod(axis=1).max() == limit
    large = [
        line
        for line in (tmp_path / "d/rejected.tsv").read_text("utf-8").splitlines()
        if f"exceeds {limit} pixels" in line
    ]
    assert {name_of(line.partition("\t")[0]) for line in large if "/test/" in line} == {
        "1x5000.jpg",
        "taller.jpg",
    }


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root reads everything: files are looked at as somebody else."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_an_unreadable_file(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = tmp_path / "secret.jpg"
    file.write_bytes(malformed_images.jpeg())
    file.chmod(0)
    assert not inspect_file(str(file), True).reason or os.geteuid()
    request.getfixturevalue("nobody")
    assert "Permission denied" in inspect_file(str(file), True).reason


@pytest.mark.slow
def test_large_images_take_turns_in_memory(tmp_path: Path) -> None:
    """12,000 × 9,000: decoded for real, one at a time whatever the number of threads; DALI decodes it too."""
    for kind in ("a", "b"):
        (tmp_path / "root/train" / kind).mkdir(parents=True)
    large = tmp_path / "root/train/a/large.jpg"
    Image.new("L", (12_000, 9_000), 77).save(large, "JPEG", progressive=True)
    for i in range(3):
        (tmp_path / f"root/train/a/{i}.jpg").symlink_to(large)
    (tmp_path / "root/train/b/small.jpg").write_bytes(malformed_images.jpeg())
    # VmHWM and not ru_maxrss, which a child inherits.
    code = (
        "import sys; from pathlib import Path; from qrdali.data.scan import build_dataset; "
        "from qrdali.data.decoder_process import decoder_process; "
        "peak = lambda process: int(Path(f'/proc/{process}/status').read_text().partition('VmHWM:')[2]"
        ".split()[0]); before = peak('self'); "
        "build_dataset(Path(sys.argv[1]), Path(sys.argv[2]), threads=4); "
        "print(peak('self') - before, peak(decoder_process._child._process.pid))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "root"), str(tmp_path / "d")],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    reading, decoding = map(int, done.stdout.split())  # KiB
    assert reading < 100_000
    # DALI takes 1,000,000 to 1,500,000 for one, Pillow 330,000: two at once would take more than this.
    assert decoding < 2_600_000
    index = Dataset.open(tmp_path / "d").index("train")
    assert index.sizes(np.arange(5)).tolist() == [[9_000, 12_000]] * 4 + [[36, 48]]
    pixels = decoded_by_dali(large, 9_000, 12_000)
    assert pixels is not None
    assert (pixels == 77).all()


def test_what_goes_bad_after_indexing_is_named(root: Path, data: Dataset, tmp_path: Path) -> None:
    index = data.index("val")
    paths = index.paths(np.arange(len(index)))
    victim = [name_of(path) for path in paths].index("baseline.jpg")
    path = Path(paths[victim])
    kept = path.read_bytes()
    for bad, (content, _) in malformed_images.rejected().items():
        if bad not in ("cut 50.jpg", "zero.jpg", "gif.jpg", "cut 99.png", "checksum.png"):
            continue
        path.write_bytes(content)
        with pytest.raises(RunError, match=f"^sample {victim}, .*baseline.jpg, ") as raised:
            list(open_loader(index, PRE, 8, Engine(threads=1)).epoch(EpochPlan(len(index), 8, FULL_QUALITY)))
        assert "\n" not in str(raised.value)
    path.write_bytes(kept)
