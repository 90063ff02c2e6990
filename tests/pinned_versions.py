"""The versions that constraints.txt pins."""

from importlib import metadata
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "constraints.txt"


def is_newest_pinned(package: str) -> bool:
    """Returns whether the installed version of `package` is the last that constraints.txt names."""
    pins = [line for line in FILE.read_text("utf-8").splitlines() if line.startswith(f"{package}==")]
    return metadata.version(package) == pins[-1].partition("==")[2].partition(" ")[0]
