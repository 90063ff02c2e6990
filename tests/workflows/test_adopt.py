"""Adopted networks: what their run folder holds, and that every command takes it like any other."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_data import fill

import qrdali
from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.interfaces import SilentListener
from qrdali.models import create, preprocessing
from qrdali.runs.folder import load_best
from qrdali.runs.settings import read_toml

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
# Of the network: those of the data set in another order, two more, and synsets as names.
SYNSETS = ("n00000000", "n00000001", "n00000002", "n00000003", "n00000004", "n00000005")


@pytest.fixture(scope="module")
def readable(dataset: Dataset) -> tuple[str, ...]:
    return ("zebra, striped horse", *(f"{name}, thing" for name in dataset.classes[::-1]), "yak")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, readable: tuple[str, ...]) -> Path:
    """six.safetensors: a network of six classes; six.tsv: their names; thousand.safetensors: another."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    save_file(create("test_resnet", 6).state_dict(), folder / "six.safetensors")
    save_file(create("test_resnet", 1000).state_dict(), folder / "thousand.safetensors")
    rows = zip(SYNSETS, readable, strict=True)
    (folder / "six.tsv").write_text("".join(f"{synset}\t{name}\n" for synset, name in rows))
    return folder


class Lines(SilentListener):
    """Keeps the lines that a workflow reports."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def adopted(files: Path, run: Path, **options: Any) -> qrdali.Run:
    values: dict[str, Any] = {
        "weights": files / "six.safetensors",
        "classes": files / "six.tsv",
        "input_size": 32,
        "mean": MEAN,
        "std": STD,
    }
    return qrdali.adopt("test_resnet", run=run, **{**values, **options})


def constant(files: Path, label: int) -> Path:
    """Weights that answer `label` for every image."""
    model = create("test_resnet", 6)
    torch.nn.init.zeros_(model.fc.weight)  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        model.fc.bias.copy_(torch.eye(6)[label] * 5)  # type: ignore[union-attr, operator]
    save_file(model.state_dict(), files / f"constant-{label}.safetensors")
    return files / f"constant-{label}.safetensors"


def command(*words: object) -> Any:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout) if "--json" in words else result.output


def test_the_folder_holds_best_and_a_config_that_says_from_what(
    files: Path, readable: tuple[str, ...], tmp_path: Path
) -> None:
    run = adopted(files, tmp_path / "r")
    assert sorted(path.name for path in run.folder.iterdir()) == ["best", "config.toml"]
    held = sorted(path.name for path in (run.folder / "best").iterdir())
    assert held == ["SHA256SUMS", "model.safetensors", "state.json"]
    config = read_toml(run.folder / "config.toml")
    assert config["method"] == "adopted"
    file = files / "six.safetensors"
    assert config["adopted"]["weights"] == str(file)
    assert config["adopted"]["file_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    best = hashlib.sha256((run.folder / "best" / "model.safetensors").read_bytes()).hexdigest()
    assert config["adopted"]["sha256"] == best
    assert (run.classes, run.best.readable) == (SYNSETS, readable)
    assert (run.best.epoch, run.best.val_accuracy, run.metrics().num_rows) == (0, None, 0)
    assert (run.preprocessing.mean, run.preprocessing.std) == (MEAN, STD)
    assert (run.preprocessing.fit, run.preprocessing.input_size) == ("whole", 32)
    assert (run.settings.method, run.adopted.source if run.adopted else "") == ("adopted", "file")
    images = torch.rand(2, 3, 32, 32)
    model = create("test_resnet", 6).eval()
    model.load_state_dict(load_file(file))
    with torch.no_grad():
        assert torch.equal(run.model()(images), model(images))


def test_center_has_the_published_crop(files: Path, tmp_path: Path) -> None:
    run = adopted(files, tmp_path / "r", fit="center", mean=None, std=None, interpolation="bicubic")
    expected = preprocessing("test_resnet", 32, "center")
    assert run.preprocessing.crop_share == expected.crop_share == 0.95
    assert run.preprocessing.mean == expected.mean
    assert (run.preprocessing.fit, run.preprocessing.interpolation) == ("center", "bicubic")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "none.pth"}, "none.pth cannot be read: No such file"),
        ({"classes": "imagenet"}, "has a last layer of 6 outputs .fc.weight 6×96., not of 1,000"),
        ({"classes": None}, "has a last layer of 6 outputs .fc.weight 6×96., not of 1,000: list its 6"),
        ({"mean": (124.0, 116.0, 104.0)}, "mean is 124,116,104: give 3 numbers"),
        ({"std": (0.0, 0.1, 0.2)}, "std is 0,0.1,0.2: give 3 numbers, of red, green and blue, from 0.001"),
        ({"mean": (0.5,)}, "mean is 0.5: give 3 numbers"),
        ({"fit": "squash"}, "fit is 'squash': give one of whole, center"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"input_size": 4}, "input_size is 4: choose 8 to 4096"),
        ({"weights": "hf_hub:../../etc"}, "weights is 'hf_hub:../../etc': give hf_hub: and a repository"),
    ],
)
def test_what_cannot_be_adopted_leaves_nothing_behind(
    options: dict[str, Any], message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(qrdali.InputError, match=message):
        adopted(files, tmp_path / "r", **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(qrdali.InputError, match="no model is called 'resnet0'"):
        qrdali.adopt("resnet0", run=tmp_path / "r")


def test_a_list_of_another_length_and_damaged_weights_are_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "five.tsv").write_text("a\nb\nc\nd\ne\n")
    with pytest.raises(qrdali.InputError, match="has a last layer of 6 outputs .* not of 5: list its 6"):
        adopted(files, tmp_path / "r", classes=tmp_path / "five.tsv")
    with pytest.raises(qrdali.InputError, match="classes lists 5 classes, the last layer of resnet18 has"):
        qrdali.adopt("resnet18", run=tmp_path / "r", classes=tmp_path / "five.tsv")
    model = create("test_resnet", 6)
    torch.nn.init.constant_(model.fc.weight, float("nan"))  # type: ignore[union-attr, arg-type]
    save_file(model.state_dict(), tmp_path / "nan.safetensors")
    with pytest.raises(qrdali.InputError, match="values that are not finite: its weights are damaged"):
        adopted(files, tmp_path / "r", weights=tmp_path / "nan.safetensors")
    assert not (tmp_path / "r").exists()


def test_a_folder_that_holds_something_is_not_replaced(files: Path, tmp_path: Path) -> None:
    run = adopted(files, tmp_path / "r")
    before = (run.folder / "config.toml").read_bytes()
    with pytest.raises(qrdali.InputError, match="already holds a run"):
        adopted(files, tmp_path / "r", fit="center")
    assert (run.folder / "config.toml").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(qrdali.InputError, match="holds 'file', which is no run's"):
        adopted(files, tmp_path / "other")
    (tmp_path / "new").mkdir()
    assert adopted(files, tmp_path / "new").best.model == "test_resnet"


def torchvision_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder in which torchvision finds what it would otherwise download."""
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    cache = home / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    return cache


