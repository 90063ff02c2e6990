"""Trees of tiny JPEGs, `qrdali data` on them, and what is in a data set."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from qrdali.cli.main import cli
from qrdali.data.index import Dataset


def jpeg(size: tuple[int, int] = (16, 12), colour: int = 0) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, (colour % 256, 60, 200)).save(file, "JPEG")
    return file.getvalue()


def fill(folder: Path, count: int, name: str = "{}.JPEG") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / name.format(i)).write_bytes(jpeg(colour=i))


def made(*words: object) -> Result:
    result = CliRunner().invoke(cli, ["data", *map(str, words), "--threads", "1"])
    if result.exception:
        raise result.exception
    return result


def info(folder: Path) -> dict[str, Any]:
    return json.loads(CliRunner().invoke(cli, ["data", "info", str(folder), "--json"]).stdout)  # type: ignore[no-any-return]


def images(folder: Path, split: str) -> list[tuple[str, str]]:
    """(path, class) of each row."""
    dataset = Dataset.open(folder)
    index = dataset.index(split)
    every = np.arange(len(index))
    return [
        (path, dataset.classes[label])
        for path, label in zip(index.paths(every), index.labels(every).tolist(), strict=True)
    ]


def paths(folder: Path, split: str) -> set[str]:
    return {path for path, _ in images(folder, split)}


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def done(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stderr


def commands(data: Path, folder: Path, *root: str) -> None:
    """Trains, evaluates and searches with the images of a data set."""
    done(
        "train",
        "shared",
        "--data",
        data,
        "--run",
        folder / "run",
        "--model",
        "test_resnet",
        "--input-size",
        32,
        "--epochs",
        1,
        "--batch-size",
        4,
        "--device",
        "cpu",
        "--threads",
        1,
        *root,
    )
    done("evaluate", "--run", folder / "run", "--data", data, "--split", "val", "--threads", 1, *root)
    done(
        "build-mepi",
        "--run",
        folder / "run",
        "--data",
        data,
        "--split",
        "train",
        "--reduction",
        "color",
        "--step",
        0.5,
        "--threads",
        1,
        "--limit",
        2,
        "--out",
        folder / "mepi",
        *root,
    )
