"""Checks the settings of optimizer, learning rate and fine-tuning that are right one by one and wrong
together."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from qrdali.errors import InputError, printable
from qrdali.runs.setting_table import near_names, settings_table
from qrdali.runs.settings import Settings
from qrdali.schedule.rate_spans import has_set_length, span_epochs

# Keywords of optimizers that options of their own stand for, or that say how torch computes.
_OWN_KEYWORDS = frozenset(
    {"params", "lr", "weight_decay", "foreach", "fused", "capturable", "differentiable", "maximize"}
)


def check_recipe(settings: Settings) -> None:
    """Raises InputError for options without effect, spans without room, and unknown optimizers or options."""
    require_optimizer(settings.optimizer, settings.optimizer_options)
    _check_rate(settings)
    if settings.ema_warmup and not settings.ema:
        raise InputError("--ema-warmup is of the average of weights: give its decay too, such as --ema 0.999")
    if settings.freeze and not (settings.init or settings.pretrained):
        raise InputError(
            f"--freeze {settings.freeze} keeps weights as they are, and these would be random: start from "
            "trained ones with --init or --pretrained"
        )


def _check_rate(settings: Settings) -> None:
    schedule = settings.lr_schedule
    for setting in settings_table(Settings).values():
        schedules = setting.option.schedules if setting.option else ()
        if schedules and schedule not in schedules and getattr(settings, setting.name) != setting.default:
            raise InputError(
                f"{setting.flag} is for --lr-schedule {_either(schedules)}, not {schedule}: leave it out"
            )
    if schedule == "stage" and not settings.stage_epochs:
        raise InputError(
            "--lr-schedule stage needs --stage-epochs N, the epochs over which the rate falls in each stage "
            "or round"
        )
    if settings.lr and settings.min_lr >= settings.lr:
        raise InputError(f"--min-lr {settings.min_lr:g} is not below --lr {settings.lr:g}")
    epochs, option = span_epochs(settings)
    if settings.warmup_epochs >= epochs:
        raise InputError(
            f"--warmup-epochs {settings.warmup_epochs:g} is not shorter than the {epochs} epochs of {option}"
        )
    if has_set_length(settings) and settings.warmup_epochs + settings.decay_epochs > epochs:
        raise InputError(
            f"--warmup-epochs {settings.warmup_epochs:g} and --decay-epochs {settings.decay_epochs} are "
            f"longer than the {epochs} epochs of {option}"
        )


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def require_optimizer(name: str, options: dict[str, Any]) -> None:
    """Raises InputError for an optimizer that timm does not have, or keywords that it does not take."""
    from timm.optim import get_optimizer_class, list_optimizers

    try:
        optimizer = get_optimizer_class(name, bind_defaults=False)
    except ValueError:
        near = near_names(name, list_optimizers()) or f"; timm has: {', '.join(list_optimizers()[:8])}"
        raise InputError(f"no optimizer is called {printable(name)[:80]!r}{near}") from None
    if options:
        keywords = set(inspect.signature(optimizer).parameters) - _OWN_KEYWORDS
        require_keywords(options, keywords, "--optimizer-option", f"optimizer {name}")
        _require_values(name, options)


def require_keywords(options: Iterable[str], known: Iterable[str], option: str, owner: str) -> None:
    """Raises InputError naming the first of `options` that is not `known`, with those near it."""
    names = sorted(known)
    for key in options:
        if key in names:
            continue
        near = near_names(key, names) or f"; it has {', '.join(names) or 'none'}"
        raise InputError(f"{option} {printable(key)[:80]}: {owner} has no such option{near}")


def _require_values(name: str, options: dict[str, Any]) -> None:
    """Raises InputError for values with which an optimizer cannot be made or take a step."""
    import torch
    from timm.optim import create_optimizer_v2

    weight = torch.nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    try:
        create_optimizer_v2([weight], name, lr=1e-3, **options).step()
    except Exception as error:  # of any type: it is the optimizer's own code
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise InputError(
            f"--optimizer-option {printable(given)[:120]}: optimizer {name} does not take it "
            f"({printable(error)[:120]})"
        ) from None
