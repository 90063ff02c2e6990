"""Checks that what is installed is what is here: every room and every configuration."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from distribution_contents import package_files, sdist_problems, wheel_problems

from qrdali.runs.settings import read_toml
from qrdali.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"qrdali": ROOT / "qrdali", "qrdali/pipelines": ROOT / "pipelines", "qrdali/cli": ROOT / "cli"}
CONFIGS = sorted(f"qrdali/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "configs").rglob("*.toml"))
SUITES = sorted(f"qrdali/data/suites/{file.name}" for file in (ROOT / "qrdali/data/suites").glob("*.toml"))
LINKS = {ROOT / "qrdali" / name for name in ("pipelines", "cli")}  # to the folders at the top
MODULES = sorted(
    f"{part}/{file.relative_to(folder)}"
    for part, folder in PARTS.items()
    for file in folder.rglob("*.py")
    if not LINKS & set(file.parents)
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with an sdist, and the wheel built from that sdist as a package index would.

    They are built from a copy of the checkout, without the lists that earlier builds left there.
    """
    checkout, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for folder in ("qrdali", "pipelines", "cli", "configs", "docs", "tests", "benchmarks"):
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, checkout / folder, symlinks=True, ignore=without)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy2(file, checkout)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(checkout)],
        check=True,
        capture_output=True,
    )
    return out


def test_every_room_is_listed_as_a_package() -> None:
    project = read_toml(ROOT / "pyproject.toml")
    rooms = {str(Path(module).parent).replace("/", ".") for module in MODULES}
    assert set(project["tool"]["setuptools"]["packages"]) == rooms
    assert "qrdali.workflows" in rooms


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_package_and_nothing_else(built: Path) -> None:
    assert wheel_problems(next(built.glob("*.whl"))) == []
    assert sdist_problems(next(built.glob("*.tar.gz"))) == []


def test_the_files_of_the_package_are_those_behind_the_links_too() -> None:
    files = package_files()
    assert set(MODULES) <= files
    assert {"qrdali/py.typed", "qrdali/network_costs.tsv", "qrdali/report/templates/report.html"} <= files
    assert {*CONFIGS, *SUITES} <= files
    assert (len(CONFIGS), len(SUITES)) == (8, 7)
    assert not [name for name in files if "__pycache__" in name]


def changed_wheel(wheel: Path, to: Path, files: dict[str, str | None]) -> Path:
    """Copies a wheel with other texts in some of its files; None leaves a file out."""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(to / wheel.name, "w") as new:
        for name in old.namelist():
            if files.get(name, "") is not None:
                new.writestr(name, files.get(name) or old.read(name))
        for name in sorted(files.keys() - set(old.namelist())):
            new.writestr(name, files[name] or "")
    return to / wheel.name


@pytest.mark.slow
def test_a_wheel_that_lacks_or_holds_something_is_found(built: Path, tmp_path: Path) -> None:
    wheel = next(built.glob("*.whl"))
    info = f"qrdali-{__version__}.dist-info/METADATA"
    changes = {"qrdali/network_costs.tsv": None, "qrdali/cli/main.py": None, "tests/soak.py": "x"}
    assert wheel_problems(changed_wheel(wheel, tmp_path, changes)) == [
        "lacks qrdali/cli/main.py",
        "lacks qrdali/network_costs.tsv",
        "should not hold tests/soak.py",
    ]
    text = (
        "Metadata-Version: 2.4\nName: qrdali\nVersion: 0.1.0\n\n![a](docs/a.png) [b](#b) [c](https://c.org)"
    )
    assert wheel_problems(changed_wheel(wheel, tmp_path, {info: text})) == [
        f"is version 0.1.0, where qrdali/version.py has {__version__}",
        "describes itself with the relative link docs/a.png",
    ]


@pytest.mark.slow
def test_an_sdist_with_a_link_or_without_a_file_is_found(built: Path, tmp_path: Path) -> None:
    sdist = next(built.glob("*.tar.gz"))
    root = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as old, tarfile.open(tmp_path / sdist.name, "w:gz") as new:
        for member in old.getmembers():
            if member.name != f"{root}/qrdali/configs/demo.toml":
                new.addfile(member, old.extractfile(member) if member.isfile() else None)
        link = tarfile.TarInfo(f"{root}/qrdali/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../cli"
        new.addfile(link)
    assert sdist_problems(tmp_path / sdist.name) == [
        f"holds {root}/qrdali/link, which is no file",
        "lacks qrdali/configs/demo.toml",
    ]


@pytest.mark.slow
def test_the_wheel_runs_without_the_checkout(built: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "v", with_pip=True)
    python = tmp_path / "v" / "bin" / "python"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    run = {"check": True, "capture_output": True, "text": True, "cwd": tmp_path, "env": clean}
    subprocess.run(
        [python, "-m", "pip", "install", "--no-deps", "--no-index", str(next(built.glob("*.whl")))], **run
    )
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], **run
        ).stdout.strip()
    )
    outer = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    # The dependencies; this checkout's editable hook is a .pth there and is not read.
    (site / "zz_outer.pth").write_text(f"{outer}\n")
    where = subprocess.run(
        [python, "-c", "import qrdali.pipelines.dali_ops, qrdali.cli.main as m; print(m.__file__)"], **run
    ).stdout
    assert str(tmp_path) in where
    shown = subprocess.run([tmp_path / "v" / "bin" / "qrdali", "--version"], **run).stdout
    assert shown == f"qrdali, version {__version__}\n"
    listed = subprocess.run([tmp_path / "v" / "bin" / "qrdali", "reproduce", "demo.toml", "--dry-run"], **run)
    assert "# 49 tasks: 49 waiting" in listed.stdout
    assert str(site) in listed.stderr
