"""Audio-MAE, the masked autoencoder that listens (Huang et al. 2022, https://arxiv.org/abs/2207.06405).

Four fifths of the patches of a log-mel spectrogram (B, 1, M, T) are hidden. A vision transformer encodes the
others, and a small decoder predicts the hidden ones. Features are the mean of the encoder's tokens over the
patches that contain audio.

Differs from the paper: patches after the end of a clip are neither targets nor part of the features; the
decoder attends to all patches, where the paper finds local windows better. Rows of patches are frequencies
and columns are time, low and early first; the authors' code has them the other way round.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datamodules.audio.mel import valid_frames
from datamodules.base import Batch
from datamodules.checks import check
from datamodules.errors import ConfigError
from sslmodules.base import SSLModule, full_precision
from sslmodules.mae import (
    EPSILON,
    hidden_patches,
    known_visible,
    normalize_patches,
    patch_statistics,
    surroundings,
    visible_patches,
)
from sslmodules.networks.encoder import PatchEncoder, require
from sslmodules.networks.vit import PatchDecoder, patchify, sounding_patches, unpatchify


def target_patch_mse(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean squared error over the counted patches of each clip, then over clips (Huang et al. 2022).
    Args:
        prediction: (B, N, P), P values for each patch.
        target: (B, N, P).
        counted: (B, N) bool: hidden and not padding.

    Returns:
        Scalar; a clip with nothing to count is 0. Each clip has the same weight, whatever its length and the
        number of devices.
    """
    error = (full_precision(prediction) - full_precision(target)).square().mean(2)  # (B, N)
    return ((error * counted).sum(1) / counted.sum(1).clamp(min=1)).mean()


class AudioMAE(SSLModule):
    """Audio-MAE: predict hidden patches of a log-mel spectrogram from the visible ones.

    Args:
        encoder: a ``ViTEncoder`` with 1 channel and ``image_size`` (bands M, frames T).
        decoder_width: width of the decoder's tokens.
        decoder_depth: number of decoder blocks.
        decoder_heads: number of attention heads in the decoder.
        normalize_target: predict patches normalized to mean 0 and variance 1 each; False = raw log-mel.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: the encoder cannot skip patches, or an option is out of range.
    """

    encoder: PatchEncoder
    batch_keys = ("mask",)

    def __init__(
        self,
        encoder: PatchEncoder,
        decoder_width: int = 512,
        decoder_depth: int = 16,
        decoder_heads: int = 16,
        normalize_target: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(encoder, PatchEncoder)
        check(encoder.in_channels == 1, "encoder.in_channels", "1, that of log-mel", encoder.in_channels)
        self.encoder, self.normalize_target = encoder, normalize_target
        self.patch_size, self.grid = encoder.patch_size, encoder.grid
        if normalize_target and self.patch_size == 1:
            raise ConfigError("normalize_target needs patches of at least two values, got patch_size 1")
        self.decoder = PatchDecoder(
            self.grid,
            in_width=encoder.num_features,
            out_features=self.patch_size**2,
            width=decoder_width,
            depth=decoder_depth,
            heads=decoder_heads,
        )

    def predict(self, x: Tensor, hidden: Tensor, visible: Tensor | None = None) -> Tensor:
        """Predict all patches, (B, N, p * p), of log-mel (B, 1, M, T) from those not ``hidden`` (B, N).

        ``visible`` (B, K) gives the indices of these, if known.
        """
        shape = (1, *(n * self.patch_size for n in self.grid))
        if x.shape[1:] != shape or hidden.shape[1] != self.grid[0] * self.grid[1]:
            raise ConfigError(
                f"encoder takes log-mel of {shape} in {self.grid[0]}x{self.grid[1]} patches, got "
                f"{tuple(x.shape[1:])} and a mask of {hidden.shape[1]} patches: set its image_size to "
                "[num_mels, frames] and its patch_size"
            )
        visible = visible_patches(hidden) if visible is None else visible
        return self.decoder(self.encoder.forward_visible(x, visible), visible)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        x, hidden = batch["input"], hidden_patches(batch["mask"], self.patch_size)
        target = patchify(x, self.patch_size)
        if self.normalize_target:
            target = normalize_patches(target)
        counted = hidden & sounding_patches(x, self.patch_size, whole=True)
        visible = known_visible(batch, hidden.shape[1])
        return {"loss": target_patch_mse(self.predict(x, hidden, visible), target, counted)}

    def embed(self, x: Tensor) -> Tensor:
        """(B, 1, M, T) -> (B, num_features)."""
        tokens = self.encoder.forward_visible(x)[:, 1:]
        sounding = sounding_patches(x, self.patch_size, whole=False)[:, :, None]
        return (tokens * sounding).sum(1) / sounding.sum(1).clamp(min=1)

    def fill(self, batch: Batch) -> Tensor:
        """(B, 1, M, T) standardized: ``input`` with its hidden patches predicted and padding unchanged.

        With ``normalize_target``, the level and contrast of a hidden patch come from the visible patches
        around it.
        """
        x, hidden = batch["input"], hidden_patches(batch["mask"], self.patch_size)
        prediction, patches = (
            full_precision(self.predict(x, hidden)),
            patchify(full_precision(x), self.patch_size),
        )
        sounding = sounding_patches(x, self.patch_size, whole=False)
        if self.normalize_target:
            unknown = hidden | ~sounding
            mean, variance = surroundings(torch.cat(patch_statistics(patches), 2), unknown, self.grid).chunk(
                2, dim=2
            )
            prediction = prediction * (variance + EPSILON).sqrt() + mean
        filled = unpatchify(
            torch.where((hidden & sounding)[:, :, None], prediction, patches), self.patch_size, self.grid
        )
        frame = torch.arange(x.shape[3], device=x.device)
        return filled.to(x.dtype).masked_fill(frame >= valid_frames(x)[:, None, None, None], 0)
