"""Shards as other programs write them: macOS, PAX headers, tars one after another, keys and classes."""

import io
import tarfile
from pathlib import Path

import pytest
from object_stores import header, special, tar
from tiny_data import images, info, jpeg, made

from qrdali.data import storage
from qrdali.data.build import index_root
from qrdali.data.scan import DECODED
from qrdali.errors import RunError

Members = "list[tuple[str, bytes]]"


def samples(texts: "list[str | bytes]", start: int = 0) -> Members:
    return [
        member
        for i, text in enumerate(texts, start)
        for member in (
            (f"{i:04d}.jpg", jpeg((16 + i, 12), 20 * i)),
            (f"{i:04d}.cls", text if isinstance(text, bytes) else text.encode()),
        )
    ]


def rejected(folder: Path) -> "dict[str, str]":
    rows = (line.split("\t") for line in (folder / "rejected.tsv").read_text("utf-8").splitlines()[1:])
    return {storage.member(path).name: reason for path, reason in rows}


def indexed(tmp_path: Path) -> "list[tuple[str, str]]":
    """(member, class) of train, which has been indexed and whose images were read back."""
    made("index", tmp_path / "r", "--out", tmp_path / "data")
    found = []
    for url, name in images(tmp_path / "data", "train"):
        assert storage.opened(url).whole().startswith(b"\xff\xd8")
        found.append((storage.member(url).name, name))
    return found


EIGHT = [(f"{i:04d}.jpg", "cat" if i % 2 == 0 else "dog") for i in range(8)]


@pytest.mark.parametrize("prefix", ["", "./", "a/b.c/"])
def test_a_tar_of_macos_has_all_its_samples(tmp_path: Path, prefix: str) -> None:
    members: list[tuple[str, bytes] | tarfile.TarInfo] = [(f"{prefix}.DS_Store", b"x")]
    for name, data in samples(["cat", "dog"] * 4):
        members += [
            (f"{prefix}._{name}", b"\0\5\x16\7" + bytes(100)),
            special(f"{prefix}{name}.link", b"2", name),
            (f"{prefix}{name}", data),
            (f"{prefix}PaxHeaders.1234/{name}", b"30 mtime=1.5\n"),
            (f"{prefix}__MACOSX/._{name}", b"\0\5\x16\7"),
            (f"{prefix}.ipynb_checkpoints/{name}", data),
        ]
    members += [special(f"{prefix}folder", b"5"), (f"{prefix}README", b"x")]
    tar(tmp_path / "r/train/0.tar", *members)
    assert indexed(tmp_path) == [(prefix + name, label) for name, label in EIGHT]
    assert rejected(tmp_path / "data") == {}


def test_members_without_key_or_ending_end_no_sample(tmp_path: Path) -> None:
    (image, label), *others = [samples(["cat", "dog"])[i : i + 2] for i in (0, 2)]
    tar(
        tmp_path / "r/train/0.tar",
        *[
            image,
            special("folder/", b"5"),
            ("README", b""),
            ("@LongLink", b"x"),
            (".hidden.cls", b"dog"),
            label,
        ],
        *others[0],
    )
    assert indexed(tmp_path) == EIGHT[:2]


@pytest.mark.parametrize("size", [70_000, 90_000, 3_000_000])
@pytest.mark.parametrize("name", ["comment", "SCHILY.xattr.user.picture"])
def test_large_pax_headers_are_passed_over(tmp_path: Path, size: int, name: str) -> None:
    file = tmp_path / "r/train/0.tar"
    file.parent.mkdir(parents=True)
    long = "d/" * 80
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT, pax_headers={name: "g" * size}) as archive:
        for number, (member, data) in enumerate(samples(["cat", "dog"] * 2)):
            info = tarfile.TarInfo(long + member)
            info.size = len(data)
            info.pax_headers = {name: "x" * (size if number == 0 else 10)}
            archive.addfile(info, io.BytesIO(data))
    assert indexed(tmp_path) == [(long + name, label) for name, label in EIGHT[:4]]


def test_a_pax_header_of_many_records_or_a_name_without_end_is_refused(tmp_path: Path) -> None:
    good = tar(tmp_path / "r/train/0.tar", *samples(["cat", "dog"])).read_bytes()
    many, long = b"6 a=b\n" * 200_000, b"3000012 path=".ljust(3_000_011, b"x") + b"\n"
    for data, match in ((many, "more than 100,000 records"), (long, "has 2,999,998 bytes")):
        (tmp_path / "r/train/0.tar").write_bytes(
            header(b"x", len(data), b"x") + data + bytes(-len(data) % 512) + good
        )
        with pytest.raises(RunError, match=match):
            index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)


