"""Says what a wheel and an sdist must hold, and finds what is wrong with those that were built.

A test asks it of what it builds, and `make dist` of what is to be published:

    python tests/distribution_contents.py dist/*
"""

from __future__ import annotations

import os
import re
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
# Of the sdist, beside the packages. README.md is one of setuptools' defaults.
BESIDE = {
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "docs/pypi.md",
    "pyproject.toml",
}
MADE_BY_SETUPTOOLS = {"PKG-INFO", "setup.cfg"}
IN_DIST_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
MAX_BYTES = 4 << 20
# Links and pictures that only a checkout has: neither an address, nor a place on the same page.
RELATIVE_LINK = re.compile(r"\]\((?!https?://|#)([^)]*)\)|<img[^>]*src=[\"'](?!https?://)([^\"']*)")


def package_files() -> set[str]:
    """Returns every file of the package, as "qrdali/cli/main.py": a wheel holds them and nothing else.

    `qrdali/cli`, `qrdali/pipelines` and `qrdali/configs` are links in a checkout, which are followed.
    """
    files = set()
    for folder, inner, names in os.walk(ROOT / "qrdali", followlinks=True):
        inner[:] = [name for name in inner if name != "__pycache__"]
        files |= {(Path(folder) / name).relative_to(ROOT).as_posix() for name in names}
    return files


def _differences(held: set[str], wanted: set[str]) -> list[str]:
    missing = [f"lacks {name}" for name in sorted(wanted - held)]
    return missing + [f"should not hold {name}" for name in sorted(held - wanted)]


def wheel_problems(wheel: Path) -> list[str]:
    """Returns what is wrong with a wheel, a line each; none if it may be published."""
    with zipfile.ZipFile(wheel) as archive:
        members = archive.infolist()
        (metadata,) = [member for member in members if member.filename.endswith(".dist-info/METADATA")]
        problems = _metadata_problems(message_from_bytes(archive.read(metadata)))
    info = metadata.filename.removesuffix("METADATA")
    problems += [
        f"holds the link {member.filename}" for member in members if member.external_attr >> 28 == 0o12
    ]
    wanted = package_files() | {info + name for name in IN_DIST_INFO}
    return problems + _size_problems(wheel) + _differences({member.filename for member in members}, wanted)


def sdist_problems(sdist: Path) -> list[str]:
    """Returns what is wrong with an sdist, a line each; none if it may be published."""
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
        (info,) = [member for member in members if PurePosixPath(member.name).parts[1:] == ("PKG-INFO",)]
        content = archive.extractfile(info)
        assert content is not None
        problems = _metadata_problems(message_from_bytes(content.read()))
    others = [member.name for member in members if not (member.isfile() or member.isdir())]
    problems += [f"holds {name}, which is no file" for name in others]
    files = {member.name.partition("/")[2] for member in members if member.isfile()}
    files = {name for name in files if not name.startswith("qrdali.egg-info/")}
    wanted = package_files() | BESIDE | MADE_BY_SETUPTOOLS
    return problems + _size_problems(sdist) + _differences(files, wanted)


def _size_problems(file: Path) -> list[str]:
    size = file.stat().st_size
    return [f"has {size:,} bytes, more than {MAX_BYTES:,}"] if size > MAX_BYTES else []


def _metadata_problems(metadata: Message) -> list[str]:
    """Returns what is wrong with METADATA or PKG-INFO: another version, links that an index cannot show."""
    problems = []
    version = re.findall(r'__version__ = "(.+)"', (ROOT / "qrdali/version.py").read_text("utf-8"))
    if [metadata["Version"]] != version:
        problems.append(f"is version {metadata['Version']}, where qrdali/version.py has {', '.join(version)}")
    text = str(metadata.get_payload())
    if not text.strip():
        problems.append("has no description")
    problems += [f"describes itself with the relative link {a or b}" for a, b in RELATIVE_LINK.findall(text)]
    return problems


def main(files: list[str]) -> int:
    """Prints what is wrong with the given wheels and sdists, and returns the exit status."""
    status = 0
    for name in files:
        problems = (wheel_problems if name.endswith(".whl") else sdist_problems)(Path(name))
        for problem in problems:
            print(f"{name} {problem}", file=sys.stderr)
        status = 1 if problems else status
    if not {".whl", ".gz"} <= {Path(name).suffix for name in files}:
        print("give a wheel and an sdist", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
