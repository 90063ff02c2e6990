"""`qrdali adopt`."""

from __future__ import annotations

from pathlib import Path

import click

from qrdali.cli.setting_options import complete_network, setting_option


def _channels(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...]:
    """Returns the numbers of R,G,B."""
    try:
        return () if text is None else tuple(map(float, text.split(",")))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not three numbers: give them as 0.485,0.456,0.406") from None


@click.command()
@click.argument("model", shell_complete=complete_network)
@click.option("--run", required=True, type=click.Path(), help="Folder for the run.")
@click.option(
    "--weights",
    metavar="FILE|hf_hub:NAME",
    help="A .safetensors or .pth file, or a repository of the Hugging Face hub.  [default: published ones]",
)
@click.option(
    "--classes",
    metavar="imagenet|DATASET|TSV",
    help="The classes of the outputs, in their order.  [default: ImageNet's, by the number of outputs]",
)
@setting_option("fit", default="whole")
@setting_option("input_size", type=int, default_text="the network's own")
@click.option("--mean", callback=_channels, metavar="R,G,B", help="In 0 … 1.  [default: the published ones]")
@click.option("--std", callback=_channels, metavar="R,G,B", help="In 0 … 1.  [default: the published ones]")
@click.option(
    "--interpolation",
    type=click.Choice(["bilinear", "bicubic"]),
    help="Of the resize to the square.  [default: the published one]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def adopt(
    model: str,
    run: str,
    weights: str | None,
    classes: str | None,
    fit: str,
    input_size: int | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str | None,
    as_json: bool,
) -> None:
    """Make a run of a network that was trained elsewhere, MODEL of `qrdali models '*'`: evaluate, build-mepi,
    compare, report and --init take it like any other.

    Published weights of timm and torchvision are downloaded with their whole last layer; a file is read
    without executing anything of it.

    \b
    Examples: qrdali adopt resnet50 --run runs/r50
              qrdali adopt torchvision/resnet50 --run runs/r50-tv --fit center
              qrdali adopt resnet50 --run runs/own --weights own.pth \\
                --classes data
              qrdali adopt tf_efficientnet_lite0 --run runs/lite \\
                --weights lite.safetensors --mean .5,.5,.5 --std .5,.5,.5
    """
    from qrdali.cli.terminal import TerminalListener, emit
    from qrdali.interfaces import JobControl
    from qrdali.runs.adoption import AdoptRequest, read_adoption
    from qrdali.workflows import adopt as workflow

    request = AdoptRequest(
        model, weights or "", classes or "", fit, input_size or 0, mean, std, interpolation or ""
    )
    best = workflow.adopt(request, Path(run), JobControl(TerminalListener()))
    if as_json:
        adoption = read_adoption(Path(run))
        assert adoption is not None
        emit({"run": run, **best.as_dict(), "adopted": adoption.model_dump()})
