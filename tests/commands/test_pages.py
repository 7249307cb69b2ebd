"""The pages about a trained run: their commands work, and every number is explained."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.eval_help import choose, parse
from runtime.messages import ROOT
from tests.commands.calls import evaluate
from tests.conftest import TORCH_2_6

pytestmark = pytest.mark.usefixtures("clean_environment")


PAGES = [ROOT / "docs" / name for name in ("using_what_was_trained.md", "exporting.md")]


@pytest.mark.usefixtures("generator")
def test_the_pages_are_true(run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their commands run, on a run called RUN and a folder of images, and then their Python examples do.

    Those for runs of other methods are tested in tests/evaluation; here they parse.
    """
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    Path("RUN").symlink_to(run)
    hole = np.zeros((8, 8), np.uint8)
    hole[:3, :3] = 255
    Image.fromarray(hole).save("mask.png")
    shutil.copytree(photos, "originals")
    commands = re.findall(r"^python eval\.py (.*)$", text, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        arguments = shlex.split(command, comments=True)
        # the export extra, or a converter that fits onnxscript
        missing = "onnx" in arguments and (not find_spec("onnxruntime") or TORCH_2_6)
        if "DIR" in arguments or "RUN" not in arguments or missing:
            Path(arguments[1]).touch()
            parse(*choose(arguments))
        else:
            assert evaluate(*arguments) == 0, command
    for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        exec(compile(code, "docs", "exec"), {})


def test_every_number_of_a_run_is_explained(run: Path) -> None:
    """docs/metrics.md names each TensorBoard tag and each key of results.json; a method's own terms are its
    page's matter.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+)`", text))
    events = EventAccumulator(str(run))
    events.Reload()
    tags = {tag for kind in ("scalars", "images", "tensors") for tag in events.Tags()[kind]}
    method_terms = {f"{part}/{term}" for part in ("train", "val") for term in ("mse_hidden", "mse_image")}
    assert {"train/loss", "val/linear_top1", "reconstruction"} <= tags
    tags = {tag for tag in tags - method_terms if not tag.startswith(("_hparams_", "custom_scalars__"))}
    assert not tags - named

    def keys(node: Any) -> set[str]:
        inner = set().union(*map(keys, node.values())) if isinstance(node, dict) else set()
        return inner | (set(node) if isinstance(node, dict) else set())

    assert not keys(json.loads((run / "results.json").read_text())) - named
