"""Checks that what is installed is what is here: every room and every configuration."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from qrdali.runs.settings import read_toml

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"qrdali": ROOT / "qrdali", "qrdali/pipelines": ROOT / "pipelines", "qrdali/cli": ROOT / "cli"}
CONFIGS = sorted(f"qrdali/configs/{file.name}" for file in (ROOT / "configs").glob("*.toml"))
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
    """A folder with an sdist, and the wheel built from that sdist as a package index would."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
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
def test_wheel_and_sdist_hold_all_parts(built: Path) -> None:
    wheel, sdist = next(built.glob("*.whl")), next(built.glob("*.tar.gz"))
    names = zipfile.ZipFile(wheel).namelist()
    assert set(MODULES) <= set(names)
    assert {"qrdali/py.typed", "qrdali/network_costs.tsv", *CONFIGS, *SUITES} <= set(names)
    assert (len(CONFIGS), len(SUITES)) == (3, 7)
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {*MODULES, "qrdali/network_costs.tsv", *CONFIGS, *SUITES} <= inside
    assert not any(part in name for name in [*names, *inside] for part in (".venv", "__pycache__"))


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
    assert shown.strip().endswith("0.1.0")
    listed = subprocess.run([tmp_path / "v" / "bin" / "qrdali", "reproduce", "demo.toml", "--dry-run"], **run)
    assert "# 49 tasks: 49 waiting" in listed.stdout
    assert str(site) in listed.stderr
