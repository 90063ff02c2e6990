"""Minimal images of single photographs: those of build-mepi, and what is said where there is none."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from recording_listener import RecordingListener
from torch import nn

import qrdali
from qrdali.cli.main import cli
from qrdali.errors import Interrupted
from qrdali.interfaces import JobControl, SilentListener
from qrdali.mepi import minimal as mepi_minimal
from qrdali.mepi.search_path import FailedStep
from qrdali.models import Preprocessing
from qrdali.workflows import minimal_sheet
from qrdali.workflows.minimal_files import write_minimal_images
from qrdali.workflows.minimal_network import Network, module_preprocessing, near_names
from qrdali.workflows.minimal_sheet import percent

REDUCTIONS = ("color", "crop", "resolution", "combination")
RUN = "runs/shared"


@pytest.fixture(scope="module")
def mepis(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mepis") / "set"
    qrdali.build_mepi(workplace / RUN, workplace / "data", out=out, split="train", step=0.1, device="cpu")
    return out


def rows(mepis: Path, reduction: str) -> list[dict[str, Any]]:
    table = pq.read_table(mepis / "manifest.parquet").to_pylist()
    return [row for row in table if row["reduction"] == reduction]


def photo_and_label(mepis: Path) -> tuple[str, str]:
    """An image that the run gets right, and its class."""
    row = rows(mepis, "color")[0]
    return row["path"], Path(row["path"]).parent.name


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_image_of_a_set_has_the_minimal_image_of_the_set(
    in_workplace: Path, mepis: Path, reduction: str
) -> None:
    mepi_rows = rows(mepis, reduction)
    assert len(mepi_rows) > 3
    for row in mepi_rows[:: max(1, len(mepi_rows) // 4)]:
        label = Path(row["path"]).parent.name
        found = qrdali.minimal(
            row["path"], RUN, label=label, reduction=reduction, step=0.1, device="cpu", threads=1
        )
        assert found.png == (mepis / reduction / label / f"{row['sample']}.png").read_bytes()
        keys = [f"{name}_level" for name in ("color", "crop", "resolution")]
        assert found.levels == tuple(row[key] for key in keys)
        assert found.window == tuple(row[key] for key in ("top", "left", "height", "width"))
        assert (found.evaluations, found.probability) == (row["evaluations"], row["confidence"])
        assert found.quotient == row["quotient"]
        below = found.next_step
        of_set = [
            row[f"next_{key}"] for key in ("color_level", "crop_level", "resolution_level", "top", "left")
        ]
        assert of_set == ([*below.levels, *below.window[:2]] if below else [None] * 5)
        assert row["next_class"] == (below and below.answer)
        assert row["next_confidence"] == (below and pytest.approx(below.confidence, abs=1e-6))
        own = qrdali.minimal(row["path"], RUN, reduction=reduction, step=0.1, device="cpu")
        assert own == found  # right at full quality: its own answer is its class


def test_the_command_writes_what_python_finds(in_workplace: Path, mepis: Path, tmp_path: Path) -> None:
    paths = [row["path"] for row in rows(mepis, "crop")[:3]]
    words = [
        "minimal",
        *paths,
        "--run",
        RUN,
        "--step",
        "0.1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(cli, [*words, "--reduction", "all", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    of_command = json.loads(result.stdout)["images"]
    wanted = [(path, reduction) for path in paths for reduction in REDUCTIONS]
    assert [(row["image"], row["reduction"]) for row in of_command] == wanted
    for row in of_command:
        found = qrdali.minimal(row["image"], RUN, reduction=row["reduction"], step=0.1, device="cpu")
        assert Path(row["mepi"]).read_bytes() == found.png
        assert row["entropy_mepi"] == len(found.png) == Path(row["mepi"]).stat().st_size
        assert [step["quotient"] for step in row["steps"]] == [step.quotient for step in found.steps]
        with Image.open(row["sheet"]) as sheet:
            assert sheet.width == 1920
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(wanted)  # names repeat between classes


def test_every_step_is_what_it_says(in_workplace: Path, mepis: Path) -> None:
    path, label = photo_and_label(mepis)
    image = qrdali.read(path)
    found = qrdali.minimal(image, RUN, step=0.1, device="cpu")
    assert found.png == qrdali.minimal(path, RUN, step=0.1, device="cpu").png  # a file or its pixels
    assert found.class_name == label
    assert np.array_equal(found.original, image)
    assert np.array_equal(found.image, found.steps[-1].image)
    assert found.steps[0].quotient == 1
    assert found.steps[0].reduced == ""
    for before, step in zip(found.steps, found.steps[1:], strict=False):
        assert step.quotient == qrdali.quotient(step.image, image)
        changed = [
            name for name in REDUCTIONS[:3] if getattr(before.levels, name) < getattr(step.levels, name)
        ]
        assert [step.reduced] == changed
        assert (step.answer, step.confidence) == (label, step.probability)
    below = found.next_step
    assert below is not None
    assert below.answer != label
    assert below.probability <= below.confidence
    with pytest.raises(qrdali.InputError, match=f"is '{below.answer}' to the network"):
        qrdali.minimal(below.image, RUN, label=label, device="cpu")


def test_a_module_gives_what_its_run_gives(in_workplace: Path, mepis: Path) -> None:
    path, label = photo_and_label(mepis)
    run = qrdali.Run(RUN)
    model = run.model().to(memory_format=torch.channels_last)
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    found = qrdali.minimal(
        path, model, label, "crop", run.preprocessing, classes=run.classes, step=0.1, threads=1
    )
    expected = qrdali.minimal(path, run, label, "crop", step=0.1, device="cpu")
    assert found.png == expected.png
    assert found.label == run.classes.index(label)
    assert model.training  # as it was
    assert not frozen.training
    unnamed = qrdali.minimal(path, model, found.label, "crop", run.preprocessing, step=0.1)
    assert (unnamed.png, unnamed.class_name) == (found.png, f"class {found.label}")


class Brightness(nn.Module):
    """Answers class 1 while the mean is above a tenth of its range."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([-mean, mean, torch.full_like(mean, -9)], 1)


