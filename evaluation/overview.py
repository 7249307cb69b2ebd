"""Pictures of a trained method's features at the end of a run, and TensorBoard's projector."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import SSLDataModule
from datamodules.images.module import ImageDataModule
from datamodules.samplers import interleaved
from datamodules.splits import Split
from evaluation.features import embed_split, names_of_classes
from evaluation.measures.confusion import confusion_matrix
from evaluation.media import last_step, log_image
from evaluation.pictures import matrix_of_counts, rows_of_images, scatter
from evaluation.probes.knn import nearest_samples
from evaluation.probes.linear import fit_linear_probe
from sslmodules.base import SSLModule

POINTS, BANK = 1000, 5000
"""Maximum number of samples of val that are shown, and of the bank that they are compared with."""

QUERIES, NEIGHBORS = 8, 8
SPRITE = 48
"""Side in pixels to which larger images are reduced for the projector."""


def log_overview(trainer: Trainer, module: SSLModule, data: SSLDataModule, device: torch.device) -> None:
    """Log pictures of the features of val, and points for TensorBoard's projector.

    The pictures are ``features`` (two principal components), ``confusion`` (of a linear probe) and
    ``neighbors``. TensorBoard also gets the features with classes and images.

    Args:
        trainer: its loggers get them, at the last step.
        module: in eval mode, on ``device``.
        data: set up.
    """
    val_rows, bank_rows = first_rows(data, "val", POINTS), first_rows(data, "bank", BANK)
    found, labels = embed_split({"": module.embed}, data, "val", device, val_rows)
    features = found[""].float()
    found, bank_labels = embed_split({"": module.embed}, data, "bank", device, bank_rows)
    bank = found[""].float()
    names = names_of_classes(data)
    log_image(trainer, "features", scatter(features.cpu(), labels.cpu(), names))
    known, of_bank = labels >= 0, bank_labels >= 0
    if names and known.any() and of_bank.any():
        probe = fit_linear_probe(bank[of_bank], bank_labels[of_bank], len(names), l2=1e-4)
        counts = confusion_matrix(probe.predict(features[known]), labels[known], len(names))
        log_image(trainer, "confusion", matrix_of_counts(counts, names))
    images = None
    if isinstance(data, ImageDataModule):
        images = pixels(data, "val", val_rows)
        places = nearest_samples(features[:QUERIES], bank, min(NEIGHBORS, len(bank))).cpu()
        picture = picture_of_neighbors(data, "bank", images[:QUERIES], labels, bank_rows, places)
        log_image(trainer, "neighbors", picture)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            _project(logger, features.cpu(), labels.tolist(), names, images, last_step(trainer))


def picture_of_neighbors(
    data: ImageDataModule, split: Split, queries: Tensor, labels: Tensor, rows: list[int], places: Tensor
) -> Tensor:
    """Each query and the samples most similar to it, with their classes: (3, H, W) in [0, 1].

    Args:
        data: source of the images.
        split: split of the neighbors.
        queries: (Q, C, H, W) in [0, 1].
        labels: labels of the queries, (Q,) or more.
        rows: indices in the split.
        places: (Q, k) positions in ``rows`` of the neighbors.
    """
    columns = [queries]
    for column in places.T.tolist():
        columns.append(pixels(data, split, [rows[place] for place in column]))
    classes = names_of_classes(data)
    shown = [classes[i] if classes and i >= 0 else "" for i in labels[: len(queries)].tolist()]
    titles = ["sample", "most similar", *(str(i) for i in range(2, places.shape[1] + 1))]
    return rows_of_images(columns, titles, shown)


def pixels(data: ImageDataModule, split: Split, rows: list[int]) -> Tensor:
    """Images (n, C, H, W) in [0, 1] of a split, on the CPU."""
    return data.decode(data.dataset(split).__getitems__(rows)["input"])  # type: ignore[attr-defined]


def first_rows(data: SSLDataModule, split: Split, most: int) -> list[int]:
    """The first samples of ``interleaved``, in which every prefix contains all classes."""
    return interleaved(data.dataset(split))[:most].tolist()


def _project(
    logger: TensorBoardLogger,
    features: Tensor,
    labels: list[int],
    names: Any,
    images: Tensor | None,
    step: int,
) -> None:
    """Points of TensorBoard's Projector tab."""
    if images is not None and images.shape[-1] > SPRITE:
        images = F.interpolate(images, size=(SPRITE, SPRITE), mode="area")
    if images is not None and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    told = [names[i] if names and i >= 0 else "unknown" for i in labels]
    logger.experiment.add_embedding(features, told, images, global_step=step, tag="val")
