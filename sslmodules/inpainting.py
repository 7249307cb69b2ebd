"""Inpainting with context encoders (Pathak et al. 2016, https://arxiv.org/abs/1604.07379).

A convolutional network sees an image with a hole, and the mask, and predicts the hidden part.

Differs from the paper: no adversarial term (its weight there is 0.001, and it improves sharpness, not
features), and the network gets the mask in addition to the image, so that a hole cannot be confused with
content of the same color.
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
    """Mean squared error over hidden pixels only, per image, then over the batch (Pathak et al. 2016).
    Divided by the number of hidden values of each image, not by its size, so that the scale does not depend
    on the hole's size. The mean is taken per image first, because a mean over all hidden pixels of a batch
    would differ between one process and two.

    Args:
        prediction: (B, C, H, W).
        target: (B, C, H, W), the clean image.
        mask: (B, 1, H, W) bool, True = hidden.

    Returns:
        Scalar; an image with nothing hidden counts as 0.
    """
    hidden = mask.expand_as(target)
    error = (full_precision(prediction) - full_precision(target)).square() * hidden
    return (error.flatten(1).sum(1) / hidden.flatten(1).sum(1).clamp(min=1)).mean()


class Inpainting(SSLModule):
    """Inpainting: fill in the hidden part of an image.

    Args:
        encoder: takes the image and the mask as one more channel, and has ``forward_features`` -> (B, D, h,
            w).
        decoder: (B, D, h, w) -> (B, C, H, W), the image in standardized units.
        loss_region: ``hidden`` = error inside the hole; ``image`` = error everywhere, which mainly teaches
            copying.
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
        """Features of the whole image, with an empty mask."""
        return self.encoder(torch.cat([x, torch.zeros_like(x[:, :1])], dim=1))

    def reconstruct(self, batch: Batch) -> Tensor:
        """(B, C, H, W) prediction of the whole image, from the visible part of ``input`` only."""
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
