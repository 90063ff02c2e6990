"""Measures what 64 ranks would need of a plan, of a network between them and of a storage; JSON on stdout.

All of it is found out in one process.

    OMP_NUM_THREADS=1 python benchmarks/scale_ranks.py > benchmarks/results/scale-ranks-HOST.json

plan: the batches of all ranks of an epoch, computed one rank after the other: that every image comes once,
and what a rank spends on it per step, for ImageNet's number of images and for 2^30. gradients:
DistributedDataParallel among 64 ranks, 63 of them pretended (torch's fake process group: collectives do
nothing), on random pictures: how many bytes each step hands to the network, in how many pieces. storage: DALI
reads objects of 110 kB by s3:// from a server on this machine that waits before each answer: how many at once
a decoding pipeline asks for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from qrdali import models
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.workflows.bench_loader import machine

WORLD, BATCH, IMAGENET, STEPS = 64, 4096, 1_281_167, 50
NETWORKS = {
    "squeezenet1_1": 64,
    "efficientnet_b3": 64,
    "resnet152": 64,
}  # pictures' side: gradients do not depend on it
OBJECT, OBJECTS, DELAYS = 110_000, 128, (0.0, 0.02, 0.1)


def plan(count: int, every: bool) -> dict[str, Any]:
    """Measures what STEPS of an epoch of `count` images cost a rank.

    every: also whether all ranks together see each image once.
    """
    epoch = EpochPlan(count, BATCH, FULL_QUALITY, training=True, world_size=WORLD)
    seconds = []
    for number in range(STEPS):
        begun = time.perf_counter()
        assert len(epoch.batch(number)) == BATCH // WORLD
        seconds.append(time.perf_counter() - begun)
    result = {
        "images": count,
        "steps": epoch.batches,
        "microseconds_per_step_and_rank": round(statistics.median(seconds) * 1e6),
    }
    if every:
        seen = np.zeros(count, np.uint8)
        ranks = [replace(epoch, rank=rank) for rank in range(WORLD)]
        for number in range(epoch.batches):
            for rank_plan in ranks:
                seen[rank_plan.batch(number)] += 1
        result["each_image_once"] = bool((seen == 1).all())
    return result


def gradients(name: str, side: int) -> dict[str, Any]:
    """Measures the gradients of two steps of one of the ranks; torch rearranges the first one's buckets."""
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(
        models.create(name, 1000).train(), gradient_as_bucket_view=True
    )
    buckets: list[int] = []

    def noted(bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buckets.append(bucket.buffer().numel() * bucket.buffer().element_size())
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(
        None, lambda state, bucket: noted(bucket)
    )  # without annotations, which torch would compare
    for _ in range(2):
        buckets.clear()
        nn.functional.cross_entropy(model(torch.rand(2, 3, side, side)), torch.tensor([0, 1])).backward()
    buffers = sum(b.numel() * b.element_size() for b in model.module.buffers())
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes_per_step": sum(buckets),
        "pieces": len(buckets),
        "largest_piece": max(buckets),
        "buffer_bytes": buffers,
    }


class _Bucket(BaseHTTPRequestHandler):
    """Answers GET and HEAD of any object after `delay` seconds, and counts how many wait at once."""

    protocol_version = "HTTP/1.1"
    delay, body = 0.0, os.urandom(OBJECT)
    lock, now, most, requests = threading.Lock(), 0, 0, 0

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, with_body: bool) -> None:
        with _Bucket.lock:
            _Bucket.now, _Bucket.requests = _Bucket.now + 1, _Bucket.requests + 1
            _Bucket.most = max(_Bucket.most, _Bucket.now)
        time.sleep(_Bucket.delay)
        first, last = 0, OBJECT - 1
        if wanted_range := self.headers.get("Range", ""):
            start, stop = wanted_range.removeprefix("bytes=").split("-")
            first, last = int(start), min(int(stop or last), last)
        self.send_response(206 if wanted_range else 200)
        self.send_header("Content-Length", str(last - first + 1))
        if wanted_range:
            self.send_header("Content-Range", f"bytes {first}-{last}/{OBJECT}")
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Wed, 25 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if with_body:
            self.wfile.write(_Bucket.body[first : last + 1])
        with _Bucket.lock:
            _Bucket.now -= 1

    def log_message(self, *_: object) -> None: ...


@contextmanager
def bucket() -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Bucket)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    yield
    server.shutdown()


def storage(threads: int, delay: float) -> dict[str, Any]:
    """Returns objects a second that a pipeline of batches of 32, two ahead, reads with `threads`."""
    from nvidia.dali import fn, pipeline_def

    names = [
        np.frombuffer(f"s3://bucket/{threads}-{delay}/{i}.jpg".encode(), np.uint8) for i in range(OBJECTS)
    ]
    batches = [names[i : i + 32] for i in range(0, OBJECTS, 32)]

    @pipeline_def(batch_size=32, num_threads=threads, device_id=None, prefetch_queue_depth=2)
    def reading() -> Any:
        return fn.io.file.read(fn.external_source(batches, batch=True))

    _Bucket.delay, _Bucket.most, _Bucket.requests = delay, 0, 0
    pipe = reading()
    begun = time.perf_counter()
    pipe.build()
    with suppress(StopIteration):
        while True:
            (files,) = pipe.run()
            assert files.at(0).nbytes == OBJECT
    rate = OBJECTS / (time.perf_counter() - begun)
    return {
        "threads": threads,
        "milliseconds_before_each_answer": delay * 1000,
        "objects_per_second": round(rate, 1),
        "requests_per_object": round(_Bucket.requests / OBJECTS, 2),
        "most_at_once": _Bucket.most,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
    result: dict[str, Any] = {
        "machine": machine(),
        "command": "python benchmarks/scale_ranks.py",
        "world": WORLD,
        "batch_size": BATCH,
        "plan": [plan(IMAGENET, True), plan(1 << 30, False)],
        "gradients": {name: gradients(name, side) for name, side in NETWORKS.items()},
    }
    with bucket():
        result["storage"] = {
            "object_bytes": OBJECT,
            "reads": [storage(threads, delay) for threads in (1, 4, 16) for delay in DELAYS],
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
