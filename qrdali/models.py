"""Makes networks by name, from timm and torchvision, with the preprocessing that belongs to them."""

from __future__ import annotations

import copy
import difflib
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from qrdali.connection import hub_or_cache
from qrdali.errors import InputError, RunError, printable
from qrdali.network_heads import (
    WITH_AUXILIARY_HEADS,
    drop_auxiliary_heads,
    head_names,
    is_of_head,
    renew_heads,
    replace_head,
)
from qrdali.network_options import ModelOptions, describe_options, require_model_options
from qrdali.torchvision_weights import with_published_weights

THESIS = ("squeezenet1_1", "resnet152", "efficientnet_b3")
SMALL = ("resnet10t", "test_resnet")  # few layers, with batch-norm: for demos and tests on a CPU
FITS = ("whole", "center")
ONE_VALUE = "more than 1 value per channel"  # in torch's error of batch norm that is given one value
CROP_MODES = ("center", "squash", "border")  # timm's
INTERPOLATIONS = ("bilinear", "bicubic")

# Networks without batch-norm. SqueezeNet, for one, ends in a ReLU and dies at the rates that suit networks
# with batch-norm: it then answers one constant class.
LEARNING_RATE = {"squeezenet1_0": 1e-4, "squeezenet1_1": 1e-4, "alexnet": 1e-4, "vgg16": 1e-4}
DEFAULT_LEARNING_RATE = 1e-3  # of AdamW


@dataclass(frozen=True)
class Preprocessing:
    """Says how a reduced image becomes a network's input.

    input_size: side of the square in pixels. fit: "whole" or "center". interpolation: "bilinear" or
    "bicubic", antialiased. mean, std: per channel, in 0 … 1.

    crop_share, crop_mode: of "center", the published resize and crop: an image is resized to input_size ÷
    crop_share, which is its shorter side ("center"), both its sides ("squash") or its longer side ("border",
    padded with the mean colour), and the square is cut from the middle. Runs of version 0.1 have "center".
    """

    input_size: int
    fit: str
    crop_share: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_mode: str = "center"


@dataclass(frozen=True)
class Description:
    """Describes a network's size and cost.

    parameters: their number. gmacs: 10^9 multiply-adds of one image, what the literature calls GFLOP. Both
    are None where torch cannot count them. input_size: side in pixels.
    """

    name: str
    parameters: int | None
    gmacs: float | None
    input_size: int


@lru_cache
def model_names() -> tuple[str, ...]:
    """Returns every name that `create` takes without a prefix, sorted."""
    import timm

    return tuple(sorted({*timm.list_models(), *_torchvision_names()}))


def _torchvision_names() -> list[str]:
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def find_library(name: str) -> tuple[str, str]:
    """Returns ("timm" or "torchvision", name without a prefix). Raises InputError for an unknown name.

    timm's network is taken where both have one; the prefix `timm/` or `torchvision/` decides otherwise.
    """
    import timm

    prefix, slash, bare = name.rpartition("/")
    libraries = {"timm": timm.is_model, "torchvision": _torchvision_names().__contains__}
    if not slash or prefix in libraries:
        for library, has in libraries.items():
            if (not slash or prefix == library) and has(bare):
                return library, bare
    near = difflib.get_close_matches(bare, model_names(), 3, 0.5)
    raise InputError(
        f"no model is called {printable(name)!r}; "
        + (f"near it: {', '.join(near)}" if near else "`qrdali models '*'` lists them")
    )


