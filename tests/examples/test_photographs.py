"""benchmarks/photographs/build.py on cut-outs and backgrounds made for this test: nothing is downloaded."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"train": 12, "val": 6, "test": 6}


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "photographs_build", ROOT / "benchmarks/photographs/build.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def packages(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages unpacked, as far as objects.toml names them: a few coloured discs in each folder."""
    root = tmp_path_factory.mktemp("packages")
    listed = listed_objects(builder)
    rng = np.random.default_rng(0)
    folders = [folder for folders in listed["classes"].values() for folder in folders]
    for folder in folders:
        for word in (
            "ant",
            "bat",
            "cat",
            "dodo",
            "eel",
            "gnu_a",
            "gnu_b",
            "cartoon/drawn",
            "mirrored_mirror",
        ):
            draw_disc(root / builder.STAMPS / folder / f"{word}.png", rng)
    for name in listed["leave_out"]["stamps"]:
        draw_disc(root / builder.STAMPS / f"{name}.png", rng)
    for name in (name for names in listed["backgrounds"].values() for name in names):
        file = root / builder.WALLPAPERS / name / "contents" / "images" / "640x400.jpg"
        file.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (400, 640, 3), np.uint8)).save(file)
    return root


def listed_objects(builder: ModuleType) -> dict[str, Any]:
    """Returns objects.toml without the fingerprint of the cut-outs that Debian has."""
    listed: dict[str, Any] = builder.tomllib.loads(
        (ROOT / "benchmarks/photographs/objects.toml").read_text("utf-8")
    )
    del listed["fingerprint"]
    return listed


def draw_disc(file: Path, rng: np.random.Generator) -> None:
    """Writes a red disc of 60 pixels in the middle of a transparent image of 100."""
    file.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:100, :100] - 50
    pixels = np.zeros((100, 100, 4), np.uint8)
    pixels[x * x + y * y < 900] = (255, *rng.integers(0, 40, 2), 255)
    Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def built(builder: ModuleType, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "photographs"
    builder.build(packages, out, listed_objects(builder), COUNTS, 0)
    return out


def recipes_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text("utf-8").splitlines()]


def test_the_same_seed_gives_the_same_bytes(
    builder: ModuleType, packages: Path, built: Path, tmp_path: Path
) -> None:
    builder.build(packages, tmp_path / "again", listed_objects(builder), COUNTS, 0)
    builder.build(packages, tmp_path / "other", listed_objects(builder), COUNTS, 1)
    files = sorted(path.relative_to(built) for path in built.rglob("*") if path.is_file())
    assert len(files) == sum(COUNTS.values()) + 1
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (built / file).read_bytes()
    assert recipes_of(tmp_path / "other") != recipes_of(built)


def test_things_and_backgrounds_are_in_one_split_only(built: Path) -> None:
    for what in ("object", "background"):
        splits: dict[str, set[str]] = {}
        for recipe in recipes_of(built):
            splits.setdefault(recipe[what], set()).add(recipe["file"].partition("/")[0])
        assert max(map(len, splits.values())) == 1, what


def test_things_that_begin_alike_stay_together(builder: ModuleType) -> None:
    files = [
        Path(f"{name}.png")
        for name in ("pig", "pig_golden", "pig-2", "hen", "flower1", "flower2", "ox", "yak")
    ]
    splits = builder.split_objects("grazer", files, {"ox": "cattle", "yak": "cattle"}, 0)
    assert sorted(path for some in splits.values() for path in some) == sorted(files)
    assert len({split for split, some in splits.items() if any("pig" in path.stem for path in some)}) == 1
    assert len({split for split, some in splits.items() if {"ox", "yak"} & {path.stem for path in some}}) == 1
    assert builder.kind_of("flower1") != builder.kind_of("flower2")


def test_nothing_that_is_left_out_is_drawn(builder: ModuleType, built: Path) -> None:
    used = {recipe["object"] for recipe in recipes_of(built)}
    assert not [path for path in used if "cartoon" in path or path.endswith("_mirror.png")]
    listed = {f"{builder.STAMPS}/{name}.png" for name in listed_objects(builder)["leave_out"]["stamps"]}
    assert not used & listed


def test_images_hold_the_thing_where_the_manifest_says(built: Path) -> None:
    sizes = set()
    for recipe in recipes_of(built):
        with Image.open(built / recipe["file"]) as file:
            pixels = np.asarray(file.convert("RGB")).astype(int)
        sizes.add(pixels.shape[:2])
        (left, top), (width, height) = recipe["place"], recipe["size"]
        assert left >= 0
        assert top >= 0
        assert top + height <= pixels.shape[0]
        assert left + width <= pixels.shape[1]
        middle = pixels[top + height // 4 : top + 3 * height // 4, left + width // 4 : left + 3 * width // 4]
        assert (middle[..., 0] - middle[..., 1:].max(-1)).mean() > 150
    assert sizes == {(375, 500), (500, 375)}


def test_every_class_has_as_many_images(built: Path, builder: ModuleType) -> None:
    for split, count in COUNTS.items():
        numbers = [len([*folder.iterdir()]) for folder in (built / split).iterdir()]
        assert len(numbers) == len(listed_objects(builder)["classes"])
        assert set(numbers) == {count // len(numbers)}


def test_other_packages_are_refused_in_a_line(builder: ModuleType, packages: Path, tmp_path: Path) -> None:
    with pytest.raises(builder.BuildError, match="BytheWater is not in .*: another version"):
        builder.build(tmp_path, tmp_path / "out", listed_objects(builder), COUNTS, 0)
    with pytest.raises(builder.BuildError, match="not the cut-outs that objects.toml describes: they have"):
        builder.build(
            packages, tmp_path / "out", listed_objects(builder) | {"fingerprint": "other"}, COUNTS, 0
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(builder.BuildError, match="is not empty"):
        builder.build(packages, tmp_path / "full", listed_objects(builder), COUNTS, 0)


def test_without_apt_a_line_says_what_to_do(
    builder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(builder.BuildError, match="unpack these two and give --packages FOLDER"):
        builder.fetch(tmp_path / "cache")
