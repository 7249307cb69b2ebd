"""Draws test images and the training images with the most similar features."""

from __future__ import annotations

from argparse import Namespace
from typing import ClassVar

from datamodules.checks import check_at_least
from datamodules.errors import ConfigError
from datamodules.images.module import ImageDataModule
from evaluation.commands.base import Command, TrainedRun, say
from evaluation.commands.outputs import check_target, pixels_of, write_picture
from evaluation.features import embed_split
from evaluation.overview import NEIGHBORS, first_rows, picture_of_neighbors, pixels
from evaluation.probes.knn import nearest_samples


class NeighborsCommand(Command):
    """neighbors RUN FILE.png: test images beside the training images that are most similar to them."""

    reads_data = True
    options: ClassVar = {
        "file": {"metavar": "FILE.png", "type": "path", "help": "what to write"},
        "--count": {"type": "int", "default": 10, "help": "number of test images (default: 10)"},
    }
    overwrite = True

    def run(self, run: TrainedRun, given: Namespace) -> int:
        check_target(given.file, ".png", given.overwrite, option="FILE.png")
        check_at_least(1, **{"--count": given.count})
        data = run.data
        if not isinstance(data, ImageDataModule):
            raise ConfigError(f"neighbors draws images, but {type(data).__name__} has none")
        data.setup("test")
        rows = first_rows(data, "test", given.count)
        queries, labels = embed_split({"": run.module.embed}, data, "test", run.device, rows)
        bank, _ = embed_split({"": run.module.embed}, data, "bank", run.device)
        places = nearest_samples(queries[""].to(run.device), bank[""], min(NEIGHBORS, len(bank[""]))).cpu()
        everything = list(range(len(bank[""])))
        images = pixels(data, "test", rows)
        picture = picture_of_neighbors(data, "bank", images, labels, everything, places)
        say(write_picture(given.file, pixels_of(picture[None])[0]))
        return 0