@pytest.mark.parametrize("between", [b"", bytes(512), bytes(40_960)])
def test_tars_one_after_another_are_read_to_the_end(tmp_path: Path, between: bytes) -> None:
    first = tar(tmp_path / "r/train/0.tar", *samples(["cat", "dog"] * 2))
    second = tar(tmp_path / "second.tar", *samples(["cat", "dog"] * 2, 4))
    first.write_bytes(first.read_bytes() + between + second.read_bytes())
    assert indexed(tmp_path) == EIGHT


def test_the_same_tar_twice_is_said(tmp_path: Path) -> None:
    file = tar(tmp_path / "r/train/0.tar", *samples(["cat", "dog"]))
    file.write_bytes(file.read_bytes() * 2)
    assert indexed(tmp_path) == EIGHT[:2]
    assert set(rejected(tmp_path / "data").values()) == {"its key has come before in this shard"}


@pytest.mark.parametrize("junk", [b"x", b"\0" * 700 + b"x", b"\x1f\x8b" + bytes(600), b"junk" * 2000])
def test_what_follows_the_end_of_a_tar_is_refused(tmp_path: Path, junk: bytes) -> None:
    file = tar(tmp_path / "r/train/0.tar", *samples(["cat", "dog"]))
    whole = file.read_bytes()
    file.write_bytes(whole + junk)
    with pytest.raises(
        RunError, match=r"0.tar is not a whole tar: after its end mark, at byte .*`truncate -s "
    ):
        index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)
    assert not (tmp_path / "data").exists()
    file.write_bytes(whole + bytes(777))  # zeros of any number are an end
    assert indexed(tmp_path) == EIGHT[:2]


def test_a_second_tar_that_is_cut_is_refused(tmp_path: Path) -> None:
    file = tar(tmp_path / "r/train/0.tar", *samples(["cat", "dog"]))
    file.write_bytes(file.read_bytes() + file.read_bytes()[:600])
    with pytest.raises(RunError, match="it is cut"):
        index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)


def test_a_folder_with_a_size_has_no_content(tmp_path: Path) -> None:
    file = tar(tmp_path / "r/train/0.tar", *samples(["cat", "dog"]))
    file.write_bytes(header(b"folder/", 4096, b"5") + file.read_bytes())
    assert indexed(tmp_path) == EIGHT[:2]


# --- keys


def test_keys_with_dots_are_told(tmp_path: Path) -> None:
    dotted = [("a.b.jpg", jpeg()), ("a.b.cls", b"cat"), ("x.input.jpg", jpeg()), ("x.cls", b"cat")]
    masked = [("m.jpg", jpeg((9, 9))), ("m.mask.png", jpeg()), ("m.cls", b"dog")]  # no image of its own
    tar(tmp_path / "r/train/0.tar", *samples(["cat", "dog"]), *dotted, *masked)
    assert indexed(tmp_path) == [*EIGHT[:2], ("m.jpg", "dog")]
    advice = "is no image's ending: rename it to KEY.jpg, without other dots"
    assert rejected(tmp_path / "data") == {
        "a.b.jpg": f"its key is 'a', up to the first dot, and '.b.jpg' {advice}",
        "x.input.jpg": f"its key is 'x', up to the first dot, and '.input.jpg' {advice}",
    }


def test_shards_of_which_nothing_is_read_name_a_sample_and_the_reason(tmp_path: Path) -> None:
    for number, (name, reason) in enumerate(
        (
            ("{}.input.jpg", "its key is '0', up to the first dot, and '.input.jpg' is no image's ending"),
            ("{}.gif", "its key has no image that is read, but .gif"),
            ("{}", "its key has no image beside it"),
        )
    ):
        root = tmp_path / str(number)
        tar(
            root / "train/0.tar",
            *(
                m
                for i in range(4)
                for m in ((name.format(i), jpeg()), (f"{i}.cls", b"ab"[i % 2 : i % 2 + 1]))
            ),
        )
        with pytest.raises(RunError, match=f"at least two; tar.*#0[.a-z]*: {reason}"):
            index_root(str(root), tmp_path / "data", DECODED)


