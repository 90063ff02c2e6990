"""Published weights where no server answers: from the cache, or one line within seconds."""

import socket
import threading
import time
import urllib.error
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import save_file

from qrdali import connection
from qrdali.errors import RunError
from qrdali.models import create
from qrdali.runs.published_weights import fetch_from_hub, load_published


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that takes connections and never answers."""
    monkeypatch.setattr(connection, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def raises(error: Exception) -> Any:
    raise error


def test_an_answer_is_an_answer_whatever_it_says() -> None:
    assert connection.why_silent(lambda: None) == ""
    refused = urllib.error.HTTPError("http://x", 403, "Forbidden", Message(), None)
    assert connection.why_silent(lambda: raises(refused)) == ""
    assert connection.why_silent(lambda: raises(OSError("no route"))) == "no route"


def test_a_request_that_hangs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SECONDS", 0.2)
    end = threading.Event()
    begun = time.monotonic()
    assert connection.why_silent(end.wait) == "no answer within 0.2 s"
    assert time.monotonic() - begun < 2
    end.set()


@pytest.mark.parametrize(
    "load",
    [
        lambda: load_published("test_resnet"),
        lambda: create("test_resnet", 3, pretrained=True),
        lambda: fetch_from_hub("me/net"),
    ],
    ids=["adopt", "pretrained", "hub"],
)
def test_a_hub_that_does_not_answer_is_one_line_within_seconds(
    load: Any, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    begun = time.monotonic()
    with pytest.raises(RunError, match=r"127.0.0.1 cannot be reached, .*; they are not in the cache\).*"
                       r"--weights FILE") as error:  # fmt: skip
        load()
    assert "\n" not in str(error.value)
    assert time.monotonic() - begun < 10  # left alone, huggingface_hub takes 20 to 50
    assert constants.HF_HUB_OFFLINE is False


def test_weights_in_the_cache_need_no_connection(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    repository = tmp_path / "hub" / "models--me--net"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c" * 40)
    held = repository / "snapshots" / ("c" * 40)
    held.mkdir(parents=True)
    (held / "config.json").write_text('{"num_classes": 3}')
    save_file(create("test_resnet", 3).state_dict(), held / "model.safetensors")
    files = fetch_from_hub("me/net")
    assert (files.weights, files.config) == (held / "model.safetensors", {"num_classes": 3})


def test_torchvision_asks_its_server_only_for_what_is_not_cached(silent: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(OSError, match=r"127.0.0.1 cannot be reached, .*; they are not in the cache"):
        connection.require_answer(f"{silent}/weights.pth", tmp_path / "weights.pth")
    assert time.monotonic() - begun < 5
    (tmp_path / "weights.pth").touch()
    connection.require_answer(f"{silent}/weights.pth", tmp_path / "weights.pth")
