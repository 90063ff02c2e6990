"""Checks the image without Docker; docker/test.sh builds and runs it.

Dockerfile, .dockerignore, compose.yaml, constraints.txt and the documents agree with the package; and what a
container lacks most is refused or survived: a GPU, a folder that may be written, shared memory.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.errors import RunError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PYTHON_OF = {"12": "3.11", "13": "3.13"}  # of each Debian


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, the rest) of the Dockerfile, continued lines joined, comments dropped."""
    lines = [
        line
        for line in (DOCKER / "Dockerfile").read_text("utf-8").splitlines()
        if not line.strip().startswith("#")
    ]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


def values(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def sent(path: str) -> bool:
    """Returns whether .dockerignore lets a path into the build.

    The last pattern that fits it, or a folder it lies in, decides.
    """
    kept = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        parts = re.split(r"(\*\*/|\*)", line.removeprefix("!"))
        pattern = "".join({"**/": "(?:.*/)?", "*": "[^/]*"}.get(part) or re.escape(part) for part in parts)
        if re.fullmatch(f"{pattern}(?:/.*)?", path):
            kept = line.startswith("!")
    return kept


def pins() -> list[Requirement]:
    return [
        Requirement(line)
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    ]


def pinned(python: str) -> dict[str, str]:
    """Name → version of constraints.txt on a Python such as 3.13.5; no name twice."""
    environment: dict[str, str] = {
        **default_environment(),
        "python_version": python.rpartition(".")[0],  # type: ignore[dict-item]
        "python_full_version": python,
    }
    installed = [pin for pin in pins() if pin.marker is None or pin.marker.evaluate(environment)]
    names = [canonicalize_name(pin.name) for pin in installed]
    assert len(names) == len(set(names)), python
    return {name: str(pin.specifier) for name, pin in zip(names, installed, strict=True)}


def test_the_base_is_pinned_and_its_python_admitted() -> None:
    stages: list[str] = []
    for origin in values("FROM"):
        name, _, stage = origin.partition(" AS ")
        assert name in stages or re.fullmatch(r"debian:\d+\.\d+-slim", name), name
        stages.append(stage)
    (base,) = {origin.split()[0] for origin in values("FROM")} - set(stages)
    assert SpecifierSet(PROJECT["requires-python"]).contains(
        PYTHON_OF[base.partition(":")[2].partition(".")[0]]
    )
    assert {source for copy in values("COPY") for source in re.findall("--from=([^ ]+)", copy)} <= set(stages)


def test_what_is_copied_is_there_and_not_ignored() -> None:
    sources = [source for copy in values("COPY") if "--from" not in copy for source in copy.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "."} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert source == "." or sent(source)


def test_the_build_gets_the_package_and_nothing_else() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")[:-1]
    context = {path for path in tracked if sent(path)}
    package = {path for path in tracked if path.split("/")[0] in ("qrdali", "pipelines", "cli", "configs")}
    assert len(package) > 60
    assert context == package | {"LICENSE", "docs/pypi.md", "pyproject.toml", "constraints.txt"}
    assert sum((ROOT / path).lstat().st_size for path in context) < 3 << 20
    for path in (
        ".git/config",
        ".venv/bin/python",
        "runs/a/best/model.safetensors",
        "demo/report/report.html",
        "qrdali.egg-info/PKG-INFO",
        "qrdali/__pycache__/a.pyc",
        "cli/x/__pycache__/a.pyc",
        ".netrc",
        "docker/Dockerfile",
    ):
        assert not sent(path), path


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the image has tomllib")
def test_the_packages_are_those_of_pyproject_in_the_versions_of_constraints() -> None:
    (install,) = [run for run in values("RUN") if "requirements.txt" in run]
    (program,) = re.findall(r"python -c '([^']+)' > requirements.txt", install)
    written = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert written.splitlines() == PROJECT["dependencies"]
    assert "-c constraints.txt -r requirements.txt" in install
    assert "--only-binary :all:" in install
    (code,) = [run for run in values("RUN") if "--prefix" in run]
    assert "--no-deps" in code
    order = [rest for name, rest in instructions() if name in ("COPY", "RUN")]
    assert order.index(install) < order.index(". ."), "a change of code would install the packages again"


@pytest.mark.parametrize("python", ["3.10.13", "3.11.7", "3.12.1", "3.13.5", "3.14.0"])
def test_each_package_has_one_exact_version(python: str) -> None:
    versions = pinned(python)
    asked = [
        Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    ]
    for requirement in asked:
        if requirement.marker is None or requirement.marker.evaluate(
            {"python_version": python.rpartition(".")[0]}
        ):
            version = versions[canonicalize_name(requirement.name)]
            assert re.fullmatch(r"==[^,*]+", version), requirement.name
            assert requirement.specifier.contains(version[2:], prereleases=True), requirement.name


def test_no_file_names_an_address_of_an_index() -> None:
    assert not [pin for pin in pins() if pin.url]
    for name in ("constraints.txt", "Makefile", "docker/Dockerfile", "docker/compose.yaml", "docker/test.sh"):
        assert not re.search(r"https?://|index-url [^\\]|@ ", (ROOT / name).read_text("utf-8")), name


def test_resolving_starts_at_the_oldest_python() -> None:
    (oldest,) = re.findall("--python-version ([0-9.]+)", (ROOT / "Makefile").read_text("utf-8"))
    assert PROJECT["requires-python"] == f">={oldest}"


def parse(words: list[str]) -> None:
    """Raises click.UsageError for a command or an option that qrdali does not have."""
    command: click.Command | None = cli
    words = list(words)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        command = command.get_command(click.Context(command), name)
        assert command is not None, name
    assert command is not None
    command.make_parser(click.Context(command)).parse_args(words)


def test_entry_point_user_and_health_check() -> None:
    (entry,), (health,) = values("ENTRYPOINT"), values("HEALTHCHECK")
    assert list(PROJECT["scripts"]) == json.loads(entry)
    check = json.loads(health.partition("CMD ")[2])
    assert check[:3] == [*json.loads(entry), "doctor", "--json"]
    parse(check[1:])
    assert values("USER") == ["qrdali"]
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("COPY", "RUN"))