def create(
    name: str, classes: int, *, pretrained: bool = False, options: ModelOptions | None = None
) -> nn.Module:
    """Returns a network that maps float32 [N, 3, S, S] to logits [N, classes].

    pretrained: with published weights and a fresh last layer, else with random ones. options: more keywords
    of the network's class. Raises InputError for an unknown name or unknown options, RunError if published
    weights cannot be loaded.
    """
    library, bare = find_library(name)
    given = dict(options or {})
    if given:
        require_model_options(name, type(create_on_meta(name, classes)), given)
    try:
        if library == "timm":
            import timm

            with hub_or_cache() if pretrained else nullcontext():
                model: nn.Module = timm.create_model(
                    bare, num_classes=classes, pretrained=pretrained, **given
                )
            config: Any = getattr(model, "pretrained_cfg", None) or {}
            if pretrained and config.get("num_classes") != classes:  # whose head is published too otherwise
                renew_heads(model)
            return model
        import torchvision

        if not pretrained:
            # What published weights ask for, so that `create` makes the same network for weights read back.
            published: dict[str, Any] = {}
            if bare in WITH_AUXILIARY_HEADS:
                published = {"transform_input": True, "init_weights": True}
            elif bare.startswith("vit_"):  # vit_h_14 is published for 518 px and built for 224
                published = {"image_size": preprocessing(name).input_size}
            asked = {"num_classes": classes, **published, **given}
            model = torchvision.models.get_model(bare, weights=None, **asked)
            drop_auxiliary_heads(model)
            return model
        model = with_published_weights(bare, **given)
        drop_auxiliary_heads(model)
    except (InputError, RunError):
        raise
    except Exception as error:  # download errors have many types; the message is what matters
        if given and not isinstance(error, OSError):
            raise InputError(
                f"--model-option {describe_options(given)}: {bare} cannot be built with it "
                f"({printable(error)[:120]})"
            ) from None
        if not pretrained:
            raise RunError(f"{bare} cannot be built: {printable(error)}") from None
        raise RunError(
            f"the published weights of {bare} cannot be loaded ({printable(error)[:160]}): connect once so "
            f"that they are cached; or download them elsewhere, make a run of them with `qrdali adopt {bare} "
            "--weights FILE --run RUN` and give --init RUN; or train from scratch without --pretrained"
        ) from None
    replace_head(model, classes)
    return model


def with_new_head(
    name: str, weights: dict[str, torch.Tensor], classes: int, options: ModelOptions | None = None
) -> nn.Module:
    """Returns the network `name` with a fresh last layer of `classes` outputs and the other weights given.

    weights: the state dict of the same network with a last layer of any size. Raises RunError if they are
    not.
    """
    model = create(name, classes, options=options)
    renew_heads(model)
    heads = head_names(model)
    kept = {key: value for key, value in weights.items() if not is_of_head(key, heads)}
    try:
        missing, unexpected = model.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise RunError(f"the weights do not fit {name}: {printable(error)[:160]}") from None
    if strange := [*unexpected, *(key for key in missing if not is_of_head(key, heads))]:
        raise RunError(
            f"{name} has no last layer of its own to replace: {printable(strange[0])} does not fit"
        )
    return model


def preprocessing(name: str, input_size: int | None = None, fit: str = "whole") -> Preprocessing:
    """Returns the published preprocessing of `name`, at `input_size` if that is given.

    fit: "whole" or "center". Raises InputError for an unknown name, or a size outside 8 … 4096.
    """
    library, bare = find_library(name)
    if library == "timm":
        from timm.data import resolve_model_data_config
        from timm.models import get_pretrained_cfg

        published = get_pretrained_cfg(bare)  # None for a network that somebody else has registered
        config: dict[str, Any] = resolve_model_data_config(
            None, pretrained_cfg=published.to_dict() if published else {"input_size": (3, 224, 224)}
        )
        side, share = int(config["input_size"][-1]), float(config["crop_pct"])
        interpolation, mean, std = config["interpolation"], config["mean"], config["std"]
        crop_mode = str(config["crop_mode"])
    else:
        import torchvision

        transform = torchvision.models.get_model_weights(bare).DEFAULT.transforms()
        side = int(transform.crop_size[0])
        share = side / int(transform.resize_size[0])
        interpolation, mean, std = transform.interpolation.value, transform.mean, transform.std
        crop_mode = "center"
    if input_size is not None and not 8 <= input_size <= 4096:
        raise InputError(f"--input-size is {input_size}: choose 8 to 4096 pixels")
    if interpolation not in INTERPOLATIONS:
        interpolation = "bicubic"
    if fit != "center":
        crop_mode = "center"  # so that runs that show the whole image have one preprocessing
    elif crop_mode not in CROP_MODES:
        raise InputError(
            f"--fit center: {printable(name)} crops by {printable(crop_mode)!r}, which is not one of "
            f"{', '.join(CROP_MODES)}: choose --fit whole"
        )
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    return Preprocessing(input_size or side, fit, share, interpolation, mean, std, crop_mode)


def learning_rate(name: str) -> float:
    """Returns a rate at which AdamW trains `name` from scratch."""
    return LEARNING_RATE.get(name.rpartition("/")[2], DEFAULT_LEARNING_RATE)


