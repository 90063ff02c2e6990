"""Serves the reading part of Google Cloud Storage's JSON API on loopback, as its reference describes it.

Objects are put by the tests. Listings have pages, prefixes, delimiters and trailing delimiters; reads have
ranges, generations and hashes; errors are the service's JSON. Credentials are not checked. What Google's
server does beyond its reference is not known here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

BUCKET = "pictures"
PAGE = 1000  # items and prefixes of one answer, at most
KINDS = ("bucket", "list", "object", "media")


@dataclass(frozen=True)
class Asked:
    """kind: bucket, list, object (what is known of it) or media (its bytes).

    name: of the object, or the prefix.
    """

    kind: str
    bucket: str
    name: str = ""
    query: dict[str, str] = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    """asked: every request. most: as many were answered at once. told: what a test has set."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, tuple[bytes, int]]] = {BUCKET: {}}
        self.lock, self.over = threading.Lock(), threading.Event()
        self.reset()

    def reset(self) -> None:
        self.asked: list[Asked] = []
        self.most = self.now = 0
        self.told: dict[str, Any] = {
            "delay": 0,
            "page": PAGE,
            "fault": "",
            "kinds": [],
            "name": "",
            "times": 0,
        }

    def fault(self, asked: Asked) -> str:
        """Returns the fault of a request: the first `times` of `kinds` whose name contains `name` have it."""
        told = self.told
        with self.lock:
            if (
                not told["fault"]
                or asked.kind not in told["kinds"]
                or told["name"] not in asked.name
                or not told["times"]
            ):
                return ""
            told["times"] -= 1
            return str(told["fault"])

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_: object) -> None:
        pass

    def do_PUT(self) -> None:
        """A test's own: an object."""
        name, data = unquote(self.path[1:]), self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[BUCKET][name] = data, time.time_ns()
        self.json({})

    def do_DELETE(self) -> None:
        """A test's own."""
        del self.server.objects[BUCKET][unquote(self.path[1:])]
        self.json({})

    def do_POST(self) -> None:
        """A test's own: forget what was asked, and be told."""
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.reset()
            self.server.told.update(told)
        self.json({})

    def do_GET(self) -> None:
        server = self.server
        if self.path == "/":  # a test's own
            with server.lock:
                return self.json({"asked": [vars(asked) for asked in server.asked], "most": server.most})
        asked = _asked(self.path)
        with server.lock:
            server.asked.append(asked)
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            time.sleep(server.told["delay"])
            return self._failed(fault) if (fault := server.fault(asked)) else self._answer(asked)
        finally:
            with server.lock:
                server.now -= 1

    def _failed(self, fault: str) -> None:
        self.close_connection = True
        if fault == "silence":
            self.server.over.wait(300)
        elif fault == "garbage":
            self.wfile.write(os.urandom(999))
        elif fault == "nonsense":
            self.send(200, b"<html>\0 no JSON", {"Content-Type": "text/html"})
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b"cut")
        elif fault != "closed":
            code = int(fault)
            why = {
                401: ("authError", "Invalid Credentials"),
                403: ("forbidden", "somebody does not have storage.objects.get access."),
                429: ("rateLimitExceeded", "The object exceeded the rate limit."),
                503: ("backendError", "Backend Error"),
            }
            self.error(code, *why[code])

    def _answer(self, asked: Asked) -> None:
        if asked.bucket not in self.server.objects:
            return self.error(404, "notFound", "The specified bucket does not exist.")
        objects = self.server.objects[asked.bucket]
        if asked.kind == "bucket":
            return self.json(
                {
                    "kind": "storage#bucket",
                    "id": asked.bucket,
                    "name": asked.bucket,
                    "location": "US",
                    "metageneration": "1",
                    "storageClass": "STANDARD",
                    "timeCreated": "2024-01-01T00:00:00.000Z",
                    "updated": "2024-01-01T00:00:00.000Z",
                }
            )
        if asked.kind == "list":
            return self.json(_page(objects, asked, self.server.told["page"]))
        data, generation = objects.get(asked.name, (b"", 0))
        if asked.name not in objects or asked.query.get("generation", str(generation)) != str(generation):
            return self.error(404, "notFound", f"No such object: {asked.bucket}/{asked.name}")
        if asked.kind == "object":
            return self.json(_resource(asked.bucket, asked.name, data, generation))
        return self._media(data, generation)

    def _media(self, data: bytes, generation: int) -> None:
        headers = {
            "Content-Type": "image/jpeg",
            "x-goog-generation": str(generation),
            "x-goog-metageneration": "1",
            "x-goog-stored-content-length": str(len(data)),
            "x-goog-stored-content-encoding": "identity",
            "x-goog-storage-class": "STANDARD",
            "x-goog-hash": f"crc32c={_crc32c(data)},md5={_md5(data)}",
            "Accept-Ranges": "bytes",
        }
        wanted = self.headers.get("Range", "")
        if not wanted:
            return self.send(200, data, headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(data) - int(last))
        end = min(len(data) - 1, int(last)) if first and last else len(data) - 1
        if start > end:
            return self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        return self.send(
            206, data[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
        )

    def json(self, value: Any, code: int = 200) -> None:
        self.send(code, json.dumps(value).encode(), {"Content-Type": "application/json; charset=UTF-8"})

    def error(self, code: int, why: str, message: str) -> None:
        self.json(
            {
                "error": {
                    "code": code,
                    "message": message,
                    "errors": [{"message": message, "domain": "global", "reason": why}],
                }
            },
            code,
        )

    def send(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _asked(path: str) -> Asked:
    url = urlsplit(path)
    query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
    parts = url.path.removeprefix("/download").removeprefix("/storage/v1/b/").split("/")
    bucket = unquote(parts[0])
    if len(parts) == 1:
        return Asked("bucket", bucket, query=query)
    if len(parts) == 2:
        return Asked("list", bucket, query.get("prefix", ""), query)
    return Asked(
        "media" if query.get("alt") == "media" else "object", bucket, unquote("/".join(parts[2:])), query
    )


def _page(objects: dict[str, tuple[bytes, int]], asked: Asked, most: int) -> dict[str, Any]:
    """Items and prefixes in the order of their UTF-8 bytes, from the page token on."""
    prefix, delimiter, query = asked.query.get("prefix", ""), asked.query.get("delimiter", ""), asked.query
    most = min(most, int(query.get("maxResults") or most))
    found: dict[str, bool] = {}  # names, and whether each is a prefix
    for name in sorted((name for name in list(objects) if name.startswith(prefix)), key=str.encode):
        head, cut, tail = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
        if cut:
            found[prefix + head + cut] = True
        if not cut or (not tail and query.get("includeTrailingDelimiter") == "true"):
            found[name if not cut else name + "\0"] = False  # \0: an item of the same name as a prefix
    names = [
        name
        for name in found
        if not query.get("pageToken") or name > base64.b64decode(query["pageToken"]).decode()
    ]
    shown = names[:most]
    result: dict[str, Any] = {"kind": "storage#objects"}
    if items := [name.rstrip("\0") for name in shown if not found[name]]:
        result["items"] = [_resource(asked.bucket, name, *objects[name]) for name in items]
    if prefixes := [name for name in shown if found[name]]:
        result["prefixes"] = prefixes
    if len(names) > most:
        result["nextPageToken"] = base64.b64encode(shown[-1].encode()).decode()
    return result


def _resource(bucket: str, name: str, data: bytes, generation: int) -> dict[str, Any]:
    then = "2024-01-01T00:00:00.000Z"
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{generation}",
        "name": name,
        "bucket": bucket,
        "generation": str(generation),
        "metageneration": "1",
        "contentType": "image/jpeg",
        "timeCreated": then,
        "updated": then,
        "storageClass": "STANDARD",
        "size": str(len(data)),
        "md5Hash": _md5(data),
        "crc32c": _crc32c(data),
        "etag": "CAE=",
    }


@cache
def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


@cache
def _crc32c(data: bytes) -> str:
    value, table = 0xFFFFFFFF, _table()
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 255]
    return base64.b64encode((value ^ 0xFFFFFFFF).to_bytes(4, "big")).decode()


