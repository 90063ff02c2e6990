"""Definitions of the published suites, and folders of them that are one level too high or too low."""

from importlib import resources
from pathlib import Path

import pytest
from suite_trees import WNIDS, picture

from qrdali.data.class_matching import ClassList
from qrdali.data.suite_definitions import suite_definition
from qrdali.data.suite_names import SUITES, suite_of_rows
from qrdali.data.suite_trees import find_suite, listing_digest
from qrdali.errors import InputError
from qrdali.evaluation.prediction_rows import evaluate_command_for

NO_CLASSES = ClassList(("a", "b"))
# The classes' numbers in the authors' evaluation scripts (thousand_k_to_200 and imagenet_r_indices).
IMAGENET_A = (
    "6 11 13 15 17 22 23 27 30 37 39 42 47 50 57 70 71 76 79 89 90 94 96 97 99 105 107 108 110 113 124 "
    "125 130 132 143 144 150 151 207 234 235 254 277 283 287 291 295 298 301 306 307 308 309 310 311 "
    "313 314 315 317 319 323 324 326 327 330 334 335 336 347 361 363 372 378 386 397 400 401 402 404 "
    "407 411 416 417 420 425 428 430 437 438 445 456 457 461 462 470 472 483 486 488 492 496 514 516 "
    "528 530 539 542 543 549 552 557 561 562 569 572 573 575 579 589 606 607 609 614 626 627 640 641 "
    "642 643 658 668 677 682 684 687 701 704 719 736 746 749 752 758 763 765 768 773 774 776 779 780 "
    "786 792 797 802 803 804 813 815 820 823 831 833 835 839 845 847 850 859 862 870 879 880 888 890 "
    "897 900 907 913 924 932 933 934 937 943 945 947 951 954 956 957 959 971 972 980 981 984 986 987 "
    "988"
)
IMAGENET_R = (
    "1 2 4 6 8 9 11 13 22 23 26 29 31 39 47 63 71 76 79 84 90 94 96 97 99 100 105 107 113 122 125 130 "
    "132 144 145 147 148 150 151 155 160 161 162 163 171 172 178 187 195 199 203 207 208 219 231 232 "
    "234 235 242 245 247 250 251 254 259 260 263 265 267 269 276 277 281 288 289 291 292 293 296 299 "
    "301 308 309 310 311 314 315 319 323 327 330 334 335 337 338 340 341 344 347 353 355 361 362 365 "
    "366 367 368 372 388 390 393 397 401 407 413 414 425 428 430 435 437 441 447 448 457 462 463 469 "
    "470 471 472 476 483 487 515 546 555 558 570 579 583 587 593 594 596 609 613 617 621 629 637 657 "
    "658 701 717 724 763 768 774 776 779 780 787 805 812 815 820 824 833 847 852 866 875 883 889 895 "
    "907 928 931 932 933 934 936 937 943 945 947 948 949 951 953 954 957 963 965 967 980 981 983 988"
)
# AlexNet's errors at severities 1 to 5, of the table in the authors' README of 2020.
ALEXNET = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
    "speckle_noise": (0.66192, 0.74440, 0.90246, 0.94548, 0.97268),
    "gaussian_blur": (0.54732, 0.70444, 0.82574, 0.89864, 0.95940),
    "spatter": (0.47196, 0.62194, 0.75052, 0.84132, 0.90182),
    "saturate": (0.59342, 0.65514, 0.51174, 0.70834, 0.82260),
}


@pytest.mark.parametrize(
    ("name", "numbers", "members", "others"),
    [
        ("imagenet-a", IMAGENET_A, ("n01498041", "n12267677"), ("n01440764", "n01443537")),
        ("imagenet-r", IMAGENET_R, ("n01443537", "n12267677"), ("n01440764", "n01558993")),
    ],
)
def test_the_200_classes_are_those_of_the_authors(
    name: str, numbers: str, members: tuple[str, ...], others: tuple[str, ...]
) -> None:
    classes = suite_definition(name).classes
    assert len(classes) == len(set(classes)) == 200
    assert classes == tuple(WNIDS[int(number)] for number in numbers.split())
    listed = resources.files("timm.data").joinpath(f"_info/{name.replace('-', '_')}_synsets.txt")
    assert classes == tuple(listed.read_text().split())
    assert {*members} <= {*classes}
    assert not {*others} & {*classes}


