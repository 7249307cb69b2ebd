"""Inpainting: predict the hidden part of an image (context encoders, Pathak et al. 2016,
https://arxiv.org/abs/1604.07379).

A convolutional network sees the image with a hole and the mask, and predicts what was there.

Differs from the paper: no adversarial term (its weight there is 0.001 and it serves sharpness, not features),
and the mask is given to the network beside the image, so that a hole cannot be mistaken for content of the
same color.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.base import Batch
from datamodules.checks import check, check_one_of
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks.encoder import MapEncoder, require


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over hidden pixels only: per image, then over the batch (Pathak et al. 2016,
    reconstruction loss).

    Divided by the number of hidden values of each image, not by its size: the scale does not drift with the
    hole's size. The mean is taken per image first, because a mean over all hidden pixels of a batch differs
    between one process and two.

    Args:
        prediction: (B, C, H, W).
        target: (B, C, H, W), the clean image.
        mask: (B, 1, H, W) bool, True = hidden.

    Returns:
        Scalar; an image of which nothing is hidden counts as 0.
    """
    hidden = mask.expand_as(target)
    error = (full_precision(prediction) - full_precision(target)).square() * hidden
    return (error.flatten(1).sum(1) / hidden.flatten(1).sum(1).clamp(min=1)).mean()


class Inpainting(SSLModule):
    """Fill the hole of an image.

    Args:
        encoder: takes one channel more than the image (the mask) and has ``forward_features`` -> (B, D, h,
            w).
        decoder: (B, D, h, w) -> (B, C, H, W), the image in standardized units.
        loss_region: ``hidden`` = error in the hole; ``image`` = error everywhere, which mostly teaches to
            copy.
        **kwargs: ``SSLModule``'s.
    """

    encoder: MapEncoder
    batch_keys = ("mask",)

    def __init__(
        self,
        encoder: MapEncoder,
        decoder: nn.Module,
        loss_region: Literal["hidden", "image"] = "hidden",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(encoder, MapEncoder)
        check_one_of(("hidden", "image"), loss_region=loss_region)
        self.encoder, self.decoder, self.loss_region = encoder, decoder, loss_region

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        channels, declared = batch["input"].shape[1] + 1, self.encoder.in_channels
        expected = f"{channels}, the channels of an image and one for the mask"
        check(declared in (None, channels), "encoder.in_channels", expected, declared)

    def embed(self, x: Tensor) -> Tensor:
        """Features of the whole image: nothing is hidden, and the mask says so."""
        return self.encoder(torch.cat([x, torch.zeros_like(x[:, :1])], dim=1))

    def reconstruct(self, batch: Batch) -> Tensor:
        """(B, C, H, W) prediction of the whole image, from the visible part of ``input`` alone."""
        x, mask = batch["input"], batch["mask"]
        visible = x.masked_fill(mask, 0.0)  # 0 is the data's mean color: inputs are standardized
        return self.decoder(self.encoder.forward_features(torch.cat([visible, mask.to(x.dtype)], dim=1)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        prediction, x, mask = self.reconstruct(batch), batch["input"], batch["mask"]
        hidden, image = masked_mse(prediction, x, mask), masked_mse(prediction, x, torch.ones_like(mask))
        return {
            "loss": hidden if self.loss_region == "hidden" else image,
            "mse_hidden": hidden,
            "mse_image": image,
        }
