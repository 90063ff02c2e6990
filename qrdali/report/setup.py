"""Tables on what the figures depend on: definitions, data sets, settings and versions."""

from __future__ import annotations

from qrdali.errors import printable
from qrdali.report.groups import Group
from qrdali.report.read import Run
from qrdali.report.read_mepis import Mepis
from qrdali.report.resources import machines
from qrdali.report.tables import NOTHING, Cell, Table, number, words
from qrdali.runs.automatic import saved_amp
from qrdali.runs.configuration import applicable, on_gpu
from qrdali.runs.settings import Settings
from qrdali.version import __version__

DEFINITIONS = (
    "Quality q is the share of an image's raw information that one dimension keeps. crop keeps a window of "
    "share q "
    "of the area; resolution resizes to share q of the pixels with an antialiased linear filter; color cuts "
    "each "
    "channel into bins of width min(128, round(256^(1 − q))) and sets it to the bin's centre; combination "
    "does all "
    "three in this order, and so keeps about q × q × q = q³ of the raw information: share q of the pixels "
    "twice, and share q of the bits of each. At the same q it is therefore reduced far more than one "
    "dimension alone: at .5 it keeps an eighth. An R epoch trains on reduced images, a C epoch on full "
    "ones; paired-epochs is RC repeated, paired-rounds an R round and a C round per stage, each ended by "
    "patience. fixed keeps one quality, "
    "linear lowers it by a step per stage, adaptive lets each image take one step per stage while the "
    "network is "
    "still right. The entropy of an image is the size of its PNG, the entropy quotient that of the reduced "
    "image "
    "divided by the original's. The operators are qrdali's own definition: the thesis that these methods "
    "come from "
    "does not fix them."
)

_MOST_NAMED = 4  # data sets and networks under the title
# Settings that are told elsewhere in the report, or that no figure depends on.
_UNTOLD = frozenset(
    {
        "data",
        "root",
        "threads",
        "save_every",
        "log",
        "max_bad",
        "track_reduced",
        "track_sets",
        "probe_batch_size",
        "compile",
        "epochs_before",
        "automatic",
    }
)


def facts(by_experiment: list[Group], sets: list[Mepis]) -> list[tuple[str, str]]:
    """Returns names and values of the line under the title."""
    known = [run for group in by_experiment for run in group.runs]
    devices = machines(known)
    names, networks = (
        list(dict.fromkeys(of_groups))
        for of_groups in ((g.data for g in by_experiment), (g.network for g in by_experiment))
    )
    classes = sorted({len(run.trained.classes) for run in known})
    return [
        (name, printable(value))
        for name, value in (
            ("data", _first(names)),
            ("network", _first(networks)),
            ("runs", len(known)),
            ("MEPI sets", len(sets)),
            ("classes", ", ".join(map(str, classes))),
            ("hardware", "; ".join(devices) if devices else "not recorded"),
            ("made by", f"qrdali {__version__}"),
        )
    ]


