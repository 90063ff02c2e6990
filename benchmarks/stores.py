"""Measures indexing from and reading of an object store whose answers take a while.

An S3 server on loopback, with a delay before each request.

python benchmarks/stores.py --images 600 --delay 30 --json benchmarks/results/stores-cpu.json
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

BUCKET, CLASSES = "pictures", 20


class Delayed:
    """Passes requests on to `address` after a delay. requests: counts them."""

    def __init__(self, address: tuple[str, int], seconds: float) -> None:
        self.requests, self._seconds, self._address = 0, seconds, address
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client = self._socket.accept()[0]
            server = socket.create_connection(self._address)
            for source, target, waits in ((client, server, True), (server, client, False)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass, args=(source, target, waits), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, waits: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if waits and data.startswith((b"GET ", b"HEAD ")):
                    self.requests += 1
                    time.sleep(self._seconds)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def timed(work: Callable[[], Any], proxy: Delayed) -> dict[str, float]:
    """Returns the seconds and requests that `work` takes."""
    before, begun = proxy.requests, time.perf_counter()
    work()
    return {"seconds": round(time.perf_counter() - begun, 2), "requests": proxy.requests - before}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--delay", type=float, default=30, help="milliseconds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import boto3
    from moto.server import ThreadedMotoServer

    from qrdali.data.build import index_root
    from qrdali.data.index import Dataset
    from qrdali.data.scan import Reading
    from qrdali.data.tree import open_tree
    from qrdali.pipelines.file_reader import FileReader
    from qrdali.system.environment import environment

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = server.get_host_and_port()
    proxy = Delayed(address, options.delay / 1000)
    os.environ.update(
        AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}",
    )
    client = boto3.client("s3", endpoint_url=f"http://{address[0]}:{address[1]}")
    client.create_bucket(Bucket=BUCKET)
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)).save(
        file, "JPEG", quality=90
    )
    for i in range(options.images):
        client.put_object(Bucket=BUCKET, Key=f"train/{i % CLASSES:02d}/{i:05d}.jpg", Body=file.getvalue())
    root, figures = f"s3://{BUCKET}", {}
    classes = [f"{i:02d}" for i in range(CLASSES)]
    figures["listing"] = timed(
        lambda: [list(files) for files in open_tree(root).images(("train",), classes)], proxy
    )
    with TemporaryDirectory() as scratch:
        for name, threads in (("headers, 1 thread", 1), ("headers, 32 threads", 32)):
            reading = Reading(verify=False, threads=threads)
            figures[name] = timed(
                lambda name=name, reading=reading: index_root(root, Path(scratch) / name, reading), proxy
            )
        index = Dataset.open(Path(scratch) / "headers, 32 threads").index("train")
        reader = FileReader(index)
        figures["files, as training reads them"] = timed(
            lambda: [reader(np.arange(i, min(i + 32, len(index)))) for i in range(0, len(index), 32)], proxy
        )
    for row in figures.values():
        row["images_per_second"] = round(options.images / row["seconds"], 1)
    machine = environment(torch.device("cpu"))
    result = {
        "images": options.images,
        "bytes_each": len(file.getvalue()),
        "classes": CLASSES,
        "delay_milliseconds": options.delay,
        "machine": {key: machine[key] for key in ("cpu", "cores", "python")},
        "found": figures,
    }
    text = json.dumps(result, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)
    server.stop()


if __name__ == "__main__":
    main()
