"""What a configuration file may contain, and the error for everything else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.errors import ConfigError
from runtime.messages import ROOT, find_config, read_config
from runtime.strict_yaml import read_yaml


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: p.stem)
def test_configs_are_read_as_by_others(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert read_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        (".inf", math.inf),
        ("1_000", 1000),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31 10:00:00", "2024-01-31 10:00:00"),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x {k: 1}\nb: {<<: *x, k: 3}\nc: {<<: *x}", {"a": {"k": 1}, "b": {"k": 3}, "c": {"k": 1}}),
        ('{"a": null}', {"a": None}),
        ("{a, b}", {"a": None, "b": None}),
        ("", None),
        ("1: a\n'1.0': b", {1: "a", "1.0": "b"}),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert read_yaml(text) == value


BOMB = "a: &a [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("model: 1\nmodel: 2\n", ", line 2, column 1", "duplicate key model, first in line 1"),
        ('{"a": {"lr": 1, "lr": 1}}', ", line 1, column 17", "duplicate key lr, first in line 1"),
        ("a: &x\n  b: *x\n", ", line 2, column 6", "*x contains itself"),
        ("a: &x [1, *x]\n", ", line 1, column 11", "*x contains itself"),
        ("a: " + "[" * 3000, ", line 1, column 53", "nested more than 50 deep"),
        ("a: !!binary aGk=", ", line 1, column 4", "!!binary is not a plain value"),
        ("a: !!set {b}", ", line 1, column 4", "!!set is not a plain value"),
        ("a: !!timestamp 2024-01-31", ", line 1, column 4", "!!timestamp is not a plain value"),
        ("a: !!python/name:os.system", ", line 1, column 4", "!!python/name:os.system is not a plain value"),
        ("a: !x 1", ", line 1, column 4", "!x is not a plain value"),
        ("[1]: 2", ", line 1, column 1", "expected a word as a key"),
        (BOMB, ", line 5, column 4", "more than 100000 values"),
        ("a:\n\tb: 1\n", ", line 2, column 1", "found character '\\t' that cannot start any token"),
        ("a: \0\n", "", "special characters are not allowed"),
        ("a: 1\n---\nb: 2\n", ", line 2, column 1", "but found another document"),
    ],
)
def test_one_line(text: str, place: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_config(str(file))
    assert str(error.value) == f"--config {file}{place}: broken YAML ({problem}): correct that line"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a", "contains a list"),
        ("abc", "contains only 'abc'"),
    ],
)
def test_no_keys(text: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_config(str(file))
    assert str(error.value) == f"--config {file} {kind}: expected keys such as model, data and trainer"


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfmodel: SimCLR\n")
    assert read_config(str(tmp_path / "c.yaml")) == {"model": "SimCLR"}


def test_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("model: Zürich\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"c.yaml cannot be read \(.*\): expected a YAML file in UTF-8$"):
        read_config(str(tmp_path / "c.yaml"))


def test_a_config_is_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen from here first, then among those that come with the project."""
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/digits/simclr.yaml") == ROOT / "configs/digits/simclr.yaml"
    mine = tmp_path / "configs" / "digits" / "simclr.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("seed_everything: 1\n")
    assert read_config("configs/digits/simclr.yaml") == {"seed_everything": 1}
    with pytest.raises(ConfigError) as error:
        find_config("configs/digits/simclrr.yaml")
    assert str(error.value) == (
        "--config configs/digits/simclrr.yaml does not exist: expected a YAML file (did you mean "
        f"'configs/digits/simclr.yaml'?). Looked in {mine.parent} and {ROOT / 'configs/digits'}"
    )