class MakesAFile:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.file),)


@pytest.mark.parametrize("how", ["adopt", "pretrained"])
def test_code_in_a_cached_file_of_torchvision_is_not_executed(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = torchvision_cache(tmp_path, monkeypatch) / "squeezenet1_1-b8a52dc0.pth"
    torch.save({"classifier.1.weight": MakesAFile(tmp_path / "made")}, file)
    load = {
        "adopt": lambda: qrdali.adopt("torchvision/squeezenet1_1", run=tmp_path / "r"),
        "pretrained": lambda: create("torchvision/squeezenet1_1", 5, pretrained=True),
    }[how]
    with pytest.raises(qrdali.RunError, match=r"b8a52dc0.pth holds more than tensors, .* remove it") as error:
        load()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "r").exists()
    torch.load(file, weights_only=False)  # it would have been
    assert (tmp_path / "made").exists()


def test_published_weights_of_timm_and_torchvision_come_with_their_whole_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    torch.manual_seed(3)
    networks = {"timm": create("test_resnet", 1000), "torchvision": create("torchvision/squeezenet1_1", 1000)}
    build_timm = timm.create_model

    def of_timm(name: str, **options: Any) -> Any:
        return networks["timm"] if options.pop("pretrained", False) else build_timm(name, **options)

    monkeypatch.setattr(timm, "create_model", of_timm)
    cache = torchvision_cache(tmp_path, monkeypatch)
    torch.save(networks["torchvision"].state_dict(), cache / "squeezenet1_1-b8a52dc0.pth")
    for library, model, weights in (
        ("timm", "test_resnet", "timm/test_resnet.r160_in1k"),
        ("torchvision", "torchvision/squeezenet1_1", "torchvision/SqueezeNet1_1_Weights.IMAGENET1K_V1"),
    ):
        run = qrdali.adopt(model, run=tmp_path / library, input_size=64)
        assert run.adopted is not None
        assert (run.adopted.source, run.adopted.weights) == ("published", weights)
        assert (len(run.classes), run.classes[134], run.best.readable[134]) == (1000, "n02012849", "crane")
        held, own = run.model().state_dict(), networks[library].state_dict()
        assert all(torch.equal(held[key], value) for key, value in own.items())


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (
            "test_resnet",
            r"model.safetensors of https://huggingface.co/timm/test_resnet.r160_in1k elsewhere",
        ),
        (
            "torchvision/resnet18",
            r"download https://\S+resnet18-f37072fd.pth elsewhere .*, or put it into \S+/check",
        ),
    ],
)
def test_without_a_network_one_line_says_what_to_do(
    model: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    import torch.hub

    def fails(*_: Any, **options: Any) -> Any:
        if "/" in model or options.get("pretrained"):
            logging.getLogger("huggingface_hub").warning("Retrying in 1s")
            raise OSError("Name or service not known\nand more")
        return built(*_, **options)

    built = timm.create_model
    torchvision_cache(tmp_path, monkeypatch)
    monkeypatch.setattr(
        *((timm, "create_model") if "/" not in model else (torch.hub, "download_url_to_file")), fails
    )
    with pytest.raises(qrdali.RunError, match=advice) as error:
        qrdali.adopt(model, run=tmp_path / "r")
    assert "with weights" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r").exists()


def test_a_repository_of_the_hub(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    config: dict[str, Any] = {
        "architecture": "test_resnet",
        "num_classes": 6,
        "label_names": list(SYNSETS),
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 48, 48]},
    }

    def download(repository: str, file: str, revision: str | None) -> str:
        assert (repository, revision) == ("me/net", "v2")
        if file == "config.json":
            (tmp_path / file).write_text(json.dumps(config))
            return str(tmp_path / file)
        if file == "model.safetensors":
            return str(files / "six.safetensors")
        raise EntryNotFoundError(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    run = qrdali.adopt("test_resnet", run=tmp_path / "r", weights="hf_hub:me/net@v2")
    assert run.adopted is not None
    assert (run.adopted.source, run.adopted.weights) == ("hub", "hf_hub:me/net@v2")
    assert (run.classes, run.preprocessing.mean) == (SYNSETS, (0.1, 0.2, 0.3))
    assert run.preprocessing.input_size == 48
    config["architecture"] = "resnet50.a1_in1k"
    with pytest.raises(qrdali.InputError, match="holds weights of resnet50.a1_in1k, not of test_resnet"):
        qrdali.adopt("test_resnet", run=tmp_path / "s", weights="hf_hub:me/net@v2")

    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("check your connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        qrdali.RunError, match=r"download model.safetensors of https://huggingface.co/me/net else"
    ):
        qrdali.adopt("test_resnet", run=tmp_path / "s", weights="hf_hub:me/net@v2")


def test_a_subset_is_evaluated_among_all_classes_of_the_network(
    files: Path, dataset: Dataset, images: Path, readable: tuple[str, ...], tmp_path: Path
) -> None:
    run = adopted(files, tmp_path / "r")
    (result,) = qrdali.evaluate(run, dataset, split="test", device="cpu", threads=1)
    pre = run.preprocessing
    loader = qrdali.Loader(
        dataset["test"], input_size=32, batch_size=12, mean=pre.mean, std=pre.std, device="cpu", threads=1
    )
    (batch,) = loader.epoch(0)
    with torch.no_grad():
        predictions = run.model()(batch.images).argmax(1).numpy()[np.argsort(batch.samples.numpy())]
    names = [dataset.classes[label] for label in dataset["test"].labels(np.arange(12))]
    labels = [readable.index(f"{name}, thing") for name in names]
    rows = run.rows("test")
    assert rows["label"].to_pylist() == labels
    assert rows["prediction"].to_pylist() == predictions.tolist()
    assert result["correct"] == sum(predictions == labels)
    # The same images as a folder of class folders, whose names are the first synonyms.
    (as_set,) = qrdali.evaluate(run, sets={"mine": images / "test"}, device="cpu", threads=1)
    assert as_set["correct"] == result["correct"]
    assert sorted(run.rows("mine")["label"].to_pylist()) == sorted(labels)


def test_a_constant_network_shows_how_labels_are_counted(
    files: Path, dataset: Dataset, images: Path, tmp_path: Path
) -> None:
    """It answers class 4 of the network, which is class 0 of the data; class 5 is none of the data's."""
    run = adopted(files, tmp_path / "r", weights=constant(files, 4))
    out = command(
        "evaluate",
        "--run",
        run.folder,
        "--data",
        dataset.folder,
        "--split",
        "val",
        "--device",
        "cpu",
        "--json",
    )
    assert (out["correct"], out["images"]) == (3, 12)
    options = ("--reduction", "color", "--step", ".25", "--device", "cpu", "--threads", 1)
    mepi = tmp_path / "mepi"
    summary = command(
        *("build-mepi", "--run", run.folder, "--data", dataset.folder, "--out", mepi, *options, "--json")
    )
    assert (summary["color"]["images"], summary["color"]["without_mepi"]) == (12, 9)
    name = dataset.classes[0]
    assert summary["color"]["near_void_class"] == name
    assert [path.name for path in (mepi / "color").iterdir()] == [name]
    manifest = pq.read_table(mepi / "manifest.parquet").to_pydict()
    assert set(manifest["label"]) == {0}
    read_back = command(
        *("evaluate", "--run", run.folder, "--set", f"m={mepi / 'color'}", "--device", "cpu", "--json")
    )
    assert (read_back["accuracy"], read_back["images"]) == (1.0, 3)
    again = command(
        *("build-mepi", "--run", run.folder, "--data", dataset.folder, "--out", mepi, *options, "--resume")
    )
    assert "color is finished" in again
    other = adopted(files, tmp_path / "other", weights=constant(files, 5))
    summary = qrdali.build_mepi(
        other, dataset, out=tmp_path / "none", reduction="color", step=0.25, device="cpu", threads=1
    )
    assert summary["color"]["without_mepi"] == 12
    qrdali.evaluate(other, dataset, split="val", device="cpu", threads=1)
    compared = qrdali.compare(run, other, set="val")
    assert (compared.a, compared.b, compared.c, compared.d) == (0, 3, 0, 9)
    page = qrdali.write_report([run, other], mepi=[mepi], out=tmp_path / "report").page.read_text()
    assert "unknown training images" in page
    assert f"adopted from the file {files / 'constant-4.safetensors'}" in page
    assert any(name in table.read_text() for table in (tmp_path / "report" / "tables").glob("*class*.csv"))


def test_a_data_set_with_a_class_of_nobody_is_refused(files: Path, dataset: Dataset, tmp_path: Path) -> None:
    run = adopted(files, tmp_path / "r", weights=files / "thousand.safetensors", classes=None)
    message = "has the class orange-striped-disc, which is not a class of the run"
    with pytest.raises(qrdali.InputError, match=message):
        qrdali.evaluate(run, dataset, device="cpu")
    with pytest.raises(qrdali.InputError, match=message):
        qrdali.build_mepi(run, dataset, out=tmp_path / "mepi", device="cpu")
    assert sorted(path.name for path in run.folder.iterdir()) == ["best", "config.toml"]


def test_imagenets_classes_are_matched_by_synset_and_by_readable_name(files: Path, tmp_path: Path) -> None:
    run = adopted(files, tmp_path / "r", weights=files / "thousand.safetensors", classes="imagenet")
    for split in ("train", "test"):
        for name in ("n02012849", "great white shark", "tench, Tinca tinca"):
            fill(tmp_path / "images" / split / name, 2)
    data = qrdali.index(tmp_path / "images", tmp_path / "data", threads=1)
    qrdali.evaluate(run, data, sets={"mine": tmp_path / "images" / "test"}, device="cpu", threads=1)
    paths, labels = (run.rows("test")[column].to_pylist() for column in ("path", "label"))
    label_of = {Path(path).parent.name: label for path, label in zip(paths, labels, strict=True)}
    assert label_of == {"n02012849": 134, "great white shark": 2, "tench, Tinca tinca": 0}
    assert run.rows("mine")["label"].to_pylist() == [0, 0, 2, 2, 134, 134]  # in the network's order
    for split in ("train", "test"):
        fill(tmp_path / "images" / split / "crane", 1)
    cranes = qrdali.index(tmp_path / "images", tmp_path / "cranes", threads=1)
    both = "'crane' names two classes, n02012849 .crane. and n03126707 .crane.: use n02012849 or n03126707"
    with pytest.raises(qrdali.InputError, match=both):
        qrdali.evaluate(run, cranes, device="cpu")
    with pytest.raises(qrdali.InputError, match=both):
        qrdali.build_mepi(run, cranes, split="test", out=tmp_path / "mepi", device="cpu")
    with pytest.raises(qrdali.InputError, match=both):
        qrdali.evaluate(run, sets={"mine": tmp_path / "images" / "test"}, device="cpu")


def test_init_replaces_the_head_of_other_classes_and_says_so(
    files: Path, dataset: Dataset, tmp_path: Path
) -> None:
    start = adopted(files, tmp_path / "r")
    listener = Lines()
    options = {"max_epochs": 1, "batch_size": 8, "device": "cpu", "threads": 1, "lr": 1e-9, "weight_decay": 0}
    tuned = qrdali.train(
        "baseline", data=dataset, run=tmp_path / "ft", init=start, progress=listener, **options
    )
    said = [line for line in listener.lines if "last layer" in line]
    assert said == [
        f"{tmp_path / 'r'} was adopted with 6 other classes: its last layer is replaced by a fresh one of "
        "the data set's 4"
    ]
    assert tuned.classes == dataset.classes
    assert tuned.preprocessing == start.preprocessing
    before, after = load_best(start.folder)[0].state_dict(), load_best(tuned.folder)[0].state_dict()
    assert after["fc.weight"].shape == (4, 96)
    kept = [key for key in before if not key.startswith("fc.") and "running" not in key and "num_" not in key]
    assert len(kept) > 20
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in kept)
    first = json.loads((tuned.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["chain"]["init"]["label"] == "adopted"
    qrdali.evaluate(tuned, dataset, split="test", device="cpu", threads=1)
    qrdali.evaluate(start, dataset, split="test", device="cpu", threads=1)
    assert qrdali.compare(start, tuned, set="test").images == 12
    page = qrdali.write_report([start, tuned], out=tmp_path / "report").page
    assert page.is_file()


def test_init_keeps_the_head_of_the_same_classes(files: Path, dataset: Dataset, tmp_path: Path) -> None:
    save_file(create("test_resnet", 4).state_dict(), tmp_path / "four.safetensors")
    start = adopted(files, tmp_path / "r", weights=tmp_path / "four.safetensors", classes=dataset)
    listener = Lines()
    tuned = qrdali.train(
        "baseline",
        data=dataset,
        run=tmp_path / "ft",
        init=start,
        progress=listener,
        max_epochs=1,
        batch_size=8,
        lr=1e-12,
        weight_decay=0,
        device="cpu",
        threads=1,
    )
    assert not [line for line in listener.lines if "last layer" in line]
    before, after = start.model().state_dict(), tuned.model().state_dict()
    assert torch.allclose(before["fc.weight"], after["fc.weight"], atol=1e-6)


def test_an_adopted_run_cannot_be_trained_on(files: Path, dataset: Dataset, tmp_path: Path) -> None:
    start = adopted(files, tmp_path / "r")
    with pytest.raises(
        qrdali.InputError, match="holds an adopted network, which has no training to continue"
    ):
        qrdali.train("baseline", data=dataset, run=start, resume=True)
    with pytest.raises(qrdali.InputError, match="trains nothing: start a training from an adopted run with"):
        qrdali.train("adopted", data=dataset, run=tmp_path / "s")  # type: ignore[arg-type]


def test_the_command_and_its_json(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    words = ("--weights", "six.safetensors", "--classes", "six.tsv", "--input-size", 32, "--mean", ".5,.5,.5")
    out = command("adopt", "test_resnet", "--run", tmp_path / "r", *words, "--json")
    assert out["classes"] == list(SYNSETS)
    assert out["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert out["adopted"]["weights"] == str(files / "six.safetensors")
    wrong = CliRunner().invoke(cli, ["adopt", "test_resnet", "--run", "x", "--mean", "a,b"])
    assert wrong.exit_code == 2
    assert "is not three numbers: give them as 0.485,0.456,0.406" in wrong.output


def test_a_damaged_table_is_one_line(files: Path, tmp_path: Path) -> None:
    run = adopted(files, tmp_path / "r")
    config = run.folder / "config.toml"
    config.write_text(config.read_text().replace('sha256 = "', 'sha256 = "x', 1))
    with pytest.raises(qrdali.RunError, match=r"config.toml: adopted.sha256: "):
        _ = run.adopted
    config.write_text('method = "adopted"\ndata = ""\n')
    with pytest.raises(qrdali.RunError, match=r"config.toml: adopted: "):
        _ = run.adopted


def test_a_network_that_somebody_registered_in_timm_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm.models

    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: None)
    with pytest.raises((qrdali.InputError, qrdali.RunError), match="with weights=FILE") as error:
        qrdali.adopt("test_resnet", run=tmp_path / "r")
    assert "\n" not in str(error.value)
