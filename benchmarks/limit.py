"""CPU time of the loader, of MEPI searches, probes and the index beside what they cannot do without; JSON.

    python benchmarks/limit.py loader > loader-limit.json
    python benchmarks/limit.py mepi > mepi-limit.json
    python benchmarks/limit.py index > index-limit.json

CPU time of user and kernel is measured, not seconds: on a CPU all work shares the cores, and other work on
the machine changes it less. Whatever is compared runs in turns; each figure is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from index import by_dali, generate, index

from qrdali.data.index import Dataset, Index
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec
from qrdali.data.shapes import generate as generate_shapes
from qrdali.interfaces import SilentListener
from qrdali.mepi import build, search
from qrdali.models import Preprocessing
from qrdali.pipelines import host_ops as host
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.image_reducer import HostImageReducer
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.reduction.network_view import view
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.workflows import bench_mepi
from qrdali.workflows.bench_loader import MEAN, STD, _plain_dali, machine
from qrdali.workflows.bench_train import Network, Options

SIDE = 224
PREPROCESSING = Preprocessing(SIDE, "whole", 1.0, "bilinear", MEAN, STD)


def cpu_seconds(who: int = resource.RUSAGE_SELF) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def cpu_of(work: Callable[[], object], images: int) -> float:
    """Returns microseconds of CPU time per image of the second of two runs.

    The first leaves pipelines that read ahead as full as the second finds them.
    """
    work()
    begun = cpu_seconds()
    work()
    return (cpu_seconds() - begun) / images * 1e6


def medians(works: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            values[name].append(work())
    return values


def loader(dataset: Index, args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"stages": stages(dataset, args.rounds)}
    for batch in (32, 128):
        engine, images = Engine(None, args.threads), len(dataset)
        made, epochs = open_loader(dataset, PREPROCESSING, batch, engine), count(1)

        def epoch(made: Any = made, batch: int = batch, epochs: Any = epochs) -> None:
            plan = EpochPlan(
                len(dataset), batch, FULL_QUALITY, training=True, augment="flip", epoch=next(epochs)
            )
            for _ in made.epoch(plan):
                pass

        decode = _plain_dali(dataset.paths(np.arange(images)), SIDE, batch, engine, True)
        works = {"decode": partial(cpu_of, decode, images), "loader": partial(cpu_of, epoch, images)}
        values = medians(works, args.rounds)
        ratios = [a / b for a, b in zip(values["decode"], values["loader"], strict=True)]
        result[f"batch_{batch}"] = {
            "cpu_us_per_image": {name: round(statistics.median(v)) for name, v in values.items()},
            "decode_over_loader": round(statistics.median(ratios), 3),
        }
    return result


def stages(dataset: Index, rounds: int) -> dict[str, float]:
    """Returns microseconds of CPU time per image of what the loader does after decoding, in one thread."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (375, 500, 3), dtype=np.uint8) for _ in range(32)]
    seen = view(np.array([image.shape[:2] for image in images], np.int32), PREPROCESSING)
    squares = [host.square(image, seen, i, PREPROCESSING) for i, image in enumerate(images)]
    target = np.empty((len(images), SIDE, SIDE, 3), np.float32)

    def normalize(flip: bool) -> None:
        for i, square in enumerate(squares):
            host.normalize(square, flip, PREPROCESSING, target[i])

    def two_passes() -> None:
        for image in images:
            host.resize(host.resize(image, len(image), SIDE, "bilinear"), SIDE, SIDE, "bilinear")

    works = {
        "resize": lambda: [host.square(image, seen, i, PREPROCESSING) for i, image in enumerate(images)],
        "resize in two passes": two_passes,
        "normalize": lambda: normalize(False),
        "normalize and mirror": lambda: normalize(True),
        "write to memory that is new": lambda: torch.empty((len(images), 4, SIDE, SIDE, 3)).zero_(),
        "write to memory that was used": lambda: [target.fill(0) for _ in range(4)],
    }
    timed = {name: partial(cpu_of, work, len(images)) for name, work in works.items()}
    parts = {name: statistics.median(values) for name, values in medians(timed, 3 * rounds).items()}
    return {name: round(us / 4 if "memory" in name else us, 1) for name, us in parts.items()}


