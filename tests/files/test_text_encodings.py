"""Text that people write may have a byte order mark and Windows' line ends; other encodings are named."""

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from object_stores import tar
from tiny_data import fill, images, jpeg, made

from qrdali.data.humanet import read_mapping
from qrdali.data.index import Dataset
from qrdali.data.shard_classes import listed_classes
from qrdali.data.tree import open_tree
from qrdali.errors import InputError, RunError
from qrdali.evaluation.class_map import read_class_map
from qrdali.experiment import config
from qrdali.files.json_objects import read_object
from qrdali.files.text_lines import read_lines, split_lines
from qrdali.runs.settings import read_toml


def classes_of_shards(file: Path) -> tuple[str, ...]:
    classes = listed_classes(open_tree(str(file.parent)))
    assert classes is not None
    return classes.names


# Name, content and reader of each kind of file that people write or edit.
KINDS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "configuration": ("c.toml", '# é\nmodel = "resnet18"\nseed = 3\n', read_toml),
    "matrix": (
        "m.toml",
        'out = "o"\n[data]\nfolder = "d"\n'
        '[[network]]\nmodel = "test_resnet"\nepochs = 1\n[runs]\nmethods = []\n',
        config.read,
    ),
    "mapping": ("m.tsv", "n00000001\tкот\nn00000002\tdog\n", lambda file: read_mapping(file).synsets),
    "class map": (
        "map.tsv",
        "tabby\tcat\nhusky\tdog\n",
        lambda file: read_class_map(file, ("tabby", "husky"), ("cat", "dog"), "argmax").target.tolist(),
    ),
    "classes of a data set": (
        "classes.tsv",
        "label\tname\n0\tкот\n1\tdog\n",
        lambda file: Dataset.open(file.parent).classes,
    ),
    "classes of shards": ("classes.txt", "кот\ndog\n", classes_of_shards),
    "source of a data set": ("source.json", '{"root": "кот",\n"images": 3}\n', read_object),
    "lines": ("list.txt", "n00000001\nкот\n", lambda file: [text for _, text in read_lines(file)]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "mark"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(
    kind: str, ends: str, mark: bytes, tmp_path: Path
) -> None:
    name, text, read = KINDS[kind]
    (tmp_path / name).write_bytes(text.encode())
    plain = read(tmp_path / name)
    (tmp_path / name).write_bytes(mark + text.replace("\n", ends).encode())
    assert read(tmp_path / name) == plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "iso8859-5"])
def test_another_encoding_is_named_with_the_way_out(kind: str, encoding: str, tmp_path: Path) -> None:
    name, text, read = KINDS[kind]
    # A class in Cyrillic, so that no other encoding is UTF-8 by chance.
    text = text.replace("é", "кот").replace("tabby", "кот").replace('"d"', '"кот"')
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises((InputError, RunError), match=r"UTF-(16 or binary|8).*: save (it|the file) as UTF-8"):
        read(tmp_path / name)


def test_a_class_beside_an_image_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    members = [
        member
        for number, text in enumerate((b"cat", codecs.BOM_UTF8 + b"cat\r\n", b"dog"))
        for member in ((f"{number}.jpg", jpeg(colour=number)), (f"{number}.cls", text))
    ]
    tar(tmp_path / "root" / "train" / "0.tar", *members)
    made("index", tmp_path / "root", "--out", tmp_path / "data")
    assert [name for _, name in images(tmp_path / "data", "train")] == ["cat", "cat", "dog"]


def test_a_name_with_a_line_separator_is_one_line(tmp_path: Path) -> None:
    assert split_lines("a\u2028b\nc\x85\r\nd\re") == ["a\u2028b", "c\x85", "d", "e"]
    # As a data set of version 0.1 may have them; indexing refuses such names now.
    for name in ("plain", "other"):
        fill(tmp_path / "root" / "train" / name, 2)
    made("index", tmp_path / "root", "--out", tmp_path / "data")
    names = ["a\u2028b", "c\x0cd"]
    listing = "label\tname\n" + "".join(f"{label}\t{name}\n" for label, name in enumerate(names))
    (tmp_path / "data" / "classes.tsv").write_text(listing, encoding="utf-8", newline="")
    assert sorted(Dataset.open(tmp_path / "data").classes) == names
