"""What ends a command becomes an exit status and one line."""

import sys

import click
import pytest
import torch

from qrdali.cli.exit_status import run_and_exit


def ended(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    @click.command()
    def command() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["qrdali"])
    with pytest.raises(SystemExit) as raised:
        run_and_exit(command)
    return raised.value.code


def test_a_full_gpu_is_one_line_of_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB of which "
        "1.62 GiB is free. Including non-PyTorch memory, this process has 22.05 GiB memory in use. Of the "
        "allocated memory 20.94 GiB is allocated by PyTorch.\nSee documentation for Memory Management"
    )
    assert ended(torch.OutOfMemoryError(text), monkeypatch) == 1
    assert capsys.readouterr().err == (
        "qrdali: error: the GPU's memory does not suffice: lower --batch-size (CUDA out of memory. Tried to "
        "allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB of which 1.62 GiB is free)\n"
    )


def test_an_unknown_failure_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        ended(RuntimeError("no such thing"), monkeypatch)