def mepi(dataset: Index, args: argparse.Namespace) -> dict[str, Any]:
    """Returns seconds of CPU time of each part of a search, which runs the network in one thread."""
    torch.set_num_threads(1)
    spent: Counter[str] = Counter()
    watch(bench_mepi._Centred, "forward", spent)
    watch(HostImageReducer, "network_inputs", spent)
    watch(build, "png_bytes", spent)
    watch(build, "entropy", spent)
    batches: list[int] = []
    judge = search.Search.judge
    search.Search.judge = lambda self, images, *rest: (  # type: ignore[method-assign,assignment]
        batches.append(len(images)),
        judge(self, images, *rest),
    )[1]
    rows: dict[str, Any] = {}

    def measured(self: Any, reduction: str, *_: Any) -> dict[str, Any]:
        out = self.scratch / reduction
        source = bench_mepi.MepiSource(self.part, bench_mepi.CLASS_NAMES, self.scale)
        mepis = bench_mepi.MepiSet.open(out, source, {}, None)
        spent.clear()
        batches.clear()
        begun = cpu_seconds()
        row = self._build(mepis, reduction)
        total = cpu_seconds() - begun
        images = row["evaluations"] + len(self.part)  # each file is read back and classified too
        size = self.network.max_batch
        # A pass of the search is filled up to `size` images; those of the reading back are not.
        passed = sum(size for _ in batches) + len(self.part)
        useful = spent["forward"] * images / passed
        encoding = spent["png_bytes"] + spent["entropy"]
        parts = {name: round(value, 2) for name, value in spent.items()}
        rows[reduction] = {
            "cpu_seconds": parts | {"all": round(total, 2)},
            "images_classified": images,
            "places_of_forward_passes": passed,
            "over_forward_alone": round(total / useful, 3),
            "over_forward_without_encoding": round((total - encoding) / useful, 3),
            "over_all_places_without_original_png": round((total - spent["entropy"]) / spent["forward"], 3),
        }
        return {}

    bench_mepi._Duel.measure = measured  # type: ignore[method-assign,assignment]
    bench_mepi.measure(
        dataset,
        name=args.model,
        side=SIDE,
        threads=args.threads,
        images=args.images,
        naive_images=2,
        step=0.05,
        tail="full",
        rounds=1,
        reductions=("color", "resolution"),
    )
    return {"model": args.model, "images": args.images, "reductions": rows}


def watch(owner: Any, name: str, spent: Counter[str]) -> None:
    """Adds the CPU time that each call of `owner.name` takes of its own thread to `spent`."""
    function = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.thread_time() - begun

    setattr(owner, name, timed)


def probes(dataset: Index, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the CPU time of a probe of every image by that of the network alone, in one thread."""
    torch.set_num_threads(1)
    network = Network(dataset, 16, Options(args.model, SIDE, args.threads, 32), SilentListener())
    images = torch.rand(16, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    result = {}
    for reduction, candidates in (("color", 1), ("resolution", 1), ("crop", 5)):
        passes = -(-len(dataset) * candidates // 16)

        def forward(passes: int = passes) -> None:
            network._model.eval()
            with torch.inference_mode():
                for _ in range(passes):
                    network._model(images)

        works = {
            "probe": partial(cpu_of, partial(network.probe, reduction), len(dataset)),
            "forward": partial(cpu_of, forward, 16 * passes / candidates),
        }
        values = medians(works, args.rounds)
        ratios = [a / b for a, b in zip(values["probe"], values["forward"], strict=True)]
        result[reduction] = {
            "cpu_us_per_image": {name: round(statistics.median(v)) for name, v in values.items()},
            "over_forward_alone": round(statistics.median(ratios), 3),
        }
    return result


def indexing(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the CPU time of `qrdali data index` by that of decoding alone, for two numbers of files.

    The first of a few files tells what starting takes, the difference what a file takes.
    """
    with TemporaryDirectory() as folder:
        roots = {files: Path(folder) / str(files) for files in (200, args.images)}
        for files, root in roots.items():
            generate(root, files, {})
        names = sorted(roots[args.images].rglob("*.jpg"))
        seconds: dict[str, list[float]] = {"few": [], "all": [], "decode": []}
        for number in range(args.rounds):
            for name, files in (("few", 200), ("all", args.images)):
                begun = cpu_seconds(resource.RUSAGE_CHILDREN)
                index(roots[files], Path(folder) / f"{name}-{number}", args.threads)
                seconds[name].append(cpu_seconds(resource.RUSAGE_CHILDREN) - begun)
            begun = cpu_seconds()
            by_dali(names, args.threads)
            seconds["decode"].append(cpu_seconds() - begun)
    few, every, decode = (statistics.median(seconds[name]) for name in ("few", "all", "decode"))
    per_file = (every - few) / (args.images - 200)
    return {
        "files": args.images,
        "cpu_seconds": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
        "cpu_us_per_file": {"index": round(per_file * 1e6), "decode": round(decode / args.images * 1e6)},
        "start_cpu_seconds": round(few - 200 * per_file, 2),
        "index_over_decode": round(every / decode, 2),
        "index_over_decode_per_file": round(per_file * args.images / decode, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("loader", "mepi", "probe", "index"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--model", default="squeezenet1_1")
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    command = [word for word in sys.argv if word not in ("--note", args.note)]
    facts = {"machine": machine(), "command": command, "note": args.note}
    if args.what == "index":
        print(json.dumps(facts | indexing(args), indent=1))
        return
    with TemporaryDirectory() as folder:
        spec = ShapesSpec(classes=16, train=max(2, args.images // 16), val=0, test=0)
        generate_shapes(Path(folder) / "images", spec)
        build_dataset(Path(folder) / "images", Path(folder) / "data")
        dataset = Dataset.open(Path(folder) / "data").index("train")
        measure = {"loader": loader, "mepi": mepi, "probe": probes}[args.what]
        print(json.dumps(facts | measure(dataset, args), indent=1))


if __name__ == "__main__":
    main()
