"""The base of batch transforms: draw all random numbers first, then apply them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datamodules.errors import ConfigError
from runtime.construction import Recorded

# ------------------------------------------------------------------------------------------------------------
# Transforms: drawing of the parameters, order of the operations
# ------------------------------------------------------------------------------------------------------------


KINDS = {2: "tokens (B, T)", 4: "images or spectrograms (B, C, H, W)"}


class BatchTransform(Recorded, nn.Module, ABC):
    """A random transform of a batch that adds keys to it, split into drawing and applying.

    Attributes:
        dimensions: of the batches that it takes, 4 for images and 2 for tokens; None = any.
    """

    dimensions: ClassVar[int | None] = None

    def check_dimensions(self, batch: Tensor) -> None:
        """Refuse a batch of another kind of data, such as tokens instead of images."""
        if self.dimensions is not None and batch.ndim != self.dimensions:
            given = KINDS.get(batch.ndim, f"a tensor of {batch.ndim} dimensions")
            raise ConfigError(
                f"{type(self).__name__} takes {KINDS[self.dimensions]}, but the data has {given}: set "
                "data.views to null, or to a transform for this data"
            )

    @abstractmethod
    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Draw the parameters for the whole batch.

        Args:
            images: (B, C, H, W); only shape, dtype and device are used.
            generator: generator on ``images.device``; None = torch's default.

        Returns:
            Parameters, each with leading dimension B, on ``images.device``.
        """

    @abstractmethod
    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Apply drawn parameters to images (B, C, H, W) in [0, 1], deterministically; the keys to add."""

    def with_crops(self, params: dict[str, Tensor], crops: Sequence[Tensor]) -> dict[str, Tensor]:
        """See ``Views``; other transforms have no views to crop in advance."""
        raise TypeError(f"{type(self).__name__} has no views that can be cropped in advance")

    def chunk_size(self, images: Tensor) -> int:
        """Images per chunk on CPU, small enough for the cache: at most 64, about 1M floats."""
        return max(1, min(64, 1_000_000 // images[0].numel()))


def apply_views(
    transform: BatchTransform,
    images: Tensor,
    generator: torch.Generator | None,
    crops: Sequence[Tensor] | None = None,
    finish: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> dict[str, Tensor | list[Tensor]]:
    """Draw once, then apply: on CPU chunk by chunk, elsewhere in one call.

    Args:
        transform: the transform to apply.
        images: (B, C, H, W) float in [0, 1].
        generator: generator on ``images.device``; None = torch's default.
        crops: views cropped by ``ViewCrops``, see ``Views.with_crops``; None = crop them from ``images``.
        finish: applied to the keys of each chunk while it is in the cache.

    Returns:
        The keys that the transform adds, each of B samples.
    """
    transform.check_dimensions(images)
    params = transform.draw(images, generator)
    if crops is not None:
        params = transform.with_crops(params, crops)
    chunk = transform.chunk_size(images)
    if images.device.type != "cpu" or len(images) <= chunk:
        return finish(transform(images, params))
    joined: dict[str, Any] = {}
    for start in range(0, len(images), chunk):
        own = {name: value[start : start + chunk] for name, value in params.items()}
        for key, value in finish(transform(images[start : start + chunk], own)).items():
            joined[key] = _written(joined.get(key), value, start, len(images))
    return joined


def _written(whole: Any, part: Any, start: int, length: int) -> Any:
    """Copy a chunk, a tensor or a list of them, into tensors of the whole batch, made for the first chunk."""
    if not isinstance(part, Tensor):
        wholes = whole or [None] * len(part)
        return [_written(one, own, start, length) for one, own in zip(wholes, part, strict=True)]
    if whole is None:
        whole = part.new_empty(length, *part.shape[1:])
    whole[start : start + len(part)] = part
    return whole


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    """Map uniform numbers in [0, 1) to [low, high)."""
    return low + (high - low) * uniform
