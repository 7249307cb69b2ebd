"""The model card of an exported network, and the format of its input."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from datamodules.audio.module import AudioDataModule
from datamodules.base import SSLDataModule
from datamodules.images.module import ImageDataModule
from evaluation.commands.base import TrainedRun
from evaluation.features import names_of_classes
from runtime.discovery import first_paragraph
from runtime.optional import offers
from sslmodules.base import SSLModule
from sslmodules.networks.encoder import MapEncoder


def preprocessing(run: TrainedRun) -> dict[str, Any]:
    """The content of ``preprocess.json``: how a sample becomes ``input``, and the width of the features."""
    data = run.data
    classes = {"classes": list(names_of_classes(data))} if offers(run.module, "classify") else {}
    width = run.module.encoder.num_features
    return {"num_features": width, **classes, **_form(data), **data.input_format()}


def _form(data: SSLDataModule) -> dict[str, Any]:
    if isinstance(data, ImageDataModule):
        channels, height, width = data.image_shape
        return {
            "kind": "image",
            "input": "(B, channels, height, width) float32: pixels in [0, 1], minus mean, divided by std",
            "channels": channels,
            "height": height,
            "width": width,
            "resize_shorter_side": data.standard_size,
            "crop": "center",
            "interpolation": "bilinear, antialiased",
            "mean": list(data.mean),
            "std": list(data.std),
        }
    if isinstance(data, AudioDataModule):
        return {
            "kind": "audio",
            "input": "(B, 1, num_mels, frames) float32: log-mel, minus mean, divided by std, per band; "
            "padding frames 0",
            "frames": data.frames,
        }
    return {
        "kind": "tokens",
        "input": "(B, length) int64",
        "length": getattr(data, "length", None),
        "vocab_size": data.vocab_size,
        "pad_id": data.pad_id,
    }


def model_card(run: TrainedRun, name: str, code: str) -> str:
    """Markdown: method, data, results with their protocol, how to load it, license.

    Args:
        name: name of the format.
        code: Python code that loads the network from the folder as ``model``.
    """
    method, data = type(run.module).__name__, type(run.data).__name__
    results = _read(run.folder / "results.json")
    environment = _read(run.folder / "environment.json")
    parts = [
        f"# {method} on {data}",
        f"An encoder with {run.module.encoder.num_features} features, trained with {method} on {data}. "
        f"Checkpoint: `{run.checkpoint}`.",
        first_paragraph(inspect.getdoc(type(run.module))),
        f"## Load it ({name})",
        f"```python\n{code}\n```",
        "`preprocess.json` describes how a sample becomes `input`. The results below are for the run's "
        f"features: {_features(run.module)}{_scores(run.module, name)}",
        "## Results",
        _results(results),
        "## Made with",
        _made_with(environment, run.origin),
        "## License",
        "The code, lightning-ssl, is under Apache-2.0. Whoever trained the weights chooses their license, "
        "within the license of the data.",
    ]
    return "\n\n".join(parts) + "\n"


def _features(module: SSLModule) -> str:
    cls = type(module)
    if cls.embed is SSLModule.embed:
        return "the encoder's output."
    told = first_paragraph(cls.embed.__doc__).rstrip(".").replace("``", "`")
    return f"`{cls.__name__}.embed`{f': {told}' if told else ''}."


def _scores(module: SSLModule, name: str) -> str:
    """Additional outputs of a fine-tuned method, in words."""
    if not offers(module, "classify"):
        return ""
    if name in ("onnx", "pt2"):
        return " `model` returns them and the scores of the classes named in `preprocess.json`."
    if module.hparams.get("head") == "attentive":
        frames = module.hparams.get("padding") == "frames" and isinstance(module.encoder, MapEncoder)
        clips = ", given the number of frames of each sample before its padding" if frames else ""
        return (
            " `classifier` computes the scores of the classes named in `preprocess.json` from tokens (B, N, "
            "D) and a mask (B, N) of those that are not padding: `Encoder.tokens` returns both"
            f"{clips}."
        )
    return " `classifier` computes from them the scores of the classes named in `preprocess.json`."


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _results(results: dict[str, Any]) -> str:
    rows = {name: row for name, row in results.get("results", {}).items() if row}
    if not rows:
        return "The run was not evaluated."
    columns = list(dict.fromkeys(key for row in rows.values() for key in row if key.endswith("_top1")))
    lines = [f"| features | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{row[c]:.3f}' if c in row else '-' for c in columns)} |")
    protocol = json.dumps(results.get("protocol", {}), indent=2)
    return "\n".join(lines) + f"\n\nAccuracies on the test split. Protocol:\n\n```json\n{protocol}\n```"


def _made_with(environment: dict[str, Any], origin: dict[str, Any]) -> str:
    if not environment:
        return "The run's environment.json is missing."
    versions = ", ".join(f"{k} {v}" for k, v in environment.get("versions", {}).items())
    command = " ".join(environment.get("command", [])[1:])
    lines = [f"`{command}`", f"Commit {environment.get('git_commit')}; {versions}."]
    if started := origin.get("init_from"):
        lines.append(f"Initial weights: {started['source']} ({started['method'] or 'a file of weights'}).")
    return "\n\n".join(lines)