def test_alexnet_errors_are_the_means_of_the_published_ones() -> None:
    definition = suite_definition("imagenet-c")
    errors = {**definition.alexnet_error, **definition.alexnet_error_extra}
    assert list(errors) == list(ALEXNET)
    for name, published in ALEXNET.items():
        assert errors[name] == pytest.approx(sum(published) / 5, abs=1e-9)
    assert (len(definition.alexnet_error), len(definition.alexnet_error_extra)) == (15, 4)


@pytest.mark.parametrize(
    ("name", "suite"),
    [
        ("real", "real"),
        ("real-photos", None),
        ("imagenet-a", "imagenet-a"),
        ("imagenet-c-jpeg_compression-5", "imagenet-c"),
        ("imagenet-c-fog-6", None),
        ("imagenet-cats", None),
        ("human-crop", "human"),
        ("human-beings", None),
        ("test", None),
    ],
)
def test_which_rows_are_of_a_suite(name: str, suite: str | None) -> None:
    assert suite_of_rows(name) == suite
    assert (f"--suite {suite}=ROOT" in evaluate_command_for(name)) == (suite is not None)


def test_every_suite_names_its_source_and_its_download() -> None:
    for name in SUITES:
        definition = suite_definition(name)
        assert definition.name == name
        assert "20" in definition.source
        assert "." in definition.download
    counts = {name: suite_definition(name).class_count for name in SUITES}
    assert [counts[name] for name in SUITES] == [1000, 200, 200, 1000, 1000, 1000, 20]


