"""Tests examples/notebook.ipynb: its cells run from the top and give the kinds of output that it holds.

To execute it again: `pip install nbclient ipykernel ipywidgets`, then `jupyter execute --inplace
examples/notebook.ipynb`, and remove the folder `examples/notebook-files` that it makes.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "notebook.ipynb"


def code_cells() -> list[dict[str, Any]]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def stored_kinds(cell: dict[str, Any]) -> list[str]:
    """Returns "text", "picture" and "value", each as often as the cell's stored output has it."""
    kinds = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            kinds.append("text")
        else:
            kinds.append("picture" if "image/png" in output["data"] else "value")
    return sorted(kinds)


def test_its_outputs_are_those_of_one_execution_from_the_top() -> None:
    cells = code_cells()
    assert len(cells) >= 8
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    assert sum(kind == "picture" for cell in cells for kind in stored_kinds(cell)) >= 4


def test_it_is_small_and_names_no_folder_of_the_machine_that_ran_it() -> None:
    assert NOTEBOOK.stat().st_size < 500_000
    texts = [
        line
        for cell in code_cells()
        for output in cell["outputs"]
        for line in [*output.get("text", []), *output.get("data", {}).get("text/plain", [])]
    ]
    assert not [line for line in texts if str(Path.home()) in line or "/tmp" in line]


@pytest.mark.slow
def test_its_cells_run_and_give_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kinds of output agree cell by cell; figures depend on the processor and are not compared."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    root = str(NOTEBOOK.parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    with plt.rc_context():
        for cell in code_cells():
            assert executed_kinds("".join(cell["source"]), names, plt) == stored_kinds(cell), cell["source"]
    rows = names["linear"].metrics().to_pylist()
    assert {row["phase"] for row in rows} == {"start", "reduced", "full"}
    assert max(row["stage"] for row in rows) > 1
    assert 0 < names["summary"]["mean_quotient"] < 1
    assert len(names["found"].steps) > 1


def executed_kinds(source: str, names: dict[str, Any], plt: Any) -> list[str]:
    """Executes a cell as a notebook does: a last expression is shown, and figures that are still open."""
    module = ast.parse(source)
    last = module.body.pop() if isinstance(module.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(module, "notebook", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
    pictures = len(plt.get_fignums())
    plt.close("all")
    return sorted(
        ["text"] * bool(printed.getvalue()) + ["picture"] * pictures + ["value"] * (value is not None)
    )
