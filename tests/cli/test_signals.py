"""Signals that ask to stop: remembered, and told by the exit status."""

import os
import signal

import pytest

from qrdali.cli.signals import STOPPING, StopSignal, sigterm_exits, terminal_control
from qrdali.errors import Interrupted


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)],
)
def test_a_job_is_asked_to_stop_and_exits_with_the_signals_status(
    number: signal.Signals, status: int
) -> None:
    before = [signal.getsignal(one) for one in STOPPING]

    def work() -> None:
        with terminal_control() as control:
            assert control.stop() == 0
            os.kill(os.getpid(), number)
            assert control.stop() == number
            raise Interrupted("saved", control.stop())

    with pytest.raises(SystemExit) as left:
        work()
    assert left.value.code == status
    assert [signal.getsignal(one) for one in STOPPING] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_second_signal_acts_as_if_none_were_remembered(number: signal.Signals) -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), number)
        assert stop() == number
        assert [signal.getsignal(one) for one in STOPPING[1:]] == [signal.SIG_DFL] * 3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_work_that_does_not_look_ends_with_the_same_status(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left, sigterm_exits():
        os.kill(os.getpid(), number)
    assert left.value.code == 128 + number
    assert signal.getsignal(number) == before
