"""``transformers`` loads an exported run, with the run's features."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer

import eval as script
import train
from datamodules.errors import ConfigError
from datamodules.transforms.tokens import segments_of
from runtime.checkpoints import load_module, read_checkpoint
from runtime.messages import ROOT
from runtime.saved_run import build_data
from sslmodules.networks import BertEncoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "bert"
    options = ["--run_dir", str(folder), "--data.synthetic", "true", "--trainer.max_epochs", "1"]
    options += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_RUN_DIR", raising=False)
        assert train.main(["--config", str(ROOT / "configs/text/bert.yaml"), *options]) == 0
    return folder


def test_the_run_holds_its_tokenizer_and_language_numbers(run: Path) -> None:
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    stored = checkpoint["datamodule_hyper_parameters"]["vocabulary"]
    assert (run / "tokenizer.json").read_text(encoding="utf-8") == stored
    assert '"language"' in (run / "results.json").read_text()
    data = build_data(dict(checkpoint["datamodule_hyper_parameters"]), [])
    assert data.tokenizer.to_json() == stored  # type: ignore[attr-defined]


def test_export_loads_with_transformers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The features of AutoModel are the run's, token by token, and AutoTokenizer makes the run's samples."""
    target = tmp_path / "bert"
    assert script.main(["export", str(run), str(target)]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    checkpoint = run / "checkpoints" / "last.ckpt"
    module = load_module(checkpoint)
    data = build_data(
        dict(read_checkpoint(checkpoint)["datamodule_hyper_parameters"]), ["--data.synthetic", "true"]
    )
    model, tokenizer = AutoModel.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    tokens = data.dataset("val").__getitems__(range(4))["input"]  # type: ignore[attr-defined]
    with torch.no_grad():
        theirs = model(
            input_ids=tokens, attention_mask=(tokens != 0).long(), token_type_ids=segments_of(tokens)
        )
        ours = module.encoder.forward_tokens(tokens, segments_of(tokens))  # type: ignore[operator]
        torch.testing.assert_close(theirs.last_hidden_state, ours)
        pooled = torch.tanh(module.pooler(ours[:, 0]))  # type: ignore[operator]
        torch.testing.assert_close(theirs.pooler_output, pooled)
        heads = AutoModelForPreTraining.from_pretrained(target)(
            tokens, (tokens != 0).long(), segments_of(tokens)
        )
        torch.testing.assert_close(heads.prediction_logits, module.predict_words(ours))  # type: ignore[operator]
    texts = [
        data.to_text(row[(segments_of(tokens[i : i + 1])[0] == s)])
        for i, row in enumerate(tokens[:1])
        for s in (0, 1)
    ]  # type: ignore[attr-defined]
    encoded = tokenizer(*texts, return_tensors="pt")
    n = encoded["input_ids"].shape[1]
    assert torch.equal(encoded["input_ids"], tokens[:1, :n]) and (tokens[0, n:] == 0).all()
    assert torch.equal(encoded["token_type_ids"], segments_of(tokens[:1, :n]))
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_export_refuses(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    for options, message in (
        ([str(tmp_path)], "exists and is not empty"),
        ([str(tmp_path / "a" / "b")], "a does not exist"),
        ([str(tmp_path / "new"), "--output", "x"], "unrecognized arguments: --output x"),
    ):
        assert script.main(["export", str(run), *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert (tmp_path / "kept.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_vocabulary_that_does_not_fit_names_the_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--data.synthetic",
        "true",
        "--model.encoder.vocab_size",
        "50",
        "--run_dir",
        str(tmp_path / "run"),
    ]
    assert train.main(["--config", str(ROOT / "configs/text/bert.yaml"), *options]) == 2
    error = capsys.readouterr().err
    assert (
        "the encoder knows 50 tokens" in error
        and "give --model.encoder.vocab_size 2" in error
        and error.count("\n") == 1
    )
    assert not (tmp_path / "run").exists()


def test_the_library_is_imported_only_where_it_is_used() -> None:
    """Other packages may import it by themselves: no file of ours does so when it is imported."""
    files = [
        f for p in ("sslmodules", "datamodules", "evaluation", "runtime") for f in (ROOT / p).rglob("*.py")
    ]
    assert len(files) > 50
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("transformers", "tokenizers")], file


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError) as error:
        BertEncoder(9)
    assert (
        str(error.value) == "text networks need the package transformers: pip install 'lightning-ssl[text]'"
    )
