"""File names, class names and configurations are UTF-8 in any locale; a terminal gets what it can show."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_data import fill

CLASSES = ["кошка", "собака 🐕"]
QRDALI = [sys.executable, "-m", "qrdali"]
PLAIN = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # as before Python 3.7


def environment(locale: dict[str, str]) -> dict[str, str]:
    without = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))
    }
    return {**without, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **locale}


@pytest.fixture(scope="session")
def built_locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of locales of other encodings, which few machines have."""
    if shutil.which("localedef") is None:
        pytest.skip("no localedef to build locales with")
    folder = tmp_path_factory.mktemp("locales")
    for language, charset in (("en_US", "ISO-8859-1"), ("ru_RU", "ISO-8859-5"), ("ja_JP", "EUC-JP")):
        built = subprocess.run(
            ["localedef", "-i", language, "-f", charset, str(folder / f"{language}.{charset}")],
            capture_output=True,
            text=True,
        )
        if not (folder / f"{language}.{charset}").exists():
            pytest.skip(f"localedef has no sources of locales: {built.stderr[-200:]}")
    return folder


@pytest.fixture(params=["C", "en_US.ISO-8859-1", "ru_RU.ISO-8859-5", "ja_JP.EUC-JP"])
def locale(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "C":
        return PLAIN
    folder = request.getfixturevalue("built_locales")
    return {"LC_ALL": request.param, "LOCPATH": str(folder)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "картинки 😀"
    for split in ("train", "val"):
        for name in CLASSES:
            fill(root / split / name, 4, "снимок {}.jpg")
    return root


def run(words: list[object], locale: dict[str, str]) -> str:
    ended = subprocess.run(
        [*QRDALI, *map(str, words)], env=environment(locale), capture_output=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.decode("utf-8") + ended.stderr.decode("utf-8")


def test_names_are_utf_8(locale: dict[str, str], pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "набор"
    assert str(data) in run(["data", "index", pictures, "--out", data, "--threads", 1], locale)
    rows = (data / "classes.tsv").read_bytes().decode("utf-8").splitlines()
    assert rows == ["label\tname", *(f"{label}\t{name}" for label, name in enumerate(CLASSES))]
    assert len((data / "rejected.tsv").read_text("utf-8").splitlines()) == 1
    assert CLASSES[0] in run(["data", "info", data], locale)
    run(["data", "verify", data], locale)


def test_training_reads_utf_8_names_and_configurations(pictures: Path, tmp_path: Path) -> None:
    data, folder, config = tmp_path / "набор", tmp_path / "прогон", tmp_path / "настройки.toml"
    config.write_text('# Привет\nmodel = "test_resnet"\ninput_size = 16\nepochs = 1\n', "utf-8")
    run(["data", "index", pictures, "--out", data, "--threads", 1], PLAIN)
    words = ["train", "shared", "--data", data, "--run", folder, "--config", config, "--batch-size", 4]
    run([*words, "--device", "cpu", "--threads", 1], PLAIN)
    assert f'data = "{data}"' in (folder / "config.toml").read_text("utf-8")


def test_python_that_cannot_read_names_as_utf_8_indexes_none_of_them(
    pictures: Path, tmp_path: Path, built_locales: Path
) -> None:
    """The Python API refuses such names: only the program itself can start anew."""
    (tmp_path / "link").symlink_to(pictures)
    program = "import qrdali, sys; qrdali.index(sys.argv[1], sys.argv[2], progress=False)"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "link"), str(tmp_path / "data")],
        env=environment({"LC_ALL": "en_US.ISO-8859-1", "LOCPATH": str(built_locales), "PYTHONUTF8": "0"}),
        capture_output=True,
        timeout=100,
    )
    assert b"Python takes names for iso8859-1: start it with PYTHONUTF8=1" in ended.stderr
    assert not (tmp_path / "data").exists()


def shown_on_terminal(words: list[str], locale: dict[str, str]) -> bytes:
    master, terminal = pty.openpty()
    subprocess.run(
        [*QRDALI, *words],
        env=environment(locale),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        timeout=100,
    )
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(master, 1 << 16):
            shown += part
    except OSError:  # the terminal's other end is closed
        pass
    os.close(master)
    return shown


def test_a_terminal_gets_its_own_encoding(built_locales: Path, tmp_path: Path) -> None:
    words = ["data", "info", str(tmp_path / "кот é")]
    latin = shown_on_terminal(words, {"LC_ALL": "en_US.ISO-8859-1", "LOCPATH": str(built_locales)})
    assert rb"\u043a\u043e\u0442 " + "é".encode("latin-1") in latin
    assert b"Traceback" not in latin
    russian = shown_on_terminal(words, {"LC_ALL": "ru_RU.ISO-8859-5", "LOCPATH": str(built_locales)})
    assert "кот".encode("iso8859-5") + rb" \xe9" in russian
    assert "кот é".encode() in shown_on_terminal(words, PLAIN)
