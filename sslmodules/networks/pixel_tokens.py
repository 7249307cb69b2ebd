"""Images as sequences of quantized pixels, for methods that predict the next token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datamodules.checks import check
from datamodules.errors import ConfigError
from runtime.construction import Recorded


class PixelTokens(Recorded, nn.Module):
    """Converts gray or color values to tokens and back, row by row, channels of a pixel in sequence.

    Token ``levels`` starts an image. A value in [0, 1] becomes the level ``floor(value * levels)`` (1 becomes
    the top level), which is decoded to the middle of its values: with 256 levels each 8-bit value has its
    own. An image of S values has S + 1 tokens, so that each value, including the first, is predicted from
    those before it.

    Args:
        image_shape: (C, H, W).
        levels: K, number of levels per value, a power of two from 2 to 256.

    Attributes:
        begin: the token before the first value, K; a model needs a ``vocab_size`` of K + 1.
        num_values: S = C * H * W.
    """

    def __init__(self, image_shape: tuple[int, int, int], levels: int = 256) -> None:
        super().__init__()
        three = len(image_shape) == 3 and min(image_shape) >= 1
        check(three, "image_shape", "three sizes (C, H, W)", tuple(image_shape))
        check(2 <= levels <= 256 and 256 % levels == 0, "levels", "a power of two from 2 to 256", levels)
        self.image_shape, self.levels, self.begin = tuple(image_shape), levels, levels
        self.num_values = image_shape[0] * image_shape[1] * image_shape[2]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, 1 + S) int64.

        Raises:
            ValueError: another shape.
        """
        if tuple(images.shape[1:]) != self.image_shape:
            raise ConfigError(f"image_shape is {self.image_shape}, got images of {tuple(images.shape[1:])}")
        # 8-bit values are k / 255: halfway between two of them, rounding loses nothing
        level = ((images.float() * 255 + 0.5) * (self.levels / 256)).long().clamp(0, self.levels - 1)
        values = level.permute(0, 2, 3, 1).flatten(1)  # (B, S)
        return torch.cat([values.new_full((values.shape[0], 1), self.begin), values], dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, 1 + S) tokens -> (B, C, H, W) in [0, 1]."""
        c, h, w = self.image_shape
        level = tokens[:, 1:].clamp(max=self.levels - 1)
        step = 256 / self.levels
        values = (level * step + (step - 1) / 2) / 255
        return values.view(len(tokens), h, w, c).permute(0, 3, 1, 2)
