"""Runs `pytest -m gpu` in a worker process of pytest-xdist, which is replaced when a test kills it.

Libraries for GPUs have been reported to crash on some cards, and a kernel may never end. Either is then the
failure of one test, and every other test has its result. `-n 0` does without, for a debugger.
"""

import pytest

_ENOUGH_RESTARTS = "10000"  # xdist gives up after four by default


@pytest.hookimpl(tryfirst=True)  # before xdist's own, which reads the options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Asks xdist for one worker where GPU tests are selected and nothing else is asked for."""
    options = config.option
    words = options.markexpr.replace("(", " ").replace(")", " ").split()
    selected = any(
        word == "gpu" and before != "not" for before, word in zip(["", *words], words, strict=False)
    )
    if (
        selected
        and options.numprocesses is None
        and not hasattr(config, "workerinput")
        and not options.usepdb
    ):
        options.numprocesses = 1
        options.maxworkerrestart = options.maxworkerrestart or _ENOUGH_RESTARTS


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ends the worker at a GPU test's time limit: a signal is not seen by code that waits for a GPU."""
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            limit = item.get_closest_marker("timeout") or pytest.mark.timeout().mark
            item.add_marker(
                pytest.mark.timeout(*limit.args, **{**limit.kwargs, "method": "thread"}), append=False
            )