def test_any_module_and_no_next_step(tmp_path: Path) -> None:
    white = np.full((20, 30, 3), 255, np.uint8)
    found = qrdali.minimal(white, Brightness(), reduction="resolution")
    assert (found.label, found.model, found.image.shape) == (1, "Brightness", (1, 1, 3))
    assert found.next_step is None  # one pixel is left, and it is right
    found.sheet(tmp_path / "sheet.png")
    found.save(tmp_path / "image.png")
    assert (tmp_path / "image.png").read_bytes() == found.png


@pytest.mark.parametrize("levels", [1, 40])
def test_a_sheet_has_every_step(monkeypatch: pytest.MonkeyPatch, levels: int) -> None:
    image = np.random.default_rng(0).integers(200, 256, (64, 48, 3)).astype(np.uint8)
    found = qrdali.minimal(image, Brightness(), reduction="resolution", tail=str(levels))
    drawn: list[str] = []
    original = minimal_sheet.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        minimal_sheet.ImageDraw.ImageDraw,
        "text",
        lambda pen, at, text, *rest, **more: (drawn.append(text), original(pen, at, text, *rest, **more))[1],
    )
    with Image.open(io.BytesIO(minimal_sheet.draw(found))) as sheet:
        assert sheet.width == 1920
    for step in found.steps:
        assert f"p {percent(step.probability)}" in drawn
        assert f"Q {step.quotient:#.3g}" in drawn
    assert sum(text.startswith("Q ") for text in drawn) == len(found.steps)
    assert any("the area (crop)" in text for text in drawn)  # what a quality is a share of