def test_samples_without_an_image_are_listed(tmp_path: Path) -> None:
    tar(
        tmp_path / "r/train/0.tar",
        *samples(["cat", "dog"]),
        *[("2.gif", b"GIF89a"), ("2.cls", b"cat"), ("3.cls", b"dog"), ("4.json", b"{}"), ("4.txt", b"")],
    )
    assert indexed(tmp_path) == EIGHT[:2]
    assert rejected(tmp_path / "data") == {
        "2.gif": "its key has no image that is read, but .gif",
        "3.cls": "its key has no image beside it",
    }


# --- classes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"+3", "its class '+3' is none of the 2: write a number with digits alone, such as 3"),
        (b"3.0", "its class '3.0' is none of the 2: write a number with digits alone, such as 3"),
        (b"-1", "its class '-1' is none of the 2: write a number with digits alone"),
        (b"3e0", "its class '3e0' is none of the 2: write a number with digits alone"),
        ("３".encode(), "its class '３' is none of the 2: write a number with digits alone"),
        (b'{"label": 3}', "0008.cls beside it is '{\"label\": 3}', which is JSON"),
        (b"[3]", r"0008.cls beside it is '[3]', which is JSON"),
        (b'"3"', "0008.cls beside it is '\"3\"', which is JSON"),
        (b"", "0008.cls beside it is '': give the number or the name of a class"),
        (b" \n", "0008.cls beside it is '': give"),
        (b"3\n4", "0008.cls beside it is '3?4': give"),
        (b"3\0\0\0", "0008.cls beside it is '3???': give"),
        (b"\x03", "0008.cls beside it is '?': give"),
        (b"\xff\xfe3\0", "0008.cls beside it is not UTF-8"),
        (b"3" * 10_000_000, "0008.cls beside it has 10000000 bytes: that is not a class"),
    ],
)
def test_a_class_in_another_form_is_told(tmp_path: Path, text: bytes, reason: str) -> None:
    tar(tmp_path / "r/train/0.tar", *samples(["3", "10"] * 4), *samples([text], 8))
    found = indexed(tmp_path)
    assert info(tmp_path / "data")["classes"] == ["3", "10"]  # numbers, in their order
    assert len(found) == 8
    ((name, why),) = rejected(tmp_path / "data").items()
    assert name == "0008.jpg"
    assert why.startswith(reason)


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf3", b"3\n", b" 3\r\n", b"003"])
def test_forms_of_a_number_that_are_read(tmp_path: Path, text: bytes) -> None:
    tar(tmp_path / "r/train/0.tar", *samples(["3", "10"]), *samples([text], 2))
    assert indexed(tmp_path)[-1] == ("0002.jpg", "3")


def test_names_among_numbers_are_warned_of(tmp_path: Path) -> None:
    tar(tmp_path / "r/train/0.tar", *samples(["3", "10", "cat"]))
    said = made("index", tmp_path / "r", "--out", tmp_path / "data").stderr
    assert "warning: 0.tar: 0002.jpg has the class 'cat' where other samples have numbers: all are" in said
    assert info(tmp_path / "data")["classes"] == ["10", "3", "cat"]


def test_classes_of_shards_that_differ_only_in_unicode_form(tmp_path: Path) -> None:
    tar(tmp_path / "r/train/0.tar", *samples(["caf\u00e9", "dog"]))
    tar(tmp_path / "r/val/0.tar", *samples(["cafe\u0301", "dog"]))
    with pytest.raises(RunError, match=r"val/0.tar.*#0000.jpg has the class .* differs only in Unicode form"):
        index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)
    tar(tmp_path / "s/train/0.tar", *samples(["caf\u00e9", "cafe\u0301"]))
    with pytest.raises(RunError, match=r"train has two classes called .* only in Unicode form"):
        index_root(str(tmp_path / "s"), tmp_path / "data", DECODED)
    (tmp_path / "r/classes.txt").write_text("\ufeffcaf\u00e9\ndog\n", "utf-8")
    with pytest.raises(RunError, match=r"val/0.tar.*#0000.jpg has the class .* differs only in Unicode form"):
        index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)


def test_tars_of_synsets_are_no_shards(tmp_path: Path) -> None:
    for place in ("a/train", "b"):
        for synset in ("n01440764", "n01440765"):
            tar(tmp_path / place / f"{synset}.tar", (f"{synset}_1.JPEG", jpeg()))
        with pytest.raises(
            ValueError, match=r"holds 2 tar\(s\) of ImageNet's synsets, such as n01440764.tar"
        ):
            index_root(str(tmp_path / place.split("/")[0]), tmp_path / "data", DECODED)
