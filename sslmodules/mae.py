"""MAE, the masked autoencoder (He et al. 2022, https://arxiv.org/abs/2111.06377).

Three quarters of an image's patches are hidden. A vision transformer encodes the others, and a small decoder
predicts the hidden ones from the encoder's output and mask tokens. Only the encoder is kept.

Differs from the official code: the mask comes with the batch and hides round(ratio * N) patches, where the
code hides N - int((1 - ratio) * N). Hidden patches are restored with the brightness and contrast of their
surroundings, where its demo uses those of the hidden patch, which are unknown in practice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.errors import ConfigError
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks.encoder import PatchEncoder, require
from sslmodules.networks.vit import PatchDecoder, patchify, unpatchify

EPSILON = 1e-6  # added to the variance, as in the official code


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of the values of each patch: (B, N, P) -> two of (B, N, 1)."""
    patches = full_precision(patches)
    return patches.mean(2, keepdim=True), patches.var(2, keepdim=True)


def normalize_patches(patches: Tensor) -> Tensor:
    """Normalize patches (B, N, P) to mean 0 and variance 1 each: the best target in the paper."""
    mean, variance = patch_statistics(patches)
    return (full_precision(patches) - mean) / (variance + EPSILON).sqrt()


def hidden_patch_mse(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error per patch, averaged over the hidden patches (He et al. 2022).
    Args:
        prediction: (B, N, P), P values for each patch.
        target: (B, N, P).
        hidden: (B, N) bool, True = hidden; the same number in each image.

    Returns:
        Scalar. With normalized targets, predicting 0 gives (P - 1) / P: the baseline to beat.
    """
    error = (full_precision(prediction) - full_precision(target)).square().mean(2)  # (B, N)
    return (error * hidden).sum() / hidden.sum().clamp(min=1)


def hidden_patches(mask: Tensor, patch_size: int) -> Tensor:
    """Pixels (B, 1, H, W) bool -> patches (B, N) bool: a patch with any hidden pixel is hidden."""
    return F.max_pool2d(mask.float(), patch_size).flatten(1).bool()


def visible_patches(hidden: Tensor) -> Tensor:
    """Indices of the visible patches: (B, N) bool, True = hidden -> (B, K) int64, in ascending order.

    Raises:
        ValueError: the images have different numbers of visible patches, or none.
    """
    # waits for the device: the number of tokens is a shape
    fewest, most = torch.stack(torch.aminmax((~hidden).sum(1))).tolist()
    if fewest != most or fewest == 0:
        raise ConfigError(
            "mask must leave the same number of patches visible in each image, at least one; it leaves "
            f"{fewest} to {most}: use MAEViews or RandomPatches with the encoder's patch_size"
        )
    return hidden.int().argsort(dim=1, stable=True)[:, :fewest]


def known_visible(batch: Batch, num_patches: int) -> Tensor | None:
    """Indices (B, K) of the visible patches, if the batch has them for this grid; None = find them in the
    mask.
    """
    context, targets = batch.get("context"), batch.get("targets")
    if context is None or targets is None or context.shape[1] + targets[0].numel() != num_patches:
        return None
    return context


def surroundings(values: Tensor, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
    """For each patch, the mean of ``values`` over visible patches, weighted by exp(-distance^2 / 2).

    Args:
        values: (B, N, S).
        hidden: (B, N) bool; values at hidden patches are ignored.
        grid: rows and columns of patches.

    Returns:
        (B, N, S).
    """
    rows, columns = (torch.arange(n, device=values.device, dtype=values.dtype) for n in grid)
    place = torch.cartesian_prod(rows, columns).view(-1, 2)  # (N, 2)
    nearness = -torch.cdist(place, place).square() / 2  # (N, N)
    weights = nearness.masked_fill(hidden[:, None], float("-inf")).softmax(2)  # (B, N, N)
    return weights @ values.masked_fill(hidden[:, :, None], 0)


class MAE(SSLModule):
    """MAE: predict the pixels of hidden patches from the visible ones.

    Features are those of ``encoder`` on the whole image.

    Args:
        encoder: a ``ViTEncoder``, as it has to encode a subset of the patches.
        decoder_width: width of the decoder's tokens.
        decoder_depth: number of decoder blocks.
        decoder_heads: number of attention heads in the decoder.
        normalize_target: predict patches normalized to mean 0 and variance 1 each, which gives better
            features; False = raw pixels, which gives better images.
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
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        normalize_target: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(encoder, PatchEncoder)
        self.encoder, self.normalize_target = encoder, normalize_target
        self.patch_size, self.grid = encoder.patch_size, encoder.grid
        self.image_shape = (encoder.in_channels, *(n * self.patch_size for n in self.grid))
        values = self.patch_size**2 * self.image_shape[0]
        if normalize_target and values == 1:
            raise ConfigError(
                "normalize_target needs patches of at least two values, got patch_size 1 and 1 channel"
            )
        self.decoder = PatchDecoder(
            self.grid,
            in_width=encoder.num_features,
            out_features=values,
            width=decoder_width,
            depth=decoder_depth,
            heads=decoder_heads,
        )

    def predict(self, x: Tensor, hidden: Tensor, visible: Tensor | None = None) -> Tensor:
        """Predict all patches, (B, N, p * p * C), of images (B, C, H, W) from those not ``hidden`` (B, N).

        ``visible`` (B, K) gives the indices of these, if known.
        """
        if x.shape[1:] != self.image_shape or hidden.shape[1] != self.grid[0] * self.grid[1]:
            raise ConfigError(
                f"encoder takes images of {self.image_shape} in {self.grid[0]}x{self.grid[1]} patches, got "
                f"{tuple(x.shape[1:])} and a mask of {hidden.shape[1]} patches: set its image_size, "
                "patch_size, in_channels"
            )
        visible = visible_patches(hidden) if visible is None else visible
        return self.decoder(self.encoder.forward_visible(x, visible), visible)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        x = batch["views"][0] if "views" in batch else batch["input"]
        hidden = hidden_patches(batch["mask"], self.patch_size)
        visible = known_visible(batch, hidden.shape[1])
        target = patchify(x, self.patch_size)
        if self.normalize_target:
            target = normalize_patches(target)
        return {"loss": hidden_patch_mse(self.predict(x, hidden, visible), target, hidden)}

    def reconstruct(self, batch: Batch) -> Tensor:
        """(B, C, H, W) standardized: ``input`` with its hidden patches predicted from the visible ones.

        With ``normalize_target``, the prediction has no level or contrast; both come from the visible patches
        around it.
        """
        x, hidden = batch["input"], hidden_patches(batch["mask"], self.patch_size)
        prediction, patches = (
            full_precision(self.predict(x, hidden)),
            patchify(full_precision(x), self.patch_size),
        )
        if self.normalize_target:
            mean, variance = surroundings(torch.cat(patch_statistics(patches), 2), hidden, self.grid).chunk(
                2, dim=2
            )
            prediction = prediction * (variance + EPSILON).sqrt() + mean
        return unpatchify(
            torch.where(hidden[:, :, None], prediction, patches), self.patch_size, self.grid
        ).to(x.dtype)
