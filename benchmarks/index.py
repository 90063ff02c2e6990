"""Seconds of `qrdali data index`, beside decoding the same files by DALI or by Pillow alone; JSON on stdout.

    python benchmarks/index.py > index.json

Generated JPEGs of 500x375 pixels and about 90 kB: plain ones, the same with EXIF, and progressive ones.
Whole processes, in turns; minima count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from qrdali.pipelines.batch_decoder import BATCH_FILES, BatchDecoder, Window
from qrdali.workflows.bench_loader import machine

WIDTH, HEIGHT = 500, 375
EXIF = Image.Exif()
EXIF[0x0131] = "benchmarks/index.py"  # the software that made it
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with_exif": {"exif": EXIF.tobytes()},
    "progressive": {"progressive": True},
}


def generate(root: Path, files: int, options: dict[str, Any]) -> None:
    """Writes `files` pictures of two classes: smooth colours under noise, which JPEG cannot compress away."""
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (root / "train" / kind).mkdir(parents=True)
    for number in range(files):
        colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8))
        smooth = np.asarray(colours.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + rng.normal(0, 16, (HEIGHT, WIDTH, 1))
        file = root / "train" / "ab"[number % 2] / f"{number}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=88, **options)


def by_dali(files: list[Path], threads: int) -> None:
    decoder = BatchDecoder(threads)
    for start in range(0, len(files), BATCH_FILES):
        contents = [file.read_bytes() for file in files[start : start + BATCH_FILES]]
        decoder.run(contents, [Window(0, 0, HEIGHT, WIDTH)] * len(contents))


def by_pillow(files: list[Path], threads: int) -> None:
    def load(file: Path) -> None:
        with Image.open(file) as image:
            image.load()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(load, files))


def index(root: Path, out: Path, threads: int) -> None:
    words = ["data", "index", str(root), "--out", str(out), "--threads", str(threads)]
    subprocess.run([sys.executable, "-m", "qrdali", *words], check=True, capture_output=True)


def measured(root: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Returns seconds of each round, and what indexing takes beside DALI's decoding alone."""
    files = sorted(root.rglob("*.jpg"))
    seconds: dict[str, list[float]] = {"index": [], "dali": [], "pillow": []}
    for number in range(args.rounds):
        for name, work in (
            ("index", lambda number=number: index(root, out / str(number), args.threads)),
            ("dali", lambda: by_dali(files, args.threads)),
            ("pillow", lambda: by_pillow(files, args.threads)),
        ):
            begun = time.perf_counter()
            work()
            seconds[name].append(round(time.perf_counter() - begun, 2))
    best = {name: min(rounds) for name, rounds in seconds.items()}
    return {
        "mean_bytes": round(sum(file.stat().st_size for file in files) / len(files)),
        "seconds": seconds,
        "index_over_dali": round(best["index"] / best["dali"], 2),
        "index_over_pillow": round(best["index"] / best["pillow"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "command": sys.argv, "note": args.note}
    for kind, options in KINDS.items():
        with TemporaryDirectory() as folder:
            generate(Path(folder) / "images", args.files, options)
            result[kind] = measured(Path(folder) / "images", Path(folder), args)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