def test_an_image_wrong_as_a_file_is_searched_on(
    in_workplace: Path, mepis: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = photo_and_label(mepis)
    before = qrdali.minimal(path, RUN, reduction="color", step=0.1, device="cpu")
    wrong = [FailedStep((0, 0, 0, 0, 0), 1, 0.9, 0.05)]  # type: ignore[arg-type]
    real = mepi_minimal._wrong_as_file
    monkeypatch.setattr(
        mepi_minimal, "_wrong_as_file", lambda search, path: wrong.pop() if wrong else real(search, path)
    )
    after = qrdali.minimal(path, RUN, reduction="color", step=0.1, device="cpu")
    assert after.steps == before.steps[:-1]
    monkeypatch.setattr(
        mepi_minimal, "_wrong_as_file", lambda search, path: FailedStep(path.state, 1, 0.9, 0.05)
    )
    with pytest.raises(qrdali.InputError, match="it has no minimal image"):
        qrdali.minimal(path, RUN, reduction="color", step=0.1, device="cpu")


def test_a_label_that_is_wrong_or_unknown(in_workplace: Path, mepis: Path, tmp_path: Path) -> None:
    path, label = photo_and_label(mepis)
    other = next(name for name in qrdali.Run(RUN).classes if name != label)
    with pytest.raises(
        qrdali.InputError, match=rf"is '{label}' to the network \(\d+\.\d%\) and not '{other}'"
    ):
        qrdali.minimal(path, RUN, label=other, device="cpu")
    with pytest.raises(qrdali.InputError, match=f"has no class '{label.upper()}'; near it: '{label}'"):
        qrdali.minimal(path, RUN, label=label.upper(), device="cpu")
    with pytest.raises(qrdali.InputError, match="a number from 0 to 3"):
        qrdali.minimal(path, RUN, label=4, device="cpu")
    words = ["minimal", path, "--run", RUN, "--device", "cpu", "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(cli, [*words, "--label", other], catch_exceptions=False)
    assert result.exit_code == 0
    (row,) = json.loads(result.stdout)["images"]
    assert (row["mepi"], row["label"], row["answer"]) == (None, other, label)
    assert not list((tmp_path / "out").iterdir())


def test_near_names() -> None:
    names = ["bald eagle, American eagle", "crane", "crane bird", "kite", "drake"]
    assert near_names("Eagle", names) == ["bald eagle, American eagle"]
    assert near_names("kites", names) == ["kite"]
    assert near_names("crane", names)[:2] == ["crane", "crane bird"]
    assert near_names("", names) == []


def test_readable_names() -> None:
    classes, readable = ("n01", "n02", "n03"), ("eagle, bird of prey", "crane, bird", "crane, machine")
    anything: Any = None
    network = Network(anything, "net", classes, anything, anything, anything, readable)
    assert network.shown == ("eagle", "crane", "crane")
    for label in ("n01", "eagle", "eagle, bird of prey"):
        assert network.class_number(label) == 0
    with pytest.raises(qrdali.InputError, match="names two classes, n02 .* and n03"):
        network.class_number("crane")
    with pytest.raises(qrdali.InputError, match="has no class 'bird'; near it: 'crane, bird', 'eagle, bird"):
        network.class_number("bird")


class Crash(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("expects\n299 px")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"model": Crash()}, r"does not take float32 \[1, 3, 224, 224\] \(expects\?299 px\)"),
        ({"model": nn.Conv2d(3, 4, 224)}, r"with \[1, 4, 1, 1\] instead of logits"),
        ({"model": Brightness(), "classes": ["a"]}, "classes has 1 names, and the model answers with 3"),
        ({"model": 7}, "model is 7: give a torch module, a run \\(qrdali.Run\\) or its folder"),
        ({"model": "nowhere"}, "nowhere"),
        ({"model": Brightness(), "reduction": "all"}, "reduction is 'all': give one of color"),
        ({"model": Brightness(), "step": 0.3}, "step 0.3 is not 1/n"),
        (
            {"model": Brightness(), "preprocessing": 3},
            "preprocessing is 3: give a qrdali.Preprocessing, a text or None",
        ),
        ({"model": Brightness(), "image": np.zeros((3, 3))}, r"image is float64\[3, 3\]"),
        ({"model": Brightness(), "image": "nowhere.jpg"}, "nowhere.jpg cannot be decoded: .*No such file"),
    ],
)
def test_refusals(words: dict[str, Any], said: str) -> None:
    with pytest.raises(qrdali.InputError, match=said) as refused:
        qrdali.minimal(**{"image": np.full((9, 9, 3), 255, np.uint8), **words})
    assert "\n" not in str(refused.value)


