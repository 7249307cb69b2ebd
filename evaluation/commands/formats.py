"""The formats of ``eval.py export``: each writes to a folder, and returns the Python code that loads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.audio.module import AudioDataModule
from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError
from datamodules.images.module import ImageDataModule
from datamodules.text.module import TextDataModule
from datamodules.text.tokenizer import SPECIALS
from evaluation.commands.base import TrainedRun
from runtime.optional import offers
from sslmodules import FineTune

TOLERANCE = 1e-4
"""Absolute and relative tolerance between the exported network's features and the run's."""


def write_safetensors(run: TrainedRun, folder: Path) -> str:
    """Write the encoder's weights under the names used by the library that it comes from."""
    from safetensors.torch import save_file

    encoder = run.module.feature_encoder
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.published_state().items()}
    save_file(state, folder / "model.safetensors")
    return (
        f"from safetensors.torch import load_file\n\n{encoder.library_code()}\n"
        'model.load_state_dict(load_file("model.safetensors"))\nmodel.eval()' + _classifier(run, folder)
    )


def _classifier(run: TrainedRun, folder: Path) -> str:
    """Write the classifier of a fine-tuned run, ``classifier.safetensors``; the Python code that loads it."""
    from safetensors.torch import save_file

    module = run.module
    if not isinstance(module, FineTune):
        return ""
    state = {name: value.detach().cpu() for name, value in module.best_classifier.state_dict().items()}
    save_file(state, folder / "classifier.safetensors")
    head, encoder = module.hparams["head"], module.encoder
    width = encoder.token_width if head == "attentive" else encoder.num_features
    return (
        "\n\nfrom safetensors.torch import load_file\n"
        "from sslmodules.networks.classifier import make_head\n\n"
        f"classifier = make_head({head!r}, {width}, {module.num_classes})\n"
        'classifier.load_state_dict(load_file("classifier.safetensors"))\nclassifier.eval()'
    )


def output_names(run: TrainedRun) -> list[str]:
    """Outputs of a traced network: features and, for methods with a classifier, class scores."""
    return ["features", "scores"] if offers(run.module, "classify") else ["features"]


class _Outputs(nn.Module):
    """``embed``, and ``classify`` if there is one, as a network for tracing."""

    def __init__(self, run: TrainedRun) -> None:
        super().__init__()
        self.method, self.classifies = run.module, len(output_names(run)) == 2

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.method.embed(x)
        return (features, self.method.classify(x)) if self.classifies else features


def example_input(data: SSLDataModule, samples: int) -> Tensor:
    """Random ``input`` of the data's shape; no file is read.

    Raises:
        ConfigError: data of an unknown kind.
    """
    generator = torch.Generator().manual_seed(samples)
    if isinstance(data, ImageDataModule):
        return torch.randn(samples, *data.image_shape, generator=generator)
    if isinstance(data, AudioDataModule):
        return torch.randn(samples, 1, data.scale.num_mels, data.frames, generator=generator)
    length = getattr(data, "length", None)
    if length is None or data.vocab_size is None:
        raise ConfigError(
            f"--format: the shape of {type(data).__name__}'s samples is not known: use safetensors"
        )
    return torch.randint(len(SPECIALS), data.vocab_size, (samples, length), generator=generator)


def _traced(run: TrainedRun, example: Tensor, name: str) -> torch.export.ExportedProgram:
    network = _Outputs(run).eval()
    try:
        return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # tracing fails in many ways
        raise _not_exported(run, name, error) from error


def _not_exported(run: TrainedRun, name: str, error: Exception) -> ConfigError:
    reason = str(error).strip().partition("\n")[0]
    return ConfigError(
        f"--format {name}: torch {torch.__version__} cannot export {type(run.module).__name__}.embed "
        f"({reason}): use --format safetensors"
    )