def test_compose_mounts_data_read_only_and_runs_as_the_caller() -> None:
    text = (DOCKER / "compose.yaml").read_text("utf-8")
    compose = yaml.safe_load(text)
    (service,) = compose["services"].values()
    context = DOCKER / service["build"]["context"]
    assert context.resolve() == ROOT
    assert (context / service["build"]["dockerfile"]).is_file()
    parse(service["command"])
    mounts = dict(
        re.fullmatch(r"(.*?):(/.*)", re.sub(r"\$\{(\w+)[^}]*\}", r"\1", volume)).groups()  # type: ignore[union-attr]
        for volume in service["volumes"]
    )
    assert mounts == {"DATA": "/data:ro", "RUNS": "/runs", "cache": "/home/qrdali/.cache"}
    assert set(compose["volumes"]) == {"cache"}
    made = "\n".join(values("RUN") + values("WORKDIR"))
    assert all(folder in made for folder in ("/data", "/runs", "/home/qrdali/.cache"))
    assert service["user"].startswith("${OWNER:?")
    assert (service["ipc"], service["init"]) == ("host", True)
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_commands_in_the_documents_exist() -> None:
    text = "\n".join(
        (DOCKER / name).read_text("utf-8").replace("\n#", "\n") for name in ("README.md", "compose.yaml")
    )
    text = re.sub(r"\\\n", " ", text)
    commands = (
        re.findall(r"^ {4}q (.+)", text, re.M)
        + re.findall(r"-m qrdali (.+)", text)
        + re.findall(r"run --rm qrdali (.+)", text)
    )
    commands += re.findall(r"^ {4}docker run .* qrdali (\w.*)", text, re.M)
    assert {"train", "build-mepi", "report", "doctor", "data"} <= {command.split()[0] for command in commands}
    for command in commands:
        parse(shlex.split(command))
    with pytest.raises(click.UsageError):
        parse(["train", "shared", "--no-such-option"])


def test_the_script_that_builds_is_a_script() -> None:
    subprocess.run(["bash", "-n", str(DOCKER / "test.sh")], check=True)
    assert os.access(DOCKER / "test.sh", os.X_OK)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_of_shells(shell: str) -> None:
    (source,) = re.findall(rf"(_\w+)={shell}_source", "\n".join(values("RUN")))
    environment = {**os.environ, source: f"{shell}_source"}
    shown = subprocess.run(
        [sys.executable, "-m", "qrdali"],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert f"{source}={shell}_complete" in shown
    asked = {**os.environ, source: f"{shell}_complete", "COMP_WORDS": "qrdali build-m", "COMP_CWORD": "1"}
    assert (
        "build-mepi"
        in subprocess.run(
            [sys.executable, "-m", "qrdali"], cwd=ROOT, env=asked, check=True, capture_output=True, text=True
        ).stdout
    )


SMALL = (
    "--model",
    "test_resnet",
    "--input-size",
    "32",
    "--batch-size",
    "4",
    "--epochs",
    "1",
    "--threads",
    "1",
)


def test_a_gpu_that_is_not_there_is_one_line_and_no_folder(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = tmp_path / "run"
    result = CliRunner().invoke(
        cli, ["train", "shared", "--data", str(dataset.folder), "--run", str(run), *SMALL, "--device", "cuda"]
    )
    assert isinstance(result.exception, RunError)
    message = str(result.exception)
    assert "\n" not in message
    for word in ("--device cuda", "--gpus all", "driver", "--device auto"):
        assert word in message
    assert not run.exists()


def qrdali(*words: object, before: list[str]) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, started by the command `before`."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return subprocess.run(
        [*before, sys.executable, "-m", "qrdali", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_volume_that_cannot_be_written_is_one_line(dataset: Dataset, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    before = []
    if os.geteuid() == 0:  # root writes anywhere, unless it gives that up
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv")
        before = ["setpriv", "--bounding-set=-dac_override"]
    result = qrdali(
        "train",
        "shared",
        "--data",
        dataset.folder,
        "--run",
        locked / "run",
        *SMALL,
        "--device",
        "cpu",
        before=before,
    )
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("qrdali: error: ")]
    for word in (str(locked / "run"), "Permission denied", "--run", "--user"):
        assert word in line
    assert list(locked.iterdir()) == []


@pytest.mark.slow
def test_one_process_needs_no_shared_memory(dataset: Dataset, tmp_path: Path) -> None:
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root, to have a /dev/shm of its own")
    before = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=4k,nr_inodes=1 none /dev/shm && exec "$@"',
        "sh",
    ]
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("may not mount")
    run = tmp_path / "run"
    result = qrdali(
        "train", "shared", "--data", dataset.folder, "--run", run, *SMALL, "--device", "cpu", before=before
    )
    assert result.returncode == 0, result.stderr
    assert (run / "best" / "model.safetensors").is_file()
