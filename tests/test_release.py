"""Releases: the sdist has every file, and the wheel trains from an empty folder in a new environment."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from runtime.messages import ROOT

#: Tracked files that only serve work on the repository.
LEFT_OUT = (".ci/", ".github/", ".gitignore", ".pre-commit-config.yaml")


def call(*words: str, folder: Path, **environment: str) -> str:
    """What a command prints; it has to succeed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SSL_RUN_DIR")}
    done = subprocess.run(words, cwd=folder, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked_files() -> list[str]:
    """Files of the repository, as a clone would have them."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not in a git repository")
    return call("git", "ls-files", "--cached", folder=ROOT).splitlines()


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of the tracked files, and the wheel that is made from the sdist."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools import build_meta; build_meta.build_sdist({!r})"
    call(sys.executable, "-c", build.format(str(made)), folder=source)
    [sdist] = made.glob("*.tar.gz")
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    call(*wheel, "--wheel-dir", str(made), str(sdist), folder=made)
    return made


@pytest.mark.slow
def test_the_sdist_has_every_file(dist: Path) -> None:
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in files if name.startswith("lightning_ssl.egg-info/")}
    assert files - made == {name for name in tracked_files() if not name.startswith(LEFT_OUT)}


@pytest.mark.slow
def test_the_wheel_has_code_and_configs_only(dist: Path) -> None:
    [wheel] = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        about = email.message_from_bytes(archive.read(metadata))
    packages = ("configs/", "datamodules/", "evaluation/", "runtime/", "sslmodules/", "train.py", "eval.py")
    expected = {name for name in tracked_files() if name.startswith(packages)}
    assert {name for name in names if ".dist-info/" not in name} == expected
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None and about["Version"] == version[1]
    assert "torch>=2.6" in about.get_all("Requires-Dist", [])


@pytest.mark.slow
def test_the_wheel_trains_from_an_empty_folder(dist: Path, tmp_path: Path) -> None:
    """In a new environment, which finds the dependencies in the one of the tests."""
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    call(sys.executable, "-m", "venv", str(environment), folder=tmp_path)
    [site] = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    [wheel] = dist.glob("*.whl")
    call(str(environment / "bin/pip"), "install", "--quiet", "--no-deps", str(wheel), folder=empty)

    python, train, measure = (str(environment / "bin" / name) for name in ("python", "ssl-train", "ssl-eval"))
    where = call(python, "-c", "import runtime.main; print(runtime.main.__file__)", folder=empty)
    assert where.startswith(str(site))
    assert "configs/digits/" in call(train, "--help", folder=empty)
    quick = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run_dir", "run"]
    said = call(train, "--config", "configs/digits/simclr.yaml", *quick, folder=empty, OMP_NUM_THREADS="1")
    assert "pretrained" in said and said.endswith("evaluate:     ssl-eval run\n")
    assert "pretrained" in call(measure, "run", "--output", "r.json", folder=empty, OMP_NUM_THREADS="1")
    assert sorted(path.name for path in empty.iterdir()) == ["r.json", "run"]
