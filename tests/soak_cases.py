"""The cases of `make soak`: training by every method, sequence and reduction, and every other command."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from kill_helpers import Case, call, contents
from tiny_data import fill

SEQUENCES = ("paired-epochs", "paired-rounds", "CRR")
REDUCTIONS = ("color", "crop", "resolution", "combination", "none")
SYNSETS = ("n01440764", "n01484850", "n02119789")


class Ground:
    """What the commands read, made once in `folder`: pictures, data sets, a trained run, an ImageNet."""

    def __init__(self, folder: Path) -> None:
        from qrdali.data.scan import build_dataset
        from qrdali.data.shapes import ShapesSpec, generate

        self.folder, self.images, self.data, self.run = (
            folder,
            folder / "images",
            folder / "data",
            folder / "shared",
        )
        self.imagenet, self.mapping, self.matrix = (
            folder / "imagenet",
            folder / "mapping.tsv",
            folder / "matrix.toml",
        )
        folder.mkdir(parents=True)
        generate(
            self.images, ShapesSpec(classes=3, train=12, val=4, test=4, size=(48, 36), seed=1), workers=1
        )
        build_dataset(self.images, self.data)
        for number, synset in enumerate(SYNSETS):
            fill(self.imagenet / "train" / synset, 6, synset + "_{}.JPEG")
            fill(self.imagenet / "val" / synset, 2, f"ILSVRC2012_val_{number}{{}}.JPEG")
        self.mapping.write_text(
            "".join(
                f"{synset}\t{name}\n" for synset, name in zip(SYNSETS, ("fish", "fish", "fox"), strict=True)
            )
        )
        self.matrix.write_text(f"""out = "unused"
