"""The program starts at once: neither the package nor the command line imports what takes long."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "numpy", "nvidia.dali", "timm", "pyarrow", "matplotlib")


@pytest.mark.parametrize(
    "start",
    [
        "import qrdali",
        "from qrdali.cli.main import cli; cli.main(['--help'], standalone_mode=False)",
        "from qrdali.cli.main import cli; cli.main(['reproduce', '--help'], standalone_mode=False)",
    ],
    ids=["import", "help", "help of a command"],
)
def test_starting_imports_nothing_heavy(start: str) -> None:
    code = f"import json, sys; {start}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(shown.stdout.splitlines()[-1]) == []
    assert shown.stderr == ""


def test_importing_prints_nothing() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import qrdali"], check=True, capture_output=True, text=True
    )
    assert (shown.stdout, shown.stderr) == ("", "")


def test_what_is_imported_is_noticed() -> None:
    """The question above is asked rightly: an import of numpy is seen."""
    code = f"import json, sys, numpy; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(shown.stdout) == ["numpy"]
