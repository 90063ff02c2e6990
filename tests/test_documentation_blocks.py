"""Every command and every piece of Python in README.md and docs is run, on small data, from top to bottom.

What needs a GPU, a cluster, ImageNet or hours is marked in the page (tests/documentation_pages.py says how);
its options and its syntax are checked instead.
"""

from __future__ import annotations

import ast
import dataclasses
import doctest
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from documentation_pages import LANGUAGES, PAGES, ROOT, Block, blocks_of, name_of, prose_of
from documentation_reader import Reader

import qrdali
from qrdali.cli.main import cli
from qrdali.data.shapes import ShapesSpec, generate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Pages with examples of the interpreter, which are run as doctests.
DOCTESTED = {"docs/tutorials/python.md"}
GENERATED = {"docs/reference/commands.md", "docs/reference/train.md"}
WITH_BLOCKS = [page for page in PAGES if name_of(page) not in DOCTESTED | GENERATED]


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages take for granted: images, data, photo.jpg, and the runs shared, baseline and linear."""
    folder = tmp_path_factory.mktemp("documentation")
    generate(
        folder / "images", ShapesSpec(classes=3, train=8, val=4, test=4, size=(96, 72), seed=3), workers=1
    )
    qrdali.index(folder / "images", folder / "data", threads=1)
    shutil.copy(next((folder / "images" / "test").rglob("*.jpg")), folder / "photo.jpg")
    small: dict[str, Any] = {"data": folder / "data", "batch_size": 8, "device": "cpu", "threads": 1}
    runs = folder / "runs"
    qrdali.train(
        "shared", run=runs / "shared", model="test_resnet", input_size=32, epochs=1, lr=2e-3, **small
    )
    for method in ("baseline", "linear"):
        reduction = {} if method == "baseline" else {"reduction": "crop", "step": 0.5}
        qrdali.train(
            method, run=runs / method, init=runs / "shared", max_epochs=2, patience=1, **reduction, **small
        )
        qrdali.evaluate(runs / method, folder / "data", split="test", device="cpu")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_what_a_page_shows_runs(page: Path, ground: Path, tmp_path: Path) -> None:
    blocks = [block for block in blocks_of(page) if not block.why_not]
    if not any(block.language in ("console", "python") for block in blocks):
        pytest.skip("nothing in it is run")
    folder = tmp_path / "reader"
    if name_of(page).startswith("docs/tutorials/") or page.name == "README.md":
        folder.mkdir()  # they begin with nothing
    else:
        shutil.copytree(ground, folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    with Reader(folder) as reader:
        for block in blocks:
            if block.language in ("console", "python"):
                reader.read(block)


def every_block() -> list[Block]:
    return [block for page in WITH_BLOCKS for block in blocks_of(page)]


@pytest.mark.parametrize("block", every_block(), ids=lambda block: block.place)
def test_a_block_is_what_it_says(block: Block) -> None:
    assert block.language in LANGUAGES
    match block.language:
        case "python":
            ast.parse(block.text)
        case "toml":
            tomllib.loads(block.text)
        case "yaml":
            yaml.safe_load(block.text)
        case "json":
            json.loads(block.text)
        case "console" | "bash":
            shell = block.text if block.language == "bash" else "\n".join(block.commands)
            assert shell.strip(), "no command: one stands behind '$ '"
            subprocess.run(["bash", "-n"], input=shell, text=True, check=True, capture_output=True)
            for words in commands_of_qrdali(shell):
                parse(words)


def commands_of_qrdali(shell: str) -> list[list[str]]:
    """Returns the arguments of each `qrdali …` in a shell text, also behind torchrun and pipes."""
    found = []
    for line in shell.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words: list[str] | None = None
        previous = ""
        for word in lexer:
            is_punctuation = set(word) <= set("|&;<>()")
            if words is None and word == "qrdali" and previous not in ("install", "-t", "build", "run"):
                words = []
                found.append(words)
            elif is_punctuation:
                words = None
            elif words is not None:
                words.append(word)
            previous = word
    return found


def parse(words: list[str]) -> None:
    """Raises click.UsageError for words that the command line does not take; nothing is done."""
    command: click.Command = cli
    context = click.Context(cli, info_name="qrdali")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, found, words = command.resolve_command(context, list(words))
        assert found is not None
        command = found
        if isinstance(found, click.Group):
            context = click.Context(found, info_name=name, parent=context)
    if "--help" in words or "-h" in words or isinstance(command, click.Group):
        return
    command.make_context(command.name, list(words), parent=context)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_is_fenced(page: Path) -> None:
    """An indented block has no language, and nothing runs it."""
    lines = prose_of(page)
    in_list = False
    for number, line in enumerate(lines):
        if re.match(r"\s*([-*]|\d+\.) ", line):
            in_list = True
        elif line and not line.startswith(" "):
            in_list = False
        is_code = line.startswith("    ") and number > 0 and not lines[number - 1].strip() and not in_list
        assert not is_code or name_of(page) in DOCTESTED, f"{name_of(page)}:{number + 1}: {line}"


def anchors_of(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and mkdocs make them."""
    found: set[str] = set()
    for line in prose_of(page):
        if heading := re.match(r"#{1,6} (.+?)(?: \{#(.+)\})?$", line):
            plain = re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading[1])
            text = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
            found |= {heading[2] or text}
    return found | set(re.findall(r'<a id="(.+?)"', page.read_text("utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_link_is_dead(page: Path) -> None:
    for line in prose_of(page):
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", re.sub(r"`[^`]*`", "", line)):
            if "://" in target or target.startswith("mailto:"):
                continue
            other = (page.parent / target).resolve() if target else page
            assert other.exists(), f"{name_of(page)} links to {target}"
            if anchor and other.suffix == ".md":
                assert anchor in anchors_of(other), f"{name_of(page)} links to {target}#{anchor}"


def test_what_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ true\nan output\n$ qrdali data info \\\n    nowhere\n```\n"
        "```console\n$ echo gone > said && qrdali data info $(cat said)\n```\n"
        "```python\nanswer = 42\n```\n```python\nassert answer == 41\n```\n"
    )
    first, piped, good, bad = (
        dataclasses.replace(block, page=ROOT / "README.md") for block in blocks_of(page)
    )
    assert first.commands == ["true", "qrdali data info \\\n    nowhere"]
    with Reader(tmp_path) as reader:
        with pytest.raises(AssertionError, match="nowhere"):
            reader.read(first)
        with pytest.raises(AssertionError, match="gone"):
            reader.read(piped)
        reader.read(good)
        with pytest.raises(AssertionError, match="AssertionError"):
            reader.read(bad)


def test_an_unknown_option_is_found() -> None:
    (words,) = commands_of_qrdali("torchrun --nproc-per-node 8 -m -- qrdali train fixed --no-such 1 > log")
    assert words == ["train", "fixed", "--no-such", "1"]
    with pytest.raises(click.UsageError):
        parse(words)


def test_python_examples_are_doctests() -> None:
    for name in DOCTESTED:
        assert doctest.DocTestParser().get_examples((ROOT / name).read_text("utf-8"))
