"""Says within seconds whether servers of weights answer: left alone, huggingface_hub tries for a minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

SECONDS = 5.0


def why_silent(request: Callable[[], object]) -> str:
    """Returns why `request` gets no answer within `SECONDS`; "" if it gets one, whatever it says."""
    reasons = [f"no answer within {SECONDS:g} s"]

    def ask() -> None:
        try:
            request()
            reasons.append("")
        except HTTPError:  # an answer
            reasons.append("")
        except Exception as error:  # of many types, of one's proxy too
            reasons.append(str(getattr(error, "reason", error)) or type(error).__name__)

    # Looking up a name knows no timeout: the thread may outlast its request, and ends with the process.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return reasons[-1]


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Within the block huggingface_hub takes files from its cache alone if its server does not answer.

    Raises OSError then, for a file that is not in the cache.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE:  # somebody has said so
        yield
        return
    reason = why_silent(lambda: get_session().head(constants.ENDPOINT, timeout=SECONDS))
    constants.HF_HUB_OFFLINE = bool(reason)
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        if not reason:
            raise
        raise OSError(_described(constants.ENDPOINT, reason)) from None
    finally:
        constants.HF_HUB_OFFLINE = False


def require_answer(url: str, cached: Path) -> None:
    """Raises OSError if the server of `url` does not answer and there is no file `cached`."""
    if cached.exists():
        return
    if reason := why_silent(lambda: urlopen(Request(url, method="HEAD"), timeout=SECONDS).close()):
        raise OSError(_described(url, reason))


def _described(url: str, reason: str) -> str:
    return f"{urlsplit(url).hostname} cannot be reached, {reason}; they are not in the cache"