def _check(run: TrainedRun, name: str, outputs: Callable[[Tensor], Any]) -> None:
    """Check that features and scores of another number of samples equal the run's."""
    x = example_input(run.data, 3)
    with torch.no_grad():
        expected, found = _Outputs(run).eval()(x), outputs(x)
    if len(output_names(run)) == 1:
        expected, found = (expected,), (found,)
    for what, ours, theirs in zip(output_names(run), expected, map(torch.as_tensor, found), strict=True):
        if not torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE):
            raise ConfigError(
                f"--format {name}: {what} of the exported network differ from the run's by up to "
                f"{(ours - theirs).abs().max().item():.2g}: nothing was written"
            )


def write_pt2(run: TrainedRun, folder: Path) -> str:
    """Write ``embed`` with its weights in the format of ``torch.export``."""
    run.module.cpu()
    torch.export.save(_traced(run, example_input(run.data, 2), "pt2"), folder / "model.pt2")
    _check(run, "pt2", torch.export.load(folder / "model.pt2").module())
    return 'import torch\n\nmodel = torch.export.load("model.pt2").module()'


def write_onnx(run: TrainedRun, folder: Path) -> str:
    """Write ``embed`` with its weights for onnxruntime, for any number of samples."""
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if find_spec(n) is None]
    if missing:
        raise ConfigError(f"--format onnx needs {' and '.join(missing)}: pip install 'lightning-ssl[export]'")
    import onnxruntime

    run.module.cpu()
    program = _traced(run, example_input(run.data, 2), "onnx")
    outputs = output_names(run)
    names = {"input_names": ["input"], "output_names": outputs, "verbose": False}
    file = str(folder / "model.onnx")
    try:
        torch.onnx.export(program, (), file, dynamo=True, external_data=False, **names)  # type: ignore[arg-type]
    except torch.onnx.OnnxExporterError as error:
        raise _not_exported(run, "onnx", error) from error
    session = onnxruntime.InferenceSession(file)
    only = "[0]" if len(outputs) == 1 else ""

    def run_session(x: Tensor) -> Any:
        found = session.run(outputs, {"input": x.numpy()})
        return found[0] if only else found

    _check(run, "onnx", run_session)
    return (
        'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n\n\ndef model(x):\n'
        f'    return session.run({json.dumps(outputs)}, {{"input": x.numpy()}}){only}'
    )


def write_hf(run: TrainedRun, folder: Path) -> str:
    """Write a text network and its tokenizer for ``AutoModel.from_pretrained``.

    A bpe or wordpiece tokenizer is written for ``AutoTokenizer``, another one as ``vocabulary.json`` in this
    project's format.
    """
    module = run.module
    if not offers(module.encoder, "to_transformers"):
        raise ConfigError(
            "--format hf writes text networks (BertEncoder, GPTEncoder), but this run's is "
            f"{type(module.encoder).__name__}: use --format safetensors"
        )
    source: Any = module if offers(module, "to_transformers") else module.encoder
    source.to_transformers().save_pretrained(folder)
    if isinstance(run.data, TextDataModule):
        _write_tokenizer(run.data, folder)
    return 'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained(".")' + _classifier(
        run, folder
    )


def _write_tokenizer(data: TextDataModule, folder: Path) -> None:
    tokenizer = data.tokenizer
    if tokenizer.kind not in ("bpe", "wordpiece"):
        (folder / "vocabulary.json").write_text(tokenizer.to_json(), encoding="utf-8")
        return
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    fast, inputs = Tokenizer.from_str(tokenizer.to_json()), ["input_ids", "attention_mask"]
    pad, unk, cls, sep, mask = SPECIALS
    if data.pad_id is not None:  # samples of this run are enclosed in special tokens
        inputs.insert(1, "token_type_ids")
        fast.post_processor = TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(t, SPECIALS.index(t)) for t in (cls, sep)],
        )
    PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token=pad,
        unk_token=unk,
        cls_token=cls,
        sep_token=sep,
        mask_token=mask,
        model_max_length=data.length,
        model_input_names=inputs,
    ).save_pretrained(folder)


FORMATS: dict[str, Callable[[TrainedRun, Path], str]] = {
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "pt2": write_pt2,
    "hf": write_hf,
}
