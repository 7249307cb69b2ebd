"""Exports a text network as a folder that ``transformers`` loads."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from datamodules.errors import ConfigError
from datamodules.text.module import TextDataModule
from datamodules.text.tokenizer import SPECIALS
from evaluation.commands.base import Command, TrainedRun, say
from runtime.files import whole_folder
from runtime.optional import offers


class ExportCommand(Command):
    """export RUN DIR: a text network and its tokenizer, as AutoModel.from_pretrained loads them."""

    def add_options(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", metavar="DIR", type=Path, help="a new or empty folder")

    def run(self, run: TrainedRun, given: Namespace) -> int:
        """A bpe or wordpiece tokenizer is written as ``AutoTokenizer`` reads it, another one as
        ``vocabulary.json`` in this project's form.
        """
        module, folder = run.module, given.folder
        if not offers(module.encoder, "to_transformers"):
            raise ConfigError(
                "export writes text networks (BertEncoder, GPTEncoder), and this run's is "
                f"{type(module.encoder).__name__}"
            )
        source: Any = module if offers(module, "to_transformers") else module.encoder
        if not folder.absolute().parent.is_dir():
            raise ConfigError(f"DIR {folder}: the folder {folder.parent} does not exist")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"DIR {folder} exists and is not empty: choose a new folder")
        with whole_folder(folder.absolute()) as temporary:
            source.to_transformers().save_pretrained(temporary)
            if isinstance(run.data, TextDataModule):
                _write_tokenizer(run.data, temporary)
        for file in sorted(folder.iterdir()):
            say(f"written: {file}")
        return 0


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
    if data.pad_id is not None:  # the samples of this run stood between special tokens
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
