"""Options that several commands on searches and evaluations share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from qrdali.cli.setting_options import setting_option
from qrdali.reduction.names import DISTORTIONS, SEARCHED, why_not_searched

F = TypeVar("F", bound=Callable[..., Any])


class SearchedReduction(click.Choice[str]):
    """Takes the reductions that a search moves, or "all", and says of a distortion why it is none."""

    def __init__(self) -> None:
        super().__init__([*SEARCHED, "all"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in DISTORTIONS:
            self.fail(f"{value} {why_not_searched(value)}", param, ctx)
        return super().convert(value, param, ctx)


def descent_options(command: F) -> F:
    """Adds --windows and --prefer: which neighbours a descent step has, and which of them it takes."""
    return setting_option("windows")(setting_option("prefer")(command))


def machine_options(threads: str) -> Callable[[F], F]:
    """Adds --device, --amp and --threads, whose help is `threads`: where a command computes, and how."""

    def add(command: F) -> F:
        command = setting_option("threads", help=f"{threads}  [default: all it may use]")(command)
        return setting_option("device", default="auto")(setting_option("amp", default="auto")(command))

    return add


def class_map_options(command: F) -> F:
    """Adds --class-map and --map-rule, for a run with other classes than the data."""
    rule = click.option(
        "--map-rule",
        type=click.Choice(["argmax", "sum"]),
        help="The first choice, mapped; or the largest sum of probabilities.  [default: argmax]",
    )
    file = click.option(
        "--class-map",
        type=click.Path(),
        metavar="TSV",
        help="For a run with other classes than the data: lines of its class, a tab, the data's class.",
    )
    return file(rule(command))
