"""The command line of eval.py: help, and one clear line for everything it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import eval as script
from evaluation.commands.formats import FORMATS
from evaluation.measures import measures
from evaluation.probes import probes
from runtime.discovery import below, find_class, literals
from runtime.eval_help import commands
from runtime.messages import ROOT
from tests.commands.calls import error_of

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", 4], r"Inpainting has no sample\(\); methods that have it: "),
        (["generate", 0, "--output", "s.png"], "N must be at least 1, got 0"),
        (
            ["generate", "many"],
            r"argument N: invalid int value: 'many'; see python eval.py generate --help",
        ),
        (["generate"], "the following arguments are required: N; see python eval.py generate --help"),
        (["generate", 4, "--probes", "knn"], "unrecognized arguments: --probes knn"),
        (["features", "f.txt"], "FILE.npz f.txt: expected a name that ends in .npz"),
        (["features", "no/f.npz"], "the folder no does not exist"),
        (["features", "f.npz", "--output", "g.npz"], "unrecognized arguments: --output g.npz"),
        (
            ["probe", "--mask", "m.png"],
            "unrecognized arguments: --mask m.png; see python eval.py probe --help",
        ),
        (["restore", "nowhere"], "nowhere does not exist: expected an image or a folder of images"),
        (["restore", "empty"], "no images in empty: expected files that Pillow opens"),
        (["restore", "text.png", "--output", "o"], "cannot read image text.png: it is not an image"),
        (["restore", "photos", "--output", "photos"], "is the folder of the images: choose another"),
        (["restore", "photos", "--output", "text.png"], "--output text.png: expected a folder"),
        (
            ["restore", "photos", "--output", "a/b"],
            "expected a folder, new or not, in a folder that exists",
        ),
        (["restore", "photos", "--output", "o", "--mask", "black.png"], "black.png hides nothing"),
        (["restore", "photos", "--output", "o", "--mask", "text.png"], "cannot read image text.png"),
        (["restore", "photos/0.png", "--output", "o", "--truth", "text.png"], "cannot read image text.png"),
        (
            ["restore", "photos", "--output", "o", "--mask", "wide.png"],
            "wide.png is 16x8, but .* is 8x8: expected the same",
        ),
        (
            ["restore", "photos", "--output", "o", "--truth", "twins"],
            "twins: a.bmp and a.png differ only in their extension",
        ),
        (
            ["restore", "photos", "--output", "o", "--truth", "wide.png"],
            "--truth wide.png has no image named 0 for",
        ),
        (
            ["restore", "photos", "--output", "taken"],
            "taken/3-restored.png exists: give --overwrite",
        ),
        (
            ["restore", "photos", "--output", "o", "--data.views", "null"],
            "needs to know what is hidden: give --mask IMAGE",
        ),
        (
            ["restore", "photos", "--output", "o", "--data.views", "CenterHole"],
            "hole from start=10 to stop=20 does not fit",
        ),
        (["probe", "--outptu", "o"], "unrecognized arguments: --outptu o"),
    ],
)
def test_one_line_for_what_cannot_work(
    arguments: list[object], expected: str, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("empty", "twins", "taken"):
        Path(folder).mkdir()
    Path("text.png").write_text("not an image")
    Image.new("L", (8, 8)).save("black.png")
    Image.new("L", (16, 8), 255).save("wide.png")
    for name in ("twins/a.png", "twins/a.bmp", "taken/3-restored.png"):
        Image.new("L", (8, 8)).save(name)
    before = sorted(Path().rglob("*"))
    assert re.search(expected, error_of(capsys, arguments[0], run, *arguments[1:]))
    assert sorted(Path().rglob("*")) == before  # nothing is written


def test_generate_names_the_methods_that_can(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sslmodules import SimCLR

    monkeypatch.setattr(SimCLR, "sample", lambda self, n: None, raising=False)
    assert re.search(r"methods that have it: .*\bSimCLR\b", error_of(capsys, "generate", run, 1))


OPTIONS = {
    "probe": ["--probes", "--output"],
    "generate": [" N ", "--prompt", "--temperature", "--output", "--overwrite"],
    "restore": [" IMAGES ", "--mask", "--truth", "--output", "--overwrite"],
    "features": [" FILE.npz ", "--overwrite"],
    "export": [" DIR "],
}


def test_help_shows_the_commands_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^  (\w+) RUN", text, flags=re.MULTILINE) == [
        "probe",
        "compare",
        "export",
        "features",
        "generate",
        "labels",
        "neighbors",
        "restore",
    ]
    assert script.main([]) == 2 and capsys.readouterr().out == text
    for command, options in OPTIONS.items():
        with pytest.raises(SystemExit, match="0"):
            script.main([command, "--help"])
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: python eval.py {command} RUN")
        assert [o for o in options if o not in shown] == []
        others = {o for more in OPTIONS.values() for o in more if o.startswith("--")} - set(options)
        assert [o for o in others if o in shown] == []


def test_help_and_wrong_arguments_need_no_torch() -> None:
    code = """
import contextlib, sys, eval
from runtime.eval_help import commands
assert eval.main(["--help"]) == 0
for command in commands():
    with contextlib.suppress(SystemExit):
        eval.main([command, "--help"])
    assert eval.main([command, "RUN", "--device"]) == 2
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: python eval.py") == 1 + len(commands())


def test_help_lists_probes_measures_and_formats(capsys: pytest.CaptureFixture[str]) -> None:
    """Read from the files, they are those of the classes."""
    texts = {}
    for command in ("probe", "export"):
        with pytest.raises(SystemExit):
            script.main([command, "--help"])
        texts[command] = " ".join(capsys.readouterr().out.split())
    every_time, asked = ([n for n, probe in probes().items() if probe.by_name is b] for b in (False, True))
    assert f"(default: {', '.join(every_time)}); also {', '.join(asked)} " in texts["probe"]
    named = [name for name, measure in measures().items() if measure.by_name]
    assert f"also measure these; any of {', '.join(named)} " in texts["probe"]
    assert f"{', '.join(FORMATS)} (default: " in texts["export"]


def test_plain_values_of_a_class_are_read_without_importing_it() -> None:
    for name in [*below(["Command"]), *below(["FeatureScore"]), *below(["Measure"])]:
        cls: Any = find_class(name)
        found = literals(name)
        assert found and found == {key: getattr(cls, key) for key in found}


@pytest.mark.parametrize("flag", ["--generate", "--restore", "--features", "--export"])
@pytest.mark.parametrize("value", [[" 4"], ["=4"]])
def test_an_option_of_earlier_versions_names_the_command(
    flag: str, value: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = flag.removeprefix("--")
    words = f"{flag}{value[0]}".split()
    more = {"generate": "N", "restore": "IMAGES", "features": "FILE.npz", "export": "DIR"}[name]
    expected = f"error: {words[0]} is now a command: python eval.py {name} RUN {more}\n"
    assert error_of(capsys, run, *words) == expected


def test_a_word_that_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "genrate", "RUN", 4) == (
        "error: genrate does not exist (did you mean 'generate'?): expected a run folder, a checkpoint, or "
        "one of the commands probe, compare, export, features, generate, labels, neighbors, restore\n"
    )
