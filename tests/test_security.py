"""The guarantees of SECURITY.md beyond rows 31, 34, 37 and 38 of the fault table."""

from __future__ import annotations

import ast
import io
import os
import pickle
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.errors import ConfigError, MissingDataError
from datamodules.images.arrays import CIFAR10, inside_only
from runtime.checkpoints import load_module
from runtime.command_line import CheckedCommandLine
from runtime.folder import RunFolder
from runtime.messages import ROOT

CODE = [
    path
    for part in ("sslmodules", "datamodules", "evaluation", "runtime", "cluster", "train.py", "eval.py")
    for path in ([ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*.py")))
]
TEXTS = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("cluster/*")),
    *CODE,
]


class Evil:
    """Unpickled, it would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


# ---- the code ----------------------------------------------------------------------------------------------


def unsafe(source: str) -> Iterator[str]:
    """Calls that run, or could run, their arguments."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        torch_load = name == "torch.load" and given.get("weights_only") != "True"
        yaml_load = name in ("yaml.load", "yaml.full_load", "yaml.unsafe_load")
        runs = name in (
            "eval",
            "exec",
            "os.system",
            "os.popen",
            "pickle.load",
            "pickle.loads",
            "torch.hub.load",
        )
        saves = name.endswith(
            ".save_checkpoint"
        )  # where weights_only leaves the optimizer out, and reads nothing
        pickles = given.get("allow_pickle") not in (None, "False") or (
            given.get("weights_only") == "False" and not saves
        )
        unpacks = name.endswith((".extractall", ".extract")) and given.get("filter") != "'data'"
        if torch_load or yaml_load or runs or pickles or unpacks or given.get("shell") not in (None, "False"):
            yield f"{ast.unparse(node)[:80]} in line {node.lineno}"


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_is_read_is_run(path: Path) -> None:
    assert list(unsafe(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(command, shell=True)",
        "archive.extractall(folder)",
        "yaml.full_load(text)",
    ],
)
def test_the_search_finds_them(source: str) -> None:
    assert list(unsafe(source))


def test_tensorboard_stays_on_localhost() -> None:
    for path in TEXTS:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "tensorboard" in line.lower():
                assert not re.search(r"--host|0\.0\.0\.0", line), f"{path}: {line}"
                assert "--bind_all" not in line or "Do not use `--bind_all`" in line, f"{path}: {line}"


# ---- files -------------------------------------------------------------------------------------------------


def test_pickles_of_cifar_are_read_only_with_the_publishers_checksum(tmp_path: Path) -> None:
    folder, mark = tmp_path / "cifar-10-batches-py", tmp_path / "code-ran"
    folder.mkdir()
    for name in CIFAR10.source_files:
        (tmp_path / name).write_bytes(pickle.dumps(Evil(mark)))
    for split in ("train", "test"):
        with pytest.raises(MissingDataError, match=r"cannot be read|corrupted"):
            CIFAR10(root=str(tmp_path)).dataset(split)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))  # it would have
    assert mark.exists()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("../outside"),
        member("a/../../outside"),
        member("link", tarfile.SYMTYPE, "../outside"),
        member("link", tarfile.LNKTYPE, "../outside"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("device", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name} {info.linkname}",
)
def test_an_archive_stays_in_its_folder(tmp_path: Path, info: tarfile.TarInfo) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(info, io.BytesIO())
    content.seek(0)
    target = tmp_path / "in" / "side"
    target.mkdir(parents=True)
    (tmp_path / "in" / "outside").write_text("mine")
    refused = tarfile.FilterError if hasattr(tarfile, "data_filter") else ConfigError
    with tarfile.open(fileobj=content) as tar, inside_only(), pytest.raises(refused):
        tar.extractall(target)
    assert list(target.iterdir()) == [] and (tmp_path / "in" / "outside").read_text() == "mine"


def test_a_python_without_filters_unpacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11.2, as Debian 12 has it. Files that are there are read."""
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.delattr(tarfile.TarFile, "extraction_filter", raising=False)
    monkeypatch.setattr("sys.version_info", (3, 11, 2, "final", 0))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(member("a"), io.BytesIO())
    unpack = tarfile.TarFile.extractall
    with tarfile.open(tmp_path / "a.tar") as tar, inside_only(), pytest.raises(ConfigError) as caught:
        tar.extractall(tmp_path)
    assert str(caught.value) == (
        "Python 3.11.2 cannot unpack a tar archive safely: use 3.10.12, 3.11.4, 3.12 or newer, or "
        "unpack it into --data.root yourself and leave out --data.download"
    )
    assert not (tmp_path / "a").exists() and tarfile.TarFile.extractall is unpack


def test_a_checkpoint_is_a_file_and_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's and Lightning's loaders would fetch it, and Lightning then unpickle anything."""

    def fetched(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("urllib.request.urlopen", fetched)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetched)
    for address in ("http://127.0.0.1:9/last.ckpt", "https://example.com/last.ckpt"):
        with pytest.raises(OSError, match="does not exist"):
            load_module(address)


# ---- names -------------------------------------------------------------------------------------------------


def test_a_configuration_cannot_say_what_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("trust_config_classes: os\n")
    with pytest.raises(ConfigError, match="unknown key 'trust_config_classes'"):
        CheckedCommandLine(
            ["--config", str(ROOT / "configs/digits/simclr.yaml"), "--config", str(tmp_path / "c.yaml")]
        )
    with pytest.raises(ConfigError, match="must be the name of a package"):
        CheckedCommandLine(["--trust_config_classes", "../os"])


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "a/b", "..", "a b", "a\nb", "a;rm -rf b"])
def test_no_path_gets_into_the_name_of_a_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are those of classes, and a class of that name there is not."""
    for key in ("model", "data"):
        (tmp_path / "c.yaml").write_text(f"{key}: {{class_path: {name!r}}}\n")
        with pytest.raises(ConfigError):
            CheckedCommandLine(
                ["--config", str(ROOT / "configs/digits/simclr.yaml"), "--config", str(tmp_path / "c.yaml")]
            )


def test_the_name_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [
        v for v in os.environ if v.startswith(("SLURM_", "SSL_", "TORCHELASTIC_", "LOCAL_RANK"))
    ]:
        monkeypatch.delenv(variable)
    chosen = RunFolder.choose(None, "Digits", "SimCLR").path
    assert re.fullmatch(r"runs/digits-simclr/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", chosen.as_posix())