def refusal(name: str, root: Path) -> str:
    with pytest.raises(InputError) as caught:
        find_suite(suite_definition(name), str(root), NO_CLASSES)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_classes_one_level_too_high_or_too_low(tmp_path: Path) -> None:
    root = tmp_path / "unpacked" / "imagenet-a"
    picture(root / "n01498041" / "1.jpg", 6)
    high = refusal("imagenet-a", root.parent)
    assert "found folders imagenet-a; that is one level too high" in high
    assert high.endswith(f"give {root}")
    low = refusal("imagenet-a", root / "n01498041")
    assert "expected class folders such as n01498041, n01531178, found files: 1.jpg" in low
    assert low.endswith(f"that is too low: give {root}")
    assert "found nothing; it is distributed as github.com" in refusal(
        "imagenet-a", _made(tmp_path / "empty")
    )
    (tmp_path / "empty" / "imagenet-a.tar").write_bytes(b"")
    assert "archives, which must be unpacked: imagenet-a.tar" in refusal("imagenet-a", tmp_path / "empty")
    (root / "zebra").mkdir()
    assert "has the folder 'zebra', which is not a class of ImageNet-A (1 such)" in refusal(
        "imagenet-a", root
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_three_test_sets_of_imagenetv2_beside_each_other(tmp_path: Path) -> None:
    for name in ("imagenetv2-matched-frequency", "imagenetv2-top-images"):
        picture(tmp_path / "v2" / name / "10" / "a.jpeg", 10)
    message = refusal("imagenet-v2", tmp_path / "v2")
    assert f"give {tmp_path / 'v2' / 'imagenetv2-matched-frequency'} or one of the others" in message


def test_numbered_folders_may_be_named_by_synsets_but_not_both(tmp_path: Path) -> None:
    for name in (WNIDS[10], "2"):
        picture(tmp_path / name / "a.jpeg", 10)
    (part,) = find_suite(suite_definition("imagenet-v2"), str(tmp_path), NO_CLASSES).parts
    assert part.labels == {WNIDS[10]: 10, "2": 2}
    picture(tmp_path / "10" / "a.jpeg", 10)
    assert "has the folders 10 and n01530575, which are of one class" in refusal("imagenet-v2", tmp_path)
    (tmp_path / "10" / "a.jpeg").unlink()
    (tmp_path / "10").rename(tmp_path / "010")
    assert "'010', which is not a class" in refusal("imagenet-v2", tmp_path)


@pytest.mark.parametrize("group", ["", "noise/"])
def test_corruptions_with_and_without_groups_and_at_wrong_levels(tmp_path: Path, group: str) -> None:
    root = tmp_path / "imagenet-c"
    for severity in ("1", "2", "5"):
        picture(root / f"{group}shot_noise" / severity / WNIDS[0] / "1.JPEG", 0)
    found = find_suite(suite_definition("imagenet-c"), str(root), NO_CLASSES)
    assert [(part.name, part.corruption, part.severity) for part in found.parts] == [
        (f"imagenet-c-shot_noise-{severity}", "shot_noise", severity) for severity in (1, 2, 5)
    ]
    assert refusal("imagenet-c", tmp_path).endswith(f"that is one level too high: give {root}")
    for low in ("", "/5", f"/5/{WNIDS[0]}"):
        message = refusal("imagenet-c", root / f"{group}shot_noise{low}")
        assert message.endswith(f"that is too low: give {root}"), message


def test_folders_that_are_no_corruptions(tmp_path: Path) -> None:
    picture(tmp_path / "fog" / "1" / WNIDS[0] / "1.JPEG", 0)
    (tmp_path / "noise" / "hiss").mkdir(parents=True)
    assert "has the folder noise/hiss, which is no corruption" in refusal("imagenet-c", tmp_path)
    (tmp_path / "noise" / "hiss").rmdir()
    (tmp_path / "fog" / "6").mkdir()
    assert "expected folders of severities, 1, 2, 3, 4, 5, found folders 1, 6" in refusal(
        "imagenet-c", tmp_path
    )
    (tmp_path / "fog" / "6").rmdir()
    (tmp_path / "rain\x1b").mkdir()
    assert "has the folder rain?, which is no corruption of ImageNet-C" in refusal("imagenet-c", tmp_path)
    (tmp_path / "rain\x1b").rmdir()
    (tmp_path / "weather" / "fog").mkdir(parents=True)
    assert "holds fog twice" in refusal("imagenet-c", tmp_path)


def test_minimal_images_of_no_class_of_the_run(tmp_path: Path) -> None:
    picture(tmp_path / "human" / "dog" / "1.png", 0)
    message = refusal("human", tmp_path / "human")
    assert "expected folders named as classes of the run (a, b), found folders dog" in message
    assert "--class-map" in message
    (tmp_path / "human" / "crop").mkdir()
    assert "has folders of reductions, crop, and the folder dog" in refusal("human", tmp_path / "human")


def test_a_listing_changes_with_every_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "suite" / "dog" / f"{name}.png", 3)
    (part,) = find_suite(suite_definition("human"), str(tmp_path / "suite"), ClassList(("cat", "dog"))).parts
    assert [label for label, _ in part.files()] == [1, 1]
    root, seen = tmp_path / "suite", set()

    def digest() -> str:
        return listing_digest(part.files(), root)

    seen.add(digest())
    picture(root / "dog" / "c.png", 3)
    seen.add(digest())
    picture(root / "dog" / "c.png", 4)
    seen.add(digest())
    (root / "dog" / "c.png").unlink()
    (root / "dog" / "c.png").symlink_to("nowhere")
    seen.add(digest())
    assert len(seen) == 4
    before = digest()
    root.rename(tmp_path / "moved")
    (part,) = find_suite(suite_definition("human"), str(tmp_path / "moved"), ClassList(("cat", "dog"))).parts
    assert listing_digest(part.files(), tmp_path / "moved") == before
