"""Exports a trained network for other libraries."""

from __future__ import annotations

from argparse import Namespace
from typing import ClassVar

from datamodules.checks import check_one_of
from datamodules.errors import ConfigError
from evaluation.commands.base import Command, TrainedRun, say
from evaluation.commands.formats import FORMATS
from evaluation.commands.model_card import model_card, preprocessing
from runtime.files import whole_folder, write_json, write_text
from runtime.optional import offers


class ExportCommand(Command):
    """export RUN DIR: the network for torchvision, timm, transformers, ONNX or torch.export."""

    options: ClassVar = {
        "folder": {"metavar": "DIR", "type": "path", "help": "a new or empty folder"},
        "--format": {"help": "safetensors, onnx, pt2, hf (default: hf for text networks, else safetensors)"},
    }

    def run(self, run: TrainedRun, given: Namespace) -> int:
        folder = given.folder
        default = "hf" if offers(run.module.encoder, "to_transformers") else "safetensors"
        name = default if given.format is None else given.format
        check_one_of(tuple(FORMATS), **{"--format": name})
        if not folder.absolute().parent.is_dir():
            raise ConfigError(f"DIR {folder}: the folder {folder.parent} does not exist")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"DIR {folder} exists and is not empty: choose a new folder")
        with whole_folder(folder.absolute()) as temporary:
            code = FORMATS[name](run, temporary)
            write_json(temporary / "preprocess.json", preprocessing(run))
            write_text(temporary / "README.md", model_card(run, name, code))
        for file in sorted(folder.iterdir()):
            say(f"written: {file}")
        return 0