@cache
def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


class Store:
    """The server in a process of its own: pyarrow waits for some answers with Python's lock held."""

    def __init__(self, port: int) -> None:
        self.port = port

    def _say(self, method: str, path: str = "/", data: bytes = b"") -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, data or None, {"Content-Length": str(len(data))})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def put(self, name: str, data: bytes) -> None:
        self._say("PUT", f"/{quote(name, safe='')}", data)

    def put_folder(self, folder: Path, prefix: str) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(f"{prefix}/{file.relative_to(folder)}", file.read_bytes())

    def delete(self, name: str) -> None:
        self._say("DELETE", f"/{quote(name, safe='')}")

    def tell(
        self,
        fault: str = "",
        *kinds: str,
        name: str = "",
        times: int = 1 << 30,
        delay: float = 0,
        page: int = PAGE,
    ) -> None:
        """Clears the log of requests, and sets how the next ones are answered.

        delay: seconds before each answer. page: as `PAGE`. fault: what becomes of the first `times` requests
        of `kinds` for a name or prefix that has `name` in it: an error's code, closed, cut, garbage,
        nonsense, silence.
        """
        self._say(
            "POST",
            data=json.dumps(
                {
                    "fault": fault,
                    "kinds": kinds or KINDS,
                    "name": name,
                    "times": times,
                    "delay": delay,
                    "page": page,
                }
            ).encode(),
        )

    @property
    def asked(self) -> list[Asked]:
        return [Asked(**asked) for asked in self._say("GET")["asked"]]

    @property
    def most(self) -> int:
        """How many requests were under way at once."""
        return int(self._say("GET")["most"])

    def kinds(self) -> Counter[str]:
        return Counter(asked.kind for asked in self.asked)


@contextmanager
def gcs() -> Iterator[Store]:
    """A server that has an empty bucket; its address is in the environment meanwhile."""
    from object_stores import forget_stores

    before = os.environ.get("STORAGE_EMULATOR_HOST")
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        store = Store(int(process.stdout.readline()))
        os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{store.port}"
        forget_stores()
        try:
            yield store
        finally:
            process.kill()
            if before is None:
                del os.environ["STORAGE_EMULATOR_HOST"]
            else:
                os.environ["STORAGE_EMULATOR_HOST"] = before
            forget_stores()


def main() -> None:
    """Serves until its input ends: with the process that began it."""
    server = Server()
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
