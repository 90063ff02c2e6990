"""`qrdali evaluate --suite` on small trees laid out as the suites are distributed."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import suite_trees
from click.testing import CliRunner
from suite_trees import WNIDS, picture

import qrdali
from qrdali.cli.main import cli
from qrdali.data.suite_definitions import suite_definition
from qrdali.errors import InputError
from qrdali.evaluation.prediction_rows import read_metadata, read_rows

MCE = tuple(suite_definition("imagenet-c").alexnet_error)
GROUPS = {"gaussian_noise": "noise", "fog": "weather", "pixelate": "digital"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    suite_trees.answer_by_colour(monkeypatch)
    return suite_trees.run(tmp_path / "run")


def evaluated(run: Path, *words: object) -> dict[str, Any]:
    options = ["--run", str(run), "--device", "cpu", "--threads", "1", "--json"]
    result = CliRunner().invoke(cli, ["evaluate", *options, *map(str, words)])
    if result.exception:
        raise result.exception
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def suite(run: Path, name: str, root: Path) -> dict[str, Any]:
    return evaluated(run, "--suite", f"{name}={root}")["suites"][name]  # type: ignore[no-any-return]


def test_answers_are_restricted_to_the_200_classes(run: Path, tmp_path: Path) -> None:
    # Class 6 is one of ImageNet-A's, classes 0 and 5 are not; 11 is one of them too.
    root = tmp_path / "imagenet-a"
    picture(root / WNIDS[6] / "sure.jpg", 6)
    picture(root / WNIDS[6] / "flips.jpg", 0, second=6)  # tench is no answer here: the second choice counts
    picture(root / WNIDS[11] / "wrong.jpg", 6, second=11)
    (root / "README.txt").write_text("ImageNet-A")
    found = suite(run, "imagenet-a", root)
    assert (found["images"], found["correct"], found["answers"], found["restricted"]) == (3, 2, 200, True)
    rows = read_rows(run, "imagenet-a")
    assert rows["label"].tolist() == [6, 6, 11]
    assert rows["prediction"].tolist() == [6, 6, 6]
    assert rows["rank"].tolist() == [1, 1, 2]
    # Probabilities are among the 200: e² against e¹ and 198 ones, and e¹ against 199 ones.
    sure = np.exp(2) / (np.exp(2) + 199)
    by_name = {Path(row["path"]).stem: row["true_probability"] for row in rows}
    assert by_name["sure"] == pytest.approx(sure)
    assert by_name["flips"] == pytest.approx(np.e / (np.e + 199))
    assert by_name["wrong"] == pytest.approx(np.e / (np.exp(2) + np.e + 198))
    assert read_metadata(run, "imagenet-a")["suite"]["answers"] == 200
    assert any("Classes that have a folder: 2 of 200." in note for note in found["notes"])
    assert any("7,500 images, here are 3" in note for note in found["notes"])


def test_of_1000_classes_nothing_is_restricted(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "sketch"
    picture(root / WNIDS[999] / "sketch_0.JPEG", 999)
    picture(root / WNIDS[0] / "sketch_1.JPEG", 5, second=0)
    found = suite(run, "imagenet-sketch", root)
    assert (found["images"], found["correct"], found["answers"], found["restricted"]) == (2, 1, 1000, False)
    assert found["top5_accuracy"] == 1


def test_imagenet_r_has_200_other_classes(run: Path, tmp_path: Path) -> None:
    picture(tmp_path / "r" / WNIDS[1] / "art_0.jpg", 0, second=1)  # goldfish is one of -R's, tench is not
    assert suite(run, "imagenet-r", tmp_path / "r")["accuracy"] == 1
    picture(tmp_path / "wrong" / WNIDS[0] / "art_0.jpg", 0)
    with pytest.raises(InputError, match="expected class folders such as n01443537"):
        suite(run, "imagenet-r", tmp_path / "wrong")


def test_numbered_folders_are_class_numbers_and_no_text(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "v2"
    for number in (0, 1, 2, 10, 100, 999):
        picture(root / str(number) / "a.jpeg", number)
    assert suite(run, "imagenet-v2", root)["accuracy"] == 1
    labels = {Path(row["path"]).parent.name: int(row["label"]) for row in read_rows(run, "imagenet-v2")}
    assert labels == {"0": 0, "1": 1, "2": 2, "10": 10, "100": 100, "999": 999}
    picture(root / "1000" / "a.jpeg", 7)
    with pytest.raises(InputError, match="'1000', which is not a class of ImageNetV2"):
        suite(run, "imagenet-v2", root)


def test_a_network_that_counts_classes_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_trees.answer_by_colour(monkeypatch)
    # It knows more than ImageNet's classes, in another order: class i of ImageNet is its number 999 - i.
    run = suite_trees.run(tmp_path / "run", (*reversed(WNIDS), "n99999999"))
    root = tmp_path / "v2"
    picture(root / "2" / "a.jpeg", 997)
    picture(root / "999" / "b.jpeg", 1000, second=0)  # the class that ImageNet does not have is no answer
    found = suite(run, "imagenet-v2", root)
    assert (found["correct"], found["answers"], found["restricted"]) == (2, 1000, True)
    assert sorted(read_rows(run, "imagenet-v2")["label"].tolist()) == [0, 997]


def corrupted(root: Path, corruption: str, wrong: tuple[int, ...], grouped: bool = False) -> None:
    """Writes four images per severity, of which wrong[severity - 1] show another class."""
    place = root / GROUPS.get(corruption, "noise") / corruption if grouped else root / corruption
    for severity, count in enumerate(wrong, 1):
        for i in range(4):
            file = place / f"{severity}" / WNIDS[i] / f"ILSVRC2012_val_{i + 1:08d}.JPEG"
            picture(file, 500 if i < count else i)


def clean(root: Path, wrong: int) -> None:
    for i in range(4):
        picture(root / WNIDS[i] / f"ILSVRC2012_val_{i + 1:08d}.JPEG", 500 if i < wrong else i)


def test_corruption_errors_of_some_corruptions(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "c"
    corrupted(root, "gaussian_noise", (0, 1, 2, 3, 4), grouped=True)
    corrupted(root, "fog", (1, 1, 1, 1, 1))
    corrupted(root, "spatter", (4, 4, 4, 4, 4), grouped=True)  # extra
    clean(tmp_path / "val", 1)
    found = evaluated(run, "--set", f"imagenet-val={tmp_path / 'val'}", "--suite", f"imagenet-c={root}")
    assert list(found["sets"]) == ["imagenet-val"]
    one = found["suites"]["imagenet-c"]
    noise, fog = one["corruptions"]["gaussian_noise"], one["corruptions"]["fog"]
    assert noise["errors"] == {"1": 0, "2": 0.25, "3": 0.5, "4": 0.75, "5": 1}
    # By hand: a mean error of .5 over AlexNet's .886428, and .25 over .819324.
    assert noise["ce"] == pytest.approx(0.564062, abs=1e-6)
    assert fog["ce"] == pytest.approx(0.305130, abs=1e-6)
    # (.5 - .25) / (.886428 - .4348), and fog is as good as clean.
    assert (one["clean_set"], one["clean_error"]) == ("imagenet-val", 0.25)
    assert noise["relative_ce"] == pytest.approx(0.553553, abs=1e-6)
    assert fog["relative_ce"] == pytest.approx(0, abs=1e-12)
    assert (one["mce"], one["relative_mce"]) == (None, None)
    assert one["mean_of"] == ["gaussian_noise", "fog"]
    assert one["mean_ce"] == pytest.approx((0.564062 + 0.305130) / 2, abs=1e-6)
    assert one["corruptions"]["spatter"]["ce"] == pytest.approx(1 / 0.717512)
    assert one["corruptions"]["spatter"]["extra"] is True
    assert any("not there (13 of 15): shot_noise, impulse" in note for note in one["notes"])
    assert len(one["sets"]) == 15
    rows = pq.read_table(run / "predictions" / "imagenet-c-gaussian_noise-3.parquet")
    assert rows["label"].to_pylist() == [0, 1, 2, 3]
    assert rows["prediction"].to_pylist() == [500, 500, 2, 3]


def test_mce_is_the_mean_over_all_fifteen_corruptions(run: Path, tmp_path: Path) -> None:
    for number, corruption in enumerate(MCE):
        corrupted(tmp_path / "c", corruption, (number % 5,) * 5)
    found = suite(run, "imagenet-c", tmp_path / "c")
    # The errors are 0, .25, .5, .75, 1 and again; by hand, with AlexNet's errors in the paper's order:
    by_hand = (
        0 + .25 / .894468 + .5 / .922640 + .75 / .819880 + 1 / .826268
        + 0 + .25 / .798360 + .5 / .866816 + .75 / .826572 + 1 / .819324
        + 0 + .25 / .853204 + .5 / .646056 + .75 / .717840 + 1 / .606500
    ) / 15  # fmt: skip
    assert found["mce"] == pytest.approx(by_hand, abs=1e-12)
    assert found["mean_error"] == pytest.approx(0.5)
    assert found["relative_mce"] is None
    assert any("Relative mCE needs" in note for note in found["notes"])
    clean(tmp_path / "val", 2)
    both = evaluated(
        run, "--set", f"imagenet-val={tmp_path / 'val'}", "--suite", f"imagenet-c={tmp_path / 'c'}"
    )
    again = both["suites"]["imagenet-c"]
    assert all(one["kept"] for one in again["sets"].values())
    assert again["mce"] == found["mce"]
    errors = np.arange(15) % 5 / 4
    alexnet = np.array([.886428, .894468, .92264, .81988, .826268, .785948, .79836, .866816, .826572, .819324,
                        .564592, .853204, .646056, .71784, .6065])  # fmt: skip
    assert again["relative_mce"] == pytest.approx(((errors - 0.5) / (alexnet - 0.4348)).mean())


def test_a_corruption_without_all_severities_has_no_corruption_error(run: Path, tmp_path: Path) -> None:
    corrupted(tmp_path / "c", "fog", (1, 2))
    found = suite(run, "imagenet-c", tmp_path / "c")
    assert found["corruptions"]["fog"]["errors"] == {"1": 0.25, "2": 0.5}
    assert found["corruptions"]["fog"]["ce"] is None
    assert (found["mean_ce"], found["mean_of"]) == (None, [])
    assert any("fog has the severities 1, 2 only" in note for note in found["notes"])


def test_clean_images_must_be_the_corrupted_ones(run: Path, tmp_path: Path) -> None:
    corrupted(tmp_path / "c", "fog", (1,) * 5)
    clean(tmp_path / "val", 1)
    (tmp_path / "val" / WNIDS[3] / "ILSVRC2012_val_00000004.JPEG").unlink()
    words = ("--set", f"imagenet-val={tmp_path / 'val'}", "--suite", f"imagenet-c={tmp_path / 'c'}")
    assert evaluated(run, *words)["suites"]["imagenet-c"]["clean_error"] is None
    picture(tmp_path / "val" / WNIDS[3] / "ILSVRC2012_val_00000004.JPEG", 3)
    picture(tmp_path / "val" / WNIDS[3] / "ILSVRC2012_val_00000099.JPEG", 500)  # not among the corrupted ones
    assert evaluated(run, *words)["suites"]["imagenet-c"]["clean_error"] == 0.25


def real(root: Path, answers: dict[int, list[int]], folders: bool = False) -> Path:
    lists: list[list[int]] = [[] for _ in range(50_000)]
    for number, right in answers.items():
        lists[number - 1] = right
    root.mkdir(parents=True, exist_ok=True)
    (root / "real.json").write_text(json.dumps(lists))
    return root


@pytest.mark.parametrize("place", [".", "val", WNIDS[7], "link"])
def test_several_right_answers(run: Path, tmp_path: Path, place: str) -> None:
    root = real(tmp_path / "real", {1: [3, 8], 2: [3, 8], 3: [3], 5: [700, 9, 4], 50_000: [2]})
    if place == "link":
        (tmp_path / "elsewhere").mkdir()
        (root / "link").symlink_to(tmp_path / "elsewhere")
    for number, (first, second) in {
        1: (8, 31),  # right: the second of the answers
        2: (5, 3),  # wrong; 3 is the more probable of the two
        3: (3, 31),
        4: (4, 31),  # no answer: skipped
        5: (1, 4),
        50_000: (2, 31),
    }.items():
        picture(root / place / f"ILSVRC2012_val_{number:08d}.JPEG", first, second)
    picture(root / place / "other.JPEG", 1)
    found = suite(run, "real", root)
    assert (found["images"], found["correct"]) == (5, 3)
    rows = read_rows(run, "real")
    assert rows["label"].tolist() == [8, 3, 3, 4, 2]
    assert rows["prediction"].tolist() == [8, 5, 3, 1, 2]
    assert rows["rank"].tolist() == [1, 2, 1, 2, 1]
    assert rows["true_probability"][1] == pytest.approx(np.e / (np.exp(2) + np.e + 998))
    assert any("which were skipped: 1." in note for note in found["notes"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[[1],", "cannot be read"),
        (b"\xff\xfe[", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"a": 1}', "holds 1 entries: real.json is a list of 50,000 lists"),
        (b"7", "holds int"),
        (b"[[1]]", "holds 1 entries"),
        (b" " * (5 << 20), "larger than the allowed 4 MiB"),
        (b"[" + b"[]," * 49_999 + b"[1000]]", "for image 50000"),
        (
            b"[[-1]," + b"[]," * 49_998 + b"[1]]",
            "for image 1: expected a list of at most 100 different numbers",
        ),
        (b"[[1, 1]," + b"[]," * 49_998 + b"[1]]", "for image 1"),
        (b"[[true]," + b"[]," * 49_998 + b"[1]]", "for image 1"),
        (b"[3," + b"[]," * 49_998 + b"[1]]", "for image 1"),
        (b"[" + b"[]," * 49_999 + b"[]]", "has no answer for any"),
    ],
)
def test_a_damaged_real_json_is_refused(run: Path, tmp_path: Path, content: bytes, message: str) -> None:
    picture(tmp_path / "real" / "ILSVRC2012_val_00000001.JPEG", 1)
    (tmp_path / "real" / "real.json").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        suite(run, "real", tmp_path / "real")
    assert len(str(caught.value)) < 700
    assert not (run / "predictions").exists()


def test_a_fifo_in_place_of_real_json_does_not_wait(run: Path, tmp_path: Path) -> None:
    picture(tmp_path / "real" / "ILSVRC2012_val_00000001.JPEG", 1)
    os.mkfifo(tmp_path / "real" / "real.json")
    with pytest.raises(InputError, match="it is not a file"):
        suite(run, "real", tmp_path / "real")


def test_one_image_twice_is_refused(run: Path, tmp_path: Path) -> None:
    root = real(tmp_path / "real", {1: [1]})
    picture(root / "ILSVRC2012_val_00000001.JPEG", 1)
    picture(root / "b" / "ILSVRC2012_val_00000001.JPEG", 1)
    with pytest.raises(InputError, match="are both image 1"):
        suite(run, "real", root)


HUMANET = ("bird", "dog", "fish", *(f"class{i}" for i in range(17)))


def test_minimal_images_of_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_trees.answer_by_colour(monkeypatch)
    run = suite_trees.run(tmp_path / "run", HUMANET)
    root = tmp_path / "human"
    picture(root / "crop" / "dog" / "7.png", 1)
    picture(root / "crop" / "bird" / "8.png", 1)
    picture(root / "color" / "dog" / "7.png", 1)
    picture(root / "color" / "unicorn" / "9.png", 1)
    found = suite(run, "human", root)
    assert (found["images"], found["correct"], found["restricted"]) == (3, 2, False)
    assert {name: one["accuracy"] for name, one in found["sets"].items()} == {
        "human-color": 1,
        "human-crop": 0.5,
    }
    assert any("classes that the run does not know (1): unicorn" in note for note in found["notes"])
    assert suite(run, "human", root / "crop")["accuracy"] == 0.5


def test_minimal_images_for_a_network_of_more_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite_trees.answer_by_colour(monkeypatch)
    run = suite_trees.run(tmp_path / "run", (*HUMANET, "more"))
    picture(tmp_path / "human" / "dog" / "7.png", 20, second=1)
    picture(tmp_path / "human" / "bird" / "8.png", 0)
    found = suite(run, "human", tmp_path / "human")
    assert (found["correct"], found["answers"], found["restricted"]) == (2, 2, True)


def test_minimal_images_through_a_class_map(run: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "map.tsv"
    mapping.write_text(f"{WNIDS[0]}\tfish\n{WNIDS[1]}\tfish\n{WNIDS[7]}\tbird\n")
    picture(tmp_path / "human" / "fish" / "1.png", 1)
    picture(tmp_path / "human" / "bird" / "2.png", 900)
    words = ("--class-map", mapping, "--map-rule", "argmax")
    found = evaluated(run, "--suite", f"human={tmp_path / 'human'}", *words)["suites"]["human"]
    assert (found["correct"], found["images"], found["map_rule"]) == (1, 2, "argmax")
    assert list(found["sets"]) == ["human"]
    assert (run / "predictions" / "human-mapped-argmax.parquet").exists()
    with pytest.raises(InputError, match="--class-map does not go with --suite imagenet-a"):
        evaluated(run, "--suite", f"imagenet-a={tmp_path}", *words)


def test_rows_of_the_same_files_and_weights_are_kept(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "a"
    picture(root / WNIDS[6] / "1.jpg", 6)
    picture(root / WNIDS[11] / "2.jpg", 11)
    file = run / "predictions" / "imagenet-a.parquet"
    first = suite(run, "imagenet-a", root)
    assert first["sets"]["imagenet-a"]["kept"] is False
    made = file.stat().st_mtime_ns
    second = suite(run, "imagenet-a", root)
    assert second["sets"]["imagenet-a"]["kept"] is True
    assert file.stat().st_mtime_ns == made
    figures = ("images", "correct", "accuracy", "top5_accuracy", "negative_log_likelihood")
    assert [second[name] for name in figures] == [first[name] for name in figures]
    picture(root / WNIDS[11] / "2.jpg", 6)  # the same size: its time tells
    changed = suite(run, "imagenet-a", root)
    assert (changed["sets"]["imagenet-a"]["kept"], changed["correct"]) == (False, 1)
    (run / "best" / "model.safetensors").write_bytes((run / "best" / "model.safetensors").read_bytes() + b" ")
    assert suite(run, "imagenet-a", root)["sets"]["imagenet-a"]["kept"] is False
    file.write_bytes(file.read_bytes()[:-40])
    assert suite(run, "imagenet-a", root)["sets"]["imagenet-a"]["kept"] is False


def test_an_interrupted_suite_goes_on_with_the_next_set(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupted(tmp_path / "c", "fog", (1,) * 5)
    from qrdali.workflows import evaluate as workflow

    rows, done = workflow.Evaluator.rows, []

    def failing(self: Any, name: str, *words: Any, **options: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(name)
        return rows(self, name, *words, **options)

    monkeypatch.setattr(workflow.Evaluator, "rows", failing)
    with pytest.raises(KeyboardInterrupt):
        qrdali.evaluate(run, suites={"imagenet-c": tmp_path / "c"}, device="cpu", threads=1)
    monkeypatch.setattr(workflow.Evaluator, "rows", rows)
    (found,) = qrdali.evaluate(run, suites={"imagenet-c": tmp_path / "c"}, device="cpu", threads=1)
    assert [one["kept"] for one in found["sets"].values()] == [True, True, False, False, False]


def test_files_that_cannot_be_read_are_left_out_and_tried_again(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "a"
    picture(root / WNIDS[6] / "1.jpg", 6)
    (root / WNIDS[6] / "broken\x1b[31m.jpg").write_bytes(b"\xff\xd8no")
    (root / WNIDS[6] / "nowhere.jpg").symlink_to(root / "gone.jpg")
    (root / WNIDS[6] / "loop").symlink_to(root)
    picture(root / "loose.jpg", 6)
    found = suite(run, "imagenet-a", root)["sets"]["imagenet-a"]
    assert found["images"] == 1
    names = sorted(Path(path).name for path, _ in found["unreadable_files"])
    assert names == ["broken?[31m.jpg", "loop", "loose.jpg", "nowhere.jpg"]
    assert suite(run, "imagenet-a", root)["sets"]["imagenet-a"]["kept"] is False


def test_a_run_that_lacks_the_classes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_trees.answer_by_colour(monkeypatch)
    run = suite_trees.run(tmp_path / "run", WNIDS[:100])
    picture(tmp_path / "a" / WNIDS[6] / "1.jpg", 6)
    for name in ("imagenet-a", "imagenet-sketch"):
        with pytest.raises(
            InputError, match="classes of ImageNet, of which the run .* knows [0-9]+: its 100"
        ):
            suite(run, name, tmp_path / "a")
    assert not (run / "predictions").exists()


def test_every_suite_is_found_before_one_is_evaluated(run: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a" / WNIDS[6] / "1.jpg", 6)
    with pytest.raises(InputError, match="imagenet-r=/nowhere does not exist"):
        evaluated(run, "--suite", f"imagenet-a={tmp_path / 'a'}", "--suite", "imagenet-r=/nowhere")
    assert not (run / "predictions").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--suite", "imagenet-x=a"), "NAME of imagenet-c, imagenet-a"),
        (("--suite", "imagenet-a"), "give NAME=ROOT"),
        (("--suite", "real=a", "--suite", "real=b"), "gives real twice"),
        (("--suite", "real=a", "--set", "real=b"), "would have the name of rows of --suite real"),
        (("--suite", "imagenet-c=a", "--set", "imagenet-c-fog-1=b"), "would have the name of rows"),
        (("--suite", "real=a", "--curve"), "--curve is of a split or of a --set"),
        (("--suite", "imagenet-a=s3://bucket/a"), "is read from a folder on the disk"),
        (("--suite", "imagenet-a={tmp}/a.tar"), "is a file: unpack it"),
    ],
)
def test_refusals(run: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        evaluated(run, *(word.format(tmp=tmp_path) for word in words))


def test_what_is_printed(run: Path, tmp_path: Path) -> None:
    corrupted(tmp_path / "c", "fog", (1,) * 5)
    picture(tmp_path / "a" / WNIDS[6] / "1.jpg", 6)
    words = ["--suite", f"imagenet-c={tmp_path / 'c'}", "--suite", f"imagenet-a={tmp_path / 'a'}"]
    options = ["--run", str(run), "--device", "cpu", "--threads", "1"]
    result = CliRunner().invoke(cli, ["evaluate", *options, *words])
    assert result.exit_code == 0
    text = " ".join(result.stderr.split())
    assert "imagenet-c: mean corruption error of fog 30.5%; mCE needs all corruptions" in text
    assert "fog CE 30.5%, relative –; wrong at severity 1: 25.0%, 2: 25.0%" in text
    assert "imagenet-a: accuracy 1.0000 (1 of 1), top-5 1.0000, negative log-likelihood 3.3" in text
    assert "imagenet-a.parquet" in text
    again = CliRunner().invoke(cli, ["evaluate", *options, *words]).stderr
    assert "imagenet-c: 5 of 5 sets have rows of these files and weights, which are kept" in again
