"""What people answered: the file's forms, which image a row is of, and files that are something else."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qrdali.data.class_matching import ClassList
from qrdali.errors import InputError
from qrdali.evaluation.human_answers import UNKNOWN, match_answers, read_human_answers

CLASSES = ClassList(("ant", "bee", "n02012849"), ("ant", "bee", "crane, a bird"))
PATHS = ["/data/test/ant/1.jpg", "/data/test/bee/1.jpg", "/data/test/bee/2.jpg", "/data/test/n02012849/3.jpg"]


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "answers.csv"
    file.write_bytes(text.encode())
    return file


def matched(tmp_path: Path, lines: list[str], name: str = "test", head: str = "path,person,answer") -> Any:
    answers = read_human_answers(written(tmp_path, "\n".join([head, *lines]) + "\n"))
    return match_answers(answers, name, PATHS, CLASSES)


@pytest.mark.parametrize(
    "text",
    [
        "path,person,answer\nbee/2.jpg,P1,bee\nbee/2.jpg,P2,ant\n",
        "\ufeffperson;answer;rt;file\r\nP1;bee;1.5;bee/2.jpg\r\nP2;ant;2;bee/2.jpg\r\n",
        "# of a study\nSubj\tobject_response\timagename\nP1\tbee\tbee/2.jpg\nP2\tant\tbee/2.jpg\n",
        'path,person,answer\n"bee/2.jpg","P1", bee \n"bee/2.jpg",P2,"ant"\n',
    ],
)
def test_forms_of_text(tmp_path: Path, text: str) -> None:
    answers = read_human_answers(written(tmp_path, text))
    assert (len(answers), list(answers.paths), list(answers.persons)) == (2, ["bee/2.jpg"] * 2, ["P1", "P2"])
    assert list(answers.answers) == ["bee", "ant"]
    assert list(answers.sets) == ["", ""]


def test_parquet_with_numbers_and_categories(tmp_path: Path) -> None:
    file = tmp_path / "answers.parquet"
    answer = pa.array(["bee", "ant"]).dictionary_encode()
    pq.write_table(pa.table({"image": ["2.jpg", "3.jpg"], "person": [7, 8], "response": answer}), file)
    answers = read_human_answers(file)
    assert (list(answers.persons), list(answers.answers)) == (["7", "8"], ["bee", "ant"])
    pq.write_table(pa.table({"image": ["2.jpg", None], "person": [7, 8], "answer": ["a", "b"]}), file)
    with pytest.raises(InputError, match="rows without a value of 'image'"):
        read_human_answers(file)


def test_a_row_is_of_the_image_whose_path_ends_alike(tmp_path: Path) -> None:
    lines = [
        "2.jpg,P,bee",  # a file's name that one image has
        "1.jpg,P,bee",  # that two have
        "bee/1.jpg,P,bee",
        "/elsewhere/test/ant/1.jpg,P,bee",
        "dog/3.jpg,P,crane",  # of another folder
        "gone.jpg,P,bee",
    ]
    found = matched(tmp_path, lines)
    (person,) = found.persons
    assert person.images.tolist() == [0, 1, 2]
    assert person.labels.tolist() == [1, 1, 1]
    assert (found.ambiguous, found.repeated, found.unknown) == (1, 0, {})


def test_members_of_shards_and_paths_of_windows(tmp_path: Path) -> None:
    member = "tar+file:///s/0.tar?offset=512&length=9#bee/a%20b.jpg"
    answers = read_human_answers(written(tmp_path, "path,person,answer\nC:\\study\\bee\\a b.jpg,P,bee\n"))
    (person,) = match_answers(answers, "test", [member, *PATHS], CLASSES).persons
    assert person.images.tolist() == [0]


def test_the_first_answer_counts_and_unknown_ones_are_told(tmp_path: Path) -> None:
    lines = ["2.jpg,P,zebra", "2.jpg,P,bee", "3.jpg,P,CRANE, a bird", "2.jpg,Q,Bee"]
    with pytest.raises(InputError, match="row 3 below the head has 4 values, not 3"):
        matched(tmp_path, lines)
    lines[2] = "3.jpg,P,crane"
    found = matched(tmp_path, lines)
    first, second = found.persons
    assert (first.person, first.images.tolist(), first.labels.tolist()) == ("P", [2, 3], [UNKNOWN, 2])
    assert second.labels.tolist() == [1]  # in any case
    assert (found.repeated, found.unknown) == (1, {"zebra": 1})


def test_rows_that_name_a_set_are_of_that_alone(tmp_path: Path) -> None:
    lines = ["2.jpg,P,bee,test", "3.jpg,P,crane,other", "bee/1.jpg,P,ant,"]
    head = "path,person,answer,set"
    (person,) = matched(tmp_path, lines, head=head).persons
    assert person.images.tolist() == [1, 2]
    (person,) = matched(tmp_path, lines, "other", head).persons
    assert person.images.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"path,person,answer\n", "no answers below its head"),
        (b"path,who,answer\n1.jpg,P,bee\n", "one must be person"),
        (b"path,person\n1.jpg,P\n", "one must be answer"),
        (b"PAR1 and no more", "cannot be read"),
        (b"\xff\xfep\0a\0", "UTF-16 or binary"),
        (b"path,person,answer\n\x1b[2J,P,bee\n", "control characters"),
        (b'path,person,answer\n"1.jpg,P,bee\n', "after row 0"),
        (b"path,person,answer\n" + b"x" * 20000 + b",P,bee\n", "longer than"),
    ],
)
def test_what_is_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "answers"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_human_answers(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_human_answers(tmp_path / "gone")
    with pytest.raises(InputError, match="cannot be read"):
        read_human_answers(tmp_path)


def test_the_folders_above_tell_images_apart(tmp_path: Path) -> None:
    answers = read_human_answers(
        written(tmp_path, "path,person,answer\nb/x/1.jpg,P,bee\n/far/c/x/1.jpg,P,bee\nx/1.jpg,Q,bee\n")
    )
    paths = ["/a/x/1.jpg", "/b/x/1.jpg", "/c/x/1.jpg", "/d/x/2.jpg"]
    found = match_answers(answers, "test", paths, CLASSES)
    assert [(person.person, person.images.tolist()) for person in found.persons] == [("P", [1, 2])]
    assert found.ambiguous == 1


def test_many_images_of_one_name_are_ambiguous_at_once(tmp_path: Path) -> None:
    answers = read_human_answers(written(tmp_path, "path,person,answer\n1.jpg,P,bee\nx/1.jpg,P,bee\n"))
    paths = np.array([f"/{i}/x/1.jpg" for i in range(3000)], object)
    found = match_answers(answers, "test", paths, CLASSES)
    assert (found.persons, found.ambiguous) == ((), 2)
