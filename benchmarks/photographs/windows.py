"""Cuts photographs into a data set for a small classifier: a class per photograph, random windows as images.

    python benchmarks/photographs/windows.py PHOTOGRAPH... --out ROOT

Train, validation and test windows come from everywhere in the picture and may overlap: this is for measuring
MEPIs of a network that has learned photographs, not for measuring accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="300x225")
    parser.add_argument("--train", type=int, default=60, help="windows per photograph")
    parser.add_argument("--val", type=int, default=10)
    parser.add_argument("--test", type=int, default=10)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    rng = np.random.default_rng(0)
    for path in args.photographs:
        with Image.open(path) as file:
            photograph = file.convert("RGB")
        for split in ("train", "val", "test"):
            folder = args.out / split / path.stem
            folder.mkdir(parents=True)
            for i in range(getattr(args, split)):
                share = rng.uniform(0.45, 0.8)
                w = min(photograph.width, photograph.height * width / height) * share
                h = w * height / width
                left, top = rng.uniform(0, photograph.width - w), rng.uniform(0, photograph.height - h)
                window = photograph.resize(
                    (width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h)
                )
                window.save(folder / f"{i:03d}.jpg", quality=95)


if __name__ == "__main__":
    main()