data = {{ folder = {json.dumps(str(self.data))} }}
train = {{ device = "cpu", threads = 1, batch_size = 8, patience = 1, max_epochs = 2, save_every = "2" }}
network = [{{ model = "test_resnet", input_size = 32, epochs = 2 }}]
runs = {{ methods = ["fixed"], reductions = ["crop"] }}
mepi = {{ runs = ["fixed-paired-epochs-crop"], limit = 3, step = 0.25, reductions = ["crop"] }}
""")
        made = call(
            self.train("shared", self.run, "--epochs", "12", "--augment", "none"), folder, folder / "log"
        )
        assert made.status == 0, made.said

    def train(self, method: str, run: Path, *words: str) -> list[str]:
        return [
            "train",
            method,
            "--data",
            str(self.data),
            "--run",
            str(run),
            "--model",
            "test_resnet",
            "--input-size",
            "32",
            "--lr",
            "2e-3",
            "--batch-size",
            "8",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--save-every",
            "2",
            *words,
        ]


def training(ground: Ground, now: Path) -> Iterator[Case]:
    """Every training case; the run is NOW/run."""
    bounded = ("--patience", "1", "--max-epochs", "4", "--init", str(ground.run))
    plain: dict[str, list[str]] = {
        "shared": ["shared", "--epochs", "3"],
        "baseline": ["baseline", *bounded],
        "shared dropout": ["shared", "--epochs", "2", "--model", "squeezenet1_1"],
        "baseline deterministic": ["baseline", *bounded, "--deterministic"],
        "baseline match": ["baseline", "--match", str(ground.run), "--init", str(ground.run)],
    }
    rates: dict[str, list[str]] = {
        "cosine": ["--warmup-epochs", "0.5"],
        "plateau": ["--plateau-patience", "0", "--patience", "2"],
        "stage": ["--stage-epochs", "2", "--warmup-epochs", "1", "--min-lr", "1e-4"],
        "wsd": ["--decay-epochs", "1"],
    }
    for schedule, words in rates.items():
        plain[f"linear {schedule}"] = [
            *("linear", *bounded, "--max-epochs", "6", "--step", "0.5", "--sequence", "paired-rounds"),
            *("--clip-grad", "1", "--layer-decay", "0.8", "--lr-schedule", schedule, *words),
        ]
    for sequence in SEQUENCES:
        for reduction in REDUCTIONS:
            asked = (*bounded, "--sequence", sequence, "--reduction", reduction)
            for method in ("fixed", "linear", "adaptive", "random"):
                plain[f"{method} {sequence} {reduction}"] = [method, *asked]
            plain[f"adaptive online {sequence} {reduction}"] = ["adaptive", *asked, "--feedback", "online"]
    for method, reduction in (("fixed", "jpeg"), ("linear", "blur"), ("random", "noise")):
        words = [*bounded, "--sequence", "paired-epochs", "--reduction", reduction]
        plain[f"{method} paired-epochs {reduction}"] = [method, *words]
    for name, (method, *words) in plain.items():
        for ema in (False, True):
            yield Case(
                f"train {name}{' ema' if ema else ''}",
                ground.train(method, now / "run", *words, *(("--ema", "0.7") if ema else ())),
                ["--resume"],
                check=_loads,
            )


def on_gpu(ground: Ground, now: Path) -> Iterator[Case]:
    """Training that a GPU repeats bit for bit, with dropout, batch norm, probes and restored weights."""
    bounded = (
        "--patience",
        "1",
        "--max-epochs",
        "4",
        "--init",
        str(ground.run),
        "--reduction",
        "combination",
    )
    for name, method, words in (
        ("squeezenet", "shared", ("--epochs", "2", "--model", "squeezenet1_1", "--input-size", "64")),
        ("adaptive", "adaptive", (*bounded, "--sequence", "paired-rounds", "--ema", "0.7")),
        ("random fp16", "random", (*bounded, "--amp", "fp16")),
    ):
        command = ground.train(method, now / "run", *words, "--device", "cuda", "--deterministic")
        yield Case(f"gpu {name}", command, ["--resume"], check=_loads)


def commands(ground: Ground, now: Path) -> Iterator[Case]:
    """The commands beside training."""

    def data(name: str, *words: str) -> Case:
        return Case(
            f"data {name}",
            ["data", name, *words, "--out", str(now / "data"), "--threads", "1", "--hash"],
            check=_whole_or_absent,
        )

    def copied(folder: Path) -> None:
        shutil.copytree(ground.run, folder / "run")

    def without_val(folder: Path) -> None:
        shutil.copytree(ground.data, folder / "data", ignore=shutil.ignore_patterns("val.*"))

    yield data("index", str(ground.images))
    yield data("imagenet", str(ground.imagenet), "--per-class", "2")
    yield data(
        "humanet",
        str(ground.imagenet),
        "--mapping",
        str(ground.mapping),
        "--train",
        "2",
        "--val",
        "1",
        "--test",
        "2",
    )
    yield Case(
        "data minival",
        ["data", "minival", str(now / "data"), "--per-class", "3"],
        prepare=without_val,
        check=_disjoint,
    )
    asked = [
        "evaluate",
        "--run",
        str(now / "run"),
        "--threads",
        "1",
        "--device",
        "cpu",
        "--step",
        "0.5",
        "--data",
        str(ground.data),
    ]
    yield Case("evaluate curve", [*asked, "--curve"], prepare=copied, check=_rows_are_whole)
    yield Case(
        "evaluate sets",
        [*asked, "--reduced", "0.5", "--set", f"mine={ground.images / 'val'}"],
        prepare=copied,
        check=_rows_are_whole,
    )
    for reduction in ("all", "crop"):
        yield Case(
            f"build-mepi {reduction}",
            [
                "build-mepi",
                "--run",
                str(ground.run),
                "--data",
                str(ground.data),
                "--split",
                "val",
                "--reduction",
                reduction,
                "--out",
                str(now / "mepi"),
                "--step",
                "0.25",
                "--threads",
                "1",
                "--device",
                "cpu",
            ],
            ["--resume"],
        )
    yield Case("reproduce", ["reproduce", str(ground.matrix), "--out", str(now / "matrix")])


def _loads(now: Path, whole: Path) -> None:
    """Whatever is there of a run loads."""
    from qrdali.errors import RunError
    from qrdali.runs import checkpoint

    for name in ("best", "last", "unit"):
        folder = now / "run" / name
        if folder.exists() or folder.with_name(f"{name}.old").exists():
            try:
                checkpoint.load(folder, "model")
            except RunError as error:
                raise AssertionError(str(error)) from None


def _whole_or_absent(now: Path, whole: Path) -> None:
    assert not (now / "data").exists() or contents(now / "data") == contents(whole / "data"), (
        "half a data set is there"
    )


def _disjoint(now: Path, whole: Path) -> None:
    from tiny_data import images

    found = {
        split: {path for path, _ in images(now / "data", split)}
        for split in ("train", "val")
        if (now / "data" / f"{split}.arrow").exists()
    }
    assert not found["train"] & found.get("val", set()), "an image is in train and in val"
    assert "val" not in found or len(found["train"] | found["val"]) == 36, "an image is lost"


def _rows_are_whole(now: Path, whole: Path) -> None:
    import pyarrow.parquet as pq

    for file in [*(now / "run").rglob("*.parquet")]:
        assert pq.read_table(file).num_rows, f"{file} is not whole"
    for file in (now / "run" / "curves").glob("*.json"):
        assert json.loads(file.read_text())