class NotANumber(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), 2), torch.nan)


def test_a_network_without_answers() -> None:
    with pytest.raises(qrdali.RunError, match="values that are not finite"):
        qrdali.minimal(np.full((9, 9, 3), 255, np.uint8), NotANumber())


def test_results_replace_no_image_given(in_workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "a-crop.png").write_bytes((in_workplace / "photo.jpg").read_bytes())
    (tmp_path / "a.jpg").write_bytes((in_workplace / "photo.jpg").read_bytes())
    words = [
        "minimal",
        str(tmp_path / "a.jpg"),
        str(tmp_path / "a-crop.png"),
        "--run",
        RUN,
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(cli, [*words, "--reduction", "crop", "--out", str(tmp_path)])
    assert "a-crop.png would be replaced by a result" in str(result.exception)
    file = tmp_path / "file"
    file.touch()
    result = CliRunner().invoke(cli, [*words, "--out", str(file)])
    assert "which is not a folder" in str(result.exception)


def test_a_damaged_image_is_named_before_anything_is_searched(in_workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "bad\n.jpg").write_bytes(b"\xff\xd8nothing")
    words = [
        "minimal",
        "photo.jpg",
        str(tmp_path / "bad\n.jpg"),
        "--run",
        RUN,
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, qrdali.InputError)
    assert "bad?.jpg cannot be decoded" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_signal_stops_it_and_it_is_silent(
    in_workplace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    class Seen(SilentListener):
        def begin(self, what: str, total: int, unit: str = "images") -> None:
            seen.append(what)

    qrdali.minimal("photo.jpg", RUN, reduction="color", device="cpu", progress=Seen())
    assert seen == ["minimal, color"]
    assert capfd.readouterr() == ("", "")
    stopped = JobControl(stop=lambda: 15)
    with pytest.raises(Interrupted, match="what is written is complete") as interruption:
        write_minimal_images(["photo.jpg"], RUN, out=tmp_path / "out", device="cpu", control=stopped)
    assert interruption.value.signum == 15


def test_the_progress_has_ended_when_the_last_result_is_shown(in_workplace: Path, tmp_path: Path) -> None:
    class Listener(RecordingListener):
        def __init__(self) -> None:
            super().__init__()
            self.was_open: list[bool] = []

        def line(self, text: str) -> None:
            self.was_open.append(self.open is not None)

    images = sorted(str(file) for file in Path("images/test").rglob("*.jpg"))[:3]
    wrong = {"label": next(f.name for f in Path("images/test").iterdir() if f.name not in images[0])}
    for files, options, was_open in (
        (images, {}, [True, True, False]),
        (images[:1], {}, [False]),
        (images[:1], wrong, [False]),
    ):
        listener = Listener()
        write_minimal_images(
            files,
            RUN,
            out=tmp_path,
            reduction="color",
            tail="none",
            device="cpu",
            control=JobControl(listener),
            **options,
        )
        assert listener.was_open == was_open
        assert [what for what, _, _ in listener.passes] == ["minimal, color"]


def test_the_preprocessing_of_a_module() -> None:
    import timm

    model = timm.create_model("test_resnet", num_classes=3)
    own = module_preprocessing(model)
    assert (own.input_size, own.fit) == (160, "whole")
    assert module_preprocessing(Brightness()) == Preprocessing(
        224, "whole", 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100%"),
        (0.9999, ">99.9%"),
        (0.5634, "56.3%"),
        (0.0563, "5.63%"),
        (0.000225, "0.022%"),
        (0.0, "0%"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text
