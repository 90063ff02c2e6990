"""The options of `qrdali train METHOD`: those of the settings that the method has, by topic, and those of the
command itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from qrdali.cli.setting_options import train_option
from qrdali.runs.option import Topic
from qrdali.runs.setting_table import Setting, describe_refusal, settings_table
from qrdali.runs.settings import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel


def own_options() -> dict[Topic, list[click.Option]]:
    """Returns the options that are no settings, by the topic that they begin."""
    running = [
        click.Option(
            ["--config"], type=click.Path(), help="TOML file of these options; the command line wins."
        ),
        click.Option(
            ["--dry-run"],
            is_flag=True,
            help="Print the epochs that would run at most; no data is touched.",
        ),
        click.Option(
            ["--print-config"],
            is_flag=True,
            help="Print all settings as TOML for --config, with what each means; nothing is touched.",
        ),
        click.Option(
            ["--resume"],
            is_flag=True,
            help="Continue this run, with the settings it began with; starts it if it has not begun.",
        ),
    ]
    run = click.Option(["--run"], type=click.Path(), help="Folder for this run.  [required]")
    return {Topic.START: [run], Topic.RUNNING: running}


class TrainCommand(click.Command):
    """A method's command: help lists its options by topic, and an option of other methods is told from one
    that does not exist."""

    def __init__(
        self, method: str, callback: Callable[..., None], settings: type[BaseModel] = Settings
    ) -> None:
        table, own = settings_table(settings), own_options()
        self._topics = {topic: [*own.get(topic, []), *_options(table, topic, method)] for topic in Topic}
        self._method, self._table = method, table
        params: list[click.Parameter] = [option for options in self._topics.values() for option in options]
        super().__init__(method, callback=callback, params=params, help=callback.__doc__)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            for setting in self._table.values():
                if setting.option is not None and error.option_name == setting.flag:
                    raise click.UsageError(describe_refusal(setting, self._method), ctx) from None
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for topic, options in self._topics.items():
            records = [record for option in options if (record := option.get_help_record(ctx))]
            if records:
                with formatter.section(topic.value):
                    formatter.write_dl(records)
        help = self.get_help_option(ctx)
        if help is not None and (shown := help.get_help_record(ctx)):
            with formatter.section("Help"):
                formatter.write_dl([shown])


def _options(table: dict[str, Setting], topic: Topic, method: str) -> list[click.Option]:
    return [
        train_option(setting)
        for setting in table.values()
        if setting.option is not None and setting.option.topic is topic and method in setting.methods
    ]


def method_command(
    group: click.Group, method: str, settings: type[BaseModel] = Settings
) -> Callable[[Callable[..., None]], click.Command]:
    """Adds a function as the command of a training method; its docstring is the help."""

    def add(function: Callable[..., None]) -> click.Command:
        command = TrainCommand(method, function, settings)
        group.add_command(command)
        return command

    return add


def require_run(run: str | None) -> str:
    """Returns --run. Raises click's error for an option that is missing."""
    if run is None:
        context = click.get_current_context()
        parameter = next(one for one in context.command.params if one.name == "run")
        raise click.MissingParameter(ctx=context, param=parameter)
    return run


def given_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that are given on the command line, of all options that are settings."""
    return {name: value for name, value in options.items() if value is not None}
