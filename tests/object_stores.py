"""An S3 server on loopback, and tar shards made by hand."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUCKET = "pictures"


@contextmanager
def s3() -> Iterator[Any]:
    """A client of a server that has an empty bucket; its address is in the environment meanwhile."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    own = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {key: os.environ.get(key) for key in own}
    os.environ.update(own)
    forget_stores()
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client
    finally:
        server.stop()
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
        forget_stores()


def forget_stores() -> None:
    """Drops the clients of stores that are no longer there."""
    from qrdali.data import object_store, storage

    object_store._s3.cache_clear()
    object_store._gcs.cache_clear()
    storage._remote_shard.cache_clear()


def put(client: Any, folder: Path, prefix: str) -> None:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            client.put_object(
                Bucket=BUCKET, Key=f"{prefix}/{file.relative_to(folder)}", Body=file.read_bytes()
            )


def tar(file: Path, *members: tuple[str, bytes] | tarfile.TarInfo, **options: Any) -> Path:
    """A shard of (name, content) and of bare headers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", **options) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return file


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """A header that may lie about its size."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136], block[156:157], block[257:265] = (
        b"0000644\0",
        b"%011o\0" % size,
        kind,
        b"ustar\00000",
    )
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def preprocessing() -> Any:
    """Of a network of 8 pixels."""
    from qrdali.models import Preprocessing

    return Preprocessing(8, "whole", 0.9, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def loader_of(index: Any, batch_size: int, whole_graph: bool = False) -> Any:
    """On the CPU.

    DALI and torch are imported only where images are decoded by it: the other tests take no time for that.
    """
    from qrdali.pipelines.engine import Engine
    from qrdali.pipelines.loader import open_loader

    return open_loader(index, preprocessing(), batch_size, Engine(threads=1, whole_graph=whole_graph))
