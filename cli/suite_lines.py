"""Shows the figures of evaluation suites in the terminal."""

from __future__ import annotations

from typing import Any


def show_suite(result: dict[str, Any]) -> None:
    """Prints the figures of a suite: of ImageNet-C its corruption errors, of any other its accuracy."""
    from qrdali.cli.terminal import say
    from qrdali.errors import printable

    name, loss = result["suite"], result["negative_log_likelihood"]
    if "corruptions" in result:
        _show_corruptions(result)
    else:
        unreadable = sum(one["unreadable"] for one in result["sets"].values())
        notes = f", {unreadable} unreadable" if unreadable else ""
        say(
            f"{name}: accuracy {result['accuracy']:.4f} ({result['correct']} of {result['images']}{notes}), "
            f"top-5 {result['top5_accuracy']:.4f}, negative log-likelihood "
            f"{'–' if loss is None else f'{loss:.4f}'}"
        )
        if len(result["sets"]) > 1:
            for one in result["sets"].values():
                say(f"  {one['set']}: accuracy {one['accuracy']:.4f} ({one['correct']} of {one['images']})")
    for note in result["notes"]:
        say(f"  {printable(note)}")
    rows = [one["rows"] for one in result["sets"].values()]
    say(f"  rows in {rows[0]}" + (f" and {len(rows) - 1} more files beside it" if len(rows) > 1 else ""))


def _show_corruptions(result: dict[str, Any]) -> None:
    from qrdali.cli.terminal import say

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}%"

    if result["mce"] is not None:
        say(
            f"{result['suite']}: mCE {percent(result['mce'])}, relative mCE {percent(result['relative_mce'])}"
        )
    elif result["mean_of"]:
        say(
            f"{result['suite']}: mean corruption error of {', '.join(result['mean_of'])} "
            f"{percent(result['mean_ce'])}; mCE needs all corruptions"
        )
    else:
        say(f"{result['suite']}: no corruption has all severities, so there is no corruption error")
    for name, one in result["corruptions"].items():
        errors = ", ".join(f"{severity}: {percent(error)}" for severity, error in one["errors"].items())
        say(
            f"  {name:18s} CE {percent(one['ce'])}, relative {percent(one['relative_ce'])}; wrong at "
            f"severity {errors}{' (extra, not in mCE)' if one['extra'] else ''}"
        )
