"""Reads the weights of a network from a file of somebody else's, and executes nothing of it.

Files of safetensors are tensors alone. torch's own are pickles, which may hold code: they are read by its
weights-only loader, which builds nothing but tensors and plain containers. What a file claims to hold is
compared with what the network can need before memory is taken for it.
"""

from __future__ import annotations

import argparse
import re
import stat
import struct
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file
from torch import nn

from qrdali.errors import InputError, printable
from qrdali.files.hashing import sha256_of
from qrdali.files.mapping import can_be_mapped
from qrdali.models import find_library
from qrdali.network_heads import head_names, is_of_head, without_auxiliary_heads

Weights = dict[str, torch.Tensor]

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
# Where training scripts keep weights; of several, the average of the weights is what they publish.
_PARTS = ("model_ema", "state_dict_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and averaged models, and of torch.compile
_UNTRAINED = ("num_batches_tracked",)  # of batch norm; old files have none, and it is not used in evaluation
# A checkpoint may hold weights, their average and two moments of an optimizer, in double precision.
_TIMES, _MORE_BYTES = 8, 64 << 20
_MAX_PICKLE_BYTES = 64 << 20  # of the part of a torch file that is not tensors
_MAX_ENTRIES, _MAX_DIRECTORY_BYTES = 1_000_000, 128 << 20  # of a zip file's directory
_SHOWN = 3  # names that a message shows


@dataclass(frozen=True)
class FileWeights:
    """Holds weights that fit a network. part: the key of the file under which they stood, "" for the file
    itself. sha256: of the file.
    """

    weights: Weights
    part: str
    sha256: str


def read_weights(file: Path, model: nn.Module, name: str, classes: int) -> FileWeights:
    """Returns the weights in a file for `model`, which is the network `name` with `classes` outputs.

    Their names are the network's own, those that timm converts for it, or either after "module.". Raises
    InputError, saying what is wrong, for a file that is not such weights or not of this network.
    """
    before = _stat(file)
    limit = _TIMES * sum(value.numel() * 4 for value in model.state_dict().values()) + _MORE_BYTES
    if before.st_size > limit:
        raise InputError(
            f"{printable(file)} has {before.st_size:,} bytes, far more than the weights of {name} take: "
            f"at most {limit:,} are read"
        )
    part, weights = "", {}
    try:
        if file.suffix.lower() == ".safetensors":
            weights = _read_safetensors(file)
        else:
            part, weights = _state_dict_of(_read_torch(file, limit), file)
        digest = sha256_of(file)
    except OSError as error:
        raise InputError(f"{printable(file)} cannot be read: {printable(error.strerror or error)}") from None
    after = _stat(file)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(f"{printable(file)} was changed while it was read: try again")
    return FileWeights(_fitted(weights, model, name, classes, file), part, digest)


def _stat(file: Path) -> Any:
    try:
        facts = file.stat()
    except OSError as error:
        raise InputError(f"{printable(file)} cannot be read: {printable(error.strerror)}") from None
    suffixes = (".safetensors", *TORCH_SUFFIXES)
    if not stat.S_ISREG(facts.st_mode):  # opening a FIFO would wait for ever
        raise InputError(f"{printable(file)} is not a file: give one of weights, {' or '.join(suffixes[:3])}")
    if not facts.st_size:
        raise InputError(f"{printable(file)} is empty")
    if file.suffix.lower() not in suffixes:
        raise InputError(
            f"{printable(file)} is not named as weights are: give a file that ends in {', '.join(suffixes)}"
        )
    return facts


def _read_safetensors(file: Path) -> Weights:
    try:
        return load_file(file) if can_be_mapped(file) else load_bytes(file.read_bytes())
    except OSError:
        raise
    except Exception as error:  # a damaged file raises many types
        raise InputError(
            f"{printable(file)} cannot be read as safetensors; it may be cut or damaged "
            f"({printable(error)[:120]})"
        ) from None


def _read_torch(file: Path, limit: int) -> Any:
    """Returns what a file of torch holds, tensors and plain containers. Raises InputError for all else."""
    with open(file, "rb") as opened:
        is_zip = opened.read(4) == b"PK\3\4"
    if is_zip:
        _require_modest_zip(file, limit)
    try:
        # Options of a training script, which timm and others keep beside the weights; they hold no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file raises many types
        message = str(error)
        if found := re.search(r"GLOBAL ([\w.]+)", message):
            raise InputError(
                f"{printable(file)} holds more than weights: {printable(found[1])[:80]}, which would "
                "have to be executed and is not; save the state_dict alone, or as safetensors"
            ) from None
        first = message.strip().splitlines()[0] if message.strip() else type(error).__name__
        raise InputError(
            f"{printable(file)} cannot be read as weights that torch saved; it may be cut or damaged "
            f"({printable(first)[:120]})"
        ) from None


def _require_modest_zip(file: Path, limit: int) -> None:
    """Raises InputError for a zip file that would take more memory than its size lets expect."""
    try:
        entries, directory_bytes = _directory_of(file)
        if entries > _MAX_ENTRIES or directory_bytes > _MAX_DIRECTORY_BYTES:
            raise ValueError(f"its directory claims {entries:,} entries")
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except Exception as error:  # a damaged file raises many types
        raise InputError(
            f"{printable(file)} is cut or damaged: {printable(error)[:120] or 'its directory is missing'}"
        ) from None
    pickle_bytes = sum(member.file_size for member in members if member.filename.endswith(".pkl"))
    total = sum(member.file_size for member in members)
    if total > limit or pickle_bytes > _MAX_PICKLE_BYTES:
        raise InputError(f"{printable(file)} would unpack to {total:,} bytes: these are not its weights")


def _directory_of(file: Path) -> tuple[int, int]:
    """Returns the number of entries of a zip file and the bytes of its directory, by its last record."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        opened.seek(max(0, size - (1 << 16) - 42))
        tail = opened.read()
        end = tail.rfind(b"PK\5\6")
        if end < 0:
            raise ValueError("its end is missing")
        entries, directory_bytes = struct.unpack_from("<HI", tail, end + 10)
        locator = end - 20  # of the record of a file of 64-bit sizes, where there is one
        if tail[max(0, locator) : end].startswith(b"PK\6\7"):
            opened.seek(struct.unpack_from("<Q", tail, locator + 8)[0])
            entries, directory_bytes = struct.unpack_from("<QQ", opened.read(56), 32)
        return entries, directory_bytes


def _state_dict_of(content: Any, file: Path) -> tuple[str, dict[str, Any]]:
    """Returns the key under which weights stand in what a file holds, "" for the whole, and the weights."""
    if isinstance(content, dict):
        for part in _PARTS:
            if isinstance(content.get(part), dict) and content[part]:
                return part, content[part]
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return "", content
        held = f"the keys {_some(map(str, content))}" if content else "nothing"
    else:
        held = f"a {type(content).__name__}"
    raise InputError(
        f"{printable(file)} holds {held} and no weights by name: save the state_dict of the network, "
        f"alone or as one of {', '.join(_PARTS)}"
    )


def _fitted(weights: dict[str, Any], model: nn.Module, name: str, classes: int, file: Path) -> Weights:
    """Returns the weights under the network's own names. Raises InputError if they are not its."""
    plain = _without_prefixes(weights, model)
    for key, value in plain.items():
        if (
            not isinstance(value, torch.Tensor)
            or value.layout is not torch.strided
            or value.is_quantized
            or value.is_complex()
            or value.device.type != "cpu"
        ):
            raise InputError(f"{printable(file)}: {printable(key)[:80]} is not a plain tensor of numbers")
    plain = without_auxiliary_heads(plain) if _differs(plain, model) else plain
    if _differs(plain, model):
        converted = _converted(plain, model, name)
        if not _differs(converted, model):
            return converted
        raise InputError(_misfit(plain, model, name, classes, file))
    return plain


def _without_prefixes(weights: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Returns weights without what wrappers put before every name."""
    plain = {str(key): value for key, value in weights.items() if key != "n_averaged"}  # of an averaged model
    own = set(model.state_dict())
    while plain and not own & plain.keys():
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in plain)), "")
        if not prefix:
            break
        plain = {key.removeprefix(prefix): value for key, value in plain.items()}
    return plain


def _differs(weights: Weights, model: nn.Module) -> bool:
    return any(_differences(weights, model))


def _differences(weights: Weights, model: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """Returns the names that are missing, that are unknown, and those of another shape."""
    own = model.state_dict()
    missing = [key for key in own if key not in weights and not key.endswith(_UNTRAINED)]
    unknown = [key for key in weights if key not in own]
    other_shape = [key for key, value in own.items() if key in weights and weights[key].shape != value.shape]
    return missing, unknown, other_shape


def _converted(weights: Weights, model: nn.Module, name: str) -> Weights:
    """Returns weights as timm itself converts published ones for this network, or as they are."""
    library, bare = find_library(name)
    if library != "timm":
        return weights
    from timm.models import model_entrypoint

    module = sys.modules[model_entrypoint(bare.partition(".")[0]).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return weights
    try:
        converted = convert(dict(weights), model)
        return converted if all(isinstance(v, torch.Tensor) for v in converted.values()) else weights
    except Exception:  # it is written for the weights that were published
        return weights


def _misfit(weights: Weights, model: nn.Module, name: str, classes: int, file: Path) -> str:
    """Returns a line on how weights differ from those of the network."""
    missing, unknown, other_shape = _differences(weights, model)
    heads, own = head_names(model), model.state_dict()
    if other_shape and not missing and not unknown and all(is_of_head(key, heads) for key in other_shape):
        key = other_shape[0]
        outputs = weights[key].shape[0] if weights[key].ndim else 0
        return (
            f"{printable(file)} has a last layer of {outputs:,} outputs ({key} {_shape(weights[key])}), "
            f"not of {classes:,}: list its {outputs:,} classes with --classes"
        )
    parts = []
    if missing:
        parts.append(f"it lacks {len(missing):,} of {len(own):,} weights, such as {_some(missing)}")
    if unknown:
        parts.append(f"it has {len(unknown):,} that the network does not know, such as {_some(unknown)}")
    if other_shape:
        shapes = (f"{key} {_shape(weights[key])} instead of {_shape(own[key])}" for key in other_shape)
        parts.append(f"{len(other_shape):,} have another shape, such as {_some(shapes)}")
    return f"{printable(file)} does not hold the weights of {printable(name)}: {'; '.join(parts)}"


def _shape(value: torch.Tensor) -> str:
    return "×".join(map(str, value.shape)) or "of a single number"


def _some(names: Iterable[str]) -> str:
    """Returns the first of some names, and how many there are more."""
    every = [printable(name)[:80] for name in names]
    return ", ".join(every[:_SHOWN]) + (", …" if len(every) > _SHOWN else "")
