"""Groups of commands that suggest, for a name that they do not have, those that may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import click

_MOST_SUGGESTIONS = 3
_SIMILAR = 0.6  # of difflib's ratio
_LONGEST_HELP = 400  # characters of a command's line in its group
_SHORTEST_PART = 4  # letters of a name that is a part of another, as mepi is of build-mepi


class SuggestingGroup(click.Group):
    """A group whose error for an unknown command suggests its own commands, or those of other groups."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = str(args[0])
        if name.startswith("-") or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        near = similar(name, self.list_commands(ctx))
        if not near:
            root = ctx.find_root()
            # By its last word, what a command is called by: `data index` by `index`. The shortest win.
            paths = dict(sorted(_paths(root.command, root), key=lambda path: -path[1].count(" ")))
            near = [f"{root.info_name} {paths[word]}" for word in similar(name, list(paths))]
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise click.UsageError(f"No such command {name!r}.{hint}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands with the whole first sentence of their help, where click would cut it."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(_LONGEST_HELP)) for name, command in commands if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def similar(name: str, names: list[str]) -> list[str]:
    """Returns those of `names` that someone who typed `name` may have meant, the nearest first."""
    typed = name.lower().replace("_", "-")
    near = difflib.get_close_matches(typed, names, _MOST_SUGGESTIONS, _SIMILAR)
    if not near and len(typed) >= _SHORTEST_PART:
        near = [other for other in names if typed in other or other in typed][:_MOST_SUGGESTIONS]
    return near


def _paths(command: click.Command, ctx: click.Context, before: str = "") -> Iterator[tuple[str, str]]:
    """Yields (name, words after the program's name) of all commands below a group."""
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            if inner is not None:
                yield from _paths(inner, ctx, f"{before}{name} ")
                yield name, before + name