def _first(names: list[str]) -> str:
    """Returns the first four names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return "; ".join(names[:_MOST_NAMED]) + more


def data(found: list[Group], slug: str) -> Table:
    """Returns the table of data sets."""
    rows = []
    for group in found:
        sizes = next((run.start.images for run in group.runs if run.start.images), None) or {}
        counts = {name: len(run.sets[name].correct) for run in group.runs for name in run.sets}
        rows.append(
            (
                words(group.data),
                words(group.network),
                number(len(group.classes)),
                number(sizes.get("train")),
                number(sizes.get("val") or counts.get("val")),
                number(counts.get("test")),
                words(
                    ", ".join(
                        f"{name}: {count:,}" for name, count in counts.items() if name not in ("val", "test")
                    )
                    or "–"
                ),
                words(group.runs[0].settings.data or "–"),
            )
        )
    return Table(
        slug,
        "Data sets",
        ("data set", "network", "classes", "train", "val", "test", "other sets", "folder"),
        tuple(rows),
    )


def _cell(value: object) -> Cell:
    if value in ("", None):
        return NOTHING
    return (
        number(float(value), "g")
        if isinstance(value, int | float) and not isinstance(value, bool)
        else words(value)
    )


def shown_settings(run: Run) -> dict[str, object]:
    """Returns the settings of a run that had an effect, by name, with the device and the definitions.

    Of a run that went on on another device both are named.
    """
    gpu = on_gpu(run.start.environment)
    first = run.settings.device if gpu is None else "cuda" if gpu else "cpu"
    now = first if run.settings.device == "auto" else run.settings.device
    amp = saved_amp(run.folder) if gpu and run.settings.amp == "auto" else run.settings.amp
    values = applicable(run.settings.model_copy(update={"device": first, "amp": amp}))
    values["device"] = first if now == first else f"{first}, then {now}"
    if gpu is False:
        values.pop("sync_batch_norm", None)  # torch has none there
    values["definitions"] = run.definitions
    return {key: value for key, value in values.items() if key not in _UNTOLD and value not in ("", None)}


def _settings(known: list[Run]) -> tuple[list[dict[str, object]], list[str]]:
    """Returns the settings of each run, and the keys in which they differ or that only some runs have."""
    settings = [shown_settings(run) for run in known]
    keys = dict.fromkeys((*Settings.model_fields, "definitions"))
    return settings, [key for key in keys if len({str(one.get(key)) for one in settings}) > 1]


def common(known: list[Run], slug: str) -> Table:
    """Returns the table of settings that all runs have alike."""
    settings, differing = _settings(known)
    rows = tuple((words(key), words(value)) for key, value in settings[0].items() if key not in differing)
    return Table(slug, "Settings of all runs", ("setting", "value"), rows)


def configurations(known: list[Run], slug: str) -> Table | None:
    """Returns the table of settings that tell runs apart; None where there are none."""
    settings, differing = _settings(known)
    rows = tuple(
        (words(run.name), *(_cell(one.get(key)) for key in differing))
        for run, one in zip(known, settings, strict=True)
    )
    return (
        Table(
            slug,
            "Settings in which runs differ",
            ("run", *differing),
            rows,
            ("The whole of each is in its config.toml. – is what a run's method or device does not use.",),
        )
        if differing
        else None
    )


def versions(known: list[Run], slug: str) -> Table | None:
    """Returns the table of versions and machines; None where no run recorded them."""
    recorded = [
        (run.name, epoch.epoch, epoch.environment)
        for run in known
        for epoch in run.epochs
        if epoch.environment
    ]
    keys = list(dict.fromkeys(key for _, _, environment in recorded for key in environment))
    if not keys:
        return None
    runs_by_environment: dict[tuple[object, ...], list[str]] = {}
    for name, epoch, environment in recorded:
        runs_by_environment.setdefault(tuple(environment.get(key) for key in keys), []).append(
            f"{name} from epoch {epoch}" if epoch else name
        )
    rows = tuple(
        (
            words(", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")),
            number(len(names)),
            *(NOTHING if value is None else words(value) for value in values),
        )
        for values, names in runs_by_environment.items()
    )
    return Table(
        slug,
        "Versions and machine",
        ("runs", "how many", *map(printable, keys)),
        rows,
        ("As recorded when each run began, and again where it was continued in another place.",),
    )


def searches(sets: list[Mepis], slug: str) -> Table | None:
    """Returns the table of settings of MEPI sets; None without sets."""
    keys = (
        *("split", "step", "tail", "windows", "prefer", "search", "limit", "batch_size", "device", "amp"),
        *(key for key in ("class_map_file", "map_rule") if any(mepis.options.get(key) for mepis in sets)),
    )
    rows = tuple(
        (
            words(mepis.name),
            words(mepis.run.name if mepis.run else mepis.options.get("run", "–")),
            *(_option(mepis, key) for key in keys),
            words(next(iter(mepis.summary.values())).get("encoder", "–")),
        )
        for mepis in sets
    )
    return Table(slug, "Settings of every MEPI set", ("set", "run", *keys, "encoder"), rows) if rows else None


def _option(mepis: Mepis, key: str) -> Cell:
    """Returns an option of a set; a CPU has no mixed precision unless it is asked for."""
    value = mepis.options.get(key)
    without_amp = key == "amp" and value in ("auto", "off") and mepis.options.get("device") == "cpu"
    return NOTHING if value is None or without_amp else words(value)
