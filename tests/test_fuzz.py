"""Random overrides and mutated files over all configs: each ends in a run that could start, or in one line
with status 2. Objects are built, nothing is trained.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning import Trainer

import runtime.main
import train
from runtime.discovery import find_class, with_current_paths
from runtime.messages import ROOT
from runtime.options import options_of
from tests.conftest import CONFIGS, shrunk

#: Seed and number of the cases; each can be repeated alone.
SEED, CASES = 0, 300
VALUES = [
    *(
        "null",
        "true",
        "false",
        "-1",
        "0",
        "1",
        "7",
        "0.5",
        "-0.5",
        "1e-3",
        "nan",
        ".nan",
        "inf",
        "1e400",
        "''",
        "",
    ),
    *(
        "abc",
        "a b",
        "é",
        "[]",
        "{}",
        "[1, 2]",
        "[0.5]",
        "{a: 1}",
        "[a]",
        "[[",
        "{",
        "2024-01-31",
        "&a [*a]",
        "*a",
    ),
    *("Digits", "SimCLR", "ConvEncoder", "AdamW", "TwoViews", "FeatureProbe", "resnet18", "os.system"),
    *("timm.create_model", "{class_path: os.system}", "[{class_path: timm.create_model}]", "{init_args: {}}"),
    *(
        "{class_path: SimCLR, init_args: {x: 1}}",
        "{class_path: 1}",
        "!!python/name:os.system",
        "../x",
        "/etc/passwd",
    ),
]
WORDS = [
    "model",
    "data",
    "trainer",
    "callbacks",
    "init_args",
    "class_path",
    "encoder",
    "lr",
    "epochs",
    "x",
    "_",
    "1",
]


def options(config: str, rng: random.Random) -> str:
    """A dotted option that exists, or nearly."""
    content = with_current_paths(yaml.safe_load((ROOT / config).read_text(encoding="utf-8")))
    group = rng.choice(["model", "data", "trainer"])
    path, node = [group], content.get(group, {})
    names = list(options_of(Trainer)) if group == "trainer" else []
    while isinstance(node, dict) and "class_path" in node:
        cls = find_class(node["class_path"])
        names = list(options_of(cls)) if cls is not None else []
        inner = {
            k: v for k, v in node.get("init_args", {}).items() if isinstance(v, dict) and "class_path" in v
        }
        if not inner or rng.random() < 0.5:
            break
        key = rng.choice(sorted(inner))
        path, node = [*path, key], inner[key]
    name = rng.choice(names or WORDS)
    if rng.random() < 0.15:
        name = rng.choice([name[:-1], name + "s", rng.choice(WORDS), name.upper()])
    if rng.random() < 0.1:
        name = f"{name}.{rng.choice(WORDS)}"
    return "--" + ".".join([*path[: rng.choice([len(path), len(path), 1])], name])


def mutated(text: str, rng: random.Random) -> str:
    """A file with one or two lines changed."""
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    for _ in range(rng.randint(1, 2)):
        i = rng.randrange(len(lines))
        line, key = lines[i], lines[i].partition(":")[0]
        lines[i] = rng.choice(
            [
                "",
                f"{line}\n{line}",
                f"{key}: {rng.choice(VALUES)}",
                f"{key}s:{line.partition(':')[2]}",
                f"  {line}",
                line.strip(),
                f"\t{line}",
                line[: rng.randrange(len(line) + 1)],
                f"{line}\n{' ' * (len(line) - len(line.lstrip()))}{rng.choice(WORDS)}: {rng.choice(VALUES)}",
                line.replace(":", "", 1),
                line + rng.choice(["]", "}", ":", " #", '"', "'", "\0", "\ufeff", " &x", " *x"]),
            ]
        )
    return "\n".join(lines) + "\n"


def case(number: int, folder: Path) -> list[str]:
    rng = random.Random(1000 * SEED + number)
    config = rng.choice(CONFIGS)
    file = ROOT / config
    more = []
    if rng.random() < 0.5:
        file = folder / f"{number}.yaml"
        file.write_text(mutated((ROOT / config).read_text(encoding="utf-8"), rng), encoding="utf-8")
    else:
        for _ in range(rng.randint(1, 2)):
            option, value = options(config, rng), rng.choice(VALUES)
            more += [f"{option}={value}"] if rng.random() < 0.7 else [option, value]
    return ["--config", str(file), *shrunk(config), *more, "--run_dir", str(folder / f"run{number}")]


@pytest.mark.slow
def test_every_outcome_is_a_start_or_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime.main, "_run", lambda *args: 0)
    wrong: list[Any] = []
    for number in range(CASES):
        monkeypatch.delenv("SSL_RUN_DIR", raising=False)
        words = case(number, tmp_path)
        before = sorted(tmp_path.iterdir())
        try:
            status = train.main(words)
        except (Exception, SystemExit) as error:
            status = f"{type(error).__name__}: {error}"  # type: ignore[assignment]
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        one_line = len(lines) == 1 and '{"model"' not in lines[0] and len(lines[0]) < 1500
        if not (status == 0 or (status == 2 and one_line)) or sorted(tmp_path.iterdir()) != before:
            wrong.append((number, words[1:2] + words[-4:-2], status, lines))
    assert wrong == []
