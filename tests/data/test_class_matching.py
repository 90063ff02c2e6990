"""Classes matched by name: synsets, readable names, first synonyms; and the lists that networks come with."""

from pathlib import Path

import numpy as np
import pytest
from tiny_data import fill

from qrdali.data.class_lists import classes_of, imagenet_classes, imagenet_readable, read_classes
from qrdali.data.class_matching import ClassList, match_classes
from qrdali.data.index import Dataset, Index, write_classes
from qrdali.data.scan import index_folder
from qrdali.errors import InputError, RunError
from qrdali.runs.adoption import AdoptRequest

NETWORK = ClassList(
    ("n02012849", "n03126707", "n01440764", "n03710637", "n03710721"),
    ("crane", "crane", "tench, Tinca tinca", "maillot", "maillot, tank suit"),
)


def matched(*names: str, readable: tuple[str, ...] = ()) -> list[int]:
    return match_classes(ClassList(names, readable), NETWORK, "the data", "the run").tolist()


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("n03126707", 1),
        ("tench, Tinca tinca", 2),
        ("tench", 2),
        ("maillot", 3),  # the whole name of one class, and the first synonym of two
        ("maillot, tank suit", 4),
    ],
)
def test_a_class_is_matched_by_synset_whole_name_and_first_synonym(name: str, label: int) -> None:
    assert matched(name) == [label]
    assert NETWORK.label_of(name) == label


def test_the_readable_name_of_the_data_counts_after_its_own() -> None:
    assert matched("0", "1", readable=("tench, Tinca tinca", "maillot")) == [2, 3]
    assert matched("n02012849", "n03126707", readable=("crane", "crane")) == [0, 1]
    plain = ClassList(("tench", "crane"))
    synsets = ClassList(("n01440764",), ("tench, Tinca tinca",))
    assert match_classes(synsets, plain, "the data", "the run").tolist() == [0]


def test_a_name_of_two_classes_is_refused_naming_both() -> None:
    with pytest.raises(InputError, match="'crane' names two classes, n02012849 .crane. and n03126707 .crane"):
        matched("crane")
    two = ClassList(("a", "b"), ("swimsuit, one", "swimsuit, two"))
    with pytest.raises(InputError, match="'swimsuit' names two classes, a .swimsuit, one. and b .swimsuit"):
        match_classes(ClassList(("swimsuit",)), two, "the data", "the run")


def test_two_classes_that_are_one_and_a_class_that_is_none_are_refused() -> None:
    with pytest.raises(InputError, match="the classes n01440764 and tench, which are one class"):
        matched("n01440764", "tench")
    with pytest.raises(InputError, match="the class trench, which is not a class of the run; near it: tench"):
        matched("trench")


def test_equal_lists_are_matched_by_position_whatever_their_names() -> None:
    assert match_classes(ClassList(("b", "a")), ClassList(("b", "a")), "", "").tolist() == [0, 1]


def test_imagenets_names_come_from_timm() -> None:
    known = imagenet_classes()
    assert len(known) == 1000
    assert (known.names[0], known.readable[0]) == ("n01440764", "tench, Tinca tinca")
    assert known.label_of("n02012849") == 134
    assert known.label_of("great white shark") == known.label_of("n01484850") == 2
    with pytest.raises(InputError, match="n02012849 .crane. and n03126707 .crane"):
        known.label_of("crane")
    assert imagenet_readable(("n01440764", "n02012849")) == ("tench, Tinca tinca", "crane")
    assert imagenet_readable(("n01440764", "n99999999")) == ()


@pytest.mark.parametrize(
    ("outputs", "subset"), [(1000, "imagenet-1k"), (11821, "imagenet-12k"), (21843, "imagenet-21k-goog")]
)
def test_a_head_of_a_published_size_takes_timms_subset(outputs: int, subset: str) -> None:
    named = classes_of(AdoptRequest("resnet50"), outputs)
    assert (len(named.classes), named.source) == (outputs, subset)
    assert read_classes("imagenet", outputs).source == read_classes(subset, None).source == subset