def describe(
    name: str, classes: int = 1000, input_size: int | None = None, options: ModelOptions | None = None
) -> Description:
    """Returns size and cost of `name` with `options`, at its own input size unless one is given.

    Read from the table that comes with qrdali where it holds this network of the installed library, else
    counted, which takes about a second. Nothing is downloaded.
    """
    from qrdali.network_costs import cost_of

    library, bare = find_library(name)
    known = cost_of(library, bare) if classes == 1000 and not options else None
    if known is not None and input_size in (None, known.input_size):
        return Description(name, known.parameters, known.gmacs, known.input_size)
    return count(name, classes, input_size, options)


def count(
    name: str, classes: int = 1000, input_size: int | None = None, options: ModelOptions | None = None
) -> Description:
    """Returns size and cost of `name` with `options`, counted on torch's meta device.

    No weights are allocated. Some networks cannot be built or run there, because they look at values: they
    have no figures.
    """
    from torch.utils.flop_counter import FlopCounterMode

    side = input_size or preprocessing(name).input_size
    try:
        # The counter stops at a parameter that is a module's input and wants a gradient (a class token).
        model = create_on_meta(name, classes, options).eval().requires_grad_(False)
    except Exception:  # networks fail without data in many ways
        return Description(name, None, None, side)
    gmacs: float | None = None
    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, side, side))
        gmacs = counter.get_total_flops() / 2e9
    except Exception:  # likewise, or under the counter
        pass
    return Description(name, sum(p.numel() for p in model.parameters()), gmacs, side)


class _MetaWeights(TorchFunctionMode):
    """Makes weights on torch's meta device, but not the short ranges that a network's layout is read from."""

    _FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in self._FACTORIES and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


def create_on_meta(name: str, classes: int, options: ModelOptions | None = None) -> nn.Module:
    """Returns a network on the meta device, where it has shapes but no values. Raises as `create`."""
    try:
        with torch.device("meta"):
            return create(name, classes, options=options)
    except RunError:
        with _MetaWeights():
            return create(name, classes, options=options).to("meta")


def require_logits(
    name: str,
    classes: int,
    input_size: int,
    model: nn.Module | None = None,
    options: ModelOptions | None = None,
) -> None:
    """Raises InputError if a network in training answers with anything but a tensor of logits.

    Tried on torch's meta device, which costs nothing. A network that does not run there is tried on two black
    images with `model`, itself on the CPU and left as it is; without `model` it is taken to be right.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                network = create_on_meta(name, classes, options).train()
                output = network(torch.empty(2, 3, input_size, input_size))
        except Exception:  # networks fail without data in many ways
            if model is None:
                return
            try:
                output = copy.deepcopy(model).train()(torch.zeros(2, 3, input_size, input_size))
            except Exception as error:  # of any type: it is the network's own code
                raise InputError(
                    f"{printable(name)} cannot be trained on images of {input_size} px "
                    f"({printable(error)[:120]}): choose another --input-size, or another of "
                    "`qrdali models '*'`"
                ) from None
    if not isinstance(output, torch.Tensor) or output.shape != (2, classes):
        kind = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(
            f"{name} answers in training with {kind} instead of {classes} logits an image: it cannot be "
            "trained here, choose another of `qrdali models '*'`"
        )


def fails_on_one_image(model: nn.Module, input_size: int) -> bool:
    """Returns whether `model`, on the CPU, cannot train on a single image of `input_size`.

    So it is with batch norm where one image leaves one value per channel. The model is left as it is.
    """
    trial = copy.deepcopy(model).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial(torch.zeros(1, 3, input_size, input_size))
    except ValueError as error:
        return ONE_VALUE in str(error)
    except Exception:  # another fault, which is not about the number of images
        return False
    return False


def require_size(model: nn.Module, name: str, input_size: int) -> None:
    """Raises InputError if `model`, on the CPU, does not take images of `input_size` instead of its own size.

    Many transformers do not.
    """
    own_size = preprocessing(name).input_size
    if input_size == own_size:
        return
    training = model.training
    model.eval()
    try:
        error = _error_at(model, input_size)
        if error and not _error_at(model, own_size):  # otherwise it is not the size
            raise InputError(
                f"--input-size is {input_size}, and {name} does not take it ({printable(error)[:120]}): "
                f"leave it out, the network's own is {own_size}"
            )
    finally:
        model.train(training)


def _error_at(model: nn.Module, side: int) -> Exception | None:
    """Returns what a forward pass of one black image raises, or None."""
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, side, side))
    except Exception as error:  # of any type: it is the network's own code
        return error
    return None
