"""Opens object stores by the credentials in the environment, and translates their errors into advice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from threading import Lock
from typing import Any

from qrdali.errors import InputError, RunError, printable

_TIMEOUT_SECONDS = 20  # without an answer of a server
_DENIED = (
    "ACCESS_DENIED",
    "FORBIDDEN",
    "HTTP response code: 403",
    "HTTP response code 403",
    "SIGNATURE",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN",
    "UNRECOGNIZED_CLIENT",
    "MISSING_AUTHENTICATION",
    "EXPIRED_TOKEN",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "InvalidAccessKeyId",
    "ExpiredToken",
    "Could not load the default credentials",
    "Permission denied",
)
_filesystem_lock = Lock()


class Unreachable(RunError):
    """A store cannot be read: no network, no bucket, no right to read.

    The one file that was asked for is not to blame.
    """


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Raises a store's errors as FileNotFoundError, InputError or Unreachable, which say what to do."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise exception_for(url, error) from None


def filesystem(url: str) -> Any:
    """Returns the store of a URL, by the address, region and credentials in the environment.

    Raises Unreachable.
    """
    with _filesystem_lock:  # lru_cache alone would let each of many threads make its own
        scheme, bucket = url[:5], url[5:].partition("/")[0]
        with translate_errors(url):
            return _s3(bucket) if scheme == "s3://" else _gcs()


@lru_cache(16)
def _s3(bucket: str) -> Any:
    from pyarrow import fs

    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not (
        region
        or address
        or os.environ.get("AWS_CONFIG_FILE")
        or os.path.exists(os.path.expanduser("~/.aws/config"))
    ):
        region = fs.resolve_s3_region(bucket)
    unsigned = os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "yes", "true")
    return fs.S3FileSystem(
        endpoint_override=address,
        region=region,
        anonymous=unsigned,
        connect_timeout=_TIMEOUT_SECONDS,
        request_timeout=_TIMEOUT_SECONDS,
    )


@lru_cache(1)
def _gcs() -> Any:
    from pyarrow import fs

    address = os.environ.get("STORAGE_EMULATOR_HOST") or os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT")
    limit = timedelta(seconds=_TIMEOUT_SECONDS)
    if not address:
        return fs.GcsFileSystem(retry_time_limit=limit)
    scheme, _, host = address.rstrip("/").rpartition("://")
    return fs.GcsFileSystem(
        anonymous=True, scheme=scheme or "http", endpoint_override=host, retry_time_limit=limit
    )


def exception_for(url: str, error: Exception) -> Exception:
    """Returns the exception for a store's error: FileNotFoundError, InputError or Unreachable."""
    text = " ".join(str(error).split())
    bucket = printable("/".join(url.split("/")[:3]))
    scheme = url[:5]
    if "a last message of The specified bucket does not exist" in text:
        return no_bucket(url)
    if isinstance(error, FileNotFoundError) or "NO_SUCH_KEY" in text:
        return FileNotFoundError(f"no such object: {printable(url)}")
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text or ("Bucket" in text and "not found" in text):
        return no_bucket(url)
    if any(sign in text for sign in _DENIED):
        if scheme == "s3://":
            advice = (
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE "
                "(AWS_NO_SIGN_REQUEST=1 for a public bucket)"
            )
        else:
            advice = "GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`"
        return Unreachable(f"{bucket} may not be read with the credentials found here: set {advice}")
    if "OAuth2 access token" in text:
        return Unreachable(
            f"{bucket} cannot be read: there are no credentials here, or no network to use them: set "
            "GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`"
        )
    # Google's client raises ValueError with a Status too, where a server's answer makes no sense.
    if isinstance(error, ValueError) and "google::cloud::Status" not in text:
        return InputError(f"{printable(url)} is not an address of an object: {printable(text)[:200]}")
    where = "AWS_ENDPOINT_URL and AWS_REGION" if scheme == "s3://" else "STORAGE_EMULATOR_HOST"
    return Unreachable(f"{bucket} cannot be read: check the network, {where} ({printable(text)[:200]})")


def no_bucket(url: str) -> Unreachable:
    """Returns the exception for a bucket that does not exist."""
    bucket = printable("/".join(url.split("/")[:3]))
    advice = ", and AWS_ENDPOINT_URL if it is not Amazon's" if url.startswith("s3://") else ""
    return Unreachable(f"there is no bucket {bucket}: check its name{advice}")