def test_other_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="the 10,450 outputs of x are, and timm has no list of that length"):
        classes_of(AdoptRequest("x"), 10450)
    with pytest.raises(InputError, match="--classes imagenet: the network has 7 outputs"):
        read_classes("imagenet", 7)
    with pytest.raises(InputError, match="has no last layer, it gives features"):
        classes_of(AdoptRequest("x"), 0)
    with pytest.raises(InputError, match="--classes lists 11,821 classes, the last layer of x has 1,000"):
        classes_of(AdoptRequest("x", classes="imagenet-12k"), 1000)


@pytest.mark.parametrize(
    ("text", "names", "readable"),
    [
        ("cat\ndog\n", ("cat", "dog"), ()),
        ("label\tname\n0\tcat\n1\tdog\n", ("cat", "dog"), ()),
        ("label\tname\treadable\n0\tn1\tcat, puss\n1\tn2\tdog\n", ("n1", "n2"), ("cat, puss", "dog")),
        ("n1\tcat, puss\nn2\tdog\n", ("n1", "n2"), ("cat, puss", "dog")),
        ("0\n1\n", ("0", "1"), ()),
    ],
)
def test_lists_of_classes_in_files(
    text: str, names: tuple[str, ...], readable: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "c.tsv").write_text(text)
    assert read_classes(str(tmp_path / "c.tsv"), None).classes == ClassList(names, readable)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no class"),
        ("cat\ncat\n", "lists the class 'cat' twice"),
        ("cat\tCat\ndog\n", "lines of 1 and 2 columns"),
        ("7\tcat\tCat\n8\tdog\tDog\n", "three columns, of which the first is not 0, 1, 2"),
        ("cat\t\n", "line 1 is 'cat.': give a class name"),
    ],
)
def test_lists_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_classes(str(tmp_path / "c.tsv"), None)
    with pytest.raises(InputError, match="does not exist: give a data set's folder, a TSV file, imagenet or"):
        read_classes(str(tmp_path / "none.tsv"), None)


def test_classes_tsv_holds_readable_names_in_a_third_column(tmp_path: Path) -> None:
    write_classes(tmp_path, ["n1", "n2"], ("cat, puss", "dog"))
    assert (tmp_path / "classes.tsv").read_text() == "label\tname\treadable\n0\tn1\tcat, puss\n1\tn2\tdog\n"
    dataset = Dataset.open(tmp_path)
    assert dataset.class_list == ClassList(("n1", "n2"), ("cat, puss", "dog"))
    assert read_classes(str(tmp_path), None).classes == dataset.class_list
    for damaged in ("label\tname\n0\ta\tb\n1\tc\n", "label\tname\n0\ta\tb\tc\n"):
        (tmp_path / "classes.tsv").write_text(damaged)
        with pytest.raises(RunError, match="readable name"):
            Dataset.open(tmp_path)


def test_folders_of_readable_names_have_the_networks_labels_and_order(tmp_path: Path) -> None:
    for name in ("n03126707", "tench", "maillot"):
        fill(tmp_path / "set" / name, 1)
    index_folder(tmp_path / "set", NETWORK, tmp_path / "set.arrow")
    index = Index(tmp_path / "set.arrow", len(NETWORK))
    every = np.arange(3)
    assert index.labels(every).tolist() == [1, 2, 3]
    assert [Path(path).parent.name for path in index.paths(every)] == ["n03126707", "tench", "maillot"]
    assert index.with_network_labels(np.array([9, 8, 7, 6, 5])).labels(every).tolist() == [8, 7, 6]
    fill(tmp_path / "set" / "crane", 1)
    with pytest.raises(InputError, match="names two classes, n02012849"):
        index_folder(tmp_path / "set", NETWORK, tmp_path / "set.arrow")
    (tmp_path / "set" / "crane").rename(tmp_path / "set" / "n01440764")
    with pytest.raises(
        InputError, match="the classes n01440764 and tench, which are one class of the network"
    ):
        index_folder(tmp_path / "set", NETWORK, tmp_path / "set.arrow")
