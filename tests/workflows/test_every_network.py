"""Trains networks by `qrdali train`, a step and an evaluation each, or sees that they are refused in time.

`make nightly` runs it: about ten minutes of one core, so `make test` leaves it out. It takes every network
of torchvision, and of timm those named below, on 2 training images of 2 classes. Networks of more than 100
million parameters would not fit into the 4 GB that one may take (weights, gradients, AdamW's two moments, and
what is saved): of these only the building and the refusal are tried, on the meta device.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torchvision
from click.testing import CliRunner

from qrdali import models
from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.errors import InputError

MOST_PARAMETERS = 100e6
MOST_GMACS = (
    25  # of an image at the size it is tried at; a larger network is tried as if it had too many parameters
)
SIDES = (64, 128)  # tried before a network's own size
TIMM = (
    # Of distillation heads, whose training output may be a tuple.
    "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "levit_128s", "levit_conv_128s",
    "pit_ti_distilled_224", "efficientformer_l1", "efficientformerv2_s0", "repvit_m1", "swiftformer_xs",
    "volo_d1_224", "efficientvim_m1_dist",
    # Of a size that is fixed, or a multiple of a window.
    "beit_base_patch16_224", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "twins_svt_small", "tnt_s_patch16_224",
    "crossvit_tiny_240", "cait_xxs24_224", "coat_lite_tiny", "maxvit_pico_rw_256", "test_coatnet",
    "gcvit_xxtiny", "hiera_tiny_224", "mvitv2_tiny", "nest_tiny", "halonet_h1", "gmlp_ti16_224",
    "resmlp_12_224", "vit_srelpos_small_patch16_224", "vit_tiny_r_s16_p8_224", "convit_tiny",
    "eva02_tiny_patch14_224", "naflexvit_base_patch16_gap", "test_vit3", "qwen3_vit_88m",
    "gemma4_vit_167m_enc", "visformer_tiny", "tiny_vit_5m_224", "sequencer2d_s",
    # Convolutions, with and without normalization.
    "convnext_atto", "csatv2", "davit_tiny", "densenet121", "dla46_c", "dpn48b", "edgenext_xx_small",
    "efficientvit_b0", "fastvit_t8", "focalnet_tiny_srf", "ghostnet_050", "hrnet_w18_small",
    "inception_v4", "mobilenetv3_small_050", "mobilevit_xxs", "mobileone_s1", "nf_regnet_b0",
    "pvt_v2_b0", "regnetx_002", "res2net50_14w_8s", "resnest14d", "rexnet_100", "selecsls42",
    "skresnet18", "tresnet_m", "vgg11", "xcit_nano_12_p16_224", "mambaout_femto",
)  # fmt: skip
NAMES = (
    *(f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)),
    *(f"timm/{name}" for name in TIMM),
)

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """2 classes, with 1 image for training and 1 for validation each."""
    root = tmp_path_factory.mktemp("few")
    generate(root / "images", ShapesSpec(classes=2, train=1, val=1, test=1, size=(64, 64), seed=3), workers=1)
    build_dataset(root / "images", root / "data")
    return Dataset.open(root / "data")


def try_training(name: str, side: int | None, few: Dataset, run: Path) -> InputError | None:
    """Returns what `train` refused a network with, or None after a step and an evaluation."""
    words = ["train", "baseline", "--data", few.folder, "--run", run, "--model", name, "--device", "cpu"]
    words += ["--batch-size", 2, "--max-epochs", 1, *(["--input-size", side] if side else [])]
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if result.exception is None or (isinstance(result.exception, SystemExit) and not result.exception.code):
        assert (run / "best").is_dir()
        shutil.rmtree(run)
        return None
    assert isinstance(result.exception, InputError), f"{name} at {side} px: {result.exception!r}"
    assert "\n" not in str(result.exception)
    assert not run.exists(), f"{name} at {side} px was refused after its folder was made"
    return result.exception


def require_on_meta(name: str, side: int) -> None:
    """Tries a forward pass of two images without values: it gives logits, or a refusal of one line."""
    refused = ""
    try:
        models.require_logits(name, 2, side)
    except InputError as error:
        refused = str(error)
    assert "\n" not in refused
    assert not refused or "answers in training with" in refused


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_or_is_refused_before_there_is_a_folder(name: str, few: Dataset, tmp_path: Path) -> None:
    known = models.describe(name)
    assert known.parameters
    assert known.gmacs
    if known.parameters > MOST_PARAMETERS:
        require_on_meta(name, known.input_size)
        return
    for side in SIDES:
        if try_training(name, side, few, tmp_path / "run") is None:
            return
    if known.gmacs > MOST_GMACS:
        require_on_meta(name, known.input_size)
        return
    refused = try_training(name, None, few, tmp_path / "run")
    assert refused is None, f"{name} is refused at its own size: {refused}"
